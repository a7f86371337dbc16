"""The adapters that an editor loads into host memory before a request needs them."""

import asyncio
import logging
import time
from contextlib import AbstractContextManager
from itertools import takewhile
from typing import Any

from serve_app.engine.protocol import Engine
from serve_app.errors import ServiceError, StorageFailed
from serve_app.replicas.routing_stats import RoutingStats, adapter_set_id
from serve_app.storage.artifacts import Artifacts
from serve_app.tasks import AdapterUse
from serve_app.workers.warm_list import WarmList, load_until_full, read_warm_list

logger = logging.getLogger(__name__)

# The longest time that the start of an editor waits for adapters to load (s).
WARM_UP_S = 60.0
# How often the adapters that must stay in memory are loaded again (s).
KEEP_WARM_S = 20.0
# The errors of loading an adapter: its file or its store is at fault, or there is no memory. Any other error is a
# mistake in the code.
UNREADABLE = (ServiceError, OSError, RuntimeError, ValueError, ArithmeticError, LookupError)


class WarmAdapters:
    """Follows the warm list that the ingresses write for a model: see `serve_app.workers.warm_list`."""

    def __init__(self, artifacts: Artifacts, model: str, engine: Engine[Any], stats: RoutingStats) -> None:
        self._artifacts = artifacts
        self._model = model
        self._engine = engine
        self._stats = stats

    def load_all(self) -> None:
        """Load the adapters of the warm list, the most important ones first, until the cache is full. Blocks."""
        warm, deadline = self._read_list(), time.monotonic() + WARM_UP_S
        in_time = takewhile(lambda _: time.monotonic() < deadline, (*warm.kept, *warm.hottest))
        load_until_full(in_time, self._load, self._is_held)

    async def reload_kept(self) -> None:
        """Load the adapters that must stay in memory again: other adapters may have taken their room."""
        for uses in (await asyncio.to_thread(self._read_list)).kept:
            with self._loading(uses):
                await asyncio.to_thread(self._hold, uses)

    def _read_list(self) -> WarmList:
        try:
            return read_warm_list(self._artifacts, self._model)
        except (StorageFailed, ValueError):
            logger.exception("the list of adapters to keep warm could not be read")
            return WarmList()

    def _load(self, uses: tuple[AdapterUse, ...]) -> bool:
        with self._loading(uses):
            return self._hold(uses)

    def _hold(self, uses: tuple[AdapterUse, ...]) -> bool:
        """Load adapters as for an edit. Returns whether that succeeded. Blocks."""
        try:
            self._engine.hold(uses)
        except UNREADABLE:
            # Requests that name these adapters get the reason as their error. The editor works without them.
            logger.exception("%s cannot be kept warm", [use.path for use in uses])
            return False
        return True

    def _loading(self, uses: tuple[AdapterUse, ...]) -> AbstractContextManager[None]:
        return self._stats.loading(adapter_set_id(uses), [use.id for use in uses])

    def _is_held(self, uses: tuple[AdapterUse, ...]) -> bool:
        return self._stats.holds_all([use.id for use in uses])
