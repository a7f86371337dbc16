"""Simulated editors, one GPU each, with the service's own adapter cache and routing reports."""

import random
from collections import OrderedDict, deque
from collections.abc import Generator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import simpy

from benchmarks.capacity.traffic import Image, adapter_name, popularity
from serve_app.config import ModelConfig
from serve_app.engine.adapter_cache import AdapterCache
from serve_app.models.architecture import PUBLISHED
from serve_app.policy.routing import HOME_UTILISATION, REPORT_PERIOD_S, MovingAverage, Replica, Report
from serve_app.replicas.routing_stats import ADAPTER_BYTES, RoutingStats
from serve_app.workers.dispatcher import CLAIMS_PER_EDITOR

Process = Generator[simpy.Event, Any, None]

# How long Ray Serve 2.60 takes to bring the routers a replica's report.
REPORT_DELAY_S = 0.2
# One edit on the device and one being prepared: as many as are claimed for an editor.
SLOTS = CLAIMS_PER_EDITOR
REPLICAS_PER_NODE = 8
# One forward of the transformer at 1024x1024 with one control image (floating-point operations), and its duration on
# an H200 with compiled blocks and a merged adapter (s).
FORWARD_FLOPS = PUBLISHED.forward_flops(image_tokens=2 * 1024**2 // 16**2, text_tokens=1400)
FORWARD_S = 0.354


@dataclass(frozen=True)
class Stages:
    """Durations of an edit's stages (s), the device's speed and sizes of caches (bytes), for a cluster of H200s.

    docs/capacity.md says which are measured and which are assumed.
    """

    submit_s: float = 0.03  # from the POST until the image can be claimed
    send_s: float = 0.03  # from the router's choice until the editor has the edit
    fetch_s: float = 0.6  # an adapter from its store to the node's disk
    load_s: float = 0.3  # an adapter from the node's disk to host memory
    swap_s: float = 0.048  # changing the adapter on the device
    other_device_s: float = 0.7  # device time besides the transformer and the swap
    flops_per_s: float = FORWARD_FLOPS / FORWARD_S  # speed of the transformer
    record_s: float = 0.05  # from the end of the device's work until the result is committed
    cache_bytes: int = ModelConfig().adapter_cache_bytes
    disk_bytes: int = ModelConfig().adapter_disk_bytes


@dataclass(frozen=True)
class CachedAdapter:
    size_bytes: int = ADAPTER_BYTES


class NodeDisk:
    """Adapter files on a node's disk, shared by its editors; the least recently used are removed."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._files: OrderedDict[str, None] = OrderedDict()

    def add(self, adapter: str) -> bool:
        """Put a file on the disk, or mark it as used. Returns whether it was there already."""
        found = adapter in self._files
        self._files[adapter] = None
        self._files.move_to_end(adapter)
        if len(self._files) > self._places:
            self._files.popitem(last=False)
        return found


class Editor:
    """One replica with one GPU. `running` counts the requests that it has accepted and not finished."""

    def __init__(self, env: simpy.Environment, id: str, stages: Stages, disk: NodeDisk, chance: random.Random) -> None:
        self.id, self.running, self.busy_s = id, 0, 0.0
        self._env, self._stages, self._disk = env, stages, disk
        self._device, self._on_device = simpy.Resource(env), ""
        self._cache: AdapterCache[CachedAdapter] = AdapterCache(stages.cache_bytes)
        self._loading: dict[str, simpy.Event] = {}
        self._mean_load_s = MovingAverage()
        self._routing_stats = RoutingStats(self, max(1, stages.cache_bytes // ADAPTER_BYTES))
        self._phase = chance.uniform(0, REPORT_PERIOD_S)
        # On their way to the routers, each with the time when it arrives; the first has arrived.
        self._reports = deque([(0.0, Report())])
        self._known = Replica(id, 0, SLOTS)

    def holds(self, adapter_id: str) -> bool:
        return self._cache.holds(adapter_id)

    @property
    def load_s(self) -> float | None:
        return self._mean_load_s.value

    def warm(self, adapter: str) -> None:
        """Hold an adapter, and let the routers know, before the simulation starts."""
        self._disk.add(adapter)
        self._cache.get(adapter, CachedAdapter)
        with self._routing_stats.loading(adapter, [adapter]):
            self._reports = deque([(0.0, self._routing_stats.report())])
        self._known = replace(self._known, held=frozenset(self._reports[0][1].held))

    def as_replica(self, running: int) -> Replica:
        """What a router knows of this editor now, if the router counts `running` requests here."""
        has_news = len(self._reports) > 1 and self._reports[1][0] <= self._env.now
        while len(self._reports) > 1 and self._reports[1][0] <= self._env.now:
            self._reports.popleft()
        if has_news or self._known.running != running:
            report = self._reports[0][1]
            held = frozenset(report.held) if has_news else self._known.held
            self._known = Replica(self.id, running, SLOTS, held, report.work_s, report.load_s)
        return self._known

    def accept(self) -> bool:
        """Take a slot for a request. Returns False if none is free."""
        if self.running >= SLOTS:
            return False
        self.running += 1
        return True

    def edit(self, image: Image) -> Process:
        """Run one accepted edit: load its adapter, wait for the device, use it, free the slot."""
        adapter, stages = image.adapter, self._stages
        with self._routing_stats.loading(adapter, [adapter]) if adapter else nullcontext():
            if adapter:
                self._send_report()
                yield from self._load(image)
        self._send_report()
        with self._device.request() as turn:
            yield turn
            image.began = self._env.now
            seconds = image.flops / stages.flops_per_s + stages.other_device_s
            if adapter != self._on_device:
                seconds += stages.swap_s
                self._on_device = adapter
            yield self._env.timeout(seconds)
            self.busy_s += seconds
        self._routing_stats.work_s.add(seconds)
        self._send_report()
        self.running -= 1

    def _load(self, image: Image) -> Process:
        """Hold the image's adapter: from the cache, from a load that is under way, or from a new load."""
        adapter, began = image.adapter, self._env.now
        if not self.holds(adapter) and adapter in self._loading:
            yield self._loading[adapter]
        elif not self.holds(adapter):
            loaded = self._loading[adapter] = self._env.event()
            image.loads += 1
            if not self._disk.add(adapter):
                image.fetches += 1
                yield self._env.timeout(self._stages.fetch_s)
            yield self._env.timeout(self._stages.load_s)
            self._mean_load_s.add(self._env.now - began)
            del self._loading[adapter]
            loaded.succeed()
        self._cache.get(adapter, CachedAdapter)

    def _send_report(self) -> None:
        report = self._routing_stats.report()
        if report != self._reports[-1][1]:
            periods = (self._env.now - self._phase) // REPORT_PERIOD_S + 1
            self._reports.append((self._phase + periods * REPORT_PERIOD_S + REPORT_DELAY_S, report))


def make_editors(env: simpy.Environment, stages: Stages, count: int, chance: random.Random) -> dict[str, Editor]:
    """Editors by id, on nodes that share a disk."""
    disks = [NodeDisk(stages.disk_bytes // ADAPTER_BYTES) for _ in range(0, count, REPLICAS_PER_NODE)]
    ids = [f"editor {number}" for number in range(count)]
    return {id: Editor(env, id, stages, disks[number // REPLICAS_PER_NODE], chance) for number, id in enumerate(ids)}


def warm_up(editors: Sequence[Editor], adapters: int, places: int) -> None:
    """Fill caches of `places` adapters each as after a long time.

    Popular adapters are on as many editors as routing would give them.
    """
    homes: list[str] = []
    for rank, share in enumerate(popularity(adapters)):
        homes += [adapter_name(rank)] * min(len(editors), max(1, round(share * len(editors) / HOME_UTILISATION)))
    # The least popular first, so that the most popular are the most recently used.
    for place, adapter in reversed(list(enumerate(homes[: places * len(editors)]))):
        editors[place % len(editors)].warm(adapter)
