"""What the editors that start have reported: see `serve_app.storage.starting_editors`."""

import asyncio
import logging
import time
from collections.abc import Iterable
from functools import partial

from serve_app.concurrency.threads import Threads
from serve_app.errors import Overloaded, StorageFailed
from serve_app.storage.artifacts import Artifacts
from serve_app.storage.starting_editors import StartingEditors
from serve_app.telemetry.start_progress import StartProgress

# How long a report is valid that does not change (s, on this machine's clock), and how long an answer is.
STALE_S, TTL_S = 15.0, 1.0
# How long a caller waits for a report (s). Then it gets none.
PATIENCE_S = 1.0

logger = logging.getLogger(__name__)


class Starts:
    """The progress of starting editors by group. Without artifact storage there is none."""

    def __init__(self, artifacts: Artifacts, stale_s: float = STALE_S, ttl_s: float = TTL_S) -> None:
        self._reports = StartingEditors(artifacts)
        self._stale_s = stale_s
        self._ttl_s = ttl_s
        # The beat of each group's last report, and when it was first seen here (s, monotonic).
        self._seen: dict[str, tuple[int, float]] = {}
        self._known: dict[str, tuple[StartProgress | None, float]] = {}
        # One read per group at a time, in a thread of their own: a store that never answers must not block the threads
        # of other work.
        self._reading: dict[str, asyncio.Task[StartProgress | None]] = {}
        self._thread = Threads(1, PATIENCE_S, "reading reports of starting editors")

    async def progress(self, groups: Iterable[str]) -> dict[str, StartProgress]:
        """The progress of those of these groups that report one."""
        groups = [*groups]
        found = zip(groups, await asyncio.gather(*map(self._of_group, groups)), strict=True)
        return {group: progress for group, progress in found if progress is not None}

    async def _of_group(self, group: str) -> StartProgress | None:
        known, at = self._known.get(group, (None, float("-inf")))
        if time.monotonic() - at < self._ttl_s:
            return known
        if group not in self._reading:
            self._reading[group] = asyncio.create_task(self._read(group))
        reading = self._reading[group]
        await asyncio.wait([reading], timeout=PATIENCE_S)
        return reading.result() if reading.done() else None

    async def _read(self, group: str) -> StartProgress | None:
        try:
            progress = self._if_new(group, await self._thread.run(partial(self._reports.get, group)))
        except (StorageFailed, Overloaded, ValueError):
            logger.warning("the report of starting editors of %s cannot be read", group, exc_info=True)
            progress = None
        finally:
            del self._reading[group]
        self._known[group] = progress, time.monotonic()
        return progress

    def _if_new(self, group: str, report: tuple[StartProgress, int] | None) -> StartProgress | None:
        """The progress in a report, unless it has not changed for long."""
        if report is None:
            return None
        (progress, beat), now = report, time.monotonic()
        last, since = self._seen.get(group, (None, now))
        if beat != last:
            self._seen[group] = beat, now
        return progress if beat != last or now - since < self._stale_s else None
