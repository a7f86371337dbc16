"""Decides how many editors a model should have. Deterministic: no Ray, no clock, no random numbers.

Editors are started for the work that will be left when they are ready, as many as finish it within `Limits.wait_s`.
Editors are stopped when fewer would have been enough for `Limits.settle_s`. Both rules compare predicted seconds of
work with what replicas can do; the number of requests does not matter.
"""

import math
from collections import deque
from dataclasses import dataclass

# The assumed duration of a start (s), until one has been measured.
UNMEASURED_COLD_START_S = 60.0
# The weight of the newest start in the moving average of their durations.
NEWEST_WEIGHT = 0.5
# Replicas are stopped only if the others would not be busier than this share. Near 1, the queue grows without bound.
UTILISATION = 0.8
# The number of intervals into which the history of the last `settle_s` is divided.
INTERVALS = 60


@dataclass(frozen=True)
class Backlog:
    """A model's images that are not finished.

    `waiting_s` is the predicted work of the waiting images, `running_s` what is left of the running ones (both in
    GPU-seconds); `images` counts both. `oldest_s` is how long the oldest waiting image has waited (s), 0 if none waits.
    `interactive` and `bulk` count the waiting images of each class.
    """

    waiting_s: float = 0.0
    running_s: float = 0.0
    images: int = 0
    oldest_s: float = 0.0
    interactive: int = 0
    bulk: int = 0

    @property
    def work_s(self) -> float:
        """All predicted work (GPU-seconds)."""
        return self.waiting_s + self.running_s


@dataclass(frozen=True)
class Fleet:
    """A model's replicas: `running` ones take work; `starting` ones were ordered and do not take work yet.

    `cold_start_s` is the measured duration of a start (s), None before the first.
    """

    running: int
    starting: int = 0
    cold_start_s: float | None = None

    @property
    def size(self) -> int:
        return self.running + self.starting


@dataclass(frozen=True)
class Limits:
    """The allowed numbers of replicas, and the targets of the decision.

    Work that is left when new replicas are ready should be finished within `wait_s` from then. How many replicas are
    stopped depends on how many were busy, and how many the queue needed, in the last `settle_s`. If `min_replicas` is
    0, the last one is stopped after `idle_s` without work.
    """

    min_replicas: int
    max_replicas: int
    wait_s: float = 60.0
    settle_s: float = 300.0
    idle_s: float = 900.0


@dataclass(frozen=True)
class Decision:
    """The number of replicas that there should be, including those that are starting, and the reason for the log."""

    replicas: int
    reason: str


@dataclass
class _Interval:
    """A part of the history: the highest number of replicas that the queue needed, and the mean number of busy ones."""

    since: float
    needed: int
    busy: float
    count: int = 1

    def add(self, needed: int, busy: int) -> None:
        self.needed = max(self.needed, needed)
        self.busy += (busy - self.busy) / (self.count + 1)
        self.count += 1


class Scaling:
    """The decisions for one model, with the state that they need. All times are seconds of the caller's clock."""

    def __init__(self) -> None:
        # The average time from a decision until the replica takes work (s); None before the first start.
        self.cold_start_s: float | None = None
        self._first_decision: float | None = None
        self._running = 0
        self._intervals: deque[_Interval] = deque()
        self._ordered: list[float] = []  # when the starting replicas were ordered, as far as is known
        self._last_order = float("-inf")
        self._idle_since: float | None = None

    def decide(self, backlog: Backlog, fleet: Fleet, limits: Limits, now: float) -> Decision:
        """The decision at this moment. Call it at least every second, and carry out what it returns."""
        if self._first_decision is None:
            self._first_decision, self._running = now, fleet.running
        self._note_starts(fleet, now)
        if backlog.images:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = now
        wanted = self._for_backlog(backlog, fleet, limits, now)
        self._remember(wanted.replicas, min(fleet.running, backlog.images), limits.settle_s, now)
        if wanted.replicas <= fleet.size:
            wanted = self._scale_down(fleet, limits, now) or Decision(fleet.size, wanted.reason)
        decision = _bounded(wanted, limits)
        if decision.replicas > fleet.size:
            self._ordered += [now] * (decision.replicas - fleet.size)
            self._last_order = now
        return decision

    def _note_starts(self, fleet: Fleet, now: float) -> None:
        """Measure finished starts, and keep the order times of the others. The first ordered is ready first."""
        finished = max(0, len(self._ordered) - fleet.starting)
        for ordered in self._ordered[: max(0, min(finished, fleet.running - self._running))]:
            known_s = now - ordered if self.cold_start_s is None else self.cold_start_s
            self.cold_start_s = (1 - NEWEST_WEIGHT) * known_s + NEWEST_WEIGHT * (now - ordered)
        # A replica that starts without an order replaces one that died.
        self._ordered = self._ordered[finished:] + [now] * (fleet.starting - len(self._ordered))
        self._running = fleet.running

    def _for_backlog(self, backlog: Backlog, fleet: Fleet, limits: Limits, now: float) -> Decision:
        """The number of replicas that the queue needs, with the reason."""
        if not backlog.images:
            return Decision(0, "there is no work")
        cold_start_s = UNMEASURED_COLD_START_S if fleet.cold_start_s is None else fleet.cold_start_s
        left_s = backlog.work_s - self._capacity_s(cold_start_s, fleet, now)
        # One image cannot be divided between replicas.
        needed = min(math.ceil(left_s / limits.wait_s), backlog.images)
        images, replicas = counted(backlog.images, "image"), counted(fleet.size, "replica")
        work = f"{backlog.work_s:.3g} s of work, {images}, on {replicas}"
        if not fleet.size:
            return Decision(max(needed, 1), f"{work}: there is no replica to do it")
        if needed > fleet.size:
            return Decision(
                needed,
                f"{work}: {left_s:.3g} s of it would be left when another is ready in {cold_start_s:.3g} s; "
                f"{needed} finish that within {limits.wait_s:g} s",
            )
        if self._is_late(backlog, fleet, cold_start_s + limits.wait_s, now):
            # The prediction was wrong for this image. One more replica is ordered, and the next only when this one has
            # had the time to help.
            return Decision(
                fleet.size + 1, f"{work}: the oldest has waited {backlog.oldest_s:.3g} s, longer than predicted"
            )
        if left_s <= 0:
            return Decision(max(needed, 0), f"{work}: done before another would be ready in {cold_start_s:.3g} s")
        return Decision(
            needed, f"{work}: the rest is done in time without another, which would take {cold_start_s:.3g} s"
        )

    def _capacity_s(self, seconds: float, fleet: Fleet, now: float) -> float:
        """The work (GPU-seconds) that the replicas can do in the next `seconds`, including those that become ready."""
        return fleet.running * seconds + sum(min(now - ordered, seconds) for ordered in self._ordered)

    def _is_late(self, backlog: Backlog, fleet: Fleet, promised_s: float, now: float) -> bool:
        """Whether an image has waited over `promised_s`, no replica is starting, and none was ordered for as long."""
        return backlog.oldest_s > promised_s and not fleet.starting and now - self._last_order > promised_s

    def _scale_down(self, fleet: Fleet, limits: Limits, now: float) -> Decision | None:
        """A lower number of replicas that would have been enough for the last `settle_s`; None if there is none yet."""
        if self._idle_since is not None and now - self._idle_since >= limits.idle_s:
            return Decision(0, f"no work for {limits.idle_s:g} s")
        assert self._first_decision is not None
        if now - self._first_decision < limits.settle_s:
            return None
        needed = max(interval.needed for interval in self._intervals)
        busy = sum(interval.busy * interval.count for interval in self._intervals) / sum(
            interval.count for interval in self._intervals
        )
        # At least one: the last replica is stopped only after `idle_s` without work.
        sufficient = max(needed, math.ceil(round(busy / UTILISATION, 3)), 1)
        if sufficient >= fleet.size:
            return None
        return Decision(
            sufficient,
            f"for {limits.settle_s:g} s {busy:.2g} of {fleet.size} replicas were busy: {sufficient} would be enough",
        )

    def _remember(self, needed: int, busy: int, settle_s: float, now: float) -> None:
        """Add this moment to the history, and drop what is older than `settle_s`."""
        last = self._intervals[-1] if self._intervals else None
        if last is not None and now - last.since < settle_s / INTERVALS:
            last.add(needed, busy)
        else:
            self._intervals.append(_Interval(now, needed, busy))
        # An interval lasts until the next one begins.
        while len(self._intervals) > 1 and self._intervals[1].since <= now - settle_s:
            self._intervals.popleft()


def counted(number: int, noun: str) -> str:
    """A number with its noun, in the plural unless the number is 1."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _bounded(decision: Decision, limits: Limits) -> Decision:
    if decision.replicas > limits.max_replicas:
        return Decision(limits.max_replicas, f"{decision.reason}; at most {limits.max_replicas} are allowed")
    if decision.replicas < limits.min_replicas:
        return Decision(limits.min_replicas, f"{decision.reason}; at least {limits.min_replicas} are kept")
    return decision
