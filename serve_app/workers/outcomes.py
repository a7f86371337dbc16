"""Records how attempts end: success, retry or failure, and the GPU seconds that each has used."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from typing import Any

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
from serve_app.policy.predictions import is_kept
from serve_app.storage.artifacts import Artifacts
from serve_app.storage.step_previews import StepPreviewStorage
from serve_app.tasks import EditDone, Status
from serve_app.telemetry.failures import log_failure
from serve_app.telemetry.metrics import PREDICTIONS, REQUESTS, Meter
from serve_app.workers.leases import Leases

logger = logging.getLogger(__name__)


class Outcomes:
    """Writes outcomes to the store, however long it is unavailable: an image should not be made twice."""

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

        await self._settle(claim, write, done.timings.get("generate", 0.0), image_is_stored=True)

    async def fail(self, claim: Claim, error: ErrorDescription, gpu_seconds: float) -> None:
        """Record that the image cannot be made."""
        await self._settle(claim, lambda: self._queue.fail(claim, error, gpu_seconds), gpu_seconds)

    async def give_back(self, claim: Claim, error: Exception, gpu_seconds: float) -> None:
        """Have an image whose attempt failed tried again, or fail it for good."""
        task, description = claim.task, describe(error)
        logger.warning("image %s of %s: %s", task.index, task.request_id, description.message, exc_info=error)
        # An edit that no editor started was not attempted: it waits for an editor, as long as it takes. An edit whose
        # files cannot be read or stored at the moment waits too: the edit did not cause the outage.
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
        image_is_stored: bool = False,
    ) -> None:
        """Wait `pause_s`, then call `write` until the store has recorded the outcome.

        `write` charges `gpu_seconds` together with the outcome. If the claim is lost, it records nothing, and the
        seconds are charged here. If this is cancelled before anything was written, they are charged here too, with one
        exception: the next dispatcher that claims an image whose file is stored (`image_is_stored`) finds it, and
        charges them then.
        """
        is_written, status = False, None

        async def record() -> None:
            nonlocal is_written, status
            status = await write()
            is_written = True
            if status is None:
                await self.charge(claim, gpu_seconds)
            elif status.ended:
                self._meter.record(REQUESTS, model=claim.task.plan.model, status=status)
                self._previews.delete_all_soon(claim.task.request_id)

        try:
            await asyncio.sleep(pause_s)
            await self._with_retries(record)
            if status == Status.SUCCEEDED:
                await self._measure_prediction(claim)
        except EditorLost:
            # The image was purged, so no other dispatcher finds it.
            await background.shielded(self.charge(claim, gpu_seconds))
            raise
        except asyncio.CancelledError:
            if not is_written:
                await background.shielded(self._charge_unless_found(claim, gpu_seconds, image_is_stored))
            raise

    async def _measure_prediction(self, claim: Claim) -> None:
        """Count whether a request that has succeeded took no longer than was predicted."""
        try:
            times = await self._queue.prediction(claim.task.request_id)
        except (StoreFailed, StoreUnavailable):
            log_failure(logger, "could not read how long %s took", claim.task.request_id)
            return
        if times is not None:
            kept = "true" if is_kept(*times) else "false"
            self._meter.record(PREDICTIONS, model=claim.task.plan.model, kept=kept)

    async def _with_retries(self, record: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Call `record` until neither the store nor artifact storage is unavailable."""
        while True:
            try:
                # A cancellation must not separate the outcome from its charge.
                return await background.shielded(record())
            except (StoreUnavailable, StorageFailed):
                log_failure(logger, "could not record the outcome of an edit; trying again")
                await asyncio.sleep(self._retry_s)

    async def _charge_unless_found(self, claim: Claim, gpu_seconds: float, image_is_stored: bool) -> None:
        if not (image_is_stored and await self._leases.may_hold(claim)):
            await self.charge(claim, gpu_seconds)


def attempts_message(reasons: tuple[str, ...]) -> str:
    """The error of an image that failed too often: how each attempt ended."""
    attempts = "; ".join(f"{number}: {reason}" for number, reason in enumerate(reasons, 1))
    return f"failed after {len(reasons)} attempts ({attempts})"
