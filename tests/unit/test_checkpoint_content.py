"""A digest of a checkpoint's files, which changes with them."""

import os
import threading
from pathlib import Path
from typing import cast

import fsspec
import pytest

from serve_app.config import ModelConfig
from serve_app.intake.calibrations import losses
from serve_app.jobs.calibrations import Calibrations
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


def test_a_url_is_known_by_what_its_store_lists(folder, monkeypatch):
    store = fsspec.filesystem("memory")
    url = f"memory://{folder.name}"
    store.put(f"{folder}/", f"/{folder.name}", recursive=True)
    model = ModelConfig(checkpoint=url)
    before = checkpoint_content(model)
    assert before is not None
    assert checkpoint_content(model) == before
    store.pipe_file(f"/{folder.name}/transformer/weights.safetensors", os.urandom(LARGE))
    assert checkpoint_content(model) not in (None, before)
    store.rm(f"/{folder.name}", recursive=True)
    assert checkpoint_content(model) is None


def test_the_url_of_a_folder_has_the_folders_content(folder):
    assert checkpoint_content(ModelConfig(checkpoint=f"file://{folder}")) == content(folder)


async def test_content_is_looked_for_until_it_is_known_and_again_later(monkeypatch):
    found = [None, "one", "two", None, "three"]
    monkeypatch.setattr(losses, "checkpoint_content", lambda model: found.pop(0))
    measured = losses.MeasuredLosses(cast(Calibrations, None))

    async def content() -> str | None:
        return (await measured.key(ModelConfig(), "fast", "0", [])).content

    assert [await content() for _ in range(3)] == [None, "one", "one"]
    monkeypatch.setattr(losses, "AGAIN_S", -1)
    # Not known is no other content.
    assert [await content() for _ in range(3)] == ["two", "two", "three"]


async def test_store_that_does_not_answer_stops_no_request(monkeypatch):
    release, calls = threading.Event(), []
    monkeypatch.setattr(losses, "checkpoint_content", lambda model: calls.append(model) or release.wait(30))
    monkeypatch.setattr(losses, "PATIENCE_S", 0.05)
    measured = losses.MeasuredLosses(cast(Calibrations, None))
    try:
        for _ in range(2):
            assert (await measured.key(ModelConfig(), "fast", "0", [])).content is None
        assert len(calls) == 1
    finally:
        release.set()


def test_the_miniature_has_a_content():
    assert checkpoint_content(ModelConfig()) is not None
