"""Bad days of adapters: a store that is down or changes its mind, and more adapters than there is room for."""

import random
import uuid
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from serve_app.adapters.maker import make_lora
from serve_app.adapters.sources import fingerprint
from serve_app.config import ModelConfig
from serve_app.engine import Engine
from serve_app.errors import LoraChanged, LoraDownloadFailed
from serve_app.models import checkpoint, miniature
from serve_app.models.registry import MODELS
from serve_app.tasks import AdapterUse
from tests.conftest import THREADS
from tests.engine.conftest import CPU, EDIT, use

MODEL = MODELS["qwen_image"]


class MoodyStore(MemoryFileSystem):
    """A remote store that fails when it is told to."""

    protocol = "moody"
    store: dict = {}  # noqa: RUF012  # fsspec's own way to share files between instances
    pseudo_dirs = [""]  # noqa: RUF012
    error: OSError | None = None

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("moody://").strip("/")

    def cat_file(self, path, start=None, end=None, **kwargs):
        if MoodyStore.error is not None:
            raise MoodyStore.error
        return super().cat_file(path, start=start, end=end, **kwargs)


fsspec.register_implementation("moody", MoodyStore, clobber=True)


@pytest.fixture
def engine(tmp_path) -> Engine:
    """An engine with room for three adapters, in memory and on disk."""
    import torch

    config = ModelConfig(
        id=MODEL.id,
        threads=THREADS,
        adapter_cache_bytes=90_000,
        adapter_disk_bytes=90_000,
        adapter_disk_folder=str(tmp_path / "disk"),
    )
    return Engine(checkpoint.load(config, MODEL, CPU, torch.float32), MODEL, config)


@pytest.fixture
def picture_of(engine, make_plan):
    def picture_of(*uses) -> np.ndarray:
        plan = make_plan(model=MODEL.id, control_images=(), adapters=uses, steps=1, guidance_scale=1.0)
        return np.asarray(engine.edit(plan, []).image)

    return picture_of


@pytest.fixture
def remote(loras):
    """Put a file into the moody store; the adapter as a request names it."""
    MoodyStore.error = None

    def remote(source: Path, path: str | None = None) -> AdapterUse:
        path = path or f"/{uuid.uuid4().hex}.safetensors"
        fsspec.filesystem("moody").pipe_file(path, source.read_bytes())
        url = f"moody://{path}"
        return AdapterUse(fingerprint(url), path, url, 1.0)

    return remote


def test_remote_adapter_is_the_local_one(picture_of, remote, loras, tmp_path):
    assert np.array_equal(picture_of(remote(loras[0])), picture_of(use(loras[0])))
    assert len(list((tmp_path / "disk").glob("*.safetensors"))) == 1


@pytest.mark.parametrize(
    "error", [OSError("down"), PermissionError("403"), TimeoutError("slow"), ConnectionError("reset")]
)
def test_store_that_fails_fails_that_edit_and_the_next_one_works(picture_of, remote, loras, error):
    adapter, base = remote(loras[0]), picture_of()
    MoodyStore.error = error
    with pytest.raises(LoraDownloadFailed, match=r"the store of the LoRA file .* could not be read"):
        picture_of(adapter)
    assert np.array_equal(picture_of(), base)
    MoodyStore.error = None
    assert np.array_equal(picture_of(adapter), picture_of(use(loras[0])))


def test_file_deleted_or_overwritten_in_the_store_fails_that_edit(picture_of, remote, loras):
    deleted, overwritten = remote(loras[0]), remote(loras[1])
    fsspec.filesystem("moody").rm(deleted.path)
    remote(loras[2], overwritten.path)
    for adapter in (deleted, overwritten):
        with pytest.raises(LoraChanged):
            picture_of(adapter)


def test_two_revisions_of_one_name_are_two_adapters(picture_of, remote, loras):
    first = remote(loras[0])
    before = picture_of(first)
    second = remote(loras[1], first.path)
    assert second.id != first.id
    assert not np.array_equal(picture_of(second), before)


def test_a_thousand_uses_of_a_hundred_adapters_through_a_cache_of_three(engine, picture_of, remote, tmp_path):
    """Zipf traffic: each picture is that of its own adapter, memory and disk stay within their budgets."""
    transformer, dice = miniature.make(EDIT).transformer, random.Random(5)
    adapters = []
    for seed in range(100):
        make_lora(transformer, tmp_path / "made.safetensors", seed=seed)
        adapters.append(remote(tmp_path / "made.safetensors"))
    weights = [1 / (rank + 1) for rank in range(len(adapters))]
    expected: dict[str, bytes] = {}
    base = picture_of()
    for adapter in dice.choices(adapters, weights, k=1000):
        made = picture_of(adapter).tobytes()
        assert expected.setdefault(adapter.id, made) == made
    assert len(expected) > 60
    assert len(set(expected.values())) == len(expected)
    assert engine.adapters.size_bytes <= 90_000
    assert sum(file.stat().st_size for file in (tmp_path / "disk").glob("*.safetensors")) <= 90_000
    assert np.array_equal(picture_of(), base)
