"""Step previews of the edits that run in an editor, for as long as somebody watches.

The device's thread only computes the small image. Another thread encodes and stores it, and looks at the marker that
says whether somebody watches. Whatever fails here leaves the edit alone.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager

import PIL.Image

from serve_app.concurrency import background
from serve_app.concurrency.loops import every
from serve_app.engine.protocol import MakePreview, ShouldStop
from serve_app.errors import StorageFailed
from serve_app.images.encode import encode_preview
from serve_app.replicas.editor_metrics import EditorMetrics
from serve_app.storage.step_previews import StepPreview, StepPreviewStorage
from serve_app.tasks import EditTask
from serve_app.telemetry.metrics import Loop, Meter

logger = logging.getLogger(__name__)

# How often an editor looks at the marker of the request that it works on (s).
LOOK_S = 1.0
# For how long after the marker's last change a request counts as watched (s).
WATCHED_S = 10.0
# The first preview follows the first step, the others this many steps later at the earliest, and this long (s).
STEPS_BETWEEN, SECONDS_BETWEEN = 3, 0.5


class PreviewMaker:
    """Makes the step previews of one editor. `of_edit` gives the part that belongs to one edit."""

    def __init__(self, storage: StepPreviewStorage, meter: Meter, metrics: EditorMetrics) -> None:
        self.storage = storage
        self.meter = meter
        self.metrics = metrics
        # One thread: if storage hangs, only that one waits for it.
        self.thread = ThreadPoolExecutor(1, "previews")
        self._is_failing = False

    def of_edit(self, task: EditTask, should_stop: ShouldStop) -> "EditPreviews":
        """The previews of one edit, whose caller has gone once `should_stop` returns True."""
        return EditPreviews(self, task, should_stop)

    def succeeded(self, device_s: float) -> None:
        """Count a stored preview that took the device's thread `device_s` seconds."""
        self._is_failing = False
        self.metrics.preview(device_s)

    def failed(self, what: str) -> None:
        """Count a preview that failed, and log the exception that is being handled."""
        self.metrics.failed_preview()
        self.log_once(what)

    def log_once(self, what: str) -> None:
        """Log the exception that is being handled, unless there was no stored preview since the last one."""
        if not self._is_failing:
            logger.exception("%s; the edit goes on. Further failures are not logged", what)
        self._is_failing = True


class EditPreviews:
    """The previews of one edit. `after_step` is called on the device's thread, the rest on the event loop."""

    def __init__(self, maker: PreviewMaker, task: EditTask, should_stop: ShouldStop) -> None:
        self._maker = maker
        self._storage = maker.storage
        self._task = task
        self._should_stop = should_stop
        self._marker: bytes | None = None
        self._watched_until = float("-inf")
        # When the latest preview was made, and after which step; what encodes and stores it.
        self._made_at = float("-inf")
        self._made_step: int | None = None
        self._storing: Future[None] | None = None

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Within, previews are made while somebody watches."""
        looking = every(LOOK_S, self._look, loop=Loop.PREVIEW_WATCH, meter=self._maker.meter)
        task = background.start(looking, Loop.PREVIEW_WATCH)
        try:
            yield
        finally:
            await background.cancel(task)

    def after_step(self, step: int, make: MakePreview | None) -> None:
        """Make the step's preview if somebody watches and it is due. Does not raise."""
        if make is None:
            # The edit begins, possibly again after it ran out of memory.
            self._made_step = None
        elif self._is_due(step):
            self._make(step, make)

    def forget(self) -> None:
        """Delete the stored preview: the edit has ended, and its request may have ended before the edit noticed."""
        if self._storing is not None:
            self._maker.thread.submit(self._delete)

    def _make(self, step: int, make: MakePreview) -> None:
        self._made_step, self._made_at = step, time.monotonic()
        started = time.perf_counter()
        try:
            image = make()
        except Exception:
            self._maker.failed("a step preview could not be made")
            return
        self._storing = self._maker.thread.submit(self._store, step, image, time.perf_counter() - started)

    def _is_due(self, step: int) -> bool:
        now = time.monotonic()
        is_busy = self._storing is not None and not self._storing.done()
        # The image itself follows the last step.
        if now > self._watched_until or is_busy or step >= self._task.plan.steps:
            return False
        if self._made_step is None:
            return True
        return step - self._made_step >= STEPS_BETWEEN and now - self._made_at >= SECONDS_BETWEEN

    async def _look(self) -> None:
        """Look whether the marker has changed since the last look. One that is there at first counts as changed."""
        marker = await asyncio.get_running_loop().run_in_executor(self._maker.thread, self._read_marker)
        if marker is not None and marker != self._marker:
            self._marker = marker
            self._watched_until = time.monotonic() + WATCHED_S

    def _read_marker(self) -> bytes | None:
        try:
            return self._storage.marker(self._task.request_id)
        except StorageFailed:
            self._maker.log_once("storage does not say whether somebody watches an edit")
            return None

    def _store(self, step: int, image: PIL.Image.Image, device_s: float) -> None:
        try:
            preview = StepPreview(step, encode_preview(image))
            if self._should_stop():
                return
            self._storage.put(self._task.request_id, self._task.index, preview)
        except Exception:
            self._maker.failed("a step preview could not be encoded or stored")
        else:
            self._maker.succeeded(device_s)

    def _delete(self) -> None:
        try:
            self._storage.delete(self._task.request_id, self._task.index)
        except StorageFailed:
            self._maker.log_once("a step preview could not be deleted; the sweeper does so later")
