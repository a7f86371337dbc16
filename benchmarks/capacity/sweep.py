"""Capacity of the service on H200s, simulated: tables of docs/capacity.md. Times in the tables are seconds.

python -m benchmarks.capacity.sweep fleets      # 4 to 256 GPUs, 10 to 50,000 adapters
python -m benchmarks.capacity.sweep caches      # more host memory for adapters
python -m benchmarks.capacity.sweep images      # 100 to 10,000 images per hour
python -m benchmarks.capacity.sweep bursts      # other bursts, larger and smaller fleets
"""

import argparse
import random
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import islice

import simpy

from benchmarks.capacity.editors import Stages, make_editors, warm_up
from benchmarks.capacity.ingress import Ingress
from benchmarks.capacity.queue import Queue
from benchmarks.capacity.traffic import Image, Traffic
from serve_app.replicas.routing_stats import ADAPTER_BYTES
from serve_app.tasks import Priority
from serve_app.workers.dispatcher import CLAIMS_PER_EDITOR, MAX_IN_FLIGHT

UTILISATION, REQUESTS = 0.6, 4000
# With fewer than a hundred bursts of a minute, little can be said about them.
BURSTY_S = 9000.0
H200 = Stages()


@dataclass(frozen=True)
class Outcome:
    """The counted images, the time from the first of them to the end of the last, and how long the GPUs worked.

    `busy` is the GPUs' share of the time up to the last request.
    """

    images: list[Image]
    seconds: float
    busy_s: float
    busy: float


class Simulation:
    """One run of the service. The same arguments give the same outcome."""

    def __init__(self, stages: Stages, gpus: int, adapters: int = 0) -> None:
        """Caches hold the most popular of so many adapters at the start."""
        self._env = simpy.Environment()
        self._chance = random.Random(0)
        self._ended: list[Image] = []
        self._editors = make_editors(self._env, stages, gpus, self._chance)
        warm_up(list(self._editors.values()), adapters, stages.cache_bytes // ADAPTER_BYTES)
        # Two ingresses, as shipped; more where two could not have enough images in flight.
        count, queue = max(2, -(-CLAIMS_PER_EDITOR * gpus // MAX_IN_FLIGHT)), Queue()
        self._ingresses = [Ingress(self._env, stages, queue, self._editors, self._ended) for _ in range(count)]

    def run(self, images: Iterable[Image], uncounted: int = 0) -> Outcome:
        """Run until all images have ended. The first `uncounted` only fill the fleet."""
        env, submitted, first, busy_before = self._env, 0, 0.0, 0.0
        for image in images:
            if image.requested > env.now:
                env.run(image.requested)
            if submitted == uncounted:
                first, busy_before = env.now, self._busy_s()
            submitted += 1
            env.process(self._chance.choice(self._ingresses).submit(image))
        last, busy_s = env.now, self._busy_s() - busy_before
        while len(self._ended) < submitted:
            env.run(env.now + 0.1)
        counted = sorted(self._ended, key=lambda image: image.number)[uncounted:]
        busy = busy_s / len(self._editors) / (last - first) if last > first else 0.0
        return Outcome(counted, env.now - first, self._busy_s() - busy_before, busy)

    def _busy_s(self) -> float:
        return sum(editor.busy_s for editor in self._editors.values())


@dataclass(frozen=True)
class Case:
    """One row of a table: a fleet, and the traffic that it serves."""

    gpus: int
    traffic: Traffic
    stages: Stages = H200
    requests: int = REQUESTS

    def run(self) -> Outcome:
        uncounted = max(self.requests // 5, self.gpus // 2)
        images = islice(self.traffic.images(seed=1), uncounted + self.requests)
        return Simulation(self.stages, self.gpus, self.traffic.adapters).run(images, uncounted)


def steady(gpus: int, adapters: int, cache_gib: int = 8) -> Case:
    """A fleet whose GPUs are busy 60% of the time, with Poisson traffic."""
    stages, traffic = replace(H200, cache_bytes=cache_gib * 2**30), Traffic(1.0, adapters, burstiness=1.0)
    device_s = traffic.mean_flops / stages.flops_per_s + stages.other_device_s + stages.swap_s
    return Case(gpus, replace(traffic, per_s=gpus * UTILISATION / device_s), stages)


def bursty(images_per_hour: int, gpus: int, burstiness: float = 2.0) -> Case:
    traffic = Traffic(images_per_hour / 3600, adapters=1000, burstiness=burstiness)
    return Case(gpus, traffic, requests=max(REQUESTS, round(traffic.per_s * BURSTY_S)))


FLEETS = ((4, 10), (4, 1000), (16, 1000), (64, 10), (64, 1000), (64, 50_000), (256, 1000), (256, 50_000))
CACHES = [(gpus, adapters, gib) for gpus in (4, 64) for adapters in (1000, 50_000) for gib in (8, 32, 128)]
IMAGES = ((100, 1), (300, 3), (1000, 9), (3000, 26), (10_000, 86))
BURSTS = ((18, 1.0), (14, 1.0), (52, 2.0), (26, 2.0), (15, 2.0), (65, 4.0), (33, 4.0), (18, 4.0))
SWEEPS: dict[str, Callable[[], list[Case]]] = {
    "fleets": lambda: [steady(*fleet) for fleet in FLEETS],
    "caches": lambda: [steady(*cache) for cache in CACHES],
    "images": lambda: [bursty(*fleet) for fleet in IMAGES],
    "bursts": lambda: [bursty(3000, gpus, burstiness) for gpus, burstiness in BURSTS],
}


def row(case: Case, dollars_per_hour: float) -> dict[str, str]:
    """Cells of a table by their headings."""
    outcome, traffic = case.run(), case.traffic
    images = outcome.images
    latencies, waits = [image.latency_s for image in images], [image.waited_s for image in images]
    urgent = [image.waited_s for image in images if image.priority == Priority.INTERACTIVE]
    dollars = case.gpus * outcome.seconds / 3600 * dollars_per_hour
    return {
        "GPUs": f"{case.gpus}",
        "adapters": f"{traffic.adapters:,}",
        "host cache, GiB": f"{case.stages.cache_bytes / 2**30:.0f}",
        "images per hour": f"{traffic.per_s * 3600:,.0f}",
        "burstiness": f"{traffic.burstiness:g}",
        "busy": f"{outcome.busy:.0%}",
        "median latency": f"{statistics.median(latencies):.1f}",
        "p95 latency": f"{p95(latencies):.1f}",
        "median wait": f"{statistics.median(waits):.2f}",
        "p95 wait": f"{p95(waits):.1f}",
        "p95 wait, interactive": f"{p95(urgent):.1f}",
        "found in memory": f"{sum(not image.loads for image in images) / len(images):.0%}",
        "loads per image": f"{statistics.fmean(image.loads for image in images):.2f}",
        "fetches per image": f"{statistics.fmean(image.fetches for image in images):.2f}",
        "$ per 1,000 images": f"{dollars / len(images) * 1000:.2f}",
    }


def p95(values: list[float]) -> float:
    return statistics.quantiles(values, n=20)[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", choices=SWEEPS)
    parser.add_argument("--price", type=float, default=3.0, help="dollars per GPU-hour")
    args = parser.parse_args()
    for number, case in enumerate(SWEEPS[args.sweep]()):
        cells = row(case, args.price)
        if number == 0:
            print(f"| {' | '.join(cells)} |\n|{'---|' * len(cells)}")
        print(f"| {' | '.join(cells.values())} |", flush=True)


if __name__ == "__main__":
    main()
