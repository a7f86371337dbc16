"""`edits-server verify`: checks of a checkpoint before it takes traffic."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import OfflineModeIsEnabled

from serve_app.models.registry import MODELS
from serve_app.pipeline import miniature
from tests.conftest import edits_server

SMALL = ["--size", "64", "--steps", "1", "--device", "cpu"]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def copy(tmp_path):
    def copy(model: str) -> Path:
        return Path(shutil.copytree(miniature.checkpoint_folder(MODELS[model]), tmp_path / "checkpoint"))

    return copy


@pytest.mark.parametrize(
    "model", ["qwen_image_edit", "qwen_image_edit_plus", "qwen_image_edit_plus_2511", "qwen_image"]
)
def test_sound_checkpoint_is_recognised_and_edits_twice_the_same(copy, capsys, model):
    assert edits_server("verify", copy(model), *SMALL) == 0
    out = capsys.readouterr().out
    assert f", as {model}" in out
    assert "revision: none" in out
    assert "ok   edit 2: finite, not of one colour" in out
    assert "ok   both edits are equal" in out
    assert "BAD" not in out


def test_difference_is_named_and_nothing_is_edited(copy, capsys):
    folder = copy("qwen_image_edit")
    file = folder / "scheduler/scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"max_shift": 1.15}))
    assert edits_server("verify", folder, *SMALL) == 1
    out = capsys.readouterr().out
    assert "BAD  scheduler has max_shift = 1.15, the recipe needs 0.9" in out
    assert "ok   scheduler: base_shift = 0.5" in out
    assert "edit 1" not in out


def test_other_model_than_the_checkpoints_is_refused(copy, capsys):
    assert edits_server("verify", copy("qwen_image_edit"), "--model", "qwen_image", *SMALL) == 1
    assert "_class_name = 'QwenImageEditPipeline', the recipe needs 'QwenImagePipeline'" in capsys.readouterr().out


def test_revision_of_a_directory_is_a_mistake(copy, capsys):
    assert edits_server("verify", copy("qwen_image"), "--revision", "main") == 1
    assert "is a directory, which has no revisions" in capsys.readouterr().out


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """The hub's local cache with one checkpoint, `me/mini`, at one commit."""
    repository = tmp_path / "hub/models--me--mini"
    shutil.copytree(miniature.checkpoint_folder(MODELS["qwen_image"]), repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(COMMIT)
    # What the hub's client has read from its environment, which it does once.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def asked(monkeypatch) -> list[str]:
    """The checkpoints that the hub was asked about."""
    checkpoints: list[str] = []

    def model_info(name: str, **_: object) -> None:
        checkpoints.append(name)
        raise OfflineModeIsEnabled

    monkeypatch.setattr("diffusers.pipelines.pipeline_utils.model_info", model_info)
    return checkpoints


@pytest.mark.usefixtures("hub_cache")
def test_cached_hub_checkpoint_is_used_without_asking_the_hub_and_its_commit_is_printed(capsys, asked):
    assert edits_server("verify", "me/mini", "--local-files-only", *SMALL) == 0
    assert f"revision: {COMMIT}" in capsys.readouterr().out
    assert asked == []


@pytest.mark.usefixtures("hub_cache")
def test_revision_that_is_not_cached_is_refused_when_the_hub_may_not_be_asked(capsys, asked):
    assert edits_server("verify", "me/mini", "--local-files-only", "--revision", "f" * 40, *SMALL) == 1
    expected = f"'me/mini' at revision {'f' * 40} is neither a directory here nor available in the hub's"
    assert expected in capsys.readouterr().out
    assert asked == []


def test_models_with_the_same_configs_are_all_named(copy, capsys):
    assert edits_server("verify", copy("qwen_image_2512"), *SMALL) == 0
    assert "as qwen_image (or qwen_image_2512: --model says which)" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [["--steps", "0"], ["--size", "-64"], ["--threads", "x"]])
def test_number_that_makes_no_sense_is_a_usage_error(wrong):
    assert edits_server("verify", "miniature", *wrong) == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_missing_device_is_named(capsys):
    assert edits_server("verify", "miniature", "--device", "cuda") == 1
    assert "BAD  the config says device: cuda, but torch finds no CUDA device" in capsys.readouterr().out
