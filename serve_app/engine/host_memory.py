"""Host memory for many tensors, in pieces of few sizes.

torch rounds each piece of pinned memory up to a power of two, keeps it for pieces of that size alone, and never gives
it back to the system (its CachingHostAllocator). An adapter of 562 MiB in one piece would take 1 GiB, and leave it to
no adapter of another size. So pieces double from a small one up to a size that all share.
"""

from collections.abc import Callable

import torch
from torch import Tensor

SMALLEST, LARGEST = 2**20, 64 * 2**20


class Pieces:
    """Copies of tensors in host memory. Pinned, a GPU copies from there at full speed, and nobody waits for it.

    Pinned pieces are of powers of two up to `largest` bytes, unless a tensor takes more; else each tensor has its own.
    `size_bytes` is what the pieces take, unused ends included.
    """

    def __init__(self, *, pinned: bool, largest: int = LARGEST) -> None:
        self.size_bytes = 0
        self._pinned = pinned
        self._largest = largest
        self._pieces: list[Tensor] = []
        # How much of each is used and of all, and by a copy's address where it begins in the used parts of all.
        self._used: list[int] = []
        self._length = 0
        self._starts: dict[int, int] = {}

    def take(self, tensor: Tensor) -> Tensor:
        """A copy of `tensor`, from whichever device; complete when this returns."""
        size = aligned(tensor.nbytes)
        if not self._pieces or self._used[-1] + size > self._pieces[-1].nbytes:
            self._pieces.append(allocate(self._next_size(size), pinned=self._pinned))
            self._used.append(0)
            self.size_bytes += self._pieces[-1].nbytes
        begin = self._used[-1]
        copy = self._pieces[-1][begin : begin + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        self._starts[copy.data_ptr()] = self._length
        self._used[-1] += size
        self._length += size
        return copy.copy_(tensor)

    def on(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        """What gives, for each copy, one on `device`: all of them in one piece of its memory.

        This thread's stream waits for the copies.
        """
        there = torch.empty(self._length, dtype=torch.uint8, device=device)
        for part, piece in zip(torch.split(there, self._used), self._pieces, strict=True):
            part.copy_(piece[: part.nbytes], non_blocking=True)

        def moved(copy: Tensor) -> Tensor:
            start = self._starts[copy.data_ptr()]
            return there[start : start + copy.nbytes].view(copy.dtype).view(copy.shape)

        return moved

    def _next_size(self, size: int) -> int:
        if not self._pinned:
            return size
        doubled = min(2 * self._pieces[-1].nbytes, self._largest) if self._pieces else SMALLEST
        return max(doubled, power_of_two(size))


def allocate(size: int, *, pinned: bool) -> Tensor:
    return torch.empty(size, dtype=torch.uint8, pin_memory=pinned)


def aligned(size: int) -> int:
    """`size` in bytes, up to the next multiple of what the matrix units like to load."""
    return -(-size // 256) * 256


def power_of_two(size: int) -> int:
    """The least one that is not below `size`."""
    return 1 << (size - 1).bit_length()
