"""The simulated job queue of one model, with the fair turns of the job store (`serve_app.policy.fair_queue`)."""

import heapq

from benchmarks.capacity.traffic import Image
from serve_app.policy.fair_queue import first_turn, next_images
from serve_app.tasks import Priority


class Queue:
    """Images that wait; `claimed` counts those that an ingress has claimed and not finished."""

    def __init__(self) -> None:
        self.claimed = 0
        self._waiting: dict[Priority, list[tuple[int, float, int, Image]]] = {each: [] for each in Priority}
        self._served = dict.fromkeys(Priority, 0)
        self._last_turns: dict[tuple[Priority, str], int] = {}
        self._passed_over = 0

    def add(self, image: Image) -> None:
        owner = image.priority, image.tenant
        turn = self._last_turns[owner] = first_turn(self._served[image.priority], self._last_turns.get(owner))
        heapq.heappush(self._waiting[image.priority], (turn, image.committed, image.number, image))

    def claim(self, capacity: int, limit: int) -> list[Image]:
        """Claim the next images: at most `limit`, and never more than `capacity` claimed in total."""
        room = max(0, min(limit, capacity - self.claimed))
        urgent, bulk = (heapq.nsmallest(room, self._waiting[each]) for each in (Priority.INTERACTIVE, Priority.BULK))
        taken, self._passed_over = next_images(urgent, bulk, room, self._passed_over)
        for turn, _, _, image in taken:
            heapq.heappop(self._waiting[image.priority])
            self._served[image.priority] = turn
        self.claimed += len(taken)
        return [entry[-1] for entry in taken]
