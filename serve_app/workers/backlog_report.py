"""Reports waiting images, claimed images and running editors as metrics, from each ingress."""

from collections.abc import Awaitable, Callable, Mapping

from serve_app.concurrency.loops import every
from serve_app.policy.scaling import Backlog
from serve_app.tasks import Priority
from serve_app.telemetry.metrics import CLAIMED, EDITORS, OLDEST_WAITING, WAITING, WAITING_GPU_SECONDS, Loop, Meter
from serve_app.workers.dispatcher import EditorCount

# How often the report is made (s): as often as metrics endpoints are scraped.
REPORT_S = 5.0


class BacklogReport:
    """`run` works until it is cancelled. All ingresses report the same numbers, those of the database."""

    def __init__(
        self, backlogs: Callable[[], Awaitable[Mapping[str, Backlog]]], editor_count: EditorCount, meter: Meter
    ) -> None:
        """`backlogs` and `editor_count` return a value for each editor group: the tag `model` of these metrics."""
        self._backlogs = backlogs
        self._editor_count = editor_count
        self._meter = meter

    async def run(self) -> None:
        await every(REPORT_S, self._report, loop=Loop.BACKLOG_REPORT, meter=self._meter)

    async def _report(self) -> None:
        for group, editors in (await self._editor_count()).items():
            self._meter.record(EDITORS, editors, model=group)
        for group, backlog in (await self._backlogs()).items():
            self._report_group(group, backlog)

    def _report_group(self, model: str, backlog: Backlog) -> None:
        for priority in Priority:
            self._meter.record(WAITING, getattr(backlog, priority), model=model, priority=priority)
        self._meter.record(CLAIMED, backlog.images - backlog.interactive - backlog.bulk, model=model)
        self._meter.record(OLDEST_WAITING, backlog.oldest_s, model=model)
        self._meter.record(WAITING_GPU_SECONDS, backlog.waiting_s, model=model)
