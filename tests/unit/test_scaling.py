"""How many editors there should be: the pure decision, driven second by second through small days."""

from dataclasses import dataclass, field
from itertools import pairwise

from serve_app.policy.scaling import Backlog, Decision, Fleet, Limits, Scaling

COLD_S = 30.0
LIMITS = Limits(min_replicas=0, max_replicas=8, wait_s=60, settle_s=120, idle_s=300)


@dataclass
class Day:
    """A model's replicas and line, a second a step: what is decided is done, and is there after a cold start."""

    limits: Limits = LIMITS
    image_s: float = 20.0
    running: int = 0
    starting: list[float] = field(default_factory=list)  # when each will be ready
    images: list[float] = field(default_factory=list)  # what is left of each, the first ones are worked on
    now: float = 0.0
    history: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.scaling = Scaling()
        self.due = 0.0
        self.decision = Decision(self.running, "")

    @property
    def size(self) -> int:
        return self.running + len(self.starting)

    def run(self, seconds: float, a_second: float = 0.0) -> list[int]:
        """Let time pass, with so many new images a second; the sizes it had."""
        for _ in range(round(seconds)):
            self.due += a_second
            while self.due >= 1:
                self.images.append(self.image_s)
                self.due -= 1
            self._step()
        return self.history[-round(seconds) :]

    def _step(self) -> None:
        busy = [left - 1 for left in self.images[: self.running]]
        self.images = [left for left in busy if left > 0] + self.images[self.running :]
        self.running += sum(ready <= self.now for ready in self.starting)
        self.starting = [ready for ready in self.starting if ready > self.now]
        at_work, waiting = self.images[: self.running], self.images[self.running :]
        backlog = Backlog(sum(waiting), sum(at_work), len(self.images))
        fleet = Fleet(self.running, len(self.starting), COLD_S)
        self.decision = self.scaling.decide(backlog, fleet, self.limits, self.now)
        more = self.decision.replicas - self.size
        if more > 0:
            self.starting += [self.now + COLD_S] * more
        else:
            self.running += more
        self.history.append(self.size)
        self.now += 1


def decide(backlog: Backlog, fleet: Fleet, limits: Limits = LIMITS, now: float = 0.0) -> Decision:
    return Scaling().decide(backlog, fleet, limits, now)


def changes(sizes: list[int]) -> int:
    return sum(before != after for before, after in pairwise(sizes))


def test_a_single_image_starts_one_from_zero_and_waits_for_it():
    day = Day()
    day.images = [5.0]
    assert set(day.run(COLD_S)) == {1}
    day.run(10)
    assert not day.images
    assert decide(Backlog(5, 0, 1), Fleet(0)).replicas == 1


def test_from_zero_as_many_start_as_do_the_work_in_time():
    assert decide(Backlog(200, 0, 10), Fleet(0, 0, COLD_S)).replicas == 4


def test_an_image_is_never_shared():
    assert decide(Backlog(1000, 0, 2), Fleet(0, 0, COLD_S)).replicas == 2


def test_a_burst_that_is_over_before_another_would_be_ready_starts_nothing():
    decision = decide(Backlog(20, 8, 6), Fleet(1, 0, COLD_S))
    assert decision.replicas == 1
    assert "done before another would be ready" in decision.reason
    # The same work where a start takes a second.
    assert decide(Backlog(20, 8, 6), Fleet(1, 0, 1.0), Limits(0, 8, wait_s=5)).replicas > 1


def test_it_is_the_work_that_counts_not_the_images():
    few_large = decide(Backlog(400, 0, 4), Fleet(1, 0, COLD_S))
    many_small = decide(Backlog(20, 0, 40), Fleet(1, 0, COLD_S))
    assert few_large.replicas == 4
    assert many_small.replicas == 1


def test_what_is_starting_is_not_started_again():
    day = Day(running=1)
    day.images = [20.0] * 15
    sizes = day.run(COLD_S + 5)
    assert len(set(sizes)) == 1
    assert sizes[0] > 1


def test_replicas_that_are_ready_soon_count():
    scaling = Scaling()
    assert scaling.decide(Backlog(150, 0, 20), Fleet(1, 0, COLD_S), LIMITS, 0).replicas == 2
    # 29 s later the second is nearly there; what has come since is less than both do until a third would be ready.
    assert scaling.decide(Backlog(175, 0, 20), Fleet(1, 1, COLD_S), LIMITS, 29).replicas == 2
    # One that was ordered just now is not.
    assert decide(Backlog(175, 0, 20), Fleet(1, 1, COLD_S)).replicas == 3


def test_a_steady_load_finds_its_number_and_stays_there():
    day = Day(running=1)
    day.run(1200, a_second=0.15)  # three replicas' worth
    sizes = day.run(1800, a_second=0.15)
    assert min(sizes) >= 3
    assert changes(sizes) <= 2


def test_replicas_are_stopped_one_by_one_after_the_load():
    day = Day(running=4)
    day.run(200, a_second=0.15)
    assert set(day.run(20, a_second=0.02)) == {4}
    sizes = day.run(2 * LIMITS.settle_s, a_second=0.02)
    assert sizes == sorted(sizes, reverse=True)
    assert day.size == 1
    day = Day(running=4)
    day.run(LIMITS.settle_s + 1)
    assert day.decision.reason == "for 120 s 0 of 4 replicas were busy: 1 would be enough"


def test_no_replica_is_stopped_before_the_load_was_watched_long_enough():
    assert set(Day(running=4).run(LIMITS.settle_s)) == {4}


def test_alternating_load_does_not_start_and_stop_replicas():
    day = Day(running=3)
    sizes = [size for _ in range(20) for size in day.run(30) + day.run(60, a_second=0.15)]
    assert changes(sizes[600:]) == 0


def test_the_last_replica_is_stopped_only_after_its_idle_time():
    day = Day(running=1)
    assert set(day.run(LIMITS.idle_s)) == {1}
    day.run(5)
    assert day.size == 0
    assert day.decision.reason.startswith("no work")


def test_work_in_between_begins_the_idle_time_anew():
    day = Day(running=1)
    day.run(LIMITS.idle_s - 10)
    day.images = [5.0]
    assert set(day.run(LIMITS.idle_s)) == {1}


def test_bounds_hold_and_say_so():
    most = decide(Backlog(10_000, 0, 500), Fleet(1, 0, COLD_S))
    assert most.replicas == LIMITS.max_replicas
    assert "at most 8 are allowed" in most.reason
    least = decide(Backlog(), Fleet(0), Limits(2, 8))
    assert least.replicas == 2
    assert "at least 2 are kept" in least.reason
    day = Day(Limits(1, 8, settle_s=120, idle_s=300), running=4)
    day.run(2000)
    assert day.size == 1


def test_a_bound_that_was_lowered_counts_at_once():
    assert decide(Backlog(500, 100, 30), Fleet(8), Limits(0, 3)).replicas == 3


def test_an_image_that_waits_against_the_prediction_gets_one_more_replica_at_a_time():
    scaling, fleet = Scaling(), Fleet(1, 0, COLD_S)
    late = Backlog(1.0, 0.5, 2, oldest_s=COLD_S + LIMITS.wait_s + 1)
    assert scaling.decide(late, fleet, LIMITS, 0).replicas == 2
    assert scaling.decide(late, Fleet(1, 1, COLD_S), LIMITS, 1).replicas == 2
    # It is there now, and gets the time that was reckoned for it.
    assert scaling.decide(late, Fleet(2, 0, COLD_S), LIMITS, 40).replicas == 2
    assert scaling.decide(late, Fleet(2, 0, COLD_S), LIMITS, 100).replicas == 3


def test_a_start_that_was_never_measured_is_taken_to_be_long():
    assert decide(Backlog(70, 0, 20), Fleet(1)).replicas == 1
    assert decide(Backlog(70, 0, 20), Fleet(1, 0, 1.0)).replicas == 2


def test_every_decision_has_a_reason():
    day = Day(running=1)
    for load in (0.3, 0.0, 0.1, 0.0):
        for _ in range(400):
            day.run(1, load)
            assert len(day.decision.reason) > 10
