"""A digest of a checkpoint's files, which changes with them."""

import os
from pathlib import Path

import pytest

from serve_app.config import ModelConfig
from serve_app.models.checkpoint_content import SAMPLE_BYTES, SAMPLES, checkpoint_content, checkpoint_name

LARGE = 4 * SAMPLES * SAMPLE_BYTES


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "transformer").mkdir()
    (tmp_path / "model_index.json").write_text("{}")
    (tmp_path / "transformer/weights.safetensors").write_bytes(os.urandom(LARGE))
    return tmp_path


def content(folder: Path) -> str | None:
    return checkpoint_content(ModelConfig(checkpoint=str(folder)))


def test_equal_files_have_one_content(folder):
    before = content(folder)
    os.utime(folder / "model_index.json", (1, 1))
    assert content(folder) == before
    assert before is not None


@pytest.mark.parametrize("place", [0, LARGE - 1])
def test_other_weights_are_another_content(folder, place):
    before = content(folder)
    weights = bytearray((folder / "transformer/weights.safetensors").read_bytes())
    weights[place] ^= 1
    (folder / "transformer/weights.safetensors").write_bytes(weights)
    assert content(folder) != before


def test_another_config_is_another_content(folder):
    before = content(folder)
    (folder / "model_index.json").write_text('{"a": 1}')
    assert content(folder) != before


def test_a_checkpoint_of_the_hub_is_known_by_its_name_and_revision():
    model = ModelConfig(checkpoint="Qwen/Qwen-Image-Edit", revision="abc")
    assert (checkpoint_name(model), checkpoint_content(model)) == ("Qwen/Qwen-Image-Edit@abc", None)


def test_the_miniature_has_a_content():
    assert checkpoint_content(ModelConfig()) is not None
