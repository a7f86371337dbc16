"""The cache of adapters in host memory: each is loaded once, and within a byte budget the most used ones stay.

An edit needs its adapters, so the cache loads every adapter that is requested. It decides which ones to evict. If the
least recently used one were evicted, rarely used adapters would displace often used ones. So the cache counts uses, and
each use weighs less the longer ago it was (LRFU: D. Lee et al., "LRFU: a spectrum of policies that subsumes the least
recently used and least frequently used policies", IEEE Transactions on Computers 50(12), 2001). It also counts uses of
adapters that are not in the cache: a new adapter enters only if it is used more than one that is already there
(TinyLFU: G. Einziger, R. Friedman, B. Manes, "TinyLFU: a highly efficient cache admission policy", ACM Transactions on
Storage 13(4), 2017). Otherwise it stays in memory only while an edit holds it; other edits find it there too.

Size does not count in this comparison: a larger adapter takes more room, but keeping it saves a longer load.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from typing import Generic, Protocol, TypeVar
from weakref import WeakValueDictionary

from serve_app.policy.routing import MovingAverage

# The weight of a use halves after this many edits per adapter in the cache. Popularity changes, and a larger cache
# needs more uses to rank its adapters.
HALF_LIFE = 10
# The number of adapters whose uses are counted. The least recently used one is dropped first.
COUNTED_ADAPTERS = 10_000


class Sized(Protocol):
    @property
    def size_bytes(self) -> int: ...


T = TypeVar("T", bound=Sized)


class Uses:
    """Decaying counts of the uses of adapters: the weight of a use halves after `half_life` further edits."""

    def __init__(self) -> None:
        self._edits = 0
        self._counts: OrderedDict[str, tuple[float, int]] = OrderedDict()  # count at the last use, number of that edit

    def add(self, adapter_ids: Iterable[str], half_life: float) -> None:
        """Count one edit that uses all of these adapters."""
        self._edits += 1
        for adapter_id in adapter_ids:
            self._counts[adapter_id] = 1 + self.count(adapter_id, half_life), self._edits
            self._counts.move_to_end(adapter_id)
        while len(self._counts) > COUNTED_ADAPTERS:
            self._counts.popitem(last=False)

    def count(self, adapter_id: str, half_life: float) -> float:
        """The decayed number of uses of an adapter; 0 if it was never used."""
        count, latest = self._counts.get(adapter_id, (0.0, 0))
        return count * 0.5 ** ((self._edits - latest) / half_life)

    def latest(self, adapter_id: str) -> int:
        """The number of the edit that used the adapter last; 0 if none did."""
        return self._counts.get(adapter_id, (0.0, 0))[1]


class AdapterCache(Generic[T]):
    """A thread-safe cache by adapter id. An adapter that a caller holds stays usable after the cache has evicted it."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget = budget_bytes
        self._kept: dict[str, T] = {}
        # Adapters in the cache, and evicted ones that an edit still holds.
        self._in_memory: WeakValueDictionary[str, T] = WeakValueDictionary()
        self._loading: dict[str, Future[T]] = {}
        self._uses = Uses()
        self._load_s = MovingAverage()
        self._evictions = 0
        self._lock = threading.Lock()

    def get(self, adapter_id: str, load: Callable[[], T]) -> T:
        """`get_all` for an edit with one adapter."""
        return self.get_all({adapter_id: load})[adapter_id]

    def get_all(self, loads: Mapping[str, Callable[[], T]]) -> dict[str, T]:
        """The adapters of one edit by id; `loads` has a function for each that loads it if it is not in memory.

        Callers that ask for the same adapter at the same time share one load. If it fails, all of them get its error,
        and the next caller tries again.
        """
        with self._lock:
            self._uses.add(loads, self._half_life)
        return {adapter_id: self._get(adapter_id, load) for adapter_id, load in loads.items()}

    def _get(self, adapter_id: str, load: Callable[[], T]) -> T:
        with self._lock:
            in_memory = self._in_memory.get(adapter_id)
            if in_memory is not None:
                self._keep(adapter_id, in_memory)
                return in_memory
            others_load = self._loading.get(adapter_id)
            if others_load is None:
                own_load = self._loading[adapter_id] = Future()
        if others_load is not None:
            return others_load.result()
        started = time.perf_counter()
        try:
            adapter = load()
        except BaseException as error:
            with self._lock:
                del self._loading[adapter_id]
            own_load.set_exception(error)
            raise
        with self._lock:
            del self._loading[adapter_id]
            self._in_memory[adapter_id] = adapter
            self._load_s.add(time.perf_counter() - started)
            self._keep(adapter_id, adapter)
        own_load.set_result(adapter)
        return adapter

    def holds(self, adapter_id: str) -> bool:
        """Whether the adapter is in memory, in the cache or held by an edit."""
        with self._lock:
            return adapter_id in self._in_memory

    @property
    def size_bytes(self) -> int:
        """The size of the adapters in the cache, at most the budget."""
        with self._lock:
            return sum(adapter.size_bytes for adapter in self._kept.values())

    @property
    def evictions(self) -> int:
        """The number of adapters that did not fit into the budget, since the start."""
        return self._evictions

    @property
    def load_s(self) -> float | None:
        """The moving average of the duration of a load (s); None before the first load."""
        return self._load_s.value

    @property
    def _half_life(self) -> int:
        return HALF_LIFE * max(1, len(self._kept))

    def _keep(self, adapter_id: str, adapter: T) -> None:
        """Put an adapter that was just used into the cache, then evict the least used ones until the budget is met."""
        if adapter_id in self._kept:
            return
        self._kept[adapter_id] = adapter
        for evicted in self._beyond_budget():
            del self._kept[evicted]
            self._evictions += 1

    def _beyond_budget(self) -> list[str]:
        """The adapters that do not fit into the budget next to those that are used more."""
        room, beyond = self._budget, []
        for adapter_id in sorted(self._kept, key=self._use, reverse=True):
            if self._kept[adapter_id].size_bytes <= room:
                room -= self._kept[adapter_id].size_bytes
            else:
                beyond.append(adapter_id)
        return beyond

    def _use(self, adapter_id: str) -> tuple[float, int]:
        """How much the adapter is used; of equally used ones, the one used last ranks higher."""
        return self._uses.count(adapter_id, self._half_life), self._uses.latest(adapter_id)
