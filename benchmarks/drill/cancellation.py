"""Cancelling requests at chosen moments of their edits."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.drill.load import Client
from benchmarks.drill.notes import Note, Notes

# The moment of a cancellation that does not wait for a step of its edit. Other moments are numbers of steps; step 0 is
# the beginning of the edit.
AT_ONCE = -1
POLL_S = 0.02


@dataclass(frozen=True)
class Cancellation:
    """A request to cancel: `pause_s` seconds after its image has reached the step `moment`."""

    request_id: str
    image: str
    moment: int
    pause_s: float

    def is_due(self, notes: Sequence[Note]) -> bool:
        """Whether the notes on the image show that it has come so far."""
        if self.moment == AT_ONCE:
            return True
        return any(note.what == "made" or note.step >= self.moment for note in notes)


@dataclass(frozen=True)
class Cancelled:
    """A cancellation that was sent and answered (seconds since the epoch), and the status in the answer."""

    image: str
    asked_at: float
    answered_at: float
    status: str


class Canceller:
    """Cancels requests when they are due. `add` them while `run` runs in a task."""

    def __init__(self, client: Client, notes: Notes) -> None:
        self._client = client
        self._notes = notes
        self._waiting: list[Cancellation] = []

    def add(self, cancellation: Cancellation) -> None:
        self._waiting.append(cancellation)

    async def run(self, count: int) -> list[Cancelled]:
        """Send so many cancellations and return them once all are answered, in the order in which they were due."""
        sent: list[asyncio.Task[Cancelled]] = []
        while len(sent) < count:
            notes = self._notes.of_image()
            due = [each for each in self._waiting if each.is_due(notes.get(each.image, ()))]
            self._waiting = [each for each in self._waiting if each not in due]
            sent += [asyncio.create_task(self._send(each)) for each in due]
            await asyncio.sleep(POLL_S)
        return await asyncio.gather(*sent)

    async def _send(self, cancellation: Cancellation) -> Cancelled:
        await asyncio.sleep(cancellation.pause_s)
        asked_at = time.time()
        status = await self._client.cancel(cancellation.request_id)
        return Cancelled(cancellation.image, asked_at, time.time(), status)
