"""The whole service in simulated time: a line, ingresses, editors; and what came of it.

simpy runs it: an edit reads as the list of its stages, and at 2,000 editors more than nine tenths of the time go
into `Routing` itself, so that a faster event loop would not be felt.
"""

import random
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import simpy

from benchmarks.capacity.editors import Disk, Editor, Process
from benchmarks.capacity.ingresses import Ingress
from benchmarks.capacity.line import Line, Picture
from benchmarks.capacity.stages import Stages
from benchmarks.capacity.workload import Arrival, adapter_name
from serve_app.dispatch import CLAIMS_PER_EDITOR, MAX_IN_FLIGHT
from serve_app.routing import HOME_UTILISATION


@dataclass(frozen=True)
class Outcome:
    """Of the pictures that count: seconds from their arrival. `gpu_s` are the editors' seconds in that time."""

    pictures: Sequence[Picture]
    gpu_s: float
    busy_s: float
    seconds: float
    router_busy: float

    @property
    def median_s(self) -> float:
        return statistics.median(each.took for each in self.pictures)

    @property
    def p95_s(self) -> float:
        return statistics.quantiles([each.took for each in self.pictures], n=20)[-1]

    @property
    def median_wait_s(self) -> float:
        return statistics.median(each.waited for each in self.pictures)

    @property
    def mean_wait_s(self) -> float:
        return statistics.fmean(each.waited for each in self.pictures)

    @property
    def p95_wait_s(self) -> float:
        return statistics.quantiles([each.waited for each in self.pictures], n=20)[-1]

    @property
    def reloads(self) -> float:
        """Loads into host memory a request."""
        return statistics.fmean(each.loads for each in self.pictures)

    @property
    def fetches(self) -> float:
        """Fetches from the adapters' store a request."""
        return statistics.fmean(each.fetches for each in self.pictures)

    @property
    def warm(self) -> float:
        """The share of requests that found their adapters in memory."""
        return statistics.fmean(not each.loads for each in self.pictures)

    @property
    def busy(self) -> float:
        """The share of the editors' time that their devices worked."""
        return self.busy_s / self.gpu_s

    @property
    def gpu_hours(self) -> float:
        return self.gpu_s / 3600


def ingresses_for(editors: int) -> int:
    """Two, as shipped; more where two could not have all in flight that the editors can use."""
    return max(2, -(-CLAIMS_PER_EDITOR * editors // MAX_IN_FLIGHT))


class Simulation:
    """One run. The same arguments are the same outcome."""

    def __init__(self, stages: Stages, editors: int, ingresses: int | None = None, seed: int = 0) -> None:
        self._env = simpy.Environment()
        self._stages = stages
        self._chance = random.Random(seed)
        self._line = Line(self._env)
        self._disk_places = stages.disk_bytes // stages.adapter_bytes
        self._editors: dict[str, Editor] = {}
        for _ in range(editors):
            self._add_editor()
        self._ended: list[Picture] = []
        self._ingresses = [
            Ingress(self._env, stages, self._line, self._editors, self._chance, self._ended.append)
            for _ in range(ingresses_for(editors) if ingresses is None else ingresses)
        ]
        self._began, self._busy_before = 0.0, 0.0

    def warm(self, shares: Sequence[float]) -> None:
        """Begin as after a long time: adapters, most popular first, have the homes that routing would give them."""
        places = len(self._editors) * (self._stages.cache_bytes // self._stages.adapter_bytes)
        editors = list(self._editors.values())
        homes: list[str] = []
        for rank, share in enumerate(shares):
            count = min(len(editors), max(1, round(share * len(editors) / HOME_UTILISATION)))
            homes += [adapter_name(rank)] * count
            if len(homes) >= places:
                break
        for place, adapter in enumerate(homes[:places]):
            editors[place % len(editors)].warm(adapter)

    def run(self, arrivals: Iterable[Arrival], uncounted: int = 0) -> Outcome:
        """Until all of the arrivals have ended. The first `uncounted` of them only set the scene."""
        self._env.run(self._env.process(self._all(iter(arrivals), uncounted)))
        counted = sorted((each for each in self._ended if each.arrival.number >= uncounted), key=_number)
        seconds = self._env.now - self._began
        gpu_s = sum(self._env.now - max(each.started, self._began) for each in self._editors.values())
        busy_s = sum(each.busy_s for each in self._editors.values()) - self._busy_before
        router_busy = max(each.router.busy_s for each in self._ingresses) / self._env.now
        return Outcome(counted, gpu_s, busy_s, seconds, router_busy)

    def _all(self, arrivals: Iterator[Arrival], uncounted: int) -> Process:
        posts = []
        for arrival in arrivals:
            yield self._env.timeout(max(0.0, arrival.at - self._env.now))
            if arrival.number == uncounted:
                self._began = self._env.now
                self._busy_before = sum(each.busy_s for each in self._editors.values())
            ingress = self._chance.choice(self._ingresses)
            posts.append(self._env.process(ingress.submit(Picture(arrival))))
        while len(self._ended) < len(posts):
            yield self._env.timeout(0.1)

    def _add_editor(self) -> None:
        number = len(self._editors)
        if number % self._stages.replicas_a_node == 0:
            self._disk = Disk(self._disk_places)
        id = f"editor {number}"
        self._editors[id] = Editor(self._env, id, self._stages, self._disk, self._chance)


def _number(picture: Picture) -> int:
    return picture.arrival.number
