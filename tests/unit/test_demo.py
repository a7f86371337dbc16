"""The config that `edits-server demo` writes: on a loopback port, without secrets, readable by this user only."""

import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from serve_app.commands import demo
from serve_app.config import AppConfig
from serve_app.errors import OutOfMemory
from serve_app.models.registry import MODELS
from tests.conftest import ROOT, as_png, noise_image
from tests.unit.conftest import Application, safetensors_bytes
from tests.unit.serving import Served, serving

SECRET = "whsec_" + "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    return tmp_path


def write(folder, **args: object) -> dict:
    shipped = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    shipped["applications"][0]["args"] |= args
    (folder / "serve_config.yaml").write_text(yaml.safe_dump(shipped))
    written = demo.write_config(8123, MODELS["qwen_image"])
    [application] = yaml.safe_load(written.read_text())["applications"]
    return application["args"]


def test_no_secret_is_written(folder, monkeypatch):
    monkeypatch.setenv("WEBHOOK_SECRET", SECRET)
    monkeypatch.setenv("DATABASE_PASSWORD", "a-password")
    monkeypatch.setenv("BUCKET_KEY", "a-bucket-key")
    write(
        folder,
        webhooks={"secret": "${WEBHOOK_SECRET}"},
        jobs={"database_url": "postgresql+asyncpg://edits:${DATABASE_PASSWORD}@host/edits"},
        lora_root="s3://key:${BUCKET_KEY}@bucket/loras",
    )
    text = (folder / "out/serve_config.yaml").read_text()
    for secret in (SECRET, "a-password", "a-bucket-key"):
        assert secret not in text


def test_only_this_user_may_read_it_even_if_it_replaces_a_file(folder):
    old = folder / "out/serve_config.yaml"
    old.write_text("old")
    old.chmod(0o644)
    write(folder)
    assert stat.S_IMODE(old.stat().st_mode) == 0o600


def test_the_demo_can_call_the_service_that_it_starts(folder):
    restricted = {
        "auth": {"keys_file": "keys.yaml"},
        "base_url": "https://edits.example",
        "allowed_hosts": ["x.example"],
    }
    config = AppConfig.model_validate(write(folder, **restricted))
    assert (config.auth.keys_file, config.base_url, config.allowed_hosts) == (None, None, ("*",))
    assert config.lora_root == str(folder / "samples/loras")
    assert config.jobs.database_url == f"sqlite+aiosqlite:///{folder}/out/data/jobs.sqlite3"
    assert [model.id for model in config.models] == ["qwen_image"]


@pytest.fixture
def served(config: AppConfig, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """An application that has the demo's LoRA, and whose editors make real images."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("tests.unit.conftest.IMAGE", as_png(noise_image(64, 48)))
    lora = Path(config.lora_root, demo.LORA)
    lora.parent.mkdir(parents=True)
    lora.write_bytes(safetensors_bytes())
    with serving(Application(config)) as served:
        yield served


def test_demo_edits_the_photograph_without_and_with_the_lora(served):
    made = demo.edits(demo.client_package(), served.url, MODELS["qwen_image_edit"])
    assert [image.size for image, _ in made] == [(64, 48)] * 2
    plans = [task.plan for task in served.application.editors.tasks]
    assert [[use.scale for use in plan.adapters] for plan in plans] == [[0.0], [1.0]]
    assert {(plan.prompt, plan.steps, plan.guidance_scale) for plan in plans} == {("sks invert the colours", 8, 1.0)}


def test_failed_edit_ends_the_demo_with_its_reason(served):
    served.application.editors.errors = [OutOfMemory("it does not fit")]
    with pytest.raises(demo.ServiceFailed, match="it does not fit"):
        demo.edits(demo.client_package(), served.url, MODELS["qwen_image_edit"])


def test_demo_without_the_client_says_how_to_install_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "edits_client", None)
    with pytest.raises(SystemExit) as ended:
        demo.client_package()
    assert ended.value.code == 1
    assert "pip install ./clients/python" in capsys.readouterr().out
