"""Cancel under load: how far cancelled edits run on, and what it costs the others. With a timed engine."""

import asyncio
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from benchmarks.drill.load import PROMPTS, Client, Order
from benchmarks.drill.notes import TIMED_STEP_S, Note
from benchmarks.drill.service import EDITORS, Service

SEED = 6
CANCELLED, OTHERS = 50, 50
# Of the cancelled ones, this many are cancelled while they run; the rest a while after they were posted.
RUNNING = 25
LATEST_STEP, LATEST_S = 2, 6.0
# What the others may lose against the same load alone, time that the cancelled ones ran for set aside.
LEAST_SHARE = 0.95


@dataclass(frozen=True)
class Cancelled:
    """A cancellation: when it was asked for and answered (seconds since the epoch), and the status that it left."""

    image: str
    asked_at: float
    answered_at: float
    status: str


@dataclass(frozen=True)
class Load:
    """What was seen of a load: seconds from its first step to the last of the others' images, by the engines."""

    wall_s: float
    cancelled_s: float

    @property
    def throughput(self) -> float:
        """The others' images a second of the time that was theirs."""
        return OTHERS / (self.wall_s - self.cancelled_s / EDITORS)


def measure(notes: Mapping[str, Sequence[Note]], others: Sequence[str], cancelled: Sequence[str]) -> Load:
    began = min(note.at for image in (*others, *cancelled) for note in notes.get(image, ()))
    ended = max(note.at for image in others for note in notes[image] if note.what == "made")
    spent = sum(notes[image][-1].at - notes[image][0].at for image in cancelled if image in notes)
    return Load(ended - began, spent)


def steps_begun_after(cancellation: Cancelled, notes: Mapping[str, Sequence[Note]]) -> int:
    """How many steps an engine began after the cancellation was answered; it always ends the one it is in."""
    ended = [note.at for note in notes.get(cancellation.image, ()) if note.what == "step"]
    # A step begins when the one before it ends.
    return sum(before > cancellation.answered_at for before, _ in pairwise(ended))


def faults(cancellations: Sequence[Cancelled], notes: Mapping[str, Sequence[Note]]) -> list[str]:
    problems = []
    for each in cancellations:
        if each.status != "canceled":
            problems.append(f"{each.image} was cancelled and is {each.status}")
        if (begun := steps_begun_after(each, notes)) > 1:
            problems.append(f"{each.image} began {begun} steps after it was cancelled")
    return problems


class CancelDrill:
    """`run` it on a service that has nothing else to do; it prints what was seen and returns the problems."""

    def __init__(self, service: Service, client: Client) -> None:
        self._service = service
        self._client = client
        self._random = random.Random(SEED)

    async def run(self) -> list[str]:
        alone = [self._order("alone", number) for number in range(OTHERS)]
        await self._client.wait_for_all([await self._client.submit(order) for order in alone])
        others = [self._order("other", number) for number in range(OTHERS)]
        cancelled = [self._order("cancelled", number) for number in range(CANCELLED)]
        request_ids, cancelling = [], []
        # One after the other, so that both kinds are all along the line.
        for number, (other, to_cancel) in enumerate(zip(others, cancelled, strict=True)):
            request_ids.append(await self._client.submit(other))
            request_id = await self._client.submit(to_cancel)
            cancelling.append(asyncio.create_task(self._cancel(request_id, to_cancel.images[0], number < RUNNING)))
        cancellations = await asyncio.gather(*cancelling)
        await self._client.wait_for_all(request_ids)
        return self._judge(alone, others, cancellations)

    def _order(self, name: str, number: int) -> Order:
        return Order(f"{name}{number}", (number % len(PROMPTS),), timed=True)

    async def _cancel(self, request_id: str, image: str, while_it_runs: bool) -> Cancelled:
        """Cancel a request at a random moment of its run, or a random while after its POST."""
        after_step = self._random.randrange(LATEST_STEP + 1)
        pause = self._random.uniform(0, TIMED_STEP_S if while_it_runs else LATEST_S)
        while while_it_runs and not self._has_ended_step(image, after_step):
            await asyncio.sleep(0.02)
        await asyncio.sleep(pause)
        asked_at = time.time()
        status = await self._client.cancel(request_id)
        return Cancelled(image, asked_at, time.time(), status)

    def _has_ended_step(self, image: str, step: int) -> bool:
        return any(note.step >= step for note in self._service.notes.of_image().get(image, ()))

    def _judge(self, alone: Sequence[Order], others: Sequence[Order], cancellations: Sequence[Cancelled]) -> list[str]:
        notes = self._service.notes.of_image()
        images = [each.image for each in cancellations]
        before = measure(notes, [order.images[0] for order in alone], [])
        beside = measure(notes, [order.images[0] for order in others], images)
        after = [steps_begun_after(each, notes) for each in cancellations]
        begun = sum(image in notes for image in images)
        stopped = [notes[each.image][-1].at - each.asked_at for each in cancellations if each.image in notes]
        share = beside.throughput / before.throughput
        print(
            f"{len(images)} of {len(images) + OTHERS} requests cancelled, "
            f"{begun} of them while an editor worked on them\n"
            f"steps begun after the cancellation was answered: {after.count(0)}x none, {after.count(1)}x one, "
            f"{sum(count > 1 for count in after)}x more; stopped {statistics.median(stopped):.2f} s after "
            f"it was asked for (median), {max(stopped):.2f} s at most; a step takes {TIMED_STEP_S} s\n"
            f"the other {OTHERS}: {before.wall_s:.1f} s alone; {beside.wall_s:.1f} s beside the cancelled ones, "
            f"which ran for {beside.cancelled_s / EDITORS:.1f} s of that on each editor: "
            f"{share:.1%} of the throughput"
        )
        problems = faults(cancellations, notes)
        if begun < RUNNING:
            problems.append(f"only {begun} requests were cancelled while an editor worked on them")
        if share < LEAST_SHARE:
            problems.append(f"the others had {share:.1%} of their throughput")
        return problems
