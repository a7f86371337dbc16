"""What an editor reports to the routers: which sets of adapters it holds, how long a load and an edit take."""

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from serve_app.policy.routing import MovingAverage, Report
from serve_app.tasks import AdapterUse

# The number of sets that an editor remembers. It may hold more combinations of its adapters; it reports the latest.
REMEMBERED_SETS = 256
# The size of a rank-32 adapter on all 840 linears at the published size. It decides how many sets an editor advertises.
ADAPTER_BYTES = 590_000_000


def adapter_set_id(uses: tuple[AdapterUse, ...]) -> str:
    """The router's id for a set of adapters, whatever their order and scales; "" for no adapters.

    Base-model requests carry no id: with one, Serve would pin them to a single replica.
    """
    ids = sorted({use.id for use in uses})
    return hashlib.sha256("\0".join(ids).encode()).hexdigest()[:16] if ids else ""


class Adapters(Protocol):
    """The part of the host cache that routers need to know."""

    def holds(self, adapter_id: str) -> bool: ...
    @property
    def load_s(self) -> float | None: ...


class RoutingStats:
    """For one event loop. It keeps the names of sets only; the host cache says which adapters are still there.

    `names` is the number of sets that Serve advertises for this editor: those used last.
    """

    def __init__(self, adapters: Adapters, names: int) -> None:
        self._adapters = adapters
        self._names = names
        self._sets: OrderedDict[str, tuple[str, ...]] = OrderedDict()  # least recently used first
        self._being_loaded: Counter[str] = Counter()
        self.work_s = MovingAverage()

    @contextmanager
    def loading(self, set_id: str, adapter_ids: Sequence[str]) -> Iterator[None]:
        """Within, the set counts as held. Afterwards it does so as long as the cache holds all of its adapters."""
        self._sets[set_id] = tuple(adapter_ids)
        self._sets.move_to_end(set_id)
        if len(self._sets) > REMEMBERED_SETS:
            self._sets.popitem(last=False)
        self._being_loaded[set_id] += 1
        try:
            yield
        finally:
            self._being_loaded -= Counter([set_id])

    def holds_all(self, adapter_ids: Iterable[str]) -> bool:
        """Whether all of these adapters are in host memory."""
        return all(map(self._adapters.holds, adapter_ids))

    def report(self, alive: bool = True) -> Report:
        """The report for the routers. Serve sends each change to every router: so sets are sorted, seconds rounded."""
        held = sorted(set_id for set_id in self._sets if self._holds(set_id))
        gone = sorted(set(list(self._sets)[-self._names :]).difference(held))
        work_s, load_s = (_rounded(value) for value in (self.work_s.value, self._adapters.load_s))
        return Report(tuple(held), tuple(gone), work_s, load_s, alive)

    def _holds(self, set_id: str) -> bool:
        return self._being_loaded[set_id] > 0 or self.holds_all(self._sets[set_id])


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else float(f"{seconds:.2g}")
