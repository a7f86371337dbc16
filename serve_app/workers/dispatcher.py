"""The dispatcher: claims images from the job queue, has editors make them, and records the outcomes.

Each ingress runs one. It is the only writer of the images that it has claimed. Its parts: `Leases` keeps the claims,
`Attempts` runs one attempt at an image, `Editing` follows the editor, `Outcomes` records how the attempt ended.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping

from serve_app.concurrency import background
from serve_app.concurrency.loops import WakeUp, every
from serve_app.config import JobsConfig
from serve_app.errors import StoreUnavailable
from serve_app.jobs.records import Claim
from serve_app.jobs.store import JobStore, owner_name
from serve_app.storage.artifacts import Artifacts
from serve_app.storage.step_previews import StepPreviewStorage
from serve_app.tasks import Status
from serve_app.telemetry.failures import log_failure
from serve_app.telemetry.metrics import NO_METER, REQUESTS, Loop, Meter
from serve_app.workers.attempts import Attempts
from serve_app.workers.edit_timeout import EditClock
from serve_app.workers.editing import Editing, Editors
from serve_app.workers.leases import InFlight, Leases
from serve_app.workers.outcomes import Outcomes

logger = logging.getLogger(__name__)

# The most images that one dispatcher works on at a time.
MAX_IN_FLIGHT = 200
# Images that are claimed per editor: one on its device and one that it prepares. The others wait in the database, where
# they are ordered, counted and can be cancelled. Without an editor they wait there for one to be started.
CLAIMS_PER_EDITOR = 2
# How often per lease the database is polled for work that nobody announced: the work of an owner that was lost. The
# same time passes before a retry.
POLLS_PER_LEASE = 10
# How often leases are renewed within their length.
RENEWALS_PER_LEASE = 3
# How soon a lost claim is noticed (s), above all a cancelled one: well within a denoising step.
WATCH_S = 0.1

# How many editors of each group are running: see `config.editor_group`.
EditorCount = Callable[[], Awaitable[Mapping[str, int]]]


class Dispatcher:
    """Call `run`, which works until cancelled, and `wake` when there is new work."""

    def __init__(
        self,
        store: JobStore,
        editors: Editors,
        artifacts: Artifacts,
        config: JobsConfig,
        editor_count: EditorCount,
        meter: Meter = NO_METER,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_end` is called when an attempt at an image has ended, however it ended."""
        self._queue = store.queue
        self._clients = store.clients
        self._previews = StepPreviewStorage(artifacts)
        self._config = config
        self._editor_count = editor_count
        self._meter = meter
        self._on_end = on_end
        self._owner = owner_name()
        self._poll_s = config.lease_s / POLLS_PER_LEASE
        self._leases = Leases(store.queue, self._owner)
        editing = Editing(store.queue, editors, config)
        self._outcomes = Outcomes(store.queue, artifacts, self._leases, config, self._poll_s, meter)
        self._attempts = Attempts(editing, self._outcomes, artifacts, config, meter)
        self._is_draining = False
        self._claiming = asyncio.Lock()
        self._wake_up = WakeUp()
        # When the database last answered, and until when nothing is taken over from other owners.
        self._answered_at = self._no_take_over_until = float("-inf")

    def wake(self) -> None:
        """Look for work at once."""
        self._wake_up.set()

    async def run(self) -> None:
        """Claim images and work on them until cancelled; then stop the work and give it back."""
        meter, leases = self._meter, self._leases
        renewal_s = self._config.lease_s / RENEWALS_PER_LEASE
        loops = [
            background.start(every(renewal_s, leases.renew, loop=Loop.LEASE_RENEWAL, meter=meter), Loop.LEASE_RENEWAL),
            background.start(every(WATCH_S, leases.stop_lost, loop=Loop.CLAIM_WATCH, meter=meter), Loop.CLAIM_WATCH),
        ]
        try:
            await every(self._poll_s, self._claim, loop=Loop.CLAIMING, meter=meter, pause=self._wake_up.pause)
        finally:
            try:
                await background.cancel(*loops, *leases.work)
            finally:
                await leases.release()

    async def drain(self, seconds: float) -> None:
        """Claim nothing more, give back what no editor has started, and wait up to `seconds` for the rest to finish."""
        self._is_draining = True
        async with self._claiming:
            started = {task for task, each in self._leases.work.items() if each.clock.was_started}
            not_started = {task: each.claim for task, each in self._leases.work.items() if task not in started}
        await background.cancel(*not_started)
        try:
            for claim in not_started.values():
                await self._queue.retry(claim, claim.reasons, 0.0)
        except StoreUnavailable:
            log_failure(logger, "could not give back the images that no editor has started; their leases run out")
        if started:
            await asyncio.wait(started, timeout=seconds)

    async def _claim(self) -> None:
        async with self._claiming:
            if not self._is_draining:
                await self._claim_for_each_group()

    async def _claim_for_each_group(self) -> None:
        for request_id, model in (await self._queue.expire()).items():
            self._meter.record(REQUESTS, model=model, status=Status.FAILED)
            self._previews.delete_all_soon(request_id)
        for request_id, model in (await self._clients.cancel_abandoned()).items():
            self._meter.record(REQUESTS, model=model, status=Status.CANCELED)
            self._previews.delete_all_soon(request_id)
        take_over = self._may_take_over()
        for group, editors in (await self._editor_count()).items():
            room = MAX_IN_FLIGHT - len(self._leases.work)
            capacity = CLAIMS_PER_EDITOR * editors
            for claim in await self._queue.claim(self._owner, group, capacity, room, take_over):
                self._start(claim)

    def _start(self, claim: Claim) -> None:
        clock = EditClock()
        task = asyncio.create_task(self._attempts.run(claim, clock))
        self._leases.work[task] = InFlight(claim, clock)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        del self._leases.work[task]
        self.wake()
        self._on_end()

    def _may_take_over(self) -> bool:
        """Whether a lease that ran out proves that its owner is lost. Call it when the database has just answered.

        While the database did not answer here, it did not answer other owners either. Afterwards they have the length
        of a lease to renew.
        """
        now = time.monotonic()
        if self._answered_at < now - self._config.lease_s and self._answered_at > float("-inf"):
            self._no_take_over_until = now + self._config.lease_s
        self._answered_at = now
        return now >= self._no_take_over_until
