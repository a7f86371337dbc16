"""What a replica tells the routers of itself: which sets of adapters it has, what a load and an edit take."""

from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from serve_app.policy.routing import MovingAverage, Report

# Sets that a replica remembers. It may hold more stacks of its adapters than that, and names the latest.
REMEMBERED_SETS = 256
# A rank-32 adapter on all 840 linears at the published size: from it follows how many sets a replica names.
ADAPTER_BYTES = 590_000_000


class Adapters(Protocol):
    """The host cache, as far as routers care."""

    def holds(self, adapter_id: str) -> bool: ...
    @property
    def load_s(self) -> float | None: ...


class Holdings:
    """For one event loop. The adapters themselves are the cache's: it is asked what is still there.

    `names` is how many sets Serve goes on naming, the latest used.
    """

    def __init__(self, adapters: Adapters, names: int) -> None:
        self._adapters = adapters
        self._names = names
        self._sets: OrderedDict[str, tuple[str, ...]] = OrderedDict()  # least recently used first
        self._being_loaded: Counter[str] = Counter()
        self.work_s = MovingAverage()

    @contextmanager
    def loading(self, set_id: str, adapter_ids: Sequence[str]) -> Iterator[None]:
        """A set counts as held from here on, and after that for as long as the cache has all of it."""
        self._sets[set_id] = tuple(adapter_ids)
        self._sets.move_to_end(set_id)
        if len(self._sets) > REMEMBERED_SETS:
            self._sets.popitem(last=False)
        self._being_loaded[set_id] += 1
        try:
            yield
        finally:
            self._being_loaded -= Counter([set_id])

    def report(self, alive: bool = True) -> Report:
        """Sets in one order and seconds rounded: Serve sends each change of a report to every router."""
        held = sorted(set_id for set_id in self._sets if self._holds(set_id))
        gone = sorted(set(list(self._sets)[-self._names :]).difference(held))
        work_s, load_s = (_rounded(value) for value in (self.work_s.value, self._adapters.load_s))
        return Report(tuple(held), tuple(gone), work_s, load_s, alive)

    def _holds(self, set_id: str) -> bool:
        return self._being_loaded[set_id] > 0 or all(map(self._adapters.holds, self._sets[set_id]))


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else float(f"{seconds:.2g}")
