"""Weights that threads read: the values of the libraries' own loading, or an error that names the file."""

import errno
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from serve_app.concurrency.watched_threads import Stalled, Watch, WatchedThreads
from serve_app.config import ModelConfig
from serve_app.errors import CheckpointRefused
from serve_app.pipeline import checkpoint, loading, miniature
from serve_app.pipeline.layer_stream import NoChanges
from serve_app.pipeline.streaming import StreamedPlacement
from serve_app.pipeline.weight_files import MappedFiles
from tests.engine.pipelines import CPU, EDIT

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path) -> Path:
    return Path(shutil.copytree(miniature.checkpoint_folder(EDIT), tmp_path / "checkpoint"))


def modules(pipeline) -> list[torch.nn.Module]:
    return [pipeline.text_encoder, pipeline.transformer, pipeline.vae]


def values(pipeline) -> dict[str, torch.Tensor]:
    return {
        f"{part}.{name}": tensor
        for part, module in enumerate(modules(pipeline))
        for name, tensor in (*module.named_parameters(), *module.named_buffers())
    }


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk", [64, loading.CHUNK_BYTES])
def test_values_are_those_of_the_libraries_in_every_dtype(folder, monkeypatch, dtype, chunk):
    monkeypatch.setattr(loading, "CHUNK_BYTES", chunk)
    read = checkpoint.load_folder(folder, ModelConfig(), EDIT, CPU, dtype)
    assert_equal(values(read), values(checkpoint.read(folder, dtype)))
    mapped = MappedFiles()
    assert not any(mapped.place(tensor) for tensor in loading.unique_tensors(modules(read)))


def test_parts_of_several_dtypes_are_converted_too(folder):
    tensors = load_file(folder / TRANSFORMER)
    mixed = {name: tensor.half() if number % 2 else tensor for number, (name, tensor) in enumerate(tensors.items())}
    save_file(mixed, folder / TRANSFORMER, metadata={"format": "pt"})
    read = checkpoint.load_folder(folder, ModelConfig(), EDIT, CPU, torch.bfloat16)
    assert_equal(values(read), values(checkpoint.read(folder, torch.bfloat16)))


def test_values_are_right_where_the_system_does_not_tell_what_is_mapped(folder, monkeypatch):
    monkeypatch.setattr("serve_app.pipeline.weight_files.MAPS", Path("/nowhere"))
    read = checkpoint.load_folder(folder, ModelConfig(), EDIT, CPU, torch.float32)
    assert_equal(values(read), values(checkpoint.read(folder, torch.float32)))


def test_streamed_weights_are_read_from_their_files(folder, monkeypatch):
    monkeypatch.setattr(loading, "CHUNK_BYTES", 64)
    expected = values(checkpoint.read(folder, torch.float32))
    read = checkpoint.load_folder(folder, ModelConfig(offload="stream"), EDIT, CPU, torch.float32)
    streamed = StreamedPlacement(read, CPU, None, NoChanges())
    assert_equal(values(read), expected)
    mapped = MappedFiles()
    unused = set(read.text_encoder.lm_head.parameters())
    streamed_tensors = [t for t in loading.unique_tensors(modules(read)) if t not in unused]
    assert not any(mapped.place(tensor) for tensor in streamed_tensors)
    del streamed


class Slow:
    """`os.preadv`, which hangs for one file until the test ends."""

    def __init__(self, file: Path) -> None:
        self._inode = file.stat().st_ino
        self._preadv = os.preadv
        self.released = threading.Event()

    def __call__(self, descriptor, buffers, offset):
        if os.fstat(descriptor).st_ino == self._inode:
            self.released.wait(30)
        return self._preadv(descriptor, buffers, offset)


def load(folder: Path, offload: str) -> None:
    """As an engine does with streamed or resident weights."""
    read = checkpoint.load_folder(folder, ModelConfig(offload=offload), EDIT, CPU, torch.float32)
    if offload == "stream":
        StreamedPlacement(read, CPU, None, NoChanges())


@pytest.mark.parametrize("offload", ["none", "stream"])
def test_disk_that_stalls_is_an_error_that_names_the_file(folder, monkeypatch, offload):
    slow = Slow(folder / TRANSFORMER)
    monkeypatch.setattr(os, "preadv", slow)
    monkeypatch.setattr(loading, "PATIENCE_S", 0.2)
    with pytest.raises(CheckpointRefused, match=rf"reading {folder / TRANSFORMER} has stalled"):
        load(folder, offload)
    slow.released.set()


class Changing:
    """`os.preadv`, which changes a file before its first bytes are read."""

    def __init__(self, file: Path, change: Callable[[Path], None]) -> None:
        self._file, self._change = file, change
        self._preadv = os.preadv
        self._lock, self._changed = threading.Lock(), False

    def __call__(self, descriptor, buffers, offset):
        with self._lock:
            if not self._changed:
                self._changed = True
                self._change(self._file)
        return self._preadv(descriptor, buffers, offset)


def test_file_that_becomes_shorter_while_it_is_read_is_refused(folder, monkeypatch):
    file = folder / TRANSFORMER
    monkeypatch.setattr(os, "preadv", Changing(file, lambda changed: os.truncate(changed, 8192)))
    reader = loading.WeightReader(folder, CPU, torch.float32)
    with pytest.raises(CheckpointRefused, match=f"{file} became shorter while it was read"):
        reader.place([])


def test_file_that_changes_while_it_is_read_is_refused(folder, monkeypatch):
    file = folder / TRANSFORMER
    monkeypatch.setattr(os, "preadv", Changing(file, lambda changed: os.utime(changed, (1, 1))))
    with pytest.raises(CheckpointRefused, match=f"{file} was changed while it was read"):
        load(folder, "none")


def test_disk_that_fails_is_an_error_that_names_the_file(folder, monkeypatch):
    def fail(changed: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", Changing(folder / TRANSFORMER, fail))
    with pytest.raises(CheckpointRefused, match=rf"{folder}/.*safetensors cannot be read: .*Input/output error"):
        load(folder, "none")


def test_shard_that_the_index_names_and_that_is_missing_is_refused(tmp_path):
    folder = tmp_path / "checkpoint"
    miniature.make(EDIT).save_pretrained(folder, max_shard_size="20KB")
    gone = sorted((folder / "transformer").glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(CheckpointRefused, match=f"names {gone.name}, which is missing"):
        checkpoint.load_folder(folder, ModelConfig(), EDIT, CPU, torch.float32)


def test_first_error_of_a_call_ends_the_others():
    reached = []

    def call(number: int, watch: Watch) -> None:
        watch.before(f"call {number}")
        if number == 2:
            raise ValueError("two")
        reached.append(number)

    threads = WatchedThreads((lambda watch, n=n: call(n, watch) for n in range(1000)), 1, 30)
    with threads, pytest.raises(ValueError, match="two"):
        threads.finish()
    assert reached == [0, 1]


def test_error_of_what_is_to_be_called_is_raised():
    def calls():
        yield lambda watch: None
        raise MemoryError("none left")

    with WatchedThreads(calls(), 2, 30) as threads, pytest.raises(MemoryError):
        threads.finish()


def test_hanging_call_is_named():
    released = threading.Event()

    def hang(watch: Watch) -> None:
        watch.before("the disk")
        released.wait(30)

    try:
        with WatchedThreads([hang], 1, 0.1) as threads, pytest.raises(Stalled, match="the disk"):
            threads.finish()
    finally:
        released.set()
