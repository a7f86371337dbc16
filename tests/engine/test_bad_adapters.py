"""Bad days of adapters: a store that is down or changes its mind, and more adapters than there is room for."""

import hashlib
import random
import uuid
from pathlib import Path

import fsspec
import numpy as np
import psutil
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from safetensors.torch import load_file, save_file

from serve_app.adapters.verified_files import VerifiedFiles
from serve_app.config import MINIATURE_RANDOM, FetchConfig, ModelConfig
from serve_app.engine.torch_engine import TorchEngine
from serve_app.errors import LoraChanged, LoraDownloadFailed, StorageFailed
from serve_app.models.registry import MODELS
from serve_app.pipeline import checkpoint, miniature
from serve_app.pipeline.random_lora import make_lora
from serve_app.storage.artifacts import Artifacts
from serve_app.storage.identity import fingerprint, identity
from serve_app.tasks import AdapterUse
from tests.conftest import THREADS
from tests.engine.pipelines import CPU, EDIT, use
from tests.loraserver import LoraServer, lora_server

MODEL = MODELS["qwen_image"]
ROOM = 8
HUNDREDS = 250
LIMITS = FetchConfig(allow_private_addresses=True, timeout_s=0.5)


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
def adapter_bytes(loras) -> int:
    """The size of one of the tests' adapters: a little less in memory than as a file."""
    return loras[0].stat().st_size


@pytest.fixture
def engine(tmp_path, adapter_bytes) -> TorchEngine:
    """An engine with room for eight adapters, in memory and on disk."""
    import torch

    config = ModelConfig(
        id=MODEL.id,
        checkpoint=MINIATURE_RANDOM,
        threads=THREADS,
        adapter_cache_bytes=ROOM * adapter_bytes,
        adapter_disk_bytes=ROOM * adapter_bytes,
        adapter_disk_folder=str(tmp_path / "disk"),
    )
    contents = VerifiedFiles(config, LIMITS, Artifacts(str(tmp_path / "artifacts")))
    return TorchEngine(checkpoint.load(config, MODEL, CPU, torch.float32), MODEL, config, contents)


@pytest.fixture
def image_of(engine, make_plan):
    def image_of(*uses) -> np.ndarray:
        plan = make_plan(model=MODEL.id, control_images=(), adapters=uses, steps=1, guidance_scale=1.0)
        return np.asarray(engine.edit(plan, []).image)

    return image_of


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


def test_remote_adapter_gives_the_image_of_the_local_one(image_of, remote, loras, tmp_path):
    assert np.array_equal(image_of(remote(loras[0])), image_of(use(loras[0])))
    assert len(list((tmp_path / "disk").glob("*.safetensors"))) == 1


@pytest.mark.parametrize(
    "error", [OSError("down"), PermissionError("403"), TimeoutError("slow"), ConnectionError("reset")]
)
def test_store_that_fails_fails_that_edit_and_the_next_one_works(image_of, remote, loras, error):
    adapter, base = remote(loras[0]), image_of()
    MoodyStore.error = error
    with pytest.raises(StorageFailed, match=r"the store of the LoRA file .* cannot be read now"):
        image_of(adapter)
    assert np.array_equal(image_of(), base)
    MoodyStore.error = None
    assert np.array_equal(image_of(adapter), image_of(use(loras[0])))


def test_file_deleted_or_overwritten_in_the_store_fails_that_edit(image_of, remote, loras):
    deleted, overwritten = remote(loras[0]), remote(loras[1])
    fsspec.filesystem("moody").rm(deleted.path)
    remote(loras[2], overwritten.path)
    for adapter in (deleted, overwritten):
        with pytest.raises(LoraChanged):
            image_of(adapter)


def test_two_revisions_of_one_name_are_two_adapters(image_of, remote, loras):
    first = remote(loras[0])
    before = image_of(first)
    second = remote(loras[1], first.path)
    assert second.id != first.id
    assert not np.array_equal(image_of(second), before)


@pytest.fixture
def server(loras):
    with lora_server(loras[0].read_bytes()) as server:
        yield server


def by_url(server: LoraServer) -> AdapterUse:
    """The server's file as an ingress admits it now."""
    return AdapterUse(identity(server.url, len(server.content), server.etag), "a", server.url, 1.0, None, server.etag)


def test_adapter_from_a_url_gives_the_image_of_the_local_one(image_of, server, loras):
    assert np.array_equal(image_of(by_url(server)), image_of(use(loras[0])))


@pytest.mark.parametrize(
    ("day", "error"), [({"silent_after": 0}, LoraDownloadFailed), ({"etag": '"2"'}, LoraChanged)], ids=str
)
def test_server_that_fails_fails_that_edit_and_the_next_one_works(image_of, server, loras, day, error):
    adapter, base = by_url(server), image_of()
    good = {name: getattr(server, name) for name in day}
    vars(server).update(day)
    with pytest.raises(error):
        image_of(adapter)
    assert np.array_equal(image_of(), base)
    server.end.set()
    vars(server).update(good)
    assert np.array_equal(image_of(adapter), image_of(use(loras[0])))


def test_full_disk_is_bypassed(image_of, server, loras, tmp_path):
    adapter = by_url(server)
    (tmp_path / "disk").mkdir()
    (tmp_path / f"disk/{adapter.id}.part").symlink_to("/dev/full")
    assert np.array_equal(image_of(adapter), image_of(use(loras[0])))
    assert list((tmp_path / "disk").glob("*.safetensors")) == []


def test_result_says_what_was_in_each_file(engine, make_plan, loras):
    adapters = (use(loras[1]), use(loras[0]), use(loras[1], 0.5))
    plan = make_plan(model=MODEL.id, control_images=(), adapters=adapters, steps=1, guidance_scale=1.0)
    said = engine.edit(plan, []).runtime["adapters"]
    assert [each["sha256"] for each in said] == [hashlib.sha256(loras[n].read_bytes()).hexdigest() for n in (1, 0, 1)]
    assert [each["id"] for each in said] == [each.id for each in adapters]


def test_hundreds_of_adapters_through_a_cache_of_eight(engine, image_of, remote, make_plan, tmp_path, adapter_bytes):
    """All of them once and some again: every tenth image is that of its own adapter, budgets are kept.

    Nothing stays open, so that more of them would do as well.
    """
    transformer, dice = miniature.make(EDIT).transformer, random.Random(5)
    base, local = image_of(), tmp_path / "made.safetensors"
    make_lora(transformer, local, seed=0)
    tensors = load_file(local)
    first = next(iter(tensors))
    adapters, sizes = [], []
    opened = psutil.Process().num_fds()
    for n in range(HUNDREDS):
        # Another one by one tensor: making all of them anew takes longer than the test.
        save_file(tensors | {first: tensors[first] * (1 + n)}, local)
        adapters.append(remote(local))
        used = [adapters[-1], *dice.sample(adapters, min(n, 2))]
        if n % 10:
            engine.prepare(make_plan(model=MODEL.id, control_images=(), adapters=tuple(used)), [])
        else:
            assert np.array_equal(image_of(adapters[-1]), image_of(use(local)))
        sizes.append((engine.adapters.size_bytes, disk_bytes(tmp_path)))
    assert len({adapter.id for adapter in adapters}) == HUNDREDS
    assert psutil.Process().num_fds() < opened + HUNDREDS // 10
    assert ROOM // 2 * adapter_bytes < max(memory for memory, _ in sizes) <= ROOM * adapter_bytes
    assert ROOM // 2 * adapter_bytes < max(disk for _, disk in sizes) <= ROOM * adapter_bytes
    assert np.array_equal(image_of(), base)


def disk_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in (folder / "disk").glob("*.safetensors"))
