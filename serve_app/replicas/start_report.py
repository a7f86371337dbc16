"""An editor that starts reports in artifact storage how far it is, so that every ingress can say so."""

import logging
import random
import threading
from types import TracebackType
from typing import Self

from serve_app.errors import StorageFailed
from serve_app.storage.artifacts import Artifacts
from serve_app.storage.starting_editors import StartingEditors
from serve_app.telemetry import start_progress

# How often an editor reports (s).
PERIOD_S = 1.0

logger = logging.getLogger(__name__)


class StartReport:
    """A context, within which an editor of `group` starts. It reports from a thread, while others load the engine."""

    def __init__(self, artifacts: Artifacts, group: str, period_s: float = PERIOD_S) -> None:
        self._reports = StartingEditors(artifacts)
        self._group = group
        self._period_s = period_s
        self._end = threading.Event()
        self._following = start_progress.following()

    def __enter__(self) -> Self:
        start = self._following.__enter__()
        self._thread = threading.Thread(target=self._report, args=(start,), daemon=True, name="start-report")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._following.__exit__(kind, error, traceback)
        # Not waited for: artifact storage may hang, and the editor can work.
        self._end.set()

    def _report(self, start: start_progress.Start) -> None:
        beat = random.getrandbits(32)
        while True:
            beat += 1
            try:
                self._reports.put(self._group, start.progress, beat)
            except StorageFailed:
                logger.exception("the start of an editor of %s could not be reported", self._group)
            if self._end.wait(self._period_s):
                break
        try:
            self._reports.delete(self._group)
        except StorageFailed:
            # Ingresses ignore a report that does not change any more.
            logger.exception("the report of the start of an editor of %s could not be deleted", self._group)
