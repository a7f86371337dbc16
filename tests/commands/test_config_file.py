"""Config files of `edits-server run`: how paths are resolved, and how a fault is named."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from serve_app.commands.config_file import KEEP_ALIVE_S, read_config_file
from serve_app.config import IngressSettings
from serve_app.errors import ConfigRefused
from tests.conftest import ROOT


def write(folder: Path, args: dict[str, Any] | None = None, **rest: Any) -> Path:
    """A config file in `folder`, with a LoRA root next to it."""
    (folder / "loras").mkdir(parents=True, exist_ok=True)
    application = {"name": "edits", "import_path": "serve_app.app:build", "args": {"lora_root": "loras"} | (args or {})}
    file = folder / "serve_config.yaml"
    file.write_text(yaml.safe_dump({"applications": [application]} | rest))
    return file


def refusal(path: Path) -> str:
    with pytest.raises(ConfigRefused) as refused:
        read_config_file(path)
    assert "\n" not in refused.value.message
    return refused.value.message


def test_the_shipped_config_can_be_run():
    file = read_config_file(ROOT / "serve_config.yaml")
    assert (file.host, file.port, file.application, file.base_path) == ("127.0.0.1", 8000, "edits", "")
    assert file.config.lora_root == str(ROOT / "samples/loras")


@pytest.mark.parametrize("name", ["it's mine", "two words", 'a "quoted" name', "run", "x.yaml"])
def test_relative_paths_are_relative_to_the_config_file_whatever_its_path(tmp_path: Path, name: str, monkeypatch):
    write(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    file = read_config_file(Path(name) / "serve_config.yaml")
    assert file.config.lora_root == str(tmp_path / name / "loras")
    assert file.config.artifacts_url == str(tmp_path / name / "data/artifacts")
    [application] = file.behind_front(1).applications
    assert application.args["config_folder"] == str(tmp_path / name)


def test_home_is_expanded(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home/loras").mkdir(parents=True)
    model = {"adapter_disk_folder": "~/adapters", "compile_cache_folder": "compiled"}
    args = {"lora_root": "~/loras", "artifacts_url": "file://~/artifacts", "models": [model]}
    args |= {"jobs": {"database_url": "sqlite+aiosqlite:///~/jobs.sqlite3"}, "auth": {"keys_file": "~/keys.yaml"}}
    config = read_config_file(write(tmp_path, args)).config
    home = str(tmp_path / "home")
    assert (config.lora_root, config.artifacts_url) == (f"{home}/loras", f"{home}/artifacts")
    assert config.jobs.database_url == f"sqlite+aiosqlite:///{home}/jobs.sqlite3"
    assert config.auth.keys_file == f"{home}/keys.yaml"
    assert config.models[0].adapter_disk_folder == f"{home}/adapters"
    assert config.models[0].compile_cache_folder == f"{tmp_path}/compiled"


def test_serve_gets_the_file_unchanged_with_its_proxy_behind_the_front(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("PASSWORD", "hunter2")
    args = {"jobs": {"database_url": "postgresql+asyncpg://edits:${PASSWORD}@db/edits"}}
    options = {"host": "0.0.0.0", "port": 9, "request_timeout_s": 400}
    schema = read_config_file(write(tmp_path, args, http_options=options, proxy_location="HeadOnly")).behind_front(4567)
    assert (schema.http_options.host, schema.http_options.port) == ("127.0.0.1", 4567)
    assert (schema.http_options.request_timeout_s, schema.http_options.keep_alive_timeout_s) == (400, KEEP_ALIVE_S)
    assert schema.proxy_location == "HeadOnly"
    assert schema.applications[0].args["jobs"] == args["jobs"]
    assert "hunter2" not in schema.model_dump_json()


@pytest.mark.parametrize(
    ("args", "rest", "sentence"),
    [
        ({"lora_rot": "x"}, {}, "applications.0.args.lora_rot: Extra inputs are not permitted"),
        ({"jobs": {"lease_s": "soon"}}, {}, "applications.0.args.jobs.lease_s: Input should be a valid number"),
        ({"lora_root": "nowhere"}, {}, "lora_root: there is no folder {folder}/nowhere"),
        (
            {"lora_root": "${NOT_SET_ANYWHERE}"},
            {},
            "args.lora_root: the environment variable NOT_SET_ANYWHERE is not set",
        ),
        ({"lora_root": "~nobody-of-this-name/x"}, {}, "lora_root: '~nobody-of-this-name/x' names a home folder"),
        ({}, {"http_options": {"port": "many"}}, "http_options.port: Input should be a valid integer"),
        ({}, {"http_options": {"prot": 1}}, "http_options.prot: there is no such key"),
        ({}, {"http_option": {}}, "http_option: there is no such key"),
        ({}, {"applications": []}, "applications: there must be exactly one, not 0"),
        ({}, {"applications": 3}, "applications: Input should be a valid list"),
    ],
)
def test_a_fault_is_one_sentence_that_names_the_key(tmp_path: Path, args: dict, rest: dict, sentence: str):
    assert sentence.format(folder=tmp_path) in refusal(write(tmp_path, args, **rest))


def test_a_misspelt_key_of_a_deployment_is_named(tmp_path: Path):
    file = write(tmp_path)
    raw = yaml.safe_load(file.read_text())
    raw["applications"][0]["deployments"] = [{"name": "Ingress", "num_replica": 2}]
    file.write_text(yaml.safe_dump(raw))
    assert "applications.0.deployments.0.num_replica: there is no such key" in refusal(file)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"a: [1", "the YAML cannot be used: "),
        (b"applications: []\napplications: []", "the mapping has this key twice in line 2"),
        (b"- a", "a config file is a mapping"),
        (b"\xff\xfe\x00", "it is not text"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_unreadable_config_file_is_refused(tmp_path: Path, text: bytes | None, sentence: str):
    file = tmp_path / "serve_config.yaml"
    if text is not None:
        file.write_bytes(text)
    assert sentence in refusal(file)


def test_a_value_is_never_repeated(tmp_path: Path):
    args = {"webhooks": {"secret": "whsec_hunter2", "timeout_s": -1}, "auth": {"keys_file": ["hunter2"]}}
    assert "hunter2" not in refusal(write(tmp_path, args))


STYLE = {"model": "qwen_image_edit", "loras": [{"path": "a.safetensors"}], "size": "input"}


def with_user_config(folder: Path, deployment: str, user_config: object) -> Path:
    file = write(folder)
    raw = yaml.safe_load(file.read_text())
    raw["applications"][0]["deployments"] = [{"name": "Editor-x"}, {"name": deployment, "user_config": user_config}]
    file.write_text(yaml.safe_dump(raw))
    return file


@pytest.mark.parametrize(
    ("user_config", "sentence"),
    [
        ({"max_qeued": 7}, "max_qeued: Extra inputs are not permitted"),
        ({"presets": {"style": {"loras": []}}}, "presets.style.model: Field required"),
        ({"presets": {"two words": STYLE}}, "presets.two words.[key]: a preset's name has"),
        ({"presets": {"qwen_image": STYLE}}, "presets.qwen_image: qwen_image is the id of a model"),
        (
            {"presets": {"style": STYLE | {"model": "qwen_image"}}},
            "presets.style.model: this service has",
        ),
        ({"presets": {"style": STYLE | {"sample_steps": 0}}}, "presets.style: sample_steps: Input should be greater"),
        ([], "user_config: Input should be a valid dictionary"),
    ],
)
def test_a_fault_in_the_user_config_is_named_before_anything_starts(tmp_path: Path, user_config: object, sentence: str):
    found = refusal(with_user_config(tmp_path, "Ingress", user_config))
    assert "applications.0.deployments.1.user_config" in found
    assert sentence in found


def test_a_user_config_that_can_be_used_is_taken(tmp_path: Path):
    read_config_file(with_user_config(tmp_path, "Ingress", {"presets": {"style": STYLE}, "max_queued": 7}))
    read_config_file(with_user_config(tmp_path, "Editor-qwen_image_edit", {"log_level": "DEBUG"}))
    read_config_file(with_user_config(tmp_path, "Ingress", None))
    editors = with_user_config(tmp_path, "Editor-qwen_image_edit", {"presets": {}})
    assert "user_config.presets: Extra inputs are not permitted" in refusal(editors)


def test_the_preset_in_the_comments_of_the_shipped_config_can_be_run(tmp_path: Path):
    """As it is once the signs of comments are taken away."""
    text = (ROOT / "serve_config.yaml").read_text()
    begins = text.index("        # user_config:")
    commented = [line for line in text[begins:].splitlines() if line.startswith("        # ")]
    uncommented = "\n".join(line.replace("        # ", "        ", 1) for line in commented)
    file = tmp_path / "serve_config.yaml"
    (tmp_path / "samples").symlink_to(ROOT / "samples")
    file.write_text(text.replace("\n".join(commented), uncommented))
    [ingress, _] = read_config_file(file).behind_front(1).applications[0].deployments
    [preset] = IngressSettings.model_validate(ingress.user_config).presets.values()
    assert all((ROOT / "samples/loras" / lora.path).is_file() for lora in preset.loras)
