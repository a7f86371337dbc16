"""Adapters in host memory, by content: loaded once, kept by a byte budget, given up least recently used first."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, Protocol, TypeVar

from serve_app.routing import MovingAverage


class Sized(Protocol):
    @property
    def size_bytes(self) -> int: ...


T = TypeVar("T", bound=Sized)


class AdapterCache(Generic[T]):
    """Any thread may ask. Whoever holds an adapter keeps it, whatever the cache gives up."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget = budget_bytes
        self._loaded: OrderedDict[str, T] = OrderedDict()  # least recently used first
        self._loading: dict[str, Future[T]] = {}
        self._load_s = MovingAverage()
        self._given_up = 0
        self._lock = threading.Lock()

    def get(self, adapter_id: str, load: Callable[[], T]) -> T:
        """The adapter, by `load` if it is not here. However many ask at once, it is loaded once.

        Raises what `load` raises, to everyone who waited for it, and keeps nothing; the next one tries again.
        """
        with self._lock:
            if adapter_id in self._loaded:
                self._loaded.move_to_end(adapter_id)
                return self._loaded[adapter_id]
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
            self._loaded[adapter_id] = adapter
            self._load_s.add(time.perf_counter() - started)
            self._give_up_surplus()
        mine.set_result(adapter)
        return adapter

    def holds(self, adapter_id: str) -> bool:
        with self._lock:
            return adapter_id in self._loaded

    @property
    def size_bytes(self) -> int:
        with self._lock:
            return sum(adapter.size_bytes for adapter in self._loaded.values())

    @property
    def given_up(self) -> int:
        """How many adapters there was no room for any more, so far."""
        return self._given_up

    @property
    def load_s(self) -> float | None:
        """Seconds that a load takes; None before the first."""
        return self._load_s.value

    def _give_up_surplus(self) -> None:
        """The newest stays, even if it is larger than the budget alone: the edit that asked for it needs it."""
        size = sum(adapter.size_bytes for adapter in self._loaded.values())
        while size > self._budget and len(self._loaded) > 1:
            _, given_up = self._loaded.popitem(last=False)
            size -= given_up.size_bytes
            self._given_up += 1
