"""Waiting for requests to change: one query at a time serves everybody in this process who waits."""

import asyncio
from contextlib import suppress

from serve_app.concurrency.loops import WakeUp, every
from serve_app.jobs.store import JobStore
from serve_app.telemetry.metrics import NO_METER, Loop, Meter

# How often the database is asked while somebody waits (s), for changes that nobody in this process announces.
POLL_S = 0.2
# How long a waiter should wait at most before it reads the request again, changed or not (s).
MAX_UNCHANGED_S = 15.0


class Watch:
    """Wakes whoever waits for a request to change. `run` it until cancelled."""

    def __init__(self, store: JobStore, meter: Meter = NO_METER) -> None:
        self._store = store
        self._meter = meter
        self._waiters: dict[asyncio.Future[None], tuple[str, int]] = {}
        self._has_waiters = asyncio.Event()
        self._wake_up = WakeUp()

    async def run(self) -> None:
        loop = Loop.REQUEST_WATCH
        await every(POLL_S, self._wake_changed, loop=loop, meter=self._meter, pause=self._wake_up.pause)

    def wake(self) -> None:
        """Ask the database at once: a request has probably changed."""
        self._wake_up.set()

    async def changed(self, request_id: str, version: int, seconds: float) -> None:
        """Return once the request's version is not `version`, or it is gone, or `seconds` have passed."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = (request_id, version)
        self._has_waiters.set()
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await waiter
        finally:
            del self._waiters[waiter]
            if not self._waiters:
                self._has_waiters.clear()

    async def _wake_changed(self) -> None:
        await self._has_waiters.wait()
        versions = await self._store.requests.versions({request_id for request_id, _ in self._waiters.values()})
        for waiter, (request_id, version) in list(self._waiters.items()):
            if versions.get(request_id) != version and not waiter.done():
                # A waiter that came during the query, for a request that is not in it, merely wakes too early.
                waiter.set_result(None)
