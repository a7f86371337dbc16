"""The leases on claimed images: renewed while their edits run, watched for loss, given back at the end."""

import asyncio
import logging
from dataclasses import dataclass

from serve_app.errors import StoreFailed, StoreUnavailable
from serve_app.jobs.queue import Queue
from serve_app.jobs.records import Claim
from serve_app.telemetry.failures import log_failure
from serve_app.workers.edit_timeout import EditClock

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class InFlight:
    """A claimed image that this process works on."""

    claim: Claim
    clock: EditClock


class Leases:
    """The leases of one owner. `work` has the task of each claimed image, until the task is done."""

    def __init__(self, queue: Queue, owner: str) -> None:
        self._queue = queue
        self._owner = owner
        self.work: dict[asyncio.Task[None], InFlight] = {}

    async def renew(self) -> None:
        """Extend the leases of the images in `work`.

        An image whose outcome could not be recorded is not among them: its lease runs out, and any dispatcher may
        claim it.
        """
        await self._queue.renew(self._owner, [each.claim.task for each in self.work.values()])

    async def stop_lost(self) -> None:
        """Cancel the tasks whose claims are lost, by a cancellation, a deadline or another dispatcher."""
        # A copy: images that are claimed during the query are not in its answer.
        work = list(self.work.items())
        if not work:
            return
        held = await self._queue.held(self._owner)
        for task, each in work:
            # Only once: a second cancellation would cut its clean-up short.
            if _key(each.claim) not in held and not task.cancelling():
                task.cancel()

    async def may_hold(self, claim: Claim) -> bool:
        """Whether the claim may still be valid. While the store does not answer, it may be."""
        try:
            held = await self._queue.held(self._owner)
        except (StoreFailed, StoreUnavailable):
            return True
        return _key(claim) in held

    async def release(self) -> None:
        """Give all claimed images back."""
        try:
            await self._queue.release(self._owner)
        except StoreUnavailable:
            log_failure(logger, "could not give the claimed images back; their leases run out")


def _key(claim: Claim) -> tuple[str, int, int]:
    return claim.task.request_id, claim.task.index, claim.generation
