"""Many edits, half of them cancelled at random moments, with time limits so short that they act within the drill.

A service under this load has no fault, so no editor may be replaced and no other edit may be lost.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Mapping, Sequence

from benchmarks.drill.cancellation import AT_ONCE, Cancellation, Canceller
from benchmarks.drill.load import PROMPTS, Client, Order
from benchmarks.drill.notes import QUICK_STEP_S
from benchmarks.drill.service import TIME_LIMITS, Service

SEED = 7
EDITS, CANCELLED = 500, 250
# Steps of an edit that is cancelled, which takes longer than its cancellation needs to arrive; and of the others.
STEPS, OTHER_STEPS = 10, 3
# Images per request that is not cancelled.
BATCH = 10
# A cancellation's moment is AT_ONCE (the edit waits), one of the steps, or MADE: after the image was made, before it is
# stored and recorded or shortly after that.
MADE = STEPS + 1
# The longest pause between the moment and the cancellation (s): of an edit that waits, and of others.
LATEST_AT_ONCE_S, LATEST_S = 2.0, 0.1
# Serve checks an editor every two seconds and replaces it after three failures, so this long after the time limit.
HEALTH_CHECKS_S = 8.0


def faults(
    before: frozenset[int], after: frozenset[int], started: int, statuses: Mapping[str, Sequence[str]]
) -> list[str]:
    """Problems, one sentence each.

    `before` and `after` are the editors' process ids, `started` counts the editors started between, and `statuses` has
    the final statuses of the `cancelled` and the `other` requests.
    """
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
    """`run` it on an idle service: it prints its measurements and returns the problems."""

    def __init__(self, service: Service, client: Client) -> None:
        self._service = service
        self._client = client
        self._random = random.Random(SEED)

    async def run(self) -> list[str]:
        before, known = self._service.editors(), self._service.started()
        canceller = Canceller(self._client, self._service.notes)
        cancelling = asyncio.create_task(canceller.run(CANCELLED))
        others, cancellations = await self._post(canceller)
        await cancelling
        statuses = [await self._client.wait(each.request_id) for each in cancellations]
        ended = [await self._client.wait(request_id) for request_id in others]
        await asyncio.sleep(TIME_LIMITS.stopping_s + HEALTH_CHECKS_S)
        after, started = self._service.editors(), self._service.started() - known
        self._print(cancellations, statuses)
        print(f"editors: {sorted(before)} before, {sorted(after)} after, {started} started in between")
        return faults(before, after, started, {"cancelled": statuses, "other": ended})

    async def _post(self, canceller: Canceller) -> tuple[list[str], list[Cancellation]]:
        """Post the requests that are to succeed (their ids), and among them those that are to be cancelled."""
        others, cancellations = [], []
        for number in range(CANCELLED):
            if number % BATCH == 0:
                prompts = tuple(index % len(PROMPTS) for index in range(BATCH))
                others.append(await self._client.submit(Order(f"kept{number}", prompts, quick=True, steps=OTHER_STEPS)))
            order = Order(f"dropped{number}", (number % len(PROMPTS),), quick=True, steps=STEPS)
            moment = self._random.randint(AT_ONCE, MADE)
            latest_s = LATEST_AT_ONCE_S if moment == AT_ONCE else LATEST_S
            pause_s = self._random.uniform(0, latest_s)
            cancellation = Cancellation(await self._client.submit(order), order.images[0], moment, pause_s)
            canceller.add(cancellation)
            cancellations.append(cancellation)
        return others, cancellations

    def _print(self, cancellations: Sequence[Cancellation], statuses: Sequence[str]) -> None:
        notes = self._service.notes.of_image()
        ends = Counter(notes[each.image][-1].what if each.image in notes else "not begun" for each in cancellations)
        moments = Counter(each.moment for each in cancellations)
        print(
            f"{len(cancellations)} of {EDITS} edits cancelled: {moments[AT_ONCE]} while they waited, {moments[MADE]} "
            f"after their last step, the others at one of {STEPS} steps of {QUICK_STEP_S} s; "
            f"{ends['not begun']} never began, {ends['stopped']} were stopped, {ends['made']} had been made; "
            f"{statuses.count('succeeded')} succeeded in spite of it"
        )
