"""Adapters in host memory, by content: loaded once; those used most stay, by a byte budget.

An edit needs its adapters, so whatever is asked for is loaded, and the question is who goes. With the least recently
used first, adapters that are rarely wanted throw out those that often are. So uses are counted, each for less the
longer ago it was (LRFU: D. Lee et al., "LRFU: a spectrum of policies that subsumes the least recently used and least
frequently used policies", IEEE Transactions on Computers 50(12), 2001), also those of adapters that are not here: a
newcomer has to be used more than one that is (TinyLFU: G. Einziger, R. Friedman, B. Manes, "TinyLFU: a highly
efficient cache admission policy", ACM Transactions on Storage 13(4), 2017). Until it is, it is in memory for as long as
some edit holds it, and found there by others.

What an adapter's place saves is the time of its loads, and both grow with its size: its uses alone decide.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from typing import Generic, Protocol, TypeVar
from weakref import WeakValueDictionary

from serve_app.policy.routing import MovingAverage

# After this many uses for each adapter in the cache, one counts for half as much: popularity passes, and many
# adapters take more uses to tell apart than few.
HALF_LIFE = 10
# Adapters whose uses are counted. The least recently used is forgotten first.
COUNTED_ADAPTERS = 10_000


class Sized(Protocol):
    @property
    def size_bytes(self) -> int: ...


T = TypeVar("T", bound=Sized)


class Uses:
    """How much adapters are used: each use counts for half as much once `half_life` more edits have used any."""

    def __init__(self) -> None:
        self._edits = 0
        self._counts: OrderedDict[str, tuple[float, int]] = OrderedDict()  # as of the last use, and when that was

    def add(self, adapter_ids: Iterable[str], half_life: float) -> None:
        """One edit uses all of these."""
        self._edits += 1
        for adapter_id in adapter_ids:
            self._counts[adapter_id] = 1 + self.count(adapter_id, half_life), self._edits
            self._counts.move_to_end(adapter_id)
        while len(self._counts) > COUNTED_ADAPTERS:
            self._counts.popitem(last=False)

    def count(self, adapter_id: str, half_life: float) -> float:
        count, latest = self._counts.get(adapter_id, (0.0, 0))
        return count * 0.5 ** ((self._edits - latest) / half_life)

    def latest(self, adapter_id: str) -> int:
        """The number of the edit that used it last."""
        return self._counts.get(adapter_id, (0.0, 0))[1]


class AdapterCache(Generic[T]):
    """Any thread may ask. Whoever holds an adapter keeps it, whatever the cache gives up."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget = budget_bytes
        self._kept: dict[str, T] = {}
        # Those that are kept and those that only edits hold.
        self._here: WeakValueDictionary[str, T] = WeakValueDictionary()
        self._loading: dict[str, Future[T]] = {}
        self._uses = Uses()
        self._load_s = MovingAverage()
        self._evictions = 0
        self._lock = threading.Lock()

    def get(self, adapter_id: str, load: Callable[[], T]) -> T:
        """The adapter of an edit that uses no other: see `get_all`."""
        return self.get_all({adapter_id: load})[adapter_id]

    def get_all(self, loads: Mapping[str, Callable[[], T]]) -> dict[str, T]:
        """The adapters of an edit, each by its `load` if it is not here. However many ask at once, it is loaded once.

        Raises what a `load` raises, to everyone who waited for it, and keeps nothing of it; the next one tries again.
        """
        with self._lock:
            self._uses.add(loads, self._half_life)
        return {adapter_id: self._get(adapter_id, load) for adapter_id, load in loads.items()}

    def _get(self, adapter_id: str, load: Callable[[], T]) -> T:
        with self._lock:
            here = self._here.get(adapter_id)
            if here is not None:
                self._keep(adapter_id, here)
                return here
            other = self._loading.get(adapter_id)
            if other is None:
                mine = self._loading[adapter_id] = Future()
        if other is not None:
            return other.result()
        started = time.perf_counter()
        try:
            adapter = load()
        except BaseException as error:
            with self._lock:
                del self._loading[adapter_id]
            mine.set_exception(error)
            raise
        with self._lock:
            del self._loading[adapter_id]
            self._here[adapter_id] = adapter
            self._load_s.add(time.perf_counter() - started)
            self._keep(adapter_id, adapter)
        mine.set_result(adapter)
        return adapter

    def holds(self, adapter_id: str) -> bool:
        with self._lock:
            return adapter_id in self._here

    @property
    def size_bytes(self) -> int:
        """What is kept: the budget at most."""
        with self._lock:
            return sum(adapter.size_bytes for adapter in self._kept.values())

    @property
    def evictions(self) -> int:
        """The number of adapters that were dropped for lack of room since the start."""
        return self._evictions

    @property
    def load_s(self) -> float | None:
        """Seconds that a load takes; None before the first."""
        return self._load_s.value

    @property
    def _half_life(self) -> int:
        return HALF_LIFE * max(1, len(self._kept))

    def _keep(self, adapter_id: str, adapter: T) -> None:
        """Keep what has just been used, unless all that the budget has room for is used more."""
        if adapter_id in self._kept:
            return
        self._kept[adapter_id] = adapter
        for surplus in self._surplus():
            del self._kept[surplus]
            self._evictions += 1

    def _surplus(self) -> list[str]:
        """Whom the budget has no room for beside those used more."""
        room, surplus = self._budget, []
        for adapter_id in sorted(self._kept, key=self._worth, reverse=True):
            if self._kept[adapter_id].size_bytes <= room:
                room -= self._kept[adapter_id].size_bytes
            else:
                surplus.append(adapter_id)
        return surplus

    def _worth(self, adapter_id: str) -> tuple[float, int]:
        return self._uses.count(adapter_id, self._half_life), self._uses.latest(adapter_id)
