"""One attempt at a claimed image: finds or makes it, records the outcome, and reports it to operators."""

import asyncio
import logging
from typing import Any

from opentelemetry.trace import SpanKind
from pydantic import TypeAdapter

from serve_app.config import JobsConfig
from serve_app.errors import EditorLost, StoreFailed, describe
from serve_app.jobs.records import Claim
from serve_app.storage import artifact_keys
from serve_app.storage.artifacts import Artifacts
from serve_app.tasks import EditDone
from serve_app.telemetry import tracing
from serve_app.telemetry.metrics import (
    ATTEMPTS,
    FOUND,
    LEASES_LOST,
    MADE,
    STAGE_SECONDS,
    STOPPED,
    UNRECORDED,
    Meter,
)
from serve_app.workers.edit_timeout import EditClock
from serve_app.workers.editing import Editing
from serve_app.workers.outcomes import Outcomes, attempts_message

logger = logging.getLogger(__name__)

_results = TypeAdapter(EditDone)


class Attempts:
    """Runs attempts at claimed images, and has their outcomes recorded."""

    def __init__(
        self, editing: Editing, outcomes: Outcomes, artifacts: Artifacts, config: JobsConfig, meter: Meter
    ) -> None:
        self._editing = editing
        self._outcomes = outcomes
        self._artifacts = artifacts
        self._config = config
        self._meter = meter

    async def run(self, claim: Claim, clock: EditClock) -> None:
        """Attempt one claimed image, in a span of its request's trace. `clock` measures its seconds on the device."""
        task, model, group = claim.task, claim.task.plan.model, claim.task.plan.editor_group
        facts: dict[str, Any] = {"image": task.index, "model": model, "generation": claim.generation}
        with tracing.for_request(task.request_id, task.traceparent):
            queue = None
            if claim.generation == 1:
                queue = tracing.record_wait("queue", claim.waited_s, **facts)
                self._meter.record(STAGE_SECONDS, claim.waited_s, model=group, stage="queue")
            if claim.was_lost:
                self._meter.record(LEASES_LOST, model=group)
            makes = tracing.Generation(model, seed=task.plan.seed)
            with tracing.span("attempt", SpanKind.CLIENT, queue, makes, **facts) as span:
                outcome = STOPPED
                try:
                    outcome = await self._attempt(claim, clock)
                finally:
                    if outcome not in (MADE, FOUND):
                        tracing.mark_failed(span, outcome)
                    self._meter.record(ATTEMPTS, model=group, outcome=outcome)
                    logger.info("image %s of %s: %s", task.index, task.request_id, outcome)

    async def _attempt(self, claim: Claim, clock: EditClock) -> str:
        """The outcome, as a value of the tag `outcome` of the metric `ATTEMPTS`."""
        try:
            found = await self._earlier_result(claim)
            if found is None and len(claim.reasons) >= self._config.max_attempts:
                lost = describe(EditorLost(attempts_message(claim.reasons)))
                await self._outcomes.fail(claim, lost, 0.0)
                return lost.code
            done = found or await self._editing.edit(claim, clock)
            clock.stop()
            await self._outcomes.succeed(claim, done)
            return FOUND if found else MADE
        except asyncio.CancelledError:
            await self._outcomes.charge(claim, clock.seconds)
            raise
        except StoreFailed:
            # The store failed, not the edit: the lease runs out, and a dispatcher claims the image again.
            logger.exception("image %s of %s could not be recorded", claim.task.index, claim.task.request_id)
            return UNRECORDED
        except Exception as error:
            await self._outcomes.give_back(claim, error, clock.seconds)
            return describe(error).code

    async def _earlier_result(self, claim: Claim) -> EditDone | None:
        """The image, if an editor finished it for a dispatcher that was lost before it could record it."""
        if claim.generation == 1:
            return None
        key = artifact_keys.record(claim.task.request_id, claim.task.index)
        stored = await asyncio.to_thread(self._artifacts.get_json, key)
        if not stored:
            return None
        done = _results.validate_python(stored)
        return done if await asyncio.to_thread(self._artifacts.exists, done.key) else None
