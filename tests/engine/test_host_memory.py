"""Blocks of host memory: stored tensors are found again, and adapters take blocks of the same sizes."""

import pytest
import torch

from serve_app.engine import host_memory
from serve_app.engine.host_memory import LARGEST_BLOCK, SMALLEST_BLOCK, HostBlocks

CPU = torch.device("cpu")


@pytest.fixture
def allocated(monkeypatch) -> list[int]:
    """The sizes that were allocated; without a GPU nothing can be pinned."""
    sizes = []

    def allocate(size: int, *, pinned: bool) -> torch.Tensor:
        sizes.append(size)
        return torch.empty(size, dtype=torch.uint8)

    monkeypatch.setattr(host_memory, "allocate", allocate)
    return sizes


def tensors(count: int, *shape: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=generator) for _ in range(count)]


@pytest.mark.parametrize("pinned", [True, False])
def test_stored_tensors_are_copied_to_the_device_in_one_block(allocated, pinned):
    given = [*tensors(3, 300, 300), torch.arange(7, dtype=torch.int8), torch.empty(0), *tensors(9, 400, 100)]
    blocks = HostBlocks(pinned=pinned, largest=SMALLEST_BLOCK)
    copies = [blocks.store(tensor) for tensor in given]
    there = blocks.copy_to(CPU)
    moved = [there(copy) for copy in copies]
    for tensor, copy, far in zip(given, copies, moved, strict=True):
        assert torch.equal(tensor, copy)
        assert torch.equal(tensor, far)
        assert tensor.dtype == copy.dtype == far.dtype
    assert len({far.untyped_storage().data_ptr() for far in moved}) == 1
    assert len(allocated) > 2


def test_pinned_blocks_have_few_sizes_and_double(allocated):
    blocks = HostBlocks(pinned=True)
    for tensor in tensors(5 * LARGEST_BLOCK // (4 * 2**20), 1024, 1024):  # 4 MiB each
        blocks.store(tensor)
    assert allocated == [2**20 * size for size in (4, 8, 16, 32, 64, 64, 64, 64, 64)]
    assert blocks.size_bytes == sum(allocated)


def test_tensor_larger_than_a_block_gets_its_own_block(allocated):
    blocks = HostBlocks(pinned=True, largest=2 * SMALLEST_BLOCK)
    for tensor in tensors(2, 3, SMALLEST_BLOCK // 4):  # 3 MiB
        blocks.store(tensor)
    assert allocated == [4 * SMALLEST_BLOCK, 4 * SMALLEST_BLOCK]


def test_memory_that_is_not_pinned_is_not_rounded_up(allocated):
    blocks = HostBlocks(pinned=False)
    for tensor in tensors(2, 64):
        blocks.store(tensor)
    assert blocks.size_bytes == 2 * 256
