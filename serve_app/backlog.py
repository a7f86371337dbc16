"""Tells operators, from each ingress, what waits and who is there for it."""

import asyncio
import logging

from serve_app.dispatch import EditorCount
from serve_app.errors import StoreUnavailable
from serve_app.jobs.backlog import Backlogs
from serve_app.telemetry import CLAIMED, EDITORS, OLDEST_WAITING, WAITING, WAITING_GPU_SECONDS, Meter

logger = logging.getLogger(__name__)

# How often it is counted (s): as often as a metrics endpoint is scraped.
REPORT_S = 5.0


class BacklogReport:
    """`run` until cancelled. Every ingress tells the same, so that it stays known whichever is left."""

    def __init__(self, backlogs: Backlogs, editor_count: EditorCount, meter: Meter) -> None:
        """`editor_count` names every model that is served."""
        self._backlogs = backlogs
        self._editor_count = editor_count
        self._meter = meter

    async def run(self) -> None:
        while True:
            try:
                for model, editors in (await self._editor_count()).items():
                    self._meter.record(EDITORS, editors, model=model)
                    await self._report(model)
            except StoreUnavailable as error:
                logger.warning("could not count what waits: %s", error)
            except Exception:
                logger.exception("could not count what waits; trying again")
            await asyncio.sleep(REPORT_S)

    async def _report(self, model: str) -> None:
        backlog = await self._backlogs.of(model)
        for priority, pictures in backlog.waiting.items():
            self._meter.record(WAITING, pictures, model=model, priority=priority)
        self._meter.record(CLAIMED, backlog.claimed, model=model)
        self._meter.record(OLDEST_WAITING, backlog.oldest_s, model=model)
        if backlog.seconds is not None:
            self._meter.record(WAITING_GPU_SECONDS, backlog.seconds, model=model)
