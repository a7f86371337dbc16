"""The config is the args of serve_config.yaml, and a mistake in it is named."""

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from serve_app.config import AppConfig
from tests.conftest import ROOT


def test_shipped_config_is_valid_and_equals_the_defaults():
    shipped = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    [application] = shipped["applications"]
    assert (application["name"], application["import_path"]) == ("edits", "serve_app.app:build")
    # It listens on loopback, where everybody may see the history.
    assert AppConfig.model_validate(application["args"]) == AppConfig(history_without_keys=True)


@pytest.mark.parametrize("args", [{"lora_rot": "x"}, {"fetch": {"max_byte": 1}}, {"models": [{"idd": "x"}]}])
def test_unknown_key_is_refused_and_named(args):
    with pytest.raises(ValidationError, match=r"lora_rot|max_byte|idd"):
        AppConfig.model_validate(args)


def test_config_is_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        AppConfig().lora_root = "elsewhere"


def test_relative_paths_are_the_config_folders(tmp_path: Path):
    (tmp_path / "weights").mkdir()
    config = AppConfig.model_validate({"models": [{"checkpoint": "weights"}], "artifacts_url": "file://a"})
    resolved = config.resolved(tmp_path)
    assert resolved.lora_root == f"{tmp_path}/samples/loras"
    assert resolved.artifacts_url == f"{tmp_path}/a"
    assert resolved.jobs.database_url == f"sqlite+aiosqlite:///{tmp_path}/data/jobs.sqlite3"
    assert resolved.models[0].checkpoint == f"{tmp_path}/weights"


def test_other_urls_and_absolute_paths_stay(tmp_path: Path):
    args = {"models": [{"checkpoint": "Qwen/Qwen-Image-Edit"}], "lora_root": "/loras", "artifacts_url": "s3://bucket/a"}
    config = AppConfig.model_validate(args | {"jobs": {"database_url": "sqlite+aiosqlite:////var/j.db"}})
    assert config.resolved(tmp_path) == config


def test_variables_are_expanded_and_a_missing_one_is_named(monkeypatch):
    monkeypatch.setenv("BUCKET", "images")
    assert AppConfig.model_validate({"artifacts_url": "s3://${BUCKET}/a"}).artifacts_url == "s3://images/a"
    with pytest.raises(ValidationError, match="NOT_SET_ANYWHERE"):
        AppConfig.model_validate({"base_url": "https://${NOT_SET_ANYWHERE}"})


def test_model_may_be_listed_once():
    with pytest.raises(ValidationError, match="each id may be listed once"):
        AppConfig.model_validate({"models": [{}, {}]})


LITERAL = "whsec_" + "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="


@pytest.mark.parametrize(
    ("args", "key"),
    [
        ({"webhooks": {"secret": LITERAL}}, "webhooks.secret"),
        ({"webhooks": {"secret": f"{LITERAL}${{HOME}}"}}, "webhooks.secret"),
        ({"jobs": {"database_url": "postgresql+asyncpg://edits:word-in-the-file@host/edits"}}, "jobs.database_url"),
        ({"jobs": {"database_url": "postgresql+asyncpg://host/x?password=word-in-the-file"}}, "jobs.database_url"),
        ({"lora_root": "s3://key:word-in-the-file@bucket/loras"}, "lora_root"),
        ({"artifacts_url": "s3://key:word-in-the-file@bucket/a"}, "artifacts_url"),
    ],
)
def test_secret_in_the_file_is_refused_and_not_repeated(args, key):
    with pytest.raises(ValidationError, match="environment variable and write") as caught:
        AppConfig.model_validate(args)
    [error] = caught.value.errors()
    assert ".".join(str(part) for part in error["loc"]) == key
    for secret in (LITERAL, "word-in-the-file"):
        assert secret not in str(caught.value)


def test_secrets_of_the_environment_are_taken_and_not_shown(monkeypatch):
    monkeypatch.setenv("PASSWORD", "a-password")
    monkeypatch.setenv("SECRET", LITERAL)
    url = "postgresql+asyncpg://edits:${PASSWORD}@host/edits"
    config = AppConfig.model_validate({"jobs": {"database_url": url}, "webhooks": {"secret": "${SECRET}"}})
    assert config.jobs.database_url == "postgresql+asyncpg://edits:a-password@host/edits"
    assert config.webhooks.secret.get_secret_value() == LITERAL
    for secret in (LITERAL, "a-password"):
        assert secret not in repr(config)
        assert secret not in str(config)


def test_mistake_next_to_a_secret_does_not_show_it():
    with pytest.raises(ValidationError) as caught:
        AppConfig.model_validate({"webhooks": {"secrets": LITERAL}})
    assert LITERAL not in str(caught.value)
    assert "secrets" in str(caught.value)
