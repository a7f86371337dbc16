"""The dispatcher: claims pictures, has an editor make them, and records what became of them.

One runs in each ingress. It is the only writer of what it has claimed.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Protocol

from pydantic import TypeAdapter
from sqlalchemy.exc import SQLAlchemyError

from serve_app.artifacts import Artifacts
from serve_app.config import JobsConfig
from serve_app.errors import EditorLost, EditorUnavailable, EditTimedOut, describe
from serve_app.jobs import Claim, JobStore
from serve_app.tasks import EditDone, EditEvent, EditTask

logger = logging.getLogger(__name__)

# What one dispatcher has under way or in Serve's queue; the rest waits in the database.
MAX_IN_FLIGHT = 100
# How often, in a lease's length, the database is looked at for work that nobody announced: a lost owner's.
# As long is waited before a retry.
POLLS_PER_LEASE = 10
# Steps that follow each other faster than this are recorded together.
PROGRESS_S = 0.25

_results = TypeAdapter(EditDone)


class Editors(Protocol):
    """Whoever makes pictures: the editors behind Serve's handles, or a whole stand-in in tests."""

    def edit(self, task: EditTask) -> AsyncGenerator[EditEvent]:
        """The events of one edit: `StepDone` 0, 1, ... and at last one `EditDone`. Raises ServiceError."""
        ...


def result_key(task: EditTask) -> str:
    """Where the picture of a task lies in artifact storage, less its ending."""
    return f"results/{task.request_id}/{task.index}"


class Dispatcher:
    """`run` until cancelled; `wake` it when there is new work."""

    def __init__(self, store: JobStore, editors: Editors, artifacts: Artifacts, config: JobsConfig) -> None:
        self._store = store
        self._editors = editors
        self._artifacts = artifacts
        self._config = config
        self._owner = uuid.uuid4().hex
        self._work: dict[asyncio.Task[None], EditTask] = {}
        self._awake = asyncio.Event()
        self._poll_s = config.lease_s / POLLS_PER_LEASE

    def wake(self) -> None:
        self._awake.set()

    async def run(self) -> None:
        """Claim and work until cancelled; then stop the work and give it back."""
        renewal = asyncio.create_task(self._renew_for_ever())
        try:
            while True:
                self._awake.clear()
                await self._claim()
                # Not `wait_for`: in Python 3.11 it loses a cancellation that comes with the event.
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._poll_s):
                        await self._awake.wait()
        finally:
            renewal.cancel()
            for task in self._work:
                task.cancel()
            await asyncio.gather(renewal, *self._work, return_exceptions=True)
            await self._store.release(self._owner)

    async def _claim(self) -> None:
        room = MAX_IN_FLIGHT - len(self._work)
        if room <= 0:
            return
        try:
            claims = await self._store.claim(self._owner, room)
        except Exception:
            logger.exception("could not claim work; trying again")
            return
        for claim in claims:
            task = asyncio.create_task(self._finish(claim))
            self._work[task] = claim.task
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        # What could not be recorded is renewed no more, and is anybody's once its lease has run out.
        del self._work[task]
        self.wake()

    async def _renew_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._config.lease_s / 3)
            try:
                await self._store.renew(self._owner, list(self._work.values()))
            except Exception:
                logger.exception("could not renew the leases; trying again")

    async def _finish(self, claim: Claim) -> None:
        """Bring one claimed picture to its end, or give it back."""
        task = claim.task
        try:
            done = await self._earlier_result(claim) or await self._edit(claim)
        except (SQLAlchemyError, OSError):
            # The store or the storage, not the edit: its lease runs out, and somebody takes it up again.
            logger.exception("picture %s of %s could not be recorded", task.index, task.request_id)
        except Exception as error:
            description = describe(error)
            logger.warning("picture %s of %s: %s", task.index, task.request_id, description.message, exc_info=error)
            # Who was turned away before the start has not tried: it waits for an editor as long as it takes.
            attempts = claim.attempts + (not isinstance(error, EditorUnavailable))
            if description.retryable and attempts < self._config.max_attempts:
                await asyncio.sleep(self._poll_s)
                await self._store.retry(claim, attempts, description.message)
            else:
                await self._store.fail(claim, description.message)
        else:
            if done is not None:
                await self._store.succeed(claim, done)

    async def _earlier_result(self, claim: Claim) -> EditDone | None:
        """What an editor finished for a dispatcher that was lost before it could record it."""
        if claim.generation == 1:
            return None
        stored = await asyncio.to_thread(self._artifacts.get_json, f"{result_key(claim.task)}.json")
        return _results.validate_python(stored) if stored else None

    async def _edit(self, claim: Claim) -> EditDone | None:
        """Have the picture made. None if the claim was lost meanwhile: somebody else records it then."""
        if claim.attempts >= self._config.max_attempts:
            raise EditorLost(f"given up after {claim.attempts} attempts whose editor or dispatcher was lost")
        recorded = 0.0
        # Waiting in Serve's queue takes what it takes: the clock starts with the work.
        async with self._clock() as clock, aclosing(self._editors.edit(claim.task)) as events:
            async for event in events:
                if isinstance(event, EditDone):
                    return event
                now = time.monotonic()
                if event.step == 0:
                    clock.reschedule(asyncio.get_running_loop().time() + self._config.timeout_s)
                if event.step == 0 or now - recorded >= PROGRESS_S:
                    recorded = now
                    if not await self._store.progress(claim, event.step):
                        return None
        raise EditorLost("the editor's answer ended before the picture was there")

    @asynccontextmanager
    async def _clock(self) -> AsyncIterator[asyncio.Timeout]:
        """A time-out that is not set yet. Raises EditTimedOut when it strikes."""
        try:
            async with asyncio.timeout(None) as clock:
                yield clock
        except TimeoutError as error:
            if not clock.expired():
                raise
            raise EditTimedOut(f"it took longer than {self._config.timeout_s:g} s") from error
