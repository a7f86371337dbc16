"""Host memory in pieces: what is put there comes back, and adapters take pieces of the same sizes."""

import pytest
import torch

from serve_app.engine import host_memory
from serve_app.engine.host_memory import LARGEST, SMALLEST, Pieces

CPU = torch.device("cpu")


@pytest.fixture
def allocated(monkeypatch) -> list[int]:
    """The sizes that were asked for; without a GPU nothing can be pinned."""
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
def test_what_was_taken_is_found_on_the_device_in_one_piece(allocated, pinned):
    given = [*tensors(3, 300, 300), torch.arange(7, dtype=torch.int8), torch.empty(0), *tensors(9, 400, 100)]
    held = Pieces(pinned=pinned, largest=SMALLEST)
    copies = [held.take(tensor) for tensor in given]
    there = held.on(CPU)
    moved = [there(copy) for copy in copies]
    for tensor, copy, far in zip(given, copies, moved, strict=True):
        assert torch.equal(tensor, copy)
        assert torch.equal(tensor, far)
        assert tensor.dtype == copy.dtype == far.dtype
    assert len({far.untyped_storage().data_ptr() for far in moved}) == 1
    assert len(allocated) > 2


def test_pinned_pieces_are_of_few_sizes_and_double(allocated):
    held = Pieces(pinned=True)
    for tensor in tensors(5 * LARGEST // (4 * 2**20), 1024, 1024):  # 4 MiB each
        held.take(tensor)
    assert allocated == [2**20 * size for size in (4, 8, 16, 32, 64, 64, 64, 64, 64)]
    assert held.size_bytes == sum(allocated)


def test_tensor_that_is_larger_than_a_piece_has_one_of_its_own(allocated):
    held = Pieces(pinned=True, largest=2 * SMALLEST)
    for tensor in tensors(2, 3, SMALLEST // 4):  # 3 MiB
        held.take(tensor)
    assert allocated == [4 * SMALLEST, 4 * SMALLEST]


def test_memory_that_is_not_pinned_is_not_rounded_up(allocated):
    held = Pieces(pinned=False)
    for tensor in tensors(2, 64):
        held.take(tensor)
    assert held.size_bytes == 2 * 256
