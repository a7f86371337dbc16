"""Layers whose weights are copied to the device while earlier layers compute, into blocks that are used again."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from serve_app.pipeline.host_units import CopyStream, Unit

# The blocks of the layers that do not stay on the device: one computes while the next one is copied.
SLOTS = 2
# Layers that are copied and have not yet computed. It bounds the memory of their changes.
MOST_AHEAD = 4


class Changes(Protocol):
    """What is added to weights on the device after they were copied."""

    def version(self, names: Sequence[str]) -> Hashable:
        """Names the present change of some parameters: equal versions give equal weights."""
        ...

    def fetch(self, names: Sequence[str], device: torch.device) -> Any:
        """What the change of some parameters needs, copied to `device` on the current stream."""
        ...

    def merge(self, weights: dict[str, Tensor], fetched: Any) -> None:
        """Write the change into these weights, on the stream that computes."""
        ...


class NoChanges:
    """`Changes` of weights that always stay the same."""

    def version(self, names: Sequence[str]) -> Hashable:
        return ()

    def fetch(self, names: Sequence[str], device: torch.device) -> None:
        return None

    def merge(self, weights: dict[str, Tensor], fetched: None) -> None:
        return


@dataclass
class Load:
    """A copy of a layer's weights, and what its changes need, by unit. `ready` marks the end of the copy."""

    version: Hashable
    ready: torch.cuda.Event | None
    fetched: list[Any]
    merged: bool = False


class LayerStream:
    """The layers of one sequence, each on the device before its forward begins. They must be computed in order.

    Passes follow each other: while the last layers compute, the first ones are copied again. A layer that is computed
    twice in a row, once per guidance branch, is copied once. Layers of `resident` have a block of their own, which is
    written only if the changes of their weights differ from those before.
    """

    def __init__(
        self, layers: Sequence[nn.Module], units: Sequence[Sequence[Unit]], copies: CopyStream, changes: Changes
    ) -> None:
        """`units` are those of each layer."""
        self._units = [tuple(each) for each in units]
        self._copies = copies
        self._changes = changes
        self._resident: dict[int, Tensor] = {}
        self._slots: list[Tensor] = []
        self.close()
        for index, layer in enumerate(layers):
            layer.register_forward_pre_hook(partial(self._before_forward, index))

    @property
    def sizes(self) -> list[int]:
        """The bytes of each layer."""
        return [sum(unit.size for unit in units) for units in self._units]

    def leave_out(self, units: set[Unit]) -> None:
        """Copy these units no longer with their layers, whose forwards do not need them any more."""
        self._units = [tuple(unit for unit in each if unit not in units) for each in self._units]

    def open(self, resident: dict[int, Tensor], slots: Sequence[Tensor]) -> None:
        """Use these blocks of device memory: `resident` by the layer's index, and `slots` for all other layers."""
        self._resident, self._slots = resident, list(slots)
        self.restart()

    def close(self) -> None:
        """Give the blocks back. The copies must have ended."""
        self._resident, self._slots = {}, []
        self._loads: dict[int, Load] = {}
        # Which position each slot holds. A position counts layers from the first pass on, across passes.
        self._holders: list[int | None] = []
        # For each slot the end of the last computation with it.
        self._released: dict[int, torch.cuda.Event | None] = {}
        # What has been merged, and the end of the merging: the next copies may take its memory after that.
        self._spent: list[tuple[torch.cuda.Event | None, list[Any]]] = []
        # The layer that computes: its position.
        self._current: int | None = None
        self._next = 0
        for units in self._units:
            for unit in units:
                unit.withdraw()

    def restart(self, index: int = 0) -> None:
        """Forget what has been copied ahead; the next forward is that of the layer `index`."""
        self._copies.follow()
        self._loads = {i: load for i, load in self._loads.items() if i in self._resident and load.merged}
        self._holders = [None] * len(self._slots)
        self._released = {}
        self._spent = []
        self._current = None
        self._next = index

    def _before_forward(self, index: int, *_: object) -> None:
        count = len(self._units)
        if self._current is not None and self._current % count == index:
            return
        if not (self._resident or self._slots):
            raise RuntimeError("a streamed layer computes outside of its stage: this is a bug")
        self._release()
        position = self._next if self._current is None else self._current + 1
        if position % count != index:
            self.restart(index)
            position = index
        self._current = position
        self._prefetch(position)
        load = self._loads[index]
        if not load.merged:
            self._copies.wait(load.ready)
            for unit, fetched in zip(self._units[index], load.fetched, strict=True):
                self._changes.merge(unit.weights(), fetched)
            load.merged = True

    def _release(self) -> None:
        """What the layer that has computed used may be written after the present work."""
        if self._current is None:
            return
        end = self._copies.mark()
        if self._current in self._holders:
            self._released[self._holders.index(self._current)] = end
        load = self._loads[self._current % len(self._units)]
        self._spent.append((end, load.fetched))
        load.fetched = []

    def _prefetch(self, current: int) -> None:
        """Copy the current layer, if it was not yet copied, and the following ones as far as there are free slots."""
        while self._next < current + len(self._units):
            index = self._next % len(self._units)
            if sum(not load.merged for load in self._loads.values()) == MOST_AHEAD:
                return
            block = self._resident.get(index)
            if block is None:
                slot = self._free_slot(current)
                if slot is None:
                    return
                self._holders[slot] = self._next
                self._load(index, self._slots[slot], self._released.get(slot))
            elif index not in self._loads or self._loads[index].version != self._version(index):
                self._load(index, block, None)
            self._next += 1

    def _free_slot(self, current: int) -> int | None:
        """A slot whose layer has computed."""
        for slot, holder in enumerate(self._holders):
            if holder is None or holder < current:
                return slot
        return None

    def _load(self, index: int, block: Tensor, released: torch.cuda.Event | None) -> None:
        units = self._units[index]
        sizes = [unit.size for unit in units]
        parts = torch.split(block[: sum(sizes)], sizes)
        with self._copies.current():
            self._copies.wait(released)
            for end, _ in self._spent:
                self._copies.wait(end)
            self._spent = []
            for unit, part in zip(units, parts, strict=True):
                self._copies.copy(part, unit.host)
            fetched = [self._changes.fetch(unit.names, self._copies.device) for unit in units]
            ready = self._copies.mark()
        for unit, part in zip(units, parts, strict=True):
            unit.place(part)
        self._loads[index] = Load(self._version(index), ready, fetched)

    def _version(self, index: int) -> Hashable:
        return tuple(self._changes.version(unit.names) for unit in self._units[index])


def evenly(count: int, total: int) -> list[int]:
    """`count` of the numbers below `total`, at equal distances, so that copies of the others never come in a row."""
    return [index for index in range(total) if (index + 1) * count // total > index * count // total]
