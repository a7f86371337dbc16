"""Who gets a request: decisions over what a router knows, and what they come to over time."""

import random
from collections import Counter

import pytest

from serve_app.engine.adapter_cache import AdapterCache
from serve_app.policy.routing import (
    CONFIRMED_WITHIN_S,
    PATIENCE,
    PROBES_PER_S,
    Replica,
    Report,
    Routing,
    WaitingRequest,
    answer_valid_s,
)
from serve_app.replicas.routing_stats import RoutingStats

WORK_S, LOAD_S = 1.0, 1.5


def replica(id: str, running: int = 0, *held: str, load_s: float | None = LOAD_S, slots: int = 2) -> Replica:
    return Replica(id, running, slots, frozenset(held), WORK_S, load_s)


def request(id: str = "r", adapters: str = "A", since: float = 0.0) -> WaitingRequest:
    return WaitingRequest(id, adapters, since)


def requests(count: int, adapters: str = "A") -> list[WaitingRequest]:
    return [request(f"r{index}", adapters, float(index)) for index in range(count)]


@pytest.fixture
def routing() -> Routing:
    return Routing()


@pytest.fixture
def used() -> Routing:
    """One that has seen enough for popularity to count: A half of the time, others once each."""
    routing = Routing()
    for index in range(100):
        routing.plan([request(f"seen {index}", "A" if index % 2 else f"other {index}")], [replica("x")], 0.0)
    return routing


def test_replica_that_holds_the_adapters_gets_the_request(routing):
    assert routing.plan([request()], [replica("x"), replica("y", 0, "A"), replica("z")], 0.0) == {"r": "y"}


def test_holder_gets_it_while_its_backlog_is_shorter_than_a_load(routing):
    assert routing.plan([request()], [replica("x"), replica("y", 1, "A")], 0.0) == {"r": "y"}


def test_load_elsewhere_is_taken_when_it_is_shorter_than_the_backlog(routing):
    busy = replica("y", 2, "A", load_s=0.5)
    assert routing.plan([request()], [replica("x", load_s=0.5), busy], 0.0) == {"r": "x"}


def test_request_waits_for_a_holder_whose_slots_are_taken(routing):
    holder = replica("y", 1, "A", slots=1)
    assert routing.plan([request()], [replica("x"), holder], 0.0) == {}


def test_request_waits_no_longer_than_its_patience(routing):
    replicas, patience_s = [replica("x"), replica("y", 1, "A", slots=1)], PATIENCE * LOAD_S
    assert routing.plan([request()], replicas, 10.0) == {}
    assert routing.plan([request()], replicas, 10.0 + patience_s) == {}
    assert routing.plan([request()], replicas, 10.1 + patience_s) == {"r": "x"}


def test_time_in_which_no_slot_was_free_is_not_patience_spent(routing):
    full = [replica("x", 2), replica("y", 1, "A", slots=1)]
    assert routing.plan([request()], full, 0.0) == {}
    assert routing.plan([request()], [replica("x"), full[1]], 100.0) == {}


def test_base_model_request_goes_to_the_least_loaded_replica(routing):
    replicas = [replica("x", 2, "A"), replica("y", 0, "A", "B"), replica("z", 1)]
    assert routing.plan([request(adapters="")], replicas, 0.0) == {"r": "y"}


def test_base_model_requests_go_anywhere(routing):
    replicas = [replica("x"), replica("y"), replica("z")]
    starts = routing.plan(requests(6, adapters=""), replicas, 0.0)
    assert Counter(starts.values()) == {"x": 2, "y": 2, "z": 2}
    single = {Routing().plan([request(f"r{index}", "")], replicas, 0.0)[f"r{index}"] for index in range(20)}
    assert single == {"x", "y", "z"}


def test_requests_for_one_cold_set_meet_on_one_replica(used):
    replicas = [replica(id) for id in "wxyz"]
    assert len(set(used.plan(requests(2, "cold"), replicas, 0.0).values())) == 1


def test_routers_that_do_not_talk_choose_the_same_replica_for_a_cold_set():
    replicas = [replica(id) for id in "wxyz"]
    choices = {Routing().plan([request(f"of {index}", "cold")], replicas, 0.0)[f"of {index}"] for index in range(5)}
    assert len(choices) == 1


def test_cold_sets_spread(routing):
    replicas = [replica(id) for id in "wxyz"]
    waiting = [request(f"r{index}", f"set {index}") for index in range(4)]
    assert set(routing.plan(waiting, replicas, 0.0).values()) == set("wxyz")


def test_popular_set_gets_a_second_home_sooner(used):
    # On a backlog of two a load of 1.5 is cheaper, but not half a load more.
    def replicas(adapters: str) -> list[Replica]:
        return [replica("x", 2, adapters, slots=3), replica("y")]

    assert used.plan([request("cold", "rare")], replicas("rare"), 0.0) == {"cold": "x"}
    assert used.plan([request("hot", "A")], replicas("A"), 0.0) == {"hot": "y"}


@pytest.mark.parametrize("adapters", ["cold", ""])
def test_request_that_may_go_anywhere_avoids_the_replica_that_others_want(used, adapters):
    replicas = [replica("x", 0, "other 2"), replica("y", 0, "A"), replica("z", 0, "other 4")]
    waiting = [request(f"r{index}", adapters and f"{adapters} {index}") for index in range(20)]
    starts = [used.plan([each], replicas, 0.0) for each in waiting]
    assert "y" not in {replica_id for start in starts for replica_id in start.values()}


def test_replica_that_others_want_is_taken_before_a_backlog(used):
    assert used.plan([request("cold", "cold")], [replica("x", 1), replica("y", 0, "A")], 0.0) == {"cold": "y"}


def test_set_on_two_replicas_makes_each_half_as_wanted(used):
    # A is wanted half of the time, at two homes; B and C the other half, at one.
    for index in range(150):
        used.plan([request(f"next {index}", "ABCA"[index % 4])], [replica("v")], 0.0)
    replicas = [replica("x", 0, "A"), replica("y", 0, "A"), replica("z", 0, "B", "C")]
    starts = [used.plan([request(f"r{index}", f"cold {index}")], replicas, 0.0) for index in range(20)]
    assert {replica_id for start in starts for replica_id in start.values()} == {"x", "y"}


def test_popularity_decays(used):
    for index in range(1000):
        used.plan([request(f"later {index}", f"other {index % 50}")], [replica("x")], 0.0)
    assert used.plan([request()], [replica("x", 2, "A", slots=3), replica("y")], 0.0) == {"r": "x"}


def test_assignment_counts_before_the_replica_reports_it(routing):
    cold = [replica("x"), replica("y")]
    [first] = routing.plan([request()], cold, 0.0).values()
    routing.assigned(request(), first, 0.0)
    now_busy = [replica(each.id, int(each.id == first)) for each in cold]
    assert routing.plan([request("next")], now_busy, 0.1) == {"next": first}


def test_assignment_that_no_replica_confirms_is_forgotten(routing):
    routing.assigned(request("earlier"), "x", 0.0)
    busy = [replica("x", 1), replica("y")]
    assert routing.plan([request()], busy, CONFIRMED_WITHIN_S) == {"r": "y"}


def test_assignment_of_a_rejected_request_is_forgotten(routing):
    routing.assigned(request(), "x", 0.0)
    assert routing.plan([request()], [replica("x", 1), replica("y")], 0.1) == {"r": "y"}


def test_earlier_request_gets_the_slot(routing):
    [only] = [replica("x", 1)]
    late, early = request("late", "", since=2.0), request("early", "", since=1.0)
    assert routing.plan([late, early], [only], 3.0) == {"early": "x"}


def test_waiting_requests_count_as_backlog(routing):
    # Two wait for the holder already: loading elsewhere is cheaper for the third.
    holder = replica("y", 1, "A", slots=1)
    assert routing.plan(requests(3), [replica("x"), holder], 0.0) == {"r2": "x"}


def test_without_replicas_everybody_waits(routing):
    assert routing.plan(requests(3), [], 0.0) == {}


def test_replica_that_has_measured_nothing_is_taken_to_be_like_the_others(routing):
    fresh = Replica("x", 1, 2)
    assert routing.plan([request(adapters="")], [fresh, replica("y", 2, slots=3)], 0.0) == {"r": "x"}
    assert routing.plan([request("first")], [Replica("x", 0, 2)], 0.0) == {"first": "x"}


@pytest.mark.parametrize("load_s", [0.01, 0.5, 1.5, 5.0])
@pytest.mark.parametrize("seed", range(3))
def test_nobody_starves(seed, load_s):
    """Three routers at four replicas for a while: no request lets free slots pass for longer than its patience."""
    chance = random.Random(seed)
    step, routers = 0.05, [Routing() for _ in range(3)]
    running: dict[str, list[float]] = {id: [] for id in "wxyz"}
    held: dict[str, list[str]] = {id: [] for id in "wxyz"}
    waiting: list[list[WaitingRequest]] = [[], [], []]
    passed: Counter[str] = Counter()
    for tick in range(2000):
        now = tick * step
        running = {id: [end for end in ends if end > now] for id, ends in running.items()}
        if chance.random() < 4 * 0.8 * step / WORK_S:
            adapters = f"set {int(chance.paretovariate(1)) % 40}"
            chance.choice(waiting).append(request(f"r{tick}", adapters, now))
        for router, mine in zip(routers, waiting, strict=True):
            known = [Replica(id, len(running[id]), 2, frozenset(held[id]), WORK_S, load_s) for id in "wxyz"]
            starts = router.plan(mine, known, now)
            for one in [each for each in mine if each.id in starts]:
                id = starts[one.id]
                mine.remove(one)
                router.assigned(one, id, now)
                begin = max([now + (load_s if one.adapters not in held[id] else 0), *running[id]])
                running[id].append(begin + WORK_S)
                held[id] = [*(each for each in held[id] if each != one.adapters), one.adapters][-3:]
        if any(len(ends) < 2 for ends in running.values()):
            passed.update(each.id for mine in waiting for each in mine)
    assert max(passed.values(), default=0) * step <= PATIENCE * load_s + 2 * step


def test_report_of_another_version_is_read():
    assert Report.of({"held": ("A",), "of_tomorrow": 1}) == Report(held=("A",))
    assert Report.of({}) == Report()


def test_set_named_since_the_report_counts_as_held_and_one_that_is_gone_does_not():
    report = Report(held=("A", "unnamed"), gone=("B",))
    assert report.held_sets(["A", "B", "C"]) == {"A", "unnamed", "C"}


class Sized:
    size_bytes = 10


@pytest.fixture
def cache() -> AdapterCache[Sized]:
    return AdapterCache(budget_bytes=25)


def test_set_is_held_from_the_start_of_its_load_until_its_eviction(cache):
    stats = RoutingStats(cache, names=2)
    with stats.loading("set of a", ["a"]):
        assert stats.report() == Report(held=("set of a",))
        cache.get("a", Sized)
    for adapter in "bcd":
        with stats.loading(f"set of {adapter}", [adapter]):
            cache.get(adapter, Sized)
    assert stats.report().held == ("set of c", "set of d")


def test_evicted_set_that_serve_still_advertises_is_reported_as_gone(cache):
    stats = RoutingStats(cache, names=2)
    for adapters in ("a", "b", "c", "d", "cd"):
        with stats.loading(f"set of {adapters}", list(adapters)):
            for adapter in adapters:
                cache.get(adapter, Sized)
    for adapter in "efe":
        cache.get(adapter, Sized)
    # The latest two are d and c together, whose c is gone, and d; Serve has dropped the rest itself.
    assert stats.report().gone == ("set of cd",)


def test_set_that_failed_to_load_is_reported_as_gone(cache):
    stats = RoutingStats(cache, names=2)
    with pytest.raises(OSError, match="no such file"), stats.loading("bad", ["bad"]):
        raise OSError("no such file")
    assert stats.report().gone == ("bad",)


def test_set_is_held_only_when_all_of_it_is(cache):
    stats = RoutingStats(cache, names=2)
    with stats.loading("both", ["a", "b"]):
        cache.get("a", Sized)
    assert stats.report().held == ()
    with stats.loading("both", ["a", "b"]):
        cache.get("b", Sized)
    assert stats.report().held == ("both",)


def test_seconds_are_measured(cache):
    stats = RoutingStats(cache, names=2)
    assert (stats.report().work_s, stats.report().load_s) == (None, None)
    stats.work_s.add(2.0)
    stats.work_s.add(3.0)
    cache.get("a", Sized)
    loaded = stats.report().load_s
    cache.get("a", lambda: pytest.fail("it is there"))
    report = stats.report()
    assert 2.0 < report.work_s < 3.0
    assert 0 <= report.load_s == loaded < 0.1


@pytest.mark.parametrize("replicas", [1, 64, 600, 2000])
def test_no_replica_is_forgotten_before_it_is_asked_again(replicas):
    a_round_s = replicas / PROBES_PER_S
    assert answer_valid_s(replicas) >= 2 * a_round_s
    assert answer_valid_s(4) == 3.0
