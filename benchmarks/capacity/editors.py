"""An editor replica in simulated time: the service's own host cache and holdings around timed stages."""

import random
from collections import OrderedDict, deque
from collections.abc import Generator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import simpy

from benchmarks.capacity.line import Image
from benchmarks.capacity.stages import Stages, draw
from serve_app.engine.adapter_cache import AdapterCache
from serve_app.policy.routing import REPORT_PERIOD_S, MovingAverage, Replica, Report
from serve_app.replicas.routing_stats import Holdings
from serve_app.workers.dispatcher import CLAIMS_PER_EDITOR

Process = Generator[simpy.Event, Any, None]

# How long a report takes through Serve to the routers, and the name of a set that begins to load, which goes another
# way. As seen with Ray Serve 2.60.
REPORT_DELAY_S, NAME_DELAY_S = 0.2, 0.1
# One edit on the device and one being prepared, as deployed: as many as are claimed for it.
SLOTS = CLAIMS_PER_EDITOR


@dataclass(frozen=True)
class Held:
    size_bytes: int


class Disk:
    """A node's disk cache: what was used last stays."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._files: OrderedDict[str, None] = OrderedDict()

    def has(self, adapter: str) -> bool:
        """Whether it is here; from now on it is."""
        found = adapter in self._files
        self._files[adapter] = None
        self._files.move_to_end(adapter)
        if len(self._files) > self._places:
            self._files.popitem(last=False)
        return found


class Host:
    """The adapters in a replica's memory, as `Holdings` asks for them; loads take simulated time."""

    def __init__(self, env: simpy.Environment, stages: Stages, disk: Disk, chance: random.Random) -> None:
        self._env, self._stages, self._disk, self._chance = env, stages, disk, chance
        self._cache: AdapterCache[Held] = AdapterCache(stages.cache_bytes)
        self._loading: dict[str, simpy.Event] = {}
        self._load_s = MovingAverage()

    def holds(self, adapter_id: str) -> bool:
        return self._cache.holds(adapter_id)

    @property
    def load_s(self) -> float | None:
        return self._load_s.value

    def put(self, adapter: str) -> None:
        """Have it here without anybody having asked."""
        self._disk.has(adapter)
        self._get(adapter)

    def fetch(self, image: Image) -> Process:
        """Have the image's adapter in the cache; whoever wants what is being loaded waits for it."""
        adapter = image.arrival.adapter
        if not self.holds(adapter) and adapter in self._loading:
            yield self._loading[adapter]
        elif not self.holds(adapter):
            yield from self._load(image)
        self._get(adapter)

    def _load(self, image: Image) -> Process:
        adapter, began = image.arrival.adapter, self._env.now
        loaded = self._loading[adapter] = self._env.event()
        image.loads += 1
        if not self._disk.has(adapter):
            image.fetches += 1
            yield self._env.timeout(draw(self._stages.fetch_s, self._chance))
        yield self._env.timeout(draw(self._stages.load_s, self._chance))
        self._load_s.add(self._env.now - began)
        del self._loading[adapter]
        loaded.succeed()

    def _get(self, adapter: str) -> None:
        self._cache.get(adapter, lambda: Held(self._stages.adapter_bytes))


class Editor:
    """One replica, one GPU. `running` requests are in it."""

    def __init__(self, env: simpy.Environment, id: str, stages: Stages, disk: Disk, chance: random.Random) -> None:
        self.id = id
        self.running = 0
        self.busy_s = 0.0
        self.started = env.now
        self._env, self._stages, self._chance = env, stages, chance
        self._host = Host(env, stages, disk, chance)
        names = max(1, stages.cache_bytes // stages.adapter_bytes)
        self.holdings = Holdings(self._host, names)
        self._names, self._named = names, OrderedDict[str, None]()
        self._device = simpy.Resource(env)
        self._on_device = ""
        self._phase = chance.uniform(0, REPORT_PERIOD_S)
        # What is on its way to the routers: when it is there, and the report or the names.
        self._reports = deque([(0.0, Report())])
        self._namings: deque[tuple[float, frozenset[str]]] = deque([(0.0, frozenset())])
        self._known = Replica(id, 0, SLOTS)

    def warm(self, adapter: str) -> None:
        """Hold an adapter from the start."""
        self._host.put(adapter)
        with self.holdings.loading(adapter, [adapter]):
            self._name(adapter)
        report = self.holdings.report()
        self._reports = deque([(0.0, report)])
        self._namings = deque([(0.0, frozenset(self._named))])
        self._known = replace(self._known, held=report.held_and_named(self._named))

    def as_replica(self, running: int) -> Replica:
        """What a router that counts `running` requests here knows of it now."""
        news = any([self._arrived(self._reports), self._arrived(self._namings)])
        if news or self._known.running != running:
            report = self._reports[0][1]
            held = report.held_and_named(self._namings[0][1]) if news else self._known.held
            self._known = Replica(self.id, running, SLOTS, held, report.work_s, report.load_s)
        return self._known

    def accept(self) -> bool:
        """Whether a slot was free; it is taken then."""
        if self.running >= SLOTS:
            return False
        self.running += 1
        return True

    def edit(self, image: Image) -> Process:
        """One edit, in a slot that was taken for it."""
        stages, chance = self._stages, self._chance
        with ExitStack() as loading:
            if image.arrival.adapter:
                loading.enter_context(self.holdings.loading(image.arrival.adapter, [image.arrival.adapter]))
                self._name(image.arrival.adapter)
            yield self._env.timeout(draw(stages.prepare_s, chance))
            if image.arrival.adapter:
                yield from self._host.fetch(image)
        self._report()
        with self._device.request() as turn:
            yield turn
            image.began = self._env.now
            seconds = image.arrival.shape.flops / stages.flops_per_s + draw(stages.beside_s, chance)
            if image.arrival.adapter != self._on_device:
                seconds += draw(stages.swap_s, chance)
                self._on_device = image.arrival.adapter
            yield self._env.timeout(seconds)
            self.busy_s += seconds
        self.holdings.work_s.add(seconds)
        self._report()
        self.running -= 1

    def _name(self, adapter: str) -> None:
        self._named[adapter] = None
        self._named.move_to_end(adapter)
        if len(self._named) > self._names:
            self._named.popitem(last=False)
        self._namings.append((self._env.now + NAME_DELAY_S, frozenset(self._named)))

    def _report(self) -> None:
        report = self.holdings.report()
        if report != self._reports[-1][1]:
            periods = (self._env.now - self._phase) // REPORT_PERIOD_S + 1
            self._reports.append((self._phase + periods * REPORT_PERIOD_S + REPORT_DELAY_S, report))

    def _arrived(self, sent: deque[tuple[float, Any]]) -> bool:
        """Leave in front what has reached the routers last; whether that is news."""
        news = False
        while len(sent) > 1 and sent[1][0] <= self._env.now:
            sent.popleft()
            news = True
        return news
