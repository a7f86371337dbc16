"""Paths of the config where nobody knows the config file's folder, and a LoRA root that is not there."""

from pathlib import Path

import pytest

from serve_app.config import AppConfig
from serve_app.errors import ConfigRefused

ABSOLUTE = {"lora_root": "/loras", "artifacts_url": "s3://bucket/a"}
ABSOLUTE |= {"jobs": {"database_url": "postgresql+asyncpg://db/edits"}}


def test_absolute_paths_need_no_folder():
    config = AppConfig.model_validate(ABSOLUTE | {"models": [{"checkpoint": "Qwen/Qwen-Image-Edit"}]})
    assert config.resolved(None) == config


@pytest.mark.parametrize(
    ("args", "key"),
    [
        ({"lora_root": "loras"}, "lora_root"),
        ({"artifacts_url": "file://a"}, "artifacts_url"),
        ({"jobs": {}}, "jobs.database_url"),
        ({"auth": {"keys_file": "keys.yaml"}}, "auth.keys_file"),
        ({"models": [{"adapter_disk_folder": "adapters"}]}, r"models\[\].adapter_disk_folder"),
    ],
)
def test_a_relative_path_without_a_folder_is_refused_by_name(args: dict, key: str):
    with pytest.raises(ValueError, match=rf"^{key}: .* is relative, and the folder of the config file is not known"):
        AppConfig.model_validate(ABSOLUTE | args).resolved(None)


def test_a_lora_root_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(ConfigRefused, match=f"lora_root: there is no folder {tmp_path}/loras"):
        AppConfig(lora_root="loras").resolved(tmp_path).refuse_missing_folders()
    AppConfig(lora_root="s3://bucket/loras").resolved(tmp_path).refuse_missing_folders()
