"""The whole service in simulated time: a line, ingresses, editors; and what came of it.

simpy runs it: an edit reads as the list of its stages, and at 2,000 editors more than nine tenths of the time go
into `Routing` itself, so that a faster event loop would not be felt.
"""

import random
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import simpy

from benchmarks.capacity.editors import Process
from benchmarks.capacity.fleet import Fleet, Scaler
from benchmarks.capacity.ingresses import Ingress
from benchmarks.capacity.line import Image, Line
from benchmarks.capacity.stages import Stages
from benchmarks.capacity.workload import Arrival
from serve_app.policy.scaling import Limits
from serve_app.tasks import Priority
from serve_app.workers.dispatcher import CLAIMS_PER_EDITOR, MAX_IN_FLIGHT

# How often the end of a run is looked for.
ENDED_S = 0.1


@dataclass(frozen=True)
class Outcome:
    """Of the images that count, and of the time from the first one's arrival to the last one's end (s).

    `gpu_s` are the editors' seconds in that time, `busy_s` their devices'. `busy` is the devices' share of it up to the
    last arrival, `router_busy` the busiest router's of one core.
    """

    images: Sequence[Image]
    gpu_s: float
    busy_s: float
    seconds: float
    busy: float
    router_busy: float

    @property
    def median_s(self) -> float:
        return statistics.median(each.took for each in self.images)

    @property
    def p95_s(self) -> float:
        return statistics.quantiles([each.took for each in self.images], n=20)[-1]

    @property
    def median_wait_s(self) -> float:
        return statistics.median(each.waited for each in self.images)

    @property
    def mean_wait_s(self) -> float:
        return statistics.fmean(each.waited for each in self.images)

    @property
    def p95_wait_s(self) -> float:
        return statistics.quantiles([each.waited for each in self.images], n=20)[-1]

    @property
    def urgent_p95_wait_s(self) -> float:
        """Of interactive images alone: bulk waits for them, as long as they last."""
        urgent = [each.waited for each in self.images if each.arrival.priority == Priority.INTERACTIVE]
        return statistics.quantiles(urgent, n=20)[-1]

    @property
    def reloads(self) -> float:
        """Loads into host memory a request."""
        return statistics.fmean(each.loads for each in self.images)

    @property
    def fetches(self) -> float:
        """Fetches from the adapters' store a request."""
        return statistics.fmean(each.fetches for each in self.images)

    @property
    def warm(self) -> float:
        """The share of requests that found their adapters in memory."""
        return statistics.fmean(not each.loads for each in self.images)

    @property
    def gpu_hours(self) -> float:
        return self.gpu_s / 3600


def ingresses_for(editors: int) -> int:
    """Two, as shipped; more where two could not have all in flight that the editors can use."""
    return max(2, -(-CLAIMS_PER_EDITOR * editors // MAX_IN_FLIGHT))


class Simulation:
    """One run. The same arguments are the same outcome. With `limits` the service's policy scales the editors."""

    def __init__(
        self,
        stages: Stages,
        editors: int,
        ingresses: int | None = None,
        limits: Limits | None = None,
        seed: int = 0,
    ) -> None:
        self._env = env = simpy.Environment()
        self._chance = random.Random(seed)
        self._line = Line(env)
        self.fleet = Fleet(env, stages, editors, self._chance)
        self._ended: list[Image] = []
        most = editors if limits is None else limits.max_replicas
        self._ingresses = [
            Ingress(env, stages, self._line, self.fleet.editors, self._chance, self._ended.append)
            for _ in range(ingresses_for(most) if ingresses is None else ingresses)
        ]
        if limits is not None:
            Scaler(env, stages, self._line, self.fleet, limits)
        self._began, self._before, self._at_last_arrival = 0.0, (0.0, 0.0), (0.0, 0.0)

    def run(self, arrivals: Iterable[Arrival], uncounted: int = 0) -> Outcome:
        """Until all of the arrivals have ended. The first `uncounted` of them only set the scene."""
        self._env.run(self._env.process(self._all(iter(arrivals), uncounted)))
        counted = [each for each in self._ended if each.arrival.number >= uncounted]
        busy_s, gpu_s = (each - before for each, before in zip(self._at_last_arrival, self._before, strict=True))
        return Outcome(
            sorted(counted, key=_number),
            gpu_s=self.fleet.gpu_s - self._before[1],
            busy_s=self.fleet.busy_s - self._before[0],
            seconds=self._env.now - self._began,
            busy=busy_s / gpu_s if gpu_s else 0.0,
            router_busy=max(each.router.busy_s for each in self._ingresses) / self._env.now,
        )

    def _spent(self) -> tuple[float, float]:
        return self.fleet.busy_s, self.fleet.gpu_s

    def _all(self, arrivals: Iterator[Arrival], uncounted: int) -> Process:
        posted = 0
        for arrival in arrivals:
            posted += 1
            yield self._env.timeout(max(0.0, arrival.at - self._env.now))
            if arrival.number == uncounted:
                self._began, self._before = self._env.now, self._spent()
            ingress = self._chance.choice(self._ingresses)
            self._env.process(ingress.submit(Image(arrival)))
        self._at_last_arrival = self._spent()
        while len(self._ended) < posted:
            yield self._env.timeout(ENDED_S)


def _number(image: Image) -> int:
    return image.arrival.number
