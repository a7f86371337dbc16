"""The simulation beside real runs: what one editor's run says of the stages, and what follows for four editors.

    python -m benchmarks.capacity.real 1 benchmarks/capacity/runs/one.json
    python -m benchmarks.capacity.validation predict      # from that run; writes runs/predictions.json
    python -m benchmarks.capacity.real 4 benchmarks/capacity/runs/four.json
    python -m benchmarks.capacity.validation compare      # the real run beside what was predicted

Predictions know the arrivals of the run to come, which are drawn from a seed, and nothing else of it.
"""

import argparse
import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Self

from benchmarks.capacity.limits import look
from benchmarks.capacity.real import FLOPS_PER_S, PLACES, UNCOUNTED, Seen, arrivals, read
from benchmarks.capacity.simulation import Outcome, Simulation
from benchmarks.capacity.stages import Stages
from serve_app.replicas.routing_stats import ADAPTER_BYTES

RUNS = Path(__file__).parent / "runs"
PREDICTED, INGRESSES, SEEDS = 4, 2, 20
# A claim on PostgreSQL while little waits (docs/jobs.md). How a request's way to its editor is cut into stages
# matters only where claims queue up for the line.
CLAIM_S = 0.005


@dataclass(frozen=True)
class Figures:
    """What is compared. Seconds from when a request was due; `busy`: the devices' share of the time to the last end."""

    p50_s: float
    p95_s: float
    mean_wait_s: float
    reloads: float
    busy: float

    @classmethod
    def of_outcome(cls, outcome: Outcome) -> Self:
        busy = outcome.busy_s / outcome.gpu_s
        return cls(outcome.median_s, outcome.p95_s, outcome.mean_wait_s, outcome.reloads, busy)

    @classmethod
    def of_run(cls, seen: Sequence[Seen], editors: int) -> Self:
        took = [each.finished - each.due for each in seen]
        span = max(each.finished for each in seen) - min(each.due for each in seen)
        return cls(
            statistics.median(took),
            statistics.quantiles(took, n=20)[-1],
            statistics.fmean(each.began - each.due for each in seen),
            statistics.fmean(each.loads for each in seen),
            sum(occupied.values()) / span / editors if (occupied := occupied_s(seen)) else 0.0,
        )


def occupied_s(seen: Iterable[Seen]) -> dict[int, float]:
    """For how long each request, by number, had its editor's device: from when both were ready, to its end."""
    found, free = {}, dict[int, float]()
    for each in sorted(seen, key=lambda each: each.began):
        found[each.number] = each.ended - max(each.prepared, free.get(each.pid, 0.0))
        free[each.pid] = each.ended
    return found


def calibrated(seen: Sequence[Seen]) -> Stages:
    """The stages as one editor's run shows them."""
    alone = [each for each in seen if sum(a.created < each.created < a.finished for a in seen) <= 1]
    prepare = tuple(each.prepared - each.prepare for each in seen if not each.loads)
    loads = [each.prepared - each.prepare for each in seen if each.loads]
    occupied = occupied_s(seen)
    one, known, pair = router_costs()
    return Stages(
        admit_s=tuple(each.created - each.due for each in seen),
        claim_s=(CLAIM_S,),
        plan_replica_s=known,
        plan_pair_s=pair,
        send_s=tuple(max(0.0, each.prepare - each.created - CLAIM_S - one) for each in alone),
        prepare_s=prepare,
        load_s=tuple(seconds - statistics.median(prepare) for seconds in loads),
        beside_s=tuple(occupied[each.number] - each.work_s for each in seen),
        flops_per_s=FLOPS_PER_S,
        record_s=tuple(each.finished - each.ended for each in seen),
        cache_bytes=PLACES * ADAPTER_BYTES,
    )


def router_costs() -> tuple[float, float, float]:
    """CPU seconds of a look: for one replica and request in all; for each replica; for each pair."""
    (known, plan), (_, more) = look(256, 1), look(256, 50)
    pair = (more - plan) / 256 / 49
    return sum(look(1, 1)), (known + plan) / 256 - pair, pair


def simulated(stages: Stages, editors: int) -> list[Figures]:
    """One for each seed of what the stages take; the arrivals are those of the real run."""
    stream = arrivals(editors)
    return [
        Figures.of_outcome(Simulation(stages, editors, INGRESSES, seed=seed).run(stream, UNCOUNTED))
        for seed in range(SEEDS)
    ]


def predict() -> None:
    seen = read(RUNS / "one.json")
    stages = calibrated(seen)
    for name in ("admit_s", "send_s", "prepare_s", "load_s", "beside_s", "record_s"):
        of_stage = sorted(getattr(stages, name))
        print(f"{name}: median {statistics.median(of_stage):.3f}, {of_stage[0]:.3f} to {of_stage[-1]:.3f} s")
    print("\nOne editor, the run that the stages are from:")
    compare_figures(Figures.of_run(seen, 1), simulated(stages, 1))
    predicted = [asdict(figures) for figures in simulated(stages, PREDICTED)]
    (RUNS / "predictions.json").write_text(json.dumps(predicted, indent=1) + "\n")
    print(f"\nPredicted for {PREDICTED} editors:")
    for name in predicted[0]:
        values = [figures[name] for figures in predicted]
        print(f"{name}: {statistics.fmean(values):.3f} ({min(values):.3f} to {max(values):.3f})")


def compare() -> None:
    predicted = [Figures(**figures) for figures in json.loads((RUNS / "predictions.json").read_text())]
    compare_figures(Figures.of_run(read(RUNS / "four.json"), PREDICTED), predicted)


def compare_figures(real: Figures, simulated: Sequence[Figures]) -> None:
    print(f"| figure | simulated (least, most of {len(simulated)} seeds) | real | off by |")
    print("|---|---|---|---|")
    for name in (field.name for field in fields(Figures)):
        values, was = [getattr(figures, name) for figures in simulated], getattr(real, name)
        mean = statistics.fmean(values)
        print(f"| {name} | {mean:.3f} ({min(values):.3f}, {max(values):.3f}) | {was:.3f} | {mean / was - 1:+.0%} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = {"predict": predict, "compare": compare}
    parser.add_argument("command", choices=commands)
    commands[parser.parse_args().command]()


if __name__ == "__main__":
    main()
