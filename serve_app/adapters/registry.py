"""Who uses which adapter: references and the order of use. The weights themselves are somebody else's."""

import threading
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class AdapterRegistry:
    """Counts, for each adapter that is loaded, the edits that use it and the advertisements that promise it.

    An adapter that is used or promised is never given up. Any thread may call any method.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._loaded: OrderedDict[str, None] = OrderedDict()  # least recently used first
        self._users: Counter[str] = Counter()
        self._promises: Counter[str] = Counter()
        self._lock = threading.Lock()

    @contextmanager
    def using(self, ids: Iterable[str]) -> Iterator[None]:
        """Hold references to `ids`, loaded or not yet, for the length of the block."""
        ids = tuple(ids)
        with self._lock:
            self._users.update(ids)
        try:
            yield
        finally:
            with self._lock:
                self._users.subtract(ids)

    def promise(self, ids: Iterable[str]) -> None:
        """Note that a router was told that `ids` are here."""
        with self._lock:
            self._promises.update(ids)

    def withdraw(self, ids: Iterable[str]) -> None:
        """Take one promise for `ids` back."""
        with self._lock:
            self._promises.subtract(ids)

    def mark_loaded(self, adapter_id: str) -> None:
        """Note that the adapter is beside the weights, and was used just now."""
        with self._lock:
            self._loaded[adapter_id] = None
            self._loaded.move_to_end(adapter_id)

    def is_loaded(self, adapter_id: str) -> bool:
        with self._lock:
            return adapter_id in self._loaded

    def take_surplus(self) -> list[str]:
        """The adapters to give up now: past the capacity, least recently used first.

        They count as gone from here on, so that nobody relies on them while they are taken off.
        """
        with self._lock:
            free = [i for i in self._loaded if self._users[i] <= 0 and self._promises[i] <= 0]
            surplus = free[: max(0, len(self._loaded) - self._capacity)]
            for adapter_id in surplus:
                del self._loaded[adapter_id]
            return surplus
