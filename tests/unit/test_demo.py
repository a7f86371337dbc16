"""The config that `edits-server demo` writes: on a loopback port, without secrets, readable by this user only."""

import stat

import pytest
import yaml

from serve_app.commands import demo
from serve_app.config import AppConfig
from serve_app.models.registry import MODELS
from tests.conftest import ROOT

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
