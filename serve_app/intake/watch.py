"""Who waits for a request to change: one look at the database for all waiters of this process."""

import asyncio
from contextlib import suppress

from serve_app.concurrency.loops import every
from serve_app.jobs.store import JobStore
from serve_app.telemetry.metrics import NO_METER, Loop, Meter

# How soon a change is noticed.
LOOK_S = 0.2


class Watch:
    """`run` until cancelled."""

    def __init__(self, store: JobStore, meter: Meter = NO_METER) -> None:
        self._store = store
        self._meter = meter
        self._waiters: dict[asyncio.Future[None], tuple[str, int]] = {}
        self._somebody = asyncio.Event()

    async def run(self) -> None:
        await every(LOOK_S, self._look, loop=Loop.REQUEST_WATCH, meter=self._meter)

    async def changed(self, request_id: str, version: int, seconds: float) -> None:
        """Return once the request has another version, or is gone, or the time is over."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = (request_id, version)
        self._somebody.set()
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await waiter
        finally:
            del self._waiters[waiter]
            if not self._waiters:
                self._somebody.clear()

    async def _look(self) -> None:
        await self._somebody.wait()
        versions = await self._store.requests.versions({request_id for request_id, _ in self._waiters.values()})
        for waiter, (request_id, version) in list(self._waiters.items()):
            if versions.get(request_id) != version and not waiter.done():
                # One that began to wait after the look, for a request that is not in it, is only told early.
                waiter.set_result(None)
