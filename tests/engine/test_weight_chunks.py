"""Chunks of weight files: what is read at once, and that every value arrives where it belongs."""

import threading
from pathlib import Path

import pytest
import torch

from serve_app.concurrency.watched_threads import Watch
from serve_app.pipeline.host_units import host_block
from serve_app.pipeline.loading import Pipe
from serve_app.pipeline.weight_chunks import Chunk, chunks
from serve_app.pipeline.weight_files import Place, Stored
from tests.engine.pipelines import CPU

HEADER = 8


def written(file: Path, values: list[torch.Tensor]) -> list[Stored]:
    """Write tensors to a file, one after the other, and say where each one lies."""
    stored, data = [], b"." * HEADER
    for tensor in values:
        stored.append(Stored(Place(str(file), len(data)), tensor.dtype, tuple(tensor.shape)))
        data += tensor.view(torch.uint8).numpy().tobytes()
    file.write_bytes(data)
    return stored


def read(found: list[Chunk]) -> None:
    pipe = Pipe(CPU)
    for chunk in found:
        pipe.copy(chunk, Watch(threading.Event()))


@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("limit", [8, 16, 1000])
def test_every_value_arrives_in_every_dtype(tmp_path, wanted, limit):
    # After three values of 2 bytes, those of 4 bytes lie at no multiple of 4.
    dtypes = [torch.bfloat16, torch.float32, torch.bfloat16, torch.float32]
    values = [torch.randn(count).to(dtype) for count, dtype in zip((3, 5, 4, 2), dtypes, strict=True)]
    stored = written(tmp_path / "weights", values)
    targets = [torch.zeros(tensor.shape, dtype=wanted) for tensor in values]
    found = list(chunks(zip(stored, targets, strict=True), limit))
    read(found)
    for target, tensor in zip(targets, values, strict=True):
        assert torch.equal(target, tensor.to(wanted))
    assert all(chunk.size <= limit for chunk in found)


def test_small_tensors_are_read_together_and_large_ones_in_parts(tmp_path):
    sizes = (1, 2, 3, 40, 2)
    stored = written(tmp_path / "weights", [torch.zeros(size, dtype=torch.uint8) for size in sizes])
    found = chunks([(each, torch.zeros(each.shape, dtype=torch.uint8)) for each in stored], 16)
    assert [(chunk.place.begin - HEADER, chunk.size, len(chunk.moves)) for chunk in found] == [
        (0, 6, 3),
        (6, 14, 1),
        (20, 14, 1),
        (34, 14, 2),
    ]


def test_chunk_has_bytes_of_one_file_and_none_that_no_tensor_needs(tmp_path):
    one, two = (written(tmp_path / name, [torch.ones(2), torch.ones(2), torch.ones(2)]) for name in ("one", "two"))
    found = list(chunks([(stored, torch.zeros(2)) for stored in (one[0], one[2], two[0])], 1000))
    assert [chunk.place for chunk in found] == [one[0].place, one[2].place, two[0].place]
    assert {chunk.size for chunk in found} == {8}


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux tells how memory is mapped")
def test_blocks_of_host_memory_may_have_large_pages_and_are_not_copied_by_a_fork():
    block = host_block(2**22)
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    for line in lines:
        begin, _, end = line.split()[0].partition("-")
        if end and int(begin, 16) <= block.data_ptr() < int(end, 16):
            permissions = line.split()[1]
            break
    flags = next(line for line in lines if line.startswith("VmFlags:")).split()
    # Private memory, MADV_HUGEPAGE and MADV_DONTFORK.
    assert permissions.endswith("p")
    assert {"hg", "dc"} <= set(flags)
