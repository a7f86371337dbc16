"""The capacity simulator, in cases whose right answer is known without it."""

import itertools
import statistics
from collections import Counter
from dataclasses import replace

import pytest

from benchmarks.capacity.editors import FORWARD_S, Stages
from benchmarks.capacity.sweep import H200, Outcome, Simulation
from benchmarks.capacity.traffic import DEFAULT_EDIT_FLOPS, MIX, Image, Traffic
from serve_app.replicas.routing_stats import ADAPTER_BYTES
from serve_app.tasks import Priority

# Every edit takes 10 s on its device, and nothing else takes time.
TEN_SECONDS = Stages(
    submit_s=0,
    send_s=0,
    fetch_s=0,
    load_s=0,
    swap_s=0,
    other_device_s=0,
    record_s=0,
    flops_per_s=DEFAULT_EDIT_FLOPS / 10,
)


def image(number: int, requested: float = 0.0, adapter: str = "", tenant: str = "") -> Image:
    return Image(number, requested, DEFAULT_EDIT_FLOPS, adapter, tenant)


def poisson(utilisation: float, count: int, adapters: int = 1, editors: int = 1) -> list[Image]:
    traffic = Traffic(utilisation * editors / 10, adapters, burstiness=1.0)
    images = itertools.islice(traffic.images(seed=1), count)
    return [image(each.number, each.requested, each.adapter) for each in images]


def order(outcome: Outcome) -> list[int]:
    return [each.number for each in sorted(outcome.images, key=lambda each: each.began)]


def test_wait_for_one_editor_is_what_queueing_theory_says():
    outcome = Simulation(TEN_SECONDS, 1).run(poisson(0.5, 2000))
    # The mean wait of M/D/1 at utilisation r and work s: r s / (2 (1 - r)).
    assert statistics.fmean(each.waited_s for each in outcome.images) == pytest.approx(5, rel=0.1)


@pytest.mark.parametrize("editors", [1, 5])
def test_editors_never_idle_while_images_wait(editors):
    outcome = Simulation(TEN_SECONDS, editors).run([image(number) for number in range(50)])
    assert outcome.busy_s == pytest.approx(500)
    assert max(each.ended for each in outcome.images) == pytest.approx(500 / editors, abs=3)


def test_every_image_ends_once_and_a_run_can_be_repeated():
    stages = replace(TEN_SECONDS, load_s=3.0, cache_bytes=3 * ADAPTER_BYTES)

    def latencies() -> list[float]:
        outcome = Simulation(stages, 4, adapters=40).run(poisson(0.9, 400, adapters=40, editors=4))
        assert [each.number for each in outcome.images] == list(range(400))
        return [each.latency_s for each in outcome.images]

    assert latencies() == latencies()


def test_adapter_in_memory_is_not_loaded_again():
    outcome = Simulation(replace(TEN_SECONDS, load_s=3.0), 1).run([image(number, adapter="A") for number in range(20)])
    assert sum(each.loads for each in outcome.images) == 1


def test_more_adapters_than_places_are_loaded_again():
    stages = replace(TEN_SECONDS, load_s=3.0, cache_bytes=2 * ADAPTER_BYTES)
    images = [image(number, 30.0 * number, f"adapter {number % 3}") for number in range(30)]
    assert all(each.loads == 1 for each in Simulation(stages, 1).run(images).images)


def test_load_is_hidden_behind_the_edit_before():
    images = [image(number, adapter=f"adapter {number}") for number in range(10)]
    outcome = Simulation(replace(TEN_SECONDS, load_s=3.0), 1).run(images)
    assert max(each.ended for each in outcome.images) == pytest.approx(3 + 100, abs=1)


def test_warm_fleet_holds_the_popular_adapters():
    stages = replace(TEN_SECONDS, load_s=3.0, cache_bytes=3 * ADAPTER_BYTES)
    outcome = Simulation(stages, 4, adapters=100).run([image(0, 0.0, "adapter 0"), image(1, 99.0, "adapter 99")])
    assert [each.loads for each in outcome.images] == [0, 1]


def test_tenant_that_comes_late_is_next():
    crowd = [image(number, tenant="crowd") for number in range(20)]
    outcome = Simulation(TEN_SECONDS, 1).run([*crowd, image(20, 25.0, tenant="late")])
    assert order(outcome).index(20) <= 5


def test_bulk_waits_for_interactive_but_is_not_starved():
    bulk = [Image(number, 0.0, DEFAULT_EDIT_FLOPS, "", "a", Priority.BULK) for number in range(10)]
    first = order(
        Simulation(TEN_SECONDS, 1).run([*bulk, *(image(10 + number, 0.5, tenant="b") for number in range(20))])
    )
    assert sum(number < 10 for number in first[2:22]) == 4


def test_traffic_has_the_rate_burstiness_popularity_and_mix_that_were_asked_for():
    images = list(itertools.islice(Traffic(5.0, 10, burstiness=2.0).images(seed=3), 40_000))
    gaps = [after.requested - before.requested for before, after in itertools.pairwise(images)]
    assert len(images) / images[-1].requested == pytest.approx(5.0, rel=0.15)
    assert statistics.stdev(gaps) / statistics.fmean(gaps) == pytest.approx(2.0, rel=0.25)
    adapters = Counter(each.adapter for each in images)
    assert adapters["adapter 0"] / adapters["adapter 9"] == pytest.approx(10, rel=0.2)
    default_edits = sum(each.flops == DEFAULT_EDIT_FLOPS for each in images)
    assert default_edits / len(images) == pytest.approx(dict(MIX)[DEFAULT_EDIT_FLOPS], abs=0.02)


def test_default_edit_takes_as_long_as_fifty_forwards():
    assert DEFAULT_EDIT_FLOPS / H200.flops_per_s == pytest.approx(50 * FORWARD_S, rel=0.03)
