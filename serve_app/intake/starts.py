"""What the editors that start have reported: see `serve_app.storage.starting_editors`."""

import asyncio
import logging
import time
from collections.abc import Iterable

from serve_app.errors import StorageFailed
from serve_app.storage.artifacts import Artifacts
from serve_app.storage.starting_editors import StartingEditors
from serve_app.telemetry.start_progress import StartProgress

# How long a report is valid that does not change (s, on this machine's clock), and how long an answer is.
STALE_S, TTL_S = 15.0, 1.0

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

    async def progress(self, groups: Iterable[str]) -> dict[str, StartProgress]:
        """The progress of those of these groups that report one."""
        found = {group: await self._of_group(group) for group in groups}
        return {group: progress for group, progress in found.items() if progress is not None}

    async def _of_group(self, group: str) -> StartProgress | None:
        known, at = self._known.get(group, (None, float("-inf")))
        if time.monotonic() - at < self._ttl_s:
            return known
        try:
            progress = self._if_new(group, await asyncio.to_thread(self._reports.get, group))
        except (StorageFailed, LookupError, ValueError):
            logger.warning("the report of starting editors of %s cannot be read", group, exc_info=True)
            progress = None
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
