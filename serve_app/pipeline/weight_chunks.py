"""Chunks of a checkpoint's files that are read at once: small tensors together, large ones in parts."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from serve_app.pipeline.weight_files import Place, Stored


class Move(NamedTuple):
    """Values of one tensor in a chunk: their first byte there, their dtype in the file, and where they go (1-D)."""

    begin: int
    dtype: torch.dtype
    target: Tensor

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return self.target.numel() * self.dtype.itemsize


@dataclass
class Chunk:
    """Neighbouring bytes of a file, from `place` on, and the values in them."""

    place: Place
    size: int = 0
    moves: list[Move] = field(default_factory=list)

    def is_followed_by(self, place: Place, dtype: torch.dtype) -> bool:
        """Whether values of this dtype at `place` come next. torch views bytes as a dtype at multiples of its size."""
        next_place = Place(self.place.file, self.place.begin + self.size)
        return place == next_place and self.size % dtype.itemsize == 0

    def add(self, dtype: torch.dtype, target: Tensor) -> None:
        self.moves.append(Move(self.size, dtype, target))
        self.size += self.moves[-1].size


def chunks(tensors: Iterable[tuple[Stored, Tensor]], limit: int) -> Iterator[Chunk]:
    """Chunks of the tensors, each of which comes with the place where its values go.

    `limit`: the most bytes of a chunk, a multiple of every dtype's size.
    """
    chunk: Chunk | None = None
    for stored, target in tensors:
        flat, width = target.view(-1), stored.dtype.itemsize
        # Parts of equal sizes.
        step = -(-stored.elements // -(-stored.size // limit))
        for first in range(0, stored.elements, step):
            part = flat[first : first + step]
            place = Place(stored.place.file, stored.place.begin + first * width)
            too_large = chunk is not None and chunk.size + part.numel() * width > limit
            if chunk is not None and (too_large or not chunk.is_followed_by(place, stored.dtype)):
                yield chunk
                chunk = None
            chunk = chunk or Chunk(place)
            chunk.add(stored.dtype, part)
    if chunk is not None:
        yield chunk
