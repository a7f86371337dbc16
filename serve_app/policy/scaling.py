"""How many editors a model should have: by the predicted seconds of its work. Pure: no Ray, no clock, no chance.

More are started for work that would still be there when they are ready, so many that the rest of it is soon done.
Fewer are kept once those there were have been idle enough for a while. Both ask what replicas can do, in seconds, not
how many requests there are.
"""

import math
from collections import deque
from dataclasses import dataclass

# What a start is taken to last until one has been measured, in seconds.
UNMEASURED_COLD_START_S = 60.0
# How much the newest start counts of what a start is seen to take.
NEWEST = 0.5
# Replicas are given up only if the others would not be busier than this; near 1 the line grows without end.
UTILISATION = 0.8
# What is remembered of the last `settle_s` is kept in so many pieces.
PIECES = 60


@dataclass(frozen=True)
class Backlog:
    """A model's images without an end.

    `waiting_s` is what those that nobody works on are predicted to take (GPU-seconds), `running_s` what is left of the
    others, `images` how many they are together; `oldest_s` is how long the oldest has waited, 0 if none does.
    `interactive` and `bulk` are how many wait of each class.
    """

    waiting_s: float = 0.0
    running_s: float = 0.0
    images: int = 0
    oldest_s: float = 0.0
    interactive: int = 0
    bulk: int = 0

    @property
    def work_s(self) -> float:
        return self.waiting_s + self.running_s


@dataclass(frozen=True)
class Fleet:
    """A model's replicas: `running` ones take work, `starting` ones were asked for and do not yet.

    `cold_start_s` is what passes between the two (seconds, as measured); None until it has been.
    """

    running: int
    starting: int = 0
    cold_start_s: float | None = None

    @property
    def size(self) -> int:
        return self.running + self.starting


@dataclass(frozen=True)
class Limits:
    """What is allowed and aimed at.

    Work that is left when new replicas are ready should then be done within `wait_s`. Replicas are given up by how many
    were busy, and how many the line asked for, in the last `settle_s`; the last one, if `min_replicas` is 0, after
    nothing was to be done for `idle_s`.
    """

    min_replicas: int
    max_replicas: int
    wait_s: float = 60.0
    settle_s: float = 300.0
    idle_s: float = 900.0


@dataclass(frozen=True)
class Decision:
    """How many replicas there should be, those that are starting included, and why."""

    replicas: int
    reason: str


@dataclass
class _Piece:
    """A stretch of the past: the most replicas that were needed for the line, and how many were busy (mean)."""

    since: float
    needed: int
    busy: float
    count: int = 1

    def add(self, needed: int, busy: int) -> None:
        self.needed = max(self.needed, needed)
        self.busy += (busy - self.busy) / (self.count + 1)
        self.count += 1


class Scaling:
    """The judgement for one model, and what it must remember for it. Times are seconds of one clock, the caller's."""

    def __init__(self) -> None:
        # What starts were seen to take (seconds), from the decision on; None before the first.
        self.cold_start_s: float | None = None
        self._began: float | None = None
        self._running = 0
        self._pieces: deque[_Piece] = deque()
        self._ordered: list[float] = []  # when the replicas that are starting were, as far as is known
        self._last_order = float("-inf")
        self._idle_since: float | None = None

    def decide(self, backlog: Backlog, fleet: Fleet, limits: Limits, now: float) -> Decision:
        """To be asked again and again, every second or more often; what it says is taken to be done."""
        if self._began is None:
            self._began, self._running = now, fleet.running
        self._note_starts(fleet, now)
        self._idle_since = None if backlog.images else now if self._idle_since is None else self._idle_since
        wanted = self._wanted(backlog, fleet, limits, now)
        self._remember(wanted.replicas, min(fleet.running, backlog.images), limits.settle_s, now)
        if wanted.replicas <= fleet.size:
            wanted = self._fewer(fleet, limits, now) or Decision(fleet.size, wanted.reason)
        decision = _bounded(wanted, limits)
        if decision.replicas > fleet.size:
            self._ordered += [now] * (decision.replicas - fleet.size)
            self._last_order = now
        return decision

    def _note_starts(self, fleet: Fleet, now: float) -> None:
        """Learn what starts take, and keep when those were ordered that still go on: the earliest are ready first."""
        gone = max(0, len(self._ordered) - fleet.starting)
        for ordered in self._ordered[: max(0, min(gone, fleet.running - self._running))]:
            known_s = now - ordered if self.cold_start_s is None else self.cold_start_s
            self.cold_start_s = (1 - NEWEST) * known_s + NEWEST * (now - ordered)
        # What starts without an order replaces a replica that died.
        self._ordered = self._ordered[gone:] + [now] * (fleet.starting - len(self._ordered))
        self._running = fleet.running

    def _wanted(self, backlog: Backlog, fleet: Fleet, limits: Limits, now: float) -> Decision:
        """What the line asks for: more replicas, or that those there are stay."""
        if not backlog.images:
            return Decision(0, "nothing is to be done")
        cold_start_s = UNMEASURED_COLD_START_S if fleet.cold_start_s is None else fleet.cold_start_s
        left_s = backlog.work_s - self._done_within(cold_start_s, fleet, now)
        # An image is one replica's.
        needed = min(math.ceil(left_s / limits.wait_s), backlog.images)
        there = counted(backlog.images, "image"), counted(fleet.size, "replica")
        work = f"{backlog.work_s:.3g} s of work, {there[0]}, on {there[1]}"
        if not fleet.size:
            return Decision(max(needed, 1), f"{work}: without one nothing gets done")
        if needed > fleet.size:
            return Decision(
                needed,
                f"{work}: {left_s:.3g} s of it would be left when another is ready in {cold_start_s:.3g} s; "
                f"{needed} then do that within {limits.wait_s:g} s",
            )
        if self._is_late(backlog, fleet, cold_start_s + limits.wait_s, now):
            # The prediction, or the order, does not hold for it; and what has not helped in time is not repeated.
            return Decision(fleet.size + 1, f"{work}: the oldest has waited {backlog.oldest_s:.3g} s all the same")
        if left_s <= 0:
            return Decision(max(needed, 0), f"{work}: done before another would be ready in {cold_start_s:.3g} s")
        return Decision(needed, f"{work}: another in {cold_start_s:.3g} s is not needed to do the rest in time")

    def _done_within(self, seconds: float, fleet: Fleet, now: float) -> float:
        """GPU-seconds that the replicas give until one that is ordered now is ready: starting ones join in before."""
        return fleet.running * seconds + sum(min(now - ordered, seconds) for ordered in self._ordered)

    def _is_late(self, backlog: Backlog, fleet: Fleet, promised_s: float, now: float) -> bool:
        """Whether an image has waited longer than the replicas were reckoned to need for all that was before it."""
        return backlog.oldest_s > promised_s and not fleet.starting and now - self._last_order > promised_s

    def _fewer(self, fleet: Fleet, limits: Limits, now: float) -> Decision | None:
        """The replicas that would have sufficed in the last `settle_s`; None if that is not fewer, or not known."""
        if self._idle_since is not None and now - self._idle_since >= limits.idle_s:
            return Decision(0, f"nothing was to be done for {limits.idle_s:g} s")
        assert self._began is not None
        if now - self._began < limits.settle_s:
            return None
        needed = max(piece.needed for piece in self._pieces)
        busy = sum(piece.busy * piece.count for piece in self._pieces) / sum(piece.count for piece in self._pieces)
        # Down to the last one, which only idleness ends.
        sufficient = max(needed, math.ceil(round(busy / UTILISATION, 3)), 1)
        if sufficient >= fleet.size:
            return None
        return Decision(
            sufficient,
            f"for {limits.settle_s:g} s {busy:.2g} of {fleet.size} replicas were busy: {sufficient} would do",
        )

    def _remember(self, needed: int, busy: int, settle_s: float, now: float) -> None:
        last = self._pieces[-1] if self._pieces else None
        if last is not None and now - last.since < settle_s / PIECES:
            last.add(needed, busy)
        else:
            self._pieces.append(_Piece(now, needed, busy))
        # A piece reaches up to the next one's start.
        while len(self._pieces) > 1 and self._pieces[1].since <= now - settle_s:
            self._pieces.popleft()


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _bounded(decision: Decision, limits: Limits) -> Decision:
    if decision.replicas > limits.max_replicas:
        return Decision(limits.max_replicas, f"{decision.reason}; at most {limits.max_replicas} are allowed")
    if decision.replicas < limits.min_replicas:
        return Decision(limits.min_replicas, f"{decision.reason}; at least {limits.min_replicas} are kept")
    return decision
