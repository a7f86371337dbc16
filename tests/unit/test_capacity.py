"""The simulator, where the right answer is known without it."""

import itertools
import math
import random
import statistics
from collections import Counter
from dataclasses import replace

import pytest

from benchmarks.capacity.simulation import Outcome, Simulation
from benchmarks.capacity.stages import COMPILED_FORWARD_S, Stages, h200
from benchmarks.capacity.workload import MIX, PEAK_OVER_TROUGH, Arrival, Shape, Traffic, day_factor, popularity
from serve_app.policy.scaling import Limits
from serve_app.replicas.routing_stats import ADAPTER_BYTES
from serve_app.tasks import Priority

# Every edit takes 10 s; or 10 s on average, exponentially, of which the transformer takes nothing.
FIXED = Stages(flops_per_s=Shape().flops / 10)
EXPONENTIAL = Stages(flops_per_s=math.inf, beside_s=tuple(-10 * math.log1p(-(i + 0.5) / 1000) for i in range(1000)))


def poisson(utilisation: float, count: int, adapters: int = 0, editors: int = 1) -> list[Arrival]:
    mix = ((Shape(), 1.0),)
    traffic = Traffic(utilisation * editors / 10, adapters, burstiness=1.0, mix=mix, tenants=1, bulk=0.0)
    return list(itertools.islice(traffic.arrivals(seed=1), count))


def at_once(count: int, adapter: str = "") -> list[Arrival]:
    return [Arrival(number, 0.0, Shape(), adapter) for number in range(count)]


def order(outcome: Outcome) -> list[int]:
    return [each.arrival.number for each in sorted(outcome.images, key=lambda each: each.began)]


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        # Mean waits of M/D/1 and M/M/1 at utilisation r and work s: r s / (2 (1 - r)) and r s / (1 - r).
        (FIXED, 0.5 * 10 / (2 * 0.5)),
        (EXPONENTIAL, 0.5 * 10 / 0.5),
    ],
    ids=["M/D/1", "M/M/1"],
)
def test_wait_for_one_editor_is_what_queueing_theory_says(stages, expected):
    outcome = Simulation(stages, 1, ingresses=1).run(poisson(0.5, 4000))
    assert outcome.mean_wait_s == pytest.approx(expected, rel=0.1)


def test_editor_never_idles_while_images_wait():
    outcome = Simulation(FIXED, 1).run(at_once(50))
    assert outcome.busy_s == pytest.approx(500)
    assert max(each.ended for each in outcome.images) == pytest.approx(500, abs=1)


def test_many_editors_share_what_waits():
    outcome = Simulation(FIXED, 5).run(at_once(50))
    assert max(each.ended for each in outcome.images) == pytest.approx(100, abs=3)


def test_every_request_ends_once_while_editors_come_and_go():
    stages = replace(FIXED, cold_start_s=30.0, load_s=(2.0,))
    arrivals = poisson(0.9, 400, adapters=40, editors=4)
    simulation = Simulation(stages, 1, ingresses=3, limits=Limits(1, 8, wait_s=20, settle_s=60))
    outcome = simulation.run(arrivals)
    assert sorted(each.arrival.number for each in outcome.images) == list(range(400))
    assert outcome.busy_s == pytest.approx(4000)
    assert outcome.busy_s < outcome.gpu_s < 8 * outcome.seconds


def test_policy_starts_editors_for_a_crowd_and_gives_them_up_after_it():
    crowd = [*at_once(100), *(Arrival(100 + i, 500.0 + 100 * i, Shape(), "") for i in range(10))]
    simulation = Simulation(
        replace(FIXED, cold_start_s=30.0), 1, limits=Limits(1, 8, wait_s=60, settle_s=120, idle_s=9999)
    )
    outcome = simulation.run(crowd)
    assert max(each.ended for each in outcome.images[:100]) < 300
    assert len(simulation.fleet.editors) == 1


def test_same_seed_is_the_same_run_and_another_is_not():
    stages = replace(EXPONENTIAL, load_s=(3.0,), cache_bytes=3 * ADAPTER_BYTES)

    def took(seed: int) -> list[float]:
        outcome = Simulation(stages, 3, seed=seed).run(poisson(0.7, 300, adapters=20, editors=3))
        return [each.took for each in outcome.images]

    assert took(1) == took(1) != took(2)


def test_adapter_that_is_held_is_not_loaded_again():
    outcome = Simulation(replace(FIXED, load_s=(3.0,)), 1).run(at_once(20, "A"))
    assert sum(each.loads for each in outcome.images) == 1


def test_more_adapters_than_places_are_loaded_again():
    stages = replace(FIXED, load_s=(3.0,), cache_bytes=2 * ADAPTER_BYTES)
    arrivals = [Arrival(number, 30.0 * number, Shape(), f"adapter {number % 3}") for number in range(30)]
    assert Simulation(stages, 1).run(arrivals).reloads == 1.0


def test_load_is_hidden_behind_the_edit_before():
    arrivals = [Arrival(number, 0.0, Shape(), f"adapter {number}") for number in range(10)]
    outcome = Simulation(replace(FIXED, load_s=(3.0,)), 1).run(arrivals)
    assert max(each.ended for each in outcome.images) == pytest.approx(3 + 100, abs=1)


def test_tenant_that_comes_late_is_next():
    crowd = [Arrival(number, 0.0, Shape(), "", "crowd") for number in range(20)]
    outcome = Simulation(FIXED, 1).run([*crowd, Arrival(20, 25.0, Shape(), "", "late")])
    assert order(outcome).index(20) <= 5


def test_bulk_waits_for_interactive_but_is_not_starved():
    bulk = [Arrival(number, 0.0, Shape(), "", "a", Priority.BULK) for number in range(10)]
    urgent = [Arrival(10 + number, 0.5, Shape(), "", "b") for number in range(20)]
    first = order(Simulation(FIXED, 1).run([*bulk, *urgent]))[2:22]
    assert sum(number < 10 for number in first) == 4


def test_router_that_takes_its_time_delays_edits():
    slow = replace(FIXED, plan_replica_s=1.0)
    assert Simulation(slow, 4).run(at_once(1)).mean_wait_s == pytest.approx(4, abs=0.1)


def test_arrivals_are_as_many_as_bursty_and_as_skewed_as_was_asked():
    traffic = Traffic(5.0, 10, burstiness=2.0)
    arrivals = list(itertools.islice(traffic.arrivals(seed=3), 40_000))
    gaps = [after.at - before.at for before, after in itertools.pairwise(arrivals)]
    assert len(arrivals) / arrivals[-1].at == pytest.approx(5.0, rel=0.15)
    assert statistics.stdev(gaps) / statistics.fmean(gaps) == pytest.approx(2.0, rel=0.25)
    counts = Counter(each.adapter for each in arrivals)
    assert counts["adapter 0"] / counts["adapter 9"] == pytest.approx(10, rel=0.2)
    shapes = Counter(each.shape for each in arrivals)
    assert shapes[Shape()] / len(arrivals) == pytest.approx(MIX[Shape()], abs=0.02)


def test_day_has_the_published_peak_and_leaves_the_average():
    day = [day_factor(at) for at in range(0, 86400, 60)]
    assert max(day) / min(day) == pytest.approx(PEAK_OVER_TROUGH, rel=0.01)
    assert statistics.fmean(day) == pytest.approx(1)


def test_popularity_is_a_share():
    assert sum(popularity(100, 1.0)) == pytest.approx(1)


def test_default_edit_takes_what_fifty_forwards_take():
    seconds = Shape().flops / h200(COMPILED_FORWARD_S).flops_per_s
    assert seconds == pytest.approx(50 * COMPILED_FORWARD_S, rel=0.03)


def test_warmed_fleet_begins_with_the_popular_adapters():
    shares = popularity(100, 1.0)
    simulation = Simulation(replace(FIXED, load_s=(3.0,), cache_bytes=3 * ADAPTER_BYTES), 4)
    simulation.fleet.warm(shares)
    outcome = simulation.run([Arrival(0, 0.0, Shape(), "adapter 0"), Arrival(1, 99.0, Shape(), "adapter 99")])
    assert [each.loads for each in outcome.images] == [0, 1]


def test_burst_of_chance_is_drawn_from_the_seed_alone():
    random.seed(7)
    first = list(itertools.islice(Traffic(1.0, 5).arrivals(seed=2), 50))
    random.seed(8)
    assert list(itertools.islice(Traffic(1.0, 5).arrivals(seed=2), 50)) == first
