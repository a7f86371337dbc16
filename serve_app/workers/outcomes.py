"""Records how attempts end: success, retry or failure, and the GPU seconds that each has used."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace

from serve_app.concurrency import background
from serve_app.config import JobsConfig
from serve_app.errors import (
    EditorLost,
    EditorUnavailable,
    ErrorDescription,
    Overloaded,
    StorageFailed,
    StoreFailed,
    StoreUnavailable,
    describe,
)
from serve_app.jobs.queue import Queue
from serve_app.jobs.records import Claim
from serve_app.storage.artifacts import Artifacts
from serve_app.storage.step_previews import StepPreviewStorage
from serve_app.tasks import EditDone, Status
from serve_app.telemetry.failures import log_failure
from serve_app.telemetry.metrics import REQUESTS, Meter
from serve_app.workers.leases import Leases

logger = logging.getLogger(__name__)


class Outcomes:
    """Writes outcomes to the store, however long it is away: an image that was made should not be made again."""

    def __init__(
        self, queue: Queue, artifacts: Artifacts, leases: Leases, config: JobsConfig, retry_s: float, meter: Meter
    ) -> None:
        """`retry_s` is the pause before an image is given back, and between two tries to write an outcome."""
        self._queue = queue
        self._artifacts = artifacts
        self._previews = StepPreviewStorage(artifacts)
        self._leases = leases
        self._config = config
        self._retry_s = retry_s
        self._meter = meter

    async def succeed(self, claim: Claim, done: EditDone) -> None:
        """Record a finished image. Raises EditorLost if its file is no longer stored."""

        def write() -> Awaitable[Status | None]:
            return self._queue.succeed(claim, done, self._artifacts.exists)

        await self._settle(claim, write, done.timings.get("generate", 0.0), is_found_again=True)

    async def fail(self, claim: Claim, error: ErrorDescription, gpu_seconds: float) -> None:
        """Record that the image cannot be made."""
        await self._settle(claim, lambda: self._queue.fail(claim, error, gpu_seconds), gpu_seconds)

    async def give_back(self, claim: Claim, error: Exception, gpu_seconds: float) -> None:
        """Have an image whose attempt failed tried again, or fail it for good."""
        task, description = claim.task, describe(error)
        logger.warning("image %s of %s: %s", task.index, task.request_id, description.message, exc_info=error)
        # An edit that no editor started was not attempted: it waits for an editor, as long as it takes. An edit whose
        # files could not be read or stored for now waits too: the outage says nothing about the edit.
        is_no_attempt = isinstance(error, EditorUnavailable | StorageFailed | Overloaded)
        reasons = claim.reasons if is_no_attempt else (*claim.reasons, description.message)
        if not description.retryable:
            await self.fail(claim, description, gpu_seconds)
        elif len(reasons) >= self._config.max_attempts:
            await self.fail(claim, replace(description, message=attempts_message(reasons)), gpu_seconds)
        else:

            def write() -> Awaitable[Status | None]:
                return self._queue.retry(claim, reasons, gpu_seconds)

            await self._settle(claim, write, gpu_seconds, pause_s=self._retry_s)

    async def charge(self, claim: Claim, gpu_seconds: float) -> None:
        """Charge the GPU seconds that an attempt has used although its claim is lost."""
        if gpu_seconds <= 0.0:
            return
        try:
            await self._queue.charge(claim, gpu_seconds)
        except (StoreFailed, StoreUnavailable):
            log_failure(logger, "could not charge %.1f GPU seconds of %s", gpu_seconds, claim.task.request_id)

    async def _settle(
        self,
        claim: Claim,
        write: Callable[[], Awaitable[Status | None]],
        gpu_seconds: float,
        *,
        pause_s: float = 0.0,
        is_found_again: bool = False,
    ) -> None:
        """After `pause_s`, call `write` until the store has recorded the outcome.

        `write` charges `gpu_seconds`. If it finds that the claim is lost, or if this is cancelled before it has
        written, they are charged here, unless the next owner of the claim finds the image (`is_found_again`) and
        charges them with it.
        """
        is_written = False

        async def record() -> None:
            nonlocal is_written
            status = await write()
            is_written = True
            if status is None:
                await self.charge(claim, gpu_seconds)
            elif status.ended:
                self._meter.record(REQUESTS, model=claim.task.plan.model, status=status)
                self._previews.delete_all_soon(claim.task.request_id)

        try:
            await asyncio.sleep(pause_s)
            while True:
                try:
                    # A cancellation must not separate the outcome from its charge.
                    return await background.shielded(record())
                except (StoreUnavailable, StorageFailed):
                    log_failure(logger, "could not record the outcome of an edit; trying again")
                    await asyncio.sleep(self._retry_s)
        except EditorLost:
            # The image was purged, so no other dispatcher finds it.
            await background.shielded(self.charge(claim, gpu_seconds))
            raise
        except asyncio.CancelledError:
            if not is_written:
                await background.shielded(self._charge_unless_found(claim, gpu_seconds, is_found_again))
            raise

    async def _charge_unless_found(self, claim: Claim, gpu_seconds: float, is_found_again: bool) -> None:
        if not (is_found_again and await self._leases.may_hold(claim)):
            await self.charge(claim, gpu_seconds)


def attempts_message(reasons: tuple[str, ...]) -> str:
    """The error of an image that failed too often: how each attempt ended."""
    attempts = "; ".join(f"{number}: {reason}" for number, reason in enumerate(reasons, 1))
    return f"given up after {len(reasons)} attempts ({attempts})"
