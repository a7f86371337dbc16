"""Many edits, half of them cancelled at random moments, and time limits so short that they act within the drill.

A service under this load has no fault, so that no editor may be replaced and no other edit may be lost.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.drill.load import PROMPTS, Client, Order
from benchmarks.drill.notes import QUICK_STEP_S, Note
from benchmarks.drill.service import TIME_LIMITS, Service

SEED = 7
EDITS, CANCELLED = 500, 250
# Of an edit that is cancelled: it takes longer than a cancellation takes to get to it. Of the others.
STEPS, OTHER_STEPS = 10, 3
# How many images each request of the others has.
BATCH = 10
# Moments at which a cancellation is sent: while an edit waits, after its step 0 (it has begun), 1, ..., and after the
# image was made, before it was stored and recorded, or shortly after that.
WAITING, MADE = -1, STEPS + 1
# How long after its moment a cancellation is sent at most (s): while an edit waits, and otherwise.
LATEST_WAITING_S, LATEST_S = 2.0, 0.1
# Serve checks an editor every two seconds and replaces it after the third failure: so much later than the time limit.
HEALTH_CHECKS_S = 8.0


@dataclass(frozen=True)
class Cancellation:
    """When a request is cancelled: so long (s) after a moment of its edit."""

    request_id: str
    image: str
    moment: int
    pause_s: float

    def is_due(self, notes: Sequence[Note]) -> bool:
        if self.moment == WAITING:
            return True
        return any(note.what == "made" or note.step >= self.moment for note in notes)


def faults(
    before: frozenset[int], after: frozenset[int], started: int, statuses: Mapping[str, Sequence[str]]
) -> list[str]:
    """What is wrong: editors by process, how many were started meanwhile, and how requests of each kind ended."""
    problems = []
    if gone := before - after:
        problems.append(f"{len(gone)} healthy editors were replaced: {sorted(gone)}")
    if started:
        problems.append(f"{started} editors were started, though none was killed")
    for kind, allowed in (("cancelled", ("canceled", "succeeded")), ("other", ("succeeded",))):
        counts = Counter(status for status in statuses[kind] if status not in allowed)
        problems += [f"{count} {kind} requests ended as {status}" for status, count in counts.items()]
    return problems


class SteadyDrill:
    """`run` it on a service that has nothing else to do; it prints what was seen and returns the problems."""

    def __init__(self, service: Service, client: Client) -> None:
        self._service = service
        self._client = client
        self._random = random.Random(SEED)

    async def run(self) -> list[str]:
        before, known = self._service.editors(), self._service.started()
        cancellations: asyncio.Queue[Cancellation] = asyncio.Queue()
        cancelling = asyncio.create_task(self._cancel(cancellations))
        others = await self._post(cancellations)
        cancelled = await cancelling
        statuses = list(cancelled.values())
        ended = [await self._client.wait(request_id) for request_id in others]
        await asyncio.sleep(TIME_LIMITS.stopping_s + HEALTH_CHECKS_S)
        after, started = self._service.editors(), self._service.started() - known
        self._print(cancelled)
        print(f"editors: {sorted(before)} before, {sorted(after)} after, {started} started meanwhile")
        return faults(before, after, started, {"cancelled": statuses, "other": ended})

    async def _post(self, cancellations: "asyncio.Queue[Cancellation]") -> list[str]:
        """Post the requests that are to succeed, and among them those that will be cancelled."""
        others = []
        for number in range(CANCELLED):
            if number % BATCH == 0:
                prompts = tuple(index % len(PROMPTS) for index in range(BATCH))
                others.append(await self._client.submit(Order(f"kept{number}", prompts, quick=True, steps=OTHER_STEPS)))
            order = Order(f"dropped{number}", (number % len(PROMPTS),), quick=True, steps=STEPS)
            moment = self._random.randint(WAITING, MADE)
            latest_s = LATEST_WAITING_S if moment == WAITING else LATEST_S
            pause_s = self._random.uniform(0, latest_s)
            cancellations.put_nowait(Cancellation(await self._client.submit(order), order.images[0], moment, pause_s))
        return others

    async def _cancel(self, cancellations: "asyncio.Queue[Cancellation]") -> dict[Cancellation, str]:
        """Cancel each request when it is due; how they ended."""
        waiting: list[Cancellation] = []
        sent: dict[Cancellation, asyncio.Task[str]] = {}
        while len(sent) < CANCELLED:
            while not cancellations.empty():
                waiting.append(cancellations.get_nowait())
            notes = self._service.notes.of_image()
            due = [each for each in waiting if each.is_due(notes.get(each.image, ()))]
            waiting = [each for each in waiting if each not in due]
            sent |= {each: asyncio.create_task(self._cancel_one(each)) for each in due}
            await asyncio.sleep(0.02)
        return {each: await task for each, task in sent.items()}

    async def _cancel_one(self, cancellation: Cancellation) -> str:
        await asyncio.sleep(cancellation.pause_s)
        await self._client.cancel(cancellation.request_id)
        return await self._client.wait(cancellation.request_id)

    def _print(self, cancellations: Mapping[Cancellation, str]) -> None:
        notes = self._service.notes.of_image()
        ends = Counter(notes[each.image][-1].what if each.image in notes else "not begun" for each in cancellations)
        moments = Counter(each.moment for each in cancellations)
        print(
            f"{len(cancellations)} of {EDITS} edits cancelled: {moments[WAITING]} while they waited, {moments[MADE]} "
            f"after their last step, the others at one of {STEPS} steps of {QUICK_STEP_S} s; "
            f"{ends['not begun']} never began, {ends['stopped']} were stopped, {ends['made']} had been made; "
            f"{list(cancellations.values()).count('succeeded')} succeeded all the same"
        )
