"""How many GPUs for how many images, and what becomes of the design as it grows. Simulated, on H200s.

    python -m benchmarks.capacity.sweep fleets      # 4 to 256 GPUs, 10 to 50,000 adapters
    python -m benchmarks.capacity.sweep largest     # 1,000 and 2,000 GPUs; 4 minutes
    python -m benchmarks.capacity.sweep images      # the fewest GPUs for so many images an hour
    python -m benchmarks.capacity.sweep bursts      # the same for other bursts and other promises
    python -m benchmarks.capacity.sweep caches      # more host memory for adapters
    python -m benchmarks.capacity.sweep probes      # routers that ask for queue lengths more often
    python -m benchmarks.capacity.sweep ingresses   # two ingresses, as shipped, beside as many as are needed
    python -m benchmarks.capacity.sweep line        # slower transactions on the line's row
    python -m benchmarks.capacity.sweep days        # a day: the scaling policy beside a fixed fleet

`--price` is dollars for a GPU and hour, `--forward-s` what one forward of 198 TFLOP takes.
"""

import argparse
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from benchmarks.capacity.simulation import Outcome, Simulation
from benchmarks.capacity.stages import COMPILED_FORWARD_S, Stages, h200
from benchmarks.capacity.workload import DAY_S, Traffic, popularity
from serve_app.policy.scaling import Limits

UTILISATION, ADAPTERS = 0.6, 1000
FLEETS = ((4, 10), (4, 1000), (16, 1000), (64, 10), (64, 1000), (64, 50_000), (256, 1000), (256, 50_000))
LARGEST = ((1000, 1000), (2000, 10), (2000, 1000), (2000, 50_000))
FLEET_REQUESTS, LARGEST_REQUESTS = 4000, 1500
IMAGES = (100, 300, 1_000, 3_000, 10_000)
# Bursts last a minute: of fewer than a hundred of them little can be said.
LEAST_S, LEAST_REQUESTS = 9000.0, 4000
# A fleet is enough if nineteen in twenty interactive images begin within so long.
PROMISE_S = 60.0
UTILISATIONS = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.45, 0.4, 0.35, 0.3, 0.25, 0.2, 0.15, 0.1)


@dataclass(frozen=True)
class Sweep:
    stages: Stages
    price: float

    def edit_s(self, traffic: Traffic) -> float:
        """What a request keeps a device busy for, on average, a swap included."""
        return traffic.flops / self.stages.flops_per_s + self.stages.beside_s[0] + self.stages.swap_s[0]

    def at(self, gpus: int, utilisation: float, traffic: Traffic) -> Traffic:
        """Traffic that keeps so many GPUs busy to this share."""
        return replace(traffic, per_s=gpus * utilisation / self.edit_s(traffic))

    def run(self, gpus: int, traffic: Traffic, requests: int, ingresses: int | None = None) -> Outcome:
        simulation = Simulation(self.stages, gpus, ingresses)
        simulation.fleet.warm(popularity(traffic.adapters, traffic.exponent))
        # Long enough for an empty fleet to fill.
        uncounted = max(requests // 5, gpus // 2)
        return simulation.run(itertools.islice(traffic.arrivals(seed=1), uncounted + requests), uncounted)

    def cost(self, outcome: Outcome) -> float:
        """Dollars for a thousand images."""
        return outcome.gpu_hours * self.price / len(outcome.pictures) * 1000


def fleets(sweep: Sweep) -> None:
    fleet_rows(sweep, FLEETS, FLEET_REQUESTS)


def largest(sweep: Sweep) -> None:
    fleet_rows(sweep, LARGEST, LARGEST_REQUESTS)


def fleet_rows(sweep: Sweep, fleets: Iterable[tuple[int, int]], requests: int) -> None:
    print("| GPUs | adapters | images an hour | median | p95 | median wait | p95 wait | warm | loads a request |")
    print("|---|---|---|---|---|---|---|---|---|")
    for gpus, adapters in fleets:
        traffic = sweep.at(gpus, UTILISATION, Traffic(1.0, adapters, burstiness=1.0))
        outcome = sweep.run(gpus, traffic, requests)
        print(
            f"| {gpus:,} | {adapters:,} | {traffic.per_s * 3600:,.0f} | {outcome.median_s:.1f} | {outcome.p95_s:.1f} "
            f"| {outcome.median_wait_s:.2f} | {outcome.p95_wait_s:.1f} | {outcome.warm:.0%} "
            f"| {outcome.reloads:.2f}, {outcome.fetches:.2f} from the store |",
            flush=True,
        )


def enough(sweep: Sweep, traffic: Traffic, promise_s: float) -> tuple[int, Outcome]:
    """The fewest GPUs, of those that the steps of utilisation give, and what came of them."""
    requests = max(LEAST_REQUESTS, round(traffic.per_s * LEAST_S))
    tried: dict[int, Outcome] = {}

    def keeps(step: int) -> bool:
        tried[step] = sweep.run(gpus_at(step), traffic, requests)
        return tried[step].urgent_p95_wait_s <= promise_s

    def gpus_at(step: int) -> int:
        return max(1, -int(-traffic.per_s * sweep.edit_s(traffic) // UTILISATIONS[step]))

    low, high = 0, len(UTILISATIONS) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if keeps(middle) else (middle + 1, high)
    if low not in tried:
        keeps(low)
    return gpus_at(low), tried[low]


def images_header() -> None:
    print("| images an hour | burstiness | begun within, s | GPUs | busy | median | p95 | median wait | $ for 1,000 |")
    print("|---|---|---|---|---|---|---|---|---|")


def images_row(sweep: Sweep, traffic: Traffic, promise_s: float) -> None:
    gpus, outcome = enough(sweep, traffic, promise_s)
    print(
        f"| {traffic.per_s * 3600:,.0f} | {traffic.burstiness:g} | {promise_s:g} | {gpus} | {outcome.busy:.0%} "
        f"| {outcome.median_s:.1f} | {outcome.p95_s:.1f} | {outcome.median_wait_s:.2f} | {sweep.cost(outcome):.2f} |",
        flush=True,
    )


def images(sweep: Sweep) -> None:
    images_header()
    for an_hour in IMAGES:
        images_row(sweep, Traffic(an_hour / 3600, ADAPTERS), PROMISE_S)


def bursts(sweep: Sweep) -> None:
    images_header()
    for burstiness, promise_s in itertools.product((1.0, 2.0, 4.0), (10.0, 60.0, 300.0)):
        images_row(sweep, Traffic(3000 / 3600, ADAPTERS, burstiness=burstiness), promise_s)


def caches(sweep: Sweep) -> None:
    print("| host memory a GPU, GiB | GPUs | adapters | warm | loads a request | median | p95 |")
    print("|---|---|---|---|---|---|---|")
    for gpus, adapters, gib in itertools.product((4, 64), (1000, 50_000), (8, 32, 128)):
        larger = replace(sweep, stages=replace(sweep.stages, cache_bytes=gib * 2**30))
        traffic = sweep.at(gpus, UTILISATION, Traffic(1.0, adapters, burstiness=1.0))
        outcome = larger.run(gpus, traffic, FLEET_REQUESTS)
        print(
            f"| {gib} | {gpus} | {adapters:,} | {outcome.warm:.0%} "
            f"| {outcome.reloads:.2f}, {outcome.fetches:.2f} from the store | {outcome.median_s:.1f} "
            f"| {outcome.p95_s:.1f} |",
            flush=True,
        )


def probes(sweep: Sweep) -> None:
    print("| GPUs | queue lengths a second | ingresses | mean wait | p95 wait | busiest router, share of a core |")
    print("|---|---|---|---|---|---|")
    for gpus, a_second, count in (
        (64, 200, 2),
        (256, 200, 3),
        (256, 1000, 3),
        (256, 200, 1),
        (512, 200, 6),
        (512, 2000, 6),
    ):
        faster = replace(sweep, stages=replace(sweep.stages, probes_per_s=a_second))
        traffic = sweep.at(gpus, UTILISATION, Traffic(1.0, ADAPTERS, burstiness=1.0))
        outcome = faster.run(gpus, traffic, FLEET_REQUESTS, count)
        print(
            f"| {gpus} | {a_second} | {count} | {outcome.mean_wait_s:.2f} | {outcome.p95_wait_s:.1f} "
            f"| {outcome.router_busy:.2f} |",
            flush=True,
        )


def ingresses(sweep: Sweep) -> None:
    print("| GPUs | ingresses | busy | median wait | p95 wait | busiest router, share of a core |")
    print("|---|---|---|---|---|---|")
    for gpus, count in ((128, 2), (256, 2), (512, 2), (512, None)):
        traffic = sweep.at(gpus, 0.9, Traffic(1.0, ADAPTERS, burstiness=1.0))
        outcome = sweep.run(gpus, traffic, FLEET_REQUESTS, count)
        print(
            f"| {gpus} | {count or 'enough'} | {outcome.busy:.0%} | {outcome.median_wait_s:.1f} "
            f"| {outcome.p95_wait_s:.1f} | {outcome.router_busy:.2f} |",
            flush=True,
        )


def line(sweep: Sweep) -> None:
    print("| commit and claim, ms | GPUs | busy | median wait | p95 wait |")
    print("|---|---|---|---|---|")
    for lock_s, gpus in itertools.product((0.005, 0.02, 0.05), (64, 256, 512)):
        slower = replace(sweep, stages=replace(sweep.stages, commit_s=(lock_s,), claim_s=(lock_s,)))
        traffic = sweep.at(gpus, 0.8, Traffic(1.0, ADAPTERS, burstiness=1.0))
        outcome = slower.run(gpus, traffic, FLEET_REQUESTS)
        print(
            f"| {lock_s * 1e3:g} | {gpus} | {outcome.busy:.0%} | {outcome.median_wait_s:.1f} "
            f"| {outcome.p95_wait_s:.1f} |",
            flush=True,
        )


def days(sweep: Sweep) -> None:
    traffic = Traffic(1000 / 3600, ADAPTERS, days=True)
    requests = round(traffic.per_s * DAY_S)
    fixed, _ = enough(sweep, replace(traffic, days=False, per_s=traffic.per_s * 4 / 3), PROMISE_S)
    print("| GPUs | GPU-hours | busy | median wait | p95 wait | $ for 1,000 |")
    print("|---|---|---|---|---|---|")
    for name, limits in (("fixed", None), ("scaled", Limits(2, 2 * fixed))):
        simulation = Simulation(sweep.stages, fixed, limits=limits)
        outcome = simulation.run(itertools.islice(traffic.arrivals(seed=1), requests), 500)
        print(
            f"| {name}, {fixed if limits is None else f'{limits.min_replicas} to {limits.max_replicas}'} "
            f"| {outcome.gpu_hours:.0f} | {outcome.busy:.0%} | {outcome.median_wait_s:.1f} | {outcome.p95_wait_s:.1f} "
            f"| {sweep.cost(outcome):.2f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sweeps: dict[str, Callable[[Sweep], None]] = {
        each.__name__: each for each in (fleets, largest, images, bursts, caches, probes, ingresses, line, days)
    }
    parser.add_argument("sweep", choices=sweeps)
    parser.add_argument("--price", type=float, default=3.0)
    parser.add_argument("--forward-s", type=float, default=COMPILED_FORWARD_S)
    args = parser.parse_args()
    sweep = Sweep(h200(args.forward_s), args.price)
    mean_s = sweep.edit_s(Traffic(1.0, ADAPTERS))
    print(f"an edit keeps a GPU busy for {mean_s:.1f} s on average; ${args.price:g} for a GPU and hour; seconds\n")
    sweeps[args.sweep](sweep)


if __name__ == "__main__":
    main()
