"""The line of a model: the job store's rules (`serve_app.policy.fair_turns`), without its database."""

import heapq
import math
from dataclasses import dataclass

import simpy

from benchmarks.capacity.workload import Arrival
from serve_app.policy.fair_turns import first_turn, take_turns
from serve_app.tasks import Priority


@dataclass(eq=False)
class Image:
    """One image's life; times are seconds of the simulation, NaN until they have come."""

    arrival: Arrival
    committed: float = math.nan
    claimed: float = math.nan
    sent: float = math.nan
    began: float = math.nan
    ended: float = math.nan
    loads: int = 0
    fetches: int = 0

    @property
    def waited(self) -> float:
        return self.began - self.arrival.at

    @property
    def took(self) -> float:
        return self.ended - self.arrival.at

    def left_s(self, now: float, flops_per_s: float) -> float:
        """What is left of it on its device."""
        done_s = 0.0 if math.isnan(self.began) else now - self.began
        return max(0.0, self.arrival.shape.flops / flops_per_s - done_s)


class Line:
    """`lock` is the line's row: whoever claims holds it, one at a time."""

    def __init__(self, env: simpy.Environment) -> None:
        self.lock = simpy.Resource(env)
        self.claimed: set[Image] = set()
        self.flops = 0.0  # that wait
        self._waiting: dict[Priority, list[tuple[int, float, int, Image]]] = {each: [] for each in Priority}
        self._served = dict.fromkeys(Priority, 0)
        self._last: dict[tuple[Priority, str], int] = {}
        self._passed_over = 0

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    @property
    def oldest(self) -> float | None:
        """When the image was committed that has waited longest; None if none waits."""
        return min((entry[1] for heap in self._waiting.values() for entry in heap), default=None)

    def add(self, image: Image) -> None:
        arrival = image.arrival
        whose = arrival.priority, arrival.tenant
        turn = self._last[whose] = first_turn(self._served[arrival.priority], self._last.get(whose))
        self.flops += arrival.shape.flops
        heapq.heappush(self._waiting[arrival.priority], (turn, image.committed, arrival.number, image))

    def take(self, capacity: int, limit: int) -> list[Image]:
        """The next images, at most `limit`, no more than `capacity` claimed at a time."""
        room = min(limit, capacity - len(self.claimed))
        if room <= 0:
            return []
        heads = {each: heapq.nsmallest(room, heap) for each, heap in self._waiting.items()}
        taken, self._passed_over = take_turns(
            heads[Priority.INTERACTIVE], heads[Priority.BULK], room, self._passed_over
        )
        for turn, _, _, image in taken:
            # Each class is taken from its head on.
            heapq.heappop(self._waiting[image.arrival.priority])
            self._served[image.arrival.priority] = turn
            self.flops -= image.arrival.shape.flops
        images = [entry[-1] for entry in taken]
        self.claimed.update(images)
        return images
