"""The order in which the cells of a sweep are made, and how many of them wait in the queue at a time. Pure.

A change of adapters or of their strengths rewrites the transformer's weights (a swap); a new prompt or control image is
encoded. Editors keep encodings between edits, but only so many. So cells that share adapters and strengths follow each
other, and within them all prompts and control images come in the same order each time. If there are more prompts and
control images than an editor is sure to keep, the sweep goes through them in blocks, each with all adapters.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

# How many prompts with their control images an editor surely keeps encoded. One of 1 MP takes about 20 MB of
# `prompt_cache_bytes`.
ENCODINGS_AT_ONCE = 32


class Place(NamedTuple):
    """Where a cell is: the index of its value on each axis. Without a LoRA it has no multiplier."""

    checkpoint: int
    multiplier: int | None
    prompt: int
    seed: int
    control_image: int
    profile: int
    quality: int


class Lengths(NamedTuple):
    """The number of values of each axis. `with_lora` says of each checkpoint whether it is a LoRA."""

    with_lora: Sequence[bool]
    multipliers: int
    prompts: int
    seeds: int
    control_images: int
    profiles: int
    qualities: int

    @property
    def cells(self) -> int:
        """The number of cells, by multiplication."""
        loras = sum(self.with_lora)
        strengths = loras * self.multipliers + len(self.with_lora) - loras
        return strengths * self.prompts * self.seeds * self.control_images * self.profiles * self.qualities

    def has(self, place: Place) -> bool:
        """Whether each index of the place is one of its axis."""
        lengths = (len(self.with_lora), self.multipliers, *self[2:])
        return all(index is None or index < length for index, length in zip(place, lengths, strict=True))


def places(lengths: Lengths, encodings_at_once: int = ENCODINGS_AT_ONCE) -> Iterator[Place]:
    """Every cell, in the order in which they are made."""
    encodings = list(product(range(lengths.control_images), range(lengths.profiles), range(lengths.prompts)))
    blocks = [encodings[start : start + encodings_at_once] for start in range(0, len(encodings), encodings_at_once)]
    for quality, block in product(range(lengths.qualities), blocks):
        for checkpoint, with_lora in enumerate(lengths.with_lora):
            for multiplier in range(lengths.multipliers) if with_lora else (None,):
                for (control_image, profile, prompt), seed in product(block, range(lengths.seeds)):
                    yield Place(checkpoint, multiplier, prompt, seed, control_image, profile, quality)


def room_for_cells(max_waiting: int, waiting: int, queues: Sequence[tuple[int, int]]) -> int:
    """How many more cells of a sweep may be put into the queue, of which `waiting` wait there.

    `queues` are the limits that apply, each with the number of images that wait: of all tenants, and of this one. Cells
    fill at most half of a queue, so that other requests of the tenant find room, but one cell may always wait.
    """
    free = min(limit // 2 - queued for limit, queued in queues)
    if waiting == 0 and all(queued < limit for limit, queued in queues):
        free = max(free, 1)
    return max(0, min(max_waiting - waiting, free))
