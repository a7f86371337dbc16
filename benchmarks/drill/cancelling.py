"""Cancellation under load: how long cancelled edits run on, and how much they slow down the other requests.

The engine is timed: its steps have a fixed duration.
"""

import asyncio
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from benchmarks.drill.cancellation import AT_ONCE, Cancellation, Cancelled, Canceller
from benchmarks.drill.load import PROMPTS, Client, Order
from benchmarks.drill.notes import TIMED_STEP_S, Note
from benchmarks.drill.service import EDITORS, Service

SEED = 6
CANCELLED, OTHERS = 50, 50
# Requests that are cancelled while they run, at a step up to LATEST_STEP; the rest up to LATEST_S after their POST.
RUNNING = 25
LATEST_STEP, LATEST_S = 2, 6.0
# The least throughput of the other requests compared with the same load alone, without the time of the cancelled edits.
LEAST_SHARE = 0.95


@dataclass(frozen=True)
class Load:
    """Seconds from the first step to the last image of the other requests, and editor-seconds of cancelled edits."""

    wall_s: float
    cancelled_s: float

    @property
    def throughput(self) -> float:
        """Images of the other requests per second that the editors did not spend on cancelled edits."""
        return OTHERS / (self.wall_s - self.cancelled_s / EDITORS)


def measure(notes: Mapping[str, Sequence[Note]], others: Sequence[str], cancelled: Sequence[str]) -> Load:
    began = min(note.at for image in (*others, *cancelled) for note in notes.get(image, ()))
    ended = max(note.at for image in others for note in notes[image] if note.what == "made")
    spent = sum(notes[image][-1].at - notes[image][0].at for image in cancelled if image in notes)
    return Load(ended - began, spent)


def steps_begun_after(cancellation: Cancelled, notes: Mapping[str, Sequence[Note]]) -> int:
    """How many steps an engine began after the cancellation was answered. It always finishes the step that it is in."""
    ended = [note.at for note in notes.get(cancellation.image, ()) if note.what == "step"]
    # A step begins when the one before it ends.
    return sum(before > cancellation.answered_at for before, _ in pairwise(ended))


def faults(cancellations: Sequence[Cancelled], notes: Mapping[str, Sequence[Note]]) -> list[str]:
    """Cancellations that did not work, one sentence each."""
    problems = []
    for each in cancellations:
        if each.status != "canceled":
            problems.append(f"{each.image} was cancelled and is {each.status}")
        if (begun := steps_begun_after(each, notes)) > 1:
            problems.append(f"{each.image} began {begun} steps after it was cancelled")
    return problems


class CancelDrill:
    """`run` it on an idle service: it prints its measurements and returns the problems."""

    def __init__(self, service: Service, client: Client) -> None:
        self._service = service
        self._client = client
        self._random = random.Random(SEED)

    async def run(self) -> list[str]:
        alone = [self._order("alone", number) for number in range(OTHERS)]
        await self._client.wait_for_all([await self._client.submit(order) for order in alone])
        others = [self._order("other", number) for number in range(OTHERS)]
        cancelled = [self._order("cancelled", number) for number in range(CANCELLED)]
        canceller = Canceller(self._client, self._service.notes)
        cancelling = asyncio.create_task(canceller.run(CANCELLED))
        request_ids = []
        # In turn, so that both kinds are spread over the whole queue.
        for number, (other, to_cancel) in enumerate(zip(others, cancelled, strict=True)):
            request_ids.append(await self._client.submit(other))
            request_id = await self._client.submit(to_cancel)
            canceller.add(self._cancellation(request_id, to_cancel.images[0], number < RUNNING))
        cancellations = await cancelling
        await self._client.wait_for_all(request_ids)
        return self._judge(alone, others, cancellations)

    def _order(self, name: str, number: int) -> Order:
        return Order(f"{name}{number}", (number % len(PROMPTS),), timed=True)

    def _cancellation(self, request_id: str, image: str, while_it_runs: bool) -> Cancellation:
        """A cancellation at a random moment of the edit, or a random time after the POST."""
        if while_it_runs:
            step = self._random.randrange(LATEST_STEP + 1)
            return Cancellation(request_id, image, step, self._random.uniform(0, TIMED_STEP_S))
        return Cancellation(request_id, image, AT_ONCE, self._random.uniform(0, LATEST_S))

    def _judge(self, alone: Sequence[Order], others: Sequence[Order], cancellations: Sequence[Cancelled]) -> list[str]:
        notes = self._service.notes.of_image()
        images = [each.image for each in cancellations]
        without = measure(notes, [order.images[0] for order in alone], [])
        together = measure(notes, [order.images[0] for order in others], images)
        after = [steps_begun_after(each, notes) for each in cancellations]
        begun = sum(image in notes for image in images)
        stopped = [notes[each.image][-1].at - each.asked_at for each in cancellations if each.image in notes]
        share = together.throughput / without.throughput
        print(
            f"{len(images)} of {len(images) + OTHERS} requests cancelled, "
            f"{begun} of them while an editor worked on them\n"
            f"steps begun after the cancellation was answered: {after.count(0)}x none, {after.count(1)}x one, "
            f"{sum(count > 1 for count in after)}x more; stopped {statistics.median(stopped):.2f} s after "
            f"it was asked for (median), {max(stopped):.2f} s at most; a step takes {TIMED_STEP_S} s\n"
            f"the other {OTHERS}: {without.wall_s:.1f} s alone; {together.wall_s:.1f} s with the cancelled ones, "
            f"which ran for {together.cancelled_s / EDITORS:.1f} s of that on each editor: "
            f"{share:.1%} of the throughput"
        )
        problems = faults(cancellations, notes)
        if begun < RUNNING:
            problems.append(f"only {begun} requests were cancelled while an editor worked on them")
        if share < LEAST_SHARE:
            problems.append(f"the others had {share:.1%} of their throughput")
        return problems
