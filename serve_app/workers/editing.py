"""One edit as the dispatcher sees it: the editor's events, the progress that they are recorded as, and the timeout."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from dataclasses import replace
from typing import Protocol

from serve_app.config import JobsConfig
from serve_app.errors import EditorLost, EditorUnavailable, StoreUnavailable
from serve_app.jobs.queue import Queue
from serve_app.jobs.records import Claim
from serve_app.tasks import EditDone, EditEvent, EditTask, Heartbeat, ImageStage, Stage, Status, StepDone
from serve_app.telemetry import tracing
from serve_app.telemetry.failures import log_failure
from serve_app.workers.edit_timeout import EditClock, EditTimeout

logger = logging.getLogger(__name__)

# If an editor is lost while an edit only waits there, this does not count as a failed attempt, for up to this many
# claims of an image. After that it counts: an image that kills its editor at once must not be tried forever.
CLAIMS_WITHOUT_ATTEMPT = 10
# Steps that follow each other faster than this (s) are recorded together.
PROGRESS_S = 0.25
# Stages that are recorded when an editor reports them. The other stages follow from the claim and from the steps.
RECORDED_STAGES = {Stage.WAITING: ImageStage.WAITING, Stage.STORING: ImageStage.STORING}


class Editors(Protocol):
    """Makes images: the editors behind Serve's handles, or a stand-in in tests."""

    def edit(self, task: EditTask) -> AsyncGenerator[EditEvent]:
        """The events of one edit: `StepDone` 0, 1, ... and at last one `EditDone`. Raises ServiceError."""
        ...


class Editing:
    """Has editors make images and records how far they are."""

    def __init__(self, queue: Queue, editors: Editors, config: JobsConfig) -> None:
        self._queue = queue
        self._editors = editors
        self._config = config

    async def edit(self, claim: Claim, clock: EditClock) -> EditDone:
        """Have an editor make the claimed image. Starts `clock` with the first step.

        Raises what the editor raises; EditorLost if the editor stops responding or goes away; EditorUnavailable if
        that happens before it has started the edit.
        """
        # The editor's spans belong to this attempt.
        task = replace(claim.task, traceparent=tracing.traceparent())
        timeout = EditTimeout(self._config, asyncio.get_running_loop().time())
        try:
            return await self._follow(claim, task, clock, timeout)
        except EditorLost as error:
            if timeout.waits_for_device and claim.generation <= CLAIMS_WITHOUT_ATTEMPT:
                raise EditorUnavailable("the editor went away while another edit ran on it") from error
            raise

    async def _follow(self, claim: Claim, task: EditTask, clock: EditClock, edit_timeout: EditTimeout) -> EditDone:
        """Read the events of an edit until it is done, within the timeout."""
        loop, progress = asyncio.get_running_loop(), Progress(self._queue, claim)
        try:
            async with asyncio.timeout_at(edit_timeout.ends_at) as limit, aclosing(self._editors.edit(task)) as events:
                async for event in events:
                    if isinstance(event, EditDone):
                        return event
                    if isinstance(event, StepDone):
                        clock.start()
                    # The database may be unavailable for longer than an editor may be silent.
                    limit.reschedule(None)
                    await progress.record(event, loop.time())
                    edit_timeout.extend(event, loop.time())
                    limit.reschedule(edit_timeout.ends_at)
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise edit_timeout.error() from error
        raise EditorLost("the editor's answer ended before the image was complete")


class Progress:
    """Records the stages and steps of one edit as often as clients can use it."""

    def __init__(self, queue: Queue, claim: Claim) -> None:
        self._queue = queue
        self._claim = claim
        self._stage = Stage.PREPARING
        self._recorded_at = float("-inf")

    async def record(self, event: Heartbeat | StepDone, now: float) -> None:
        """Record an event if it is a new stage, the first or last step, or the last record is old enough."""
        if isinstance(event, StepDone):
            if event.step in (0, event.steps) or now - self._recorded_at >= PROGRESS_S:
                await self._write(self._queue.progress(self._claim, event.step))
                self._recorded_at = asyncio.get_running_loop().time()
        elif event.stage is not self._stage:
            self._stage = event.stage
            if event.stage in RECORDED_STAGES:
                await self._write(self._queue.reach(self._claim, RECORDED_STAGES[event.stage]))

    async def _write(self, write: Awaitable[Status | None]) -> None:
        """Write, unless the store is unavailable. `Leases.stop_lost` decides whether the claim is still valid."""
        try:
            await write
        except StoreUnavailable:
            log_failure(logger, "could not record the progress of image %s; the edit goes on", self._claim.task.index)
