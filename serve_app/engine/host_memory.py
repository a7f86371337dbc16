"""Blocks of host memory that hold many tensors each.

torch rounds each block of pinned memory up to a power of two, keeps it for blocks of that size alone, and never returns
it to the system (its CachingHostAllocator). An adapter of 562 MiB in one block would take 1 GiB, which no adapter of
another size could use later. So blocks double in size from a small one up to a size that all adapters share.
"""

from collections.abc import Callable

import torch
from torch import Tensor

SMALLEST_BLOCK, LARGEST_BLOCK = 2**20, 64 * 2**20


class HostBlocks:
    """Copies of tensors in host memory. From pinned memory a GPU copies at full speed and asynchronously.

    The sizes of pinned blocks are powers of two up to `largest` bytes; a larger tensor gets a larger block. Without
    pinning each tensor has a block of its own. `size_bytes` is the size of all blocks, unused ends included.
    """

    def __init__(self, *, pinned: bool, largest: int = LARGEST_BLOCK) -> None:
        self.size_bytes = 0
        self._pinned = pinned
        self._largest = largest
        self._blocks: list[Tensor] = []
        # The used bytes of each block, and of all blocks together.
        self._used: list[int] = []
        self._length = 0
        # Where each copy, by its address, begins in the used parts of all blocks laid end to end.
        self._starts: dict[int, int] = {}

    def store(self, tensor: Tensor) -> Tensor:
        """A copy of `tensor`, which may be on any device. The copy is complete when this returns."""
        size = aligned(tensor.nbytes)
        if not self._blocks or self._used[-1] + size > self._blocks[-1].nbytes:
            self._blocks.append(allocate(self._next_size(size), pinned=self._pinned))
            self._used.append(0)
            self.size_bytes += self._blocks[-1].nbytes
        begin = self._used[-1]
        copy = self._blocks[-1][begin : begin + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        self._starts[copy.data_ptr()] = self._length
        self._used[-1] += size
        self._length += size
        return copy.copy_(tensor)

    def copy_to(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        """Copy everything into one block of the device's memory.

        Returns a function from a stored copy to its counterpart on `device`. This thread's stream waits for the copies.
        """
        there = torch.empty(self._length, dtype=torch.uint8, device=device)
        for part, block in zip(torch.split(there, self._used), self._blocks, strict=True):
            part.copy_(block[: part.nbytes], non_blocking=True)

        def on_device(copy: Tensor) -> Tensor:
            start = self._starts[copy.data_ptr()]
            return there[start : start + copy.nbytes].view(copy.dtype).view(copy.shape)

        return on_device

    def _next_size(self, size: int) -> int:
        if not self._pinned:
            return size
        doubled = min(2 * self._blocks[-1].nbytes, self._largest) if self._blocks else SMALLEST_BLOCK
        return max(doubled, power_of_two(size))


def allocate(size: int, *, pinned: bool) -> Tensor:
    """An uninitialised block of `size` bytes."""
    return torch.empty(size, dtype=torch.uint8, pin_memory=pinned)


def aligned(size: int) -> int:
    """`size` in bytes, rounded up to a multiple of 256: matrix units load aligned addresses faster."""
    return -(-size // 256) * 256


def power_of_two(size: int) -> int:
    """The smallest power of two that is not below `size`."""
    return 1 << (size - 1).bit_length()
