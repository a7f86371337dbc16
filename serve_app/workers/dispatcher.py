"""The dispatcher: claims images, has an editor make them, and records what became of them.

One runs in each ingress. It is the only writer of what it has claimed.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Protocol

from opentelemetry.trace import SpanKind
from pydantic import TypeAdapter
from sqlalchemy.exc import SQLAlchemyError

from serve_app.concurrency import background
from serve_app.concurrency.loops import WakeUp, every
from serve_app.config import JobsConfig
from serve_app.errors import EditorLost, EditorUnavailable, Overloaded, StorageFailed, StoreUnavailable, describe
from serve_app.jobs.records import Claim
from serve_app.jobs.store import JobStore, owner_name
from serve_app.storage import artifact_keys
from serve_app.storage.artifacts import Artifacts
from serve_app.tasks import Alive, EditDone, EditEvent, EditTask, ImageStage, Stage, Status, StepDone
from serve_app.telemetry import tracing
from serve_app.telemetry.metrics import (
    ATTEMPTS,
    FOUND,
    LEASES_LOST,
    MADE,
    NO_METER,
    REQUESTS,
    STAGE_SECONDS,
    STOPPED,
    UNRECORDED,
    Loop,
    Meter,
)

logger = logging.getLogger(__name__)

# What one dispatcher has under way at most.
MAX_IN_FLIGHT = 200
# What is claimed for each editor: one image on its device and one being prepared. The rest waits in the database,
# where it is ordered, counted and can be cancelled. Without an editor it waits there for one to be started.
CLAIMS_PER_EDITOR = 2
# How often, in a lease's length, the database is looked at for work that nobody announced: a lost owner's.
# As long is waited before a retry.
POLLS_PER_LEASE = 10
# How soon a lost claim is noticed, a cancelled one above all: well within a denoising step.
WATCH_S = 0.1
# How often an image may be claimed before it counts as an attempt too that its editor went away while it only waited
# there: what kills an editor at once would else be tried for ever.
FREE_CLAIMS = 10
# Steps that follow each other faster than this are recorded together.
PROGRESS_S = 0.25

# What is recorded when an editor says so; the other stages follow from the claim and from the steps.
TOLD_STAGES = {Stage.WAITING: ImageStage.WAITING, Stage.STORING: ImageStage.STORING}

_results = TypeAdapter(EditDone)

# How many editors of each model are running.
EditorCount = Callable[[], Awaitable[Mapping[str, int]]]


class Editors(Protocol):
    """Whoever makes images: the editors behind Serve's handles, or a whole stand-in in tests."""

    def edit(self, task: EditTask) -> AsyncGenerator[EditEvent]:
        """The events of one edit: `StepDone` 0, 1, ... and at last one `EditDone`. Raises ServiceError."""
        ...


class Dispatcher:
    """`run` until cancelled; `wake` it when there is new work."""

    def __init__(
        self,
        store: JobStore,
        editors: Editors,
        artifacts: Artifacts,
        config: JobsConfig,
        editor_count: EditorCount,
        meter: Meter = NO_METER,
    ) -> None:
        self._store = store
        self._editors = editors
        self._artifacts = artifacts
        self._config = config
        self._editor_count = editor_count
        self._meter = meter
        self._owner = owner_name()
        self._work: dict[asyncio.Task[None], tuple[Claim, Clock]] = {}
        self._is_draining = False
        self._claiming = asyncio.Lock()
        self._wake_up = WakeUp()
        self._poll_s = config.lease_s / POLLS_PER_LEASE
        # When the database last answered, and until when nothing is taken over from others.
        self._answered = self._indulgent_until = float("-inf")

    def wake(self) -> None:
        self._wake_up.set()

    async def run(self) -> None:
        """Claim and work until cancelled; then stop the work and give it back."""
        meter, renewal_s = self._meter, self._config.lease_s / 3
        leases = [
            background.begin(every(renewal_s, self._renew, loop=Loop.LEASE_RENEWAL, meter=meter)),
            background.begin(every(WATCH_S, self._stop_lost, loop=Loop.CLAIM_WATCH, meter=meter)),
        ]
        try:
            await every(self._poll_s, self._claim, loop=Loop.CLAIMING, meter=meter, pause=self._wake_up.pause)
        finally:
            try:
                await background.end(*leases, *self._work)
            finally:
                await self._release()

    async def _release(self) -> None:
        try:
            await self._store.queue.release(self._owner)
        except StoreUnavailable:
            logger.exception("could not give the work back; its leases run out")

    async def drain(self, seconds: float) -> None:
        """Claim no more, give back what no editor has begun, and let the rest end, for so long at most."""
        self._is_draining = True
        async with self._claiming:
            begun = {task for task, (_, clock) in self._work.items() if clock.was_started}
            not_begun = {task: claim for task, (claim, _) in self._work.items() if task not in begun}
        await background.end(*not_begun)
        try:
            for claim in not_begun.values():
                await self._store.queue.retry(claim, claim.reasons, 0.0)
        except StoreUnavailable:
            logger.exception("could not give back what has not begun; its leases run out")
        if begun:
            await asyncio.wait(begun, timeout=seconds)

    async def _claim(self) -> None:
        async with self._claiming:
            if not self._is_draining:
                await self._claim_for_each_model()

    async def _claim_for_each_model(self) -> None:
        for model in await self._store.queue.expire():
            self._meter.record(REQUESTS, model=model, status=Status.FAILED)
        take_over = self._may_take_over()
        for model, editors in (await self._editor_count()).items():
            room = MAX_IN_FLIGHT - len(self._work)
            capacity = CLAIMS_PER_EDITOR * editors
            for claim in await self._store.queue.claim(self._owner, model, capacity, room, take_over):
                clock = Clock()
                task = asyncio.create_task(self._finish(claim, clock))
                self._work[task] = claim, clock
                task.add_done_callback(self._ended)

    def _may_take_over(self) -> bool:
        """Whether a lease that ran out says that its owner is lost; asked when the database has just answered.

        It has not answered others either while it did not answer here: after that they have a lease's time to renew.
        """
        now = time.monotonic()
        if self._answered < now - self._config.lease_s and self._answered > float("-inf"):
            self._indulgent_until = now + self._config.lease_s
        self._answered = now
        return now >= self._indulgent_until

    def _ended(self, task: asyncio.Task[None]) -> None:
        # What could not be recorded is renewed no more, and is anybody's once its lease has run out.
        del self._work[task]
        self.wake()

    async def _renew(self) -> None:
        await self._store.queue.renew(self._owner, [claim.task for claim, _ in self._work.values()])

    async def _stop_lost(self) -> None:
        """Stop work on claims that are lost: cancelled, past their deadline, or taken over by another dispatcher."""
        # What is claimed from here on is not in the answer.
        work = list(self._work.items())
        if not work:
            return
        held = await self._store.queue.held(self._owner)
        for task, (claim, _) in work:
            # Once: a second cancellation would cut its clean-up short.
            if (claim.task.request_id, claim.task.index, claim.generation) not in held and not task.cancelling():
                task.cancel()

    async def _finish(self, claim: Claim, clock: "Clock") -> None:
        """Bring one claimed image to its end, or give it back; and tell of it."""
        task, model = claim.task, claim.task.plan.model
        facts: dict[str, Any] = {"image": task.index, "model": model, "generation": claim.generation}
        with tracing.about(task.request_id, task.traceparent):
            queue = None
            if claim.generation == 1:
                queue = tracing.waited("queue", claim.waited_s, **facts)
                self._meter.record(STAGE_SECONDS, claim.waited_s, model=model, stage="queue")
            if claim.was_lost:
                self._meter.record(LEASES_LOST, model=model)
            with tracing.span("attempt", SpanKind.CLIENT, queue, **facts) as span:
                outcome = STOPPED
                try:
                    outcome = await self._attempt(claim, clock)
                finally:
                    if outcome not in (MADE, FOUND):
                        tracing.failed(span, outcome)
                    self._meter.record(ATTEMPTS, model=model, outcome=outcome)
                    logger.info("image %s of %s: %s", task.index, task.request_id, outcome)

    async def _attempt(self, claim: Claim, clock: "Clock") -> str:
        """What became of it, in the words of `telemetry.ATTEMPTS`."""
        task = claim.task
        try:
            found = await self._earlier_result(claim)
            if found is None and len(claim.reasons) >= self._config.max_attempts:
                lost = describe(EditorLost(given_up(claim.reasons)))
                await self._settle(claim, lambda: self._store.queue.fail(claim, lost, 0.0), 0.0)
                return lost.code
            done = found or await self._edit(claim, clock)
            clock.stop()
            await self._succeed(claim, done)
            return FOUND if found else MADE
        except asyncio.CancelledError:
            if clock.seconds:
                await self._charge(claim, clock.seconds)
            raise
        except SQLAlchemyError:
            # The store, not the edit: its lease runs out, and somebody takes it up again.
            logger.exception("image %s of %s could not be recorded", task.index, task.request_id)
            return UNRECORDED
        except Exception as error:
            await self._give_back(claim, error, clock)
            return describe(error).code

    async def _succeed(self, claim: Claim, done: EditDone) -> None:
        def write() -> Awaitable[Status | None]:
            return self._store.queue.succeed(claim, done, self._artifacts.exists)

        await self._settle(claim, write, done.timings.get("generate", 0.0), is_found_again=True)

    async def _charge(self, claim: Claim, gpu_seconds: float) -> None:
        """Book what a claim that is lost has used."""
        if gpu_seconds <= 0.0:
            return
        try:
            await self._store.queue.charge(claim, gpu_seconds)
        except (SQLAlchemyError, StoreUnavailable):
            logger.exception("%.1f GPU seconds of %s could not be booked", gpu_seconds, claim.task.request_id)

    async def _settle(
        self,
        claim: Claim,
        write: Callable[[], Awaitable[Status | None]],
        gpu_seconds: float,
        *,
        pause_s: float = 0.0,
        is_found_again: bool = False,
    ) -> None:
        """Write what became of an edit, however long the store is away: what was made should not be made again.

        It first waits `pause_s`. `write` books `gpu_seconds`. If it finds the claim lost, or does not come to an end,
        they are booked here, unless the next owner finds the image (`is_found_again`) and books them with it.
        """
        written = False

        async def record() -> None:
            nonlocal written
            status = await write()
            written = True
            if status is None:
                await self._charge(claim, gpu_seconds)
            elif status.ended:
                self._meter.record(REQUESTS, model=claim.task.plan.model, status=status)

        try:
            await asyncio.sleep(pause_s)
            while True:
                try:
                    # A cancellation does not come between what belongs together.
                    return await background.to_the_end(record())
                except (StoreUnavailable, StorageFailed):
                    logger.exception("could not record what became of an edit; trying again")
                    await asyncio.sleep(self._poll_s)
        except EditorLost:
            # The image was purged, so nobody finds it.
            await background.to_the_end(self._charge(claim, gpu_seconds))
            raise
        except asyncio.CancelledError:
            if not written:
                await background.to_the_end(self._charge_unless_found(claim, gpu_seconds, is_found_again))
            raise

    async def _charge_unless_found(self, claim: Claim, gpu_seconds: float, is_found_again: bool) -> None:
        if not (is_found_again and await self._is_held(claim)):
            await self._charge(claim, gpu_seconds)

    async def _is_held(self, claim: Claim) -> bool:
        """Whether the claim still counts, as far as the store says: then the image goes to the claim's next owner."""
        try:
            held = await self._store.queue.held(self._owner)
        except (SQLAlchemyError, StoreUnavailable):
            return True
        return (claim.task.request_id, claim.task.index, claim.generation) in held

    async def _give_back(self, claim: Claim, error: Exception, clock: "Clock") -> None:
        """Have an edit that failed tried again, or fail it for good."""
        task, description, gpu_seconds = claim.task, describe(error), clock.seconds
        logger.warning("image %s of %s: %s", task.index, task.request_id, description.message, exc_info=error)
        # Who was turned away before the start has not tried: it waits for an editor, as long as it takes. So does what
        # could not be read or stored for now: storage that is away says nothing against the edit.
        waits = isinstance(error, EditorUnavailable | StorageFailed | Overloaded)
        reasons = claim.reasons if waits else (*claim.reasons, description.message)
        if description.retryable and len(reasons) < self._config.max_attempts:
            await self._settle(
                claim,
                lambda: self._store.queue.retry(claim, reasons, gpu_seconds),
                gpu_seconds,
                pause_s=self._poll_s,
            )
        else:
            failed = replace(description, message=given_up(reasons)) if description.retryable else description
            await self._settle(claim, lambda: self._store.queue.fail(claim, failed, gpu_seconds), gpu_seconds)

    async def _earlier_result(self, claim: Claim) -> EditDone | None:
        """What an editor finished for a dispatcher that was lost before it could record it."""
        if claim.generation == 1:
            return None
        key = artifact_keys.record(claim.task.request_id, claim.task.index)
        stored = await asyncio.to_thread(self._artifacts.get_json, key)
        if not stored:
            return None
        done = _results.validate_python(stored)
        return done if await asyncio.to_thread(self._artifacts.exists, done.key) else None

    async def _edit(self, claim: Claim, clock: "Clock") -> EditDone:
        """Have the image made.

        Raises what the editor raises, EditorLost if it no longer gets on, and EditorUnavailable if it had not begun.
        """
        # The editor's spans belong to this attempt.
        task = replace(claim.task, traceparent=tracing.traceparent())
        loop = asyncio.get_running_loop()
        patience = Patience(self._config, loop.time())
        recorded, stage = float("-inf"), Stage.PREPARING
        try:
            async with asyncio.timeout_at(patience.ends_at) as limit, aclosing(self._editors.edit(task)) as events:
                async for event in events:
                    if isinstance(event, EditDone):
                        return event
                    if isinstance(event, StepDone):
                        clock.start()
                        if event.step in (0, event.steps) or loop.time() - recorded >= PROGRESS_S:
                            # The database may be away for longer than an editor may be silent.
                            limit.reschedule(None)
                            await self._note(claim, self._store.queue.progress(claim, event.step))
                            recorded = loop.time()
                    elif event.stage is not stage:
                        stage = event.stage
                        if stage in TOLD_STAGES:
                            limit.reschedule(None)
                            await self._note(claim, self._store.queue.reach(claim, TOLD_STAGES[stage]))
                    patience.hear(event, loop.time())
                    limit.reschedule(patience.ends_at)
            loss: Exception = EditorLost("the editor's answer ended before the image was there")
        except TimeoutError as error:
            if not limit.expired():
                raise
            loss = patience.loss()
            loss.__cause__ = error
        except EditorLost as error:
            loss = error
        if isinstance(loss, EditorLost) and patience.only_waited and claim.generation <= FREE_CLAIMS:
            raise EditorUnavailable("the editor went away while another edit ran on it") from loss
        raise loss

    async def _note(self, claim: Claim, write: Awaitable[Status | None]) -> None:
        """Record how far an edit is, if the store is there. `_stop_lost` decides whether the claim still holds."""
        try:
            await write
        except StoreUnavailable:
            logger.exception("could not record how far image %s is; the edit goes on", claim.task.index)


class Patience:
    """How long an edit may go on without a word of its editor. Moments are the event loop's."""

    def __init__(self, config: JobsConfig, now: float) -> None:
        self._config = config
        self._heard = False
        self._silent_at = now + config.silence_s
        self._stalled_at: float | None = None
        self.only_waited = False

    @property
    def ends_at(self) -> float:
        return self._silent_at if self._stalled_at is None else min(self._silent_at, self._stalled_at)

    def hear(self, event: Alive | StepDone, now: float) -> None:
        self._heard = True
        self._silent_at = now + self._config.silence_s
        stage = Stage.RUNNING if isinstance(event, StepDone) else event.stage
        self.only_waited = stage is Stage.WAITING
        if isinstance(event, StepDone):
            self._stalled_at = now + self._config.stall_s
        elif stage is Stage.STORING:
            # Storage may be away for longer than a step takes.
            self._stalled_at = None

    def loss(self) -> EditorLost | EditorUnavailable:
        """What it means that patience has ended."""
        if not self._heard:
            return EditorUnavailable(f"no editor took it up for {self._config.silence_s:g} s")
        if self.ends_at == self._stalled_at:
            return EditorLost(f"the editor made no step for {self._config.stall_s:g} s")
        return EditorLost(f"the editor was not heard of for {self._config.silence_s:g} s")


class Clock:
    """Seconds since an editor began; 0 before, and once they are booked."""

    def __init__(self) -> None:
        self._started: float | None = None
        self.was_started = False

    def start(self) -> None:
        self.was_started = True
        if self._started is None:
            self._started = time.monotonic()

    def stop(self) -> None:
        self._started = None

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started if self._started is not None else 0.0


def given_up(reasons: tuple[str, ...]) -> str:
    tries = "; ".join(f"{number}: {reason}" for number, reason in enumerate(reasons, 1))
    return f"given up after {len(reasons)} attempts ({tries})"
