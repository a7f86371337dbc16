"""Chooses the replica where a request costs the fewest seconds. Deterministic: no Ray, no clock, no random numbers.

Each router has its own `Routing` and asks it for a plan when something has changed. Routers do not talk to each other.
They agree because they make the same calculation from the replicas' reports and queue lengths.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Self

# The assumed durations of an edit and of a load (s), until a replica has measured them.
UNMEASURED_WORK_S = 10.0
UNMEASURED_LOAD_S = 1.0
# After an assignment, the router assumes for this long (s) that the replica holds the adapters. By then its report
# says so.
CONFIRMED_WITHIN_S = 2.0
# Popularity is averaged over about this many requests. A router that has seen less than a quarter of them divides by
# that quarter, so that no set of adapters looks popular too early.
REMEMBERED_REQUESTS = 100
# A set of adapters gets a further home (replica that holds it) when its requests keep the present homes busy for more
# than this share of the time.
HOME_UTILISATION = 0.6
# Loading on a further replica costs this share of a load extra, because it takes memory from other adapters.
EXTRA_HOME_COST = 0.5
# A request that waits for a warm replica ignores free slots elsewhere for the duration of this many loads, then it
# takes one. Waiting was calculated to be faster, but other routers may have sent requests to that replica meanwhile.
PATIENCE = 1.5
# How many queue lengths per second a router asks for while requests wait. Replicas have other callers too, so a router
# has to ask; compared with edits of seconds it costs nothing.
PROBES_PER_S = 200
# A replica whose last answer is older than this (s) gets no request, since it may be gone. If there are many replicas,
# each is asked more rarely, and an answer is valid for this many rounds.
ANSWER_VALID_S, ANSWER_VALID_ROUNDS = 3.0, 3
# How often replicas report (s): held sets and durations change when an edit ends.
REPORT_PERIOD_S = 0.25
# A waiting request is planned again at least this often (s), since an edit of another caller may have freed a slot.
RECHECK_S = 0.05


@dataclass(frozen=True)
class Report:
    """A replica's report to the routers, which Serve's `record_routing_stats` carries.

    `held` are the adapter sets in its host memory or being loaded; `gone` are others that Serve may still advertise for
    it. `work_s` and `load_s` are the measured durations (s) of an edit and of an adapter's load, None before the first.
    A replica that is not `alive` can do no work until it is replaced.
    """

    held: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    work_s: float | None = None
    load_s: float | None = None
    alive: bool = True

    @classmethod
    def of(cls, stats: Mapping[str, Any]) -> Self:
        """The report from its fields. A replica of another version may send other fields, or none."""
        return cls(**{key: value for key, value in stats.items() if key in cls.__dataclass_fields__})

    def held_sets(self, advertised: Iterable[str]) -> frozenset[str]:
        """The held sets, and those that Serve `advertised` since the report: a load starts with that."""
        return frozenset(self.held) | (frozenset(advertised) - frozenset(self.gone))


@dataclass(frozen=True)
class Replica:
    """What a router knows of a replica: `running` of its `slots` are taken; the other fields are from its report."""

    id: str
    running: int
    slots: int
    held: frozenset[str] = frozenset()
    work_s: float | None = None
    load_s: float | None = None


@dataclass(frozen=True)
class WaitingRequest:
    """A request without a replica, waiting `since` (s). `adapters` is its adapter set's id, "" for the base model."""

    id: str
    adapters: str
    since: float


@dataclass
class _PlannedReplica:
    """A replica as it will be for a request, once the earlier requests of the plan have reached it."""

    id: str
    backlog: int
    slots: int
    held: set[str]
    work_s: float
    load_s: float
    wanted: float
    """The share of all requests that want a set which it holds."""

    @property
    def is_free(self) -> bool:
        return self.backlog < self.slots


class Routing:
    """The decisions of one router, with the state that they need. All times are seconds of the caller's clock."""

    def __init__(self) -> None:
        self._popularity: dict[str, float] = {}
        self._requests = 0.0
        self._seen: frozenset[str] = frozenset()
        self._declined: dict[str, float] = {}
        self._assigned: dict[str, tuple[str, str, float]] = {}  # by request: replica, adapters, when

    def plan(self, waiting: Iterable[WaitingRequest], replicas: Sequence[Replica], now: float) -> dict[str, str]:
        """The replica's id for each request that should start now, by the request's id.

        The other requests wait, for a slot or for a replica that holds their adapters. Earlier requests are planned
        first: each finds the replicas as the requests before it will leave them.
        """
        requests = sorted(waiting, key=lambda request: (request.since, request.id))
        self._update_history(requests, now)
        candidates = self._planned_replicas(replicas)
        starts: dict[str, str] = {}
        for request in requests if candidates else ():
            best = self._best(request, candidates, now)
            if best.is_free:
                starts[request.id] = best.id
            elif any(candidate.is_free for candidate in candidates):
                self._declined.setdefault(request.id, now)
            best.backlog += 1
            if request.adapters:
                best.held.add(request.adapters)
        return starts

    def assigned(self, request: WaitingRequest, replica_id: str, now: float) -> None:
        """Record that a request was sent: the replica counts as a holder of its set before it can report that."""
        self._assigned[request.id] = replica_id, request.adapters, now

    def _update_history(self, requests: Sequence[WaitingRequest], now: float) -> None:
        """Count the new requests, and forget those that no longer wait."""
        for request in requests:
            if request.id not in self._seen:
                decay = 1 - 1 / REMEMBERED_REQUESTS
                self._popularity = {id: count * decay for id, count in self._popularity.items() if count > 0.01}
                self._popularity[request.adapters] = self._popularity.get(request.adapters, 0.0) + 1
                self._requests = self._requests * decay + 1
        self._seen = frozenset(request.id for request in requests)
        self._declined = {id: since for id, since in self._declined.items() if id in self._seen}
        # A request that waits again was rejected by its replica: another router was faster.
        self._assigned = {
            id: assigned
            for id, assigned in self._assigned.items()
            if id not in self._seen and now - assigned[-1] < CONFIRMED_WITHIN_S
        }

    def _planned_replicas(self, replicas: Sequence[Replica]) -> list[_PlannedReplica]:
        assigned = defaultdict(set)
        for replica_id, adapters, _ in self._assigned.values():
            if adapters:
                assigned[replica_id].add(adapters)
        work_s = _typical([replica.work_s for replica in replicas], UNMEASURED_WORK_S)
        load_s = _typical([replica.load_s for replica in replicas], UNMEASURED_LOAD_S)
        held = [{*replica.held, *assigned[replica.id]} for replica in replicas]
        homes = Counter(adapters for sets in held for adapters in sets)
        return [
            _PlannedReplica(
                replica.id,
                replica.running,
                replica.slots,
                sets,
                work_s if replica.work_s is None else replica.work_s,
                load_s if replica.load_s is None else replica.load_s,
                sum(self._share(adapters) / homes[adapters] for adapters in sets),
            )
            for replica, sets in zip(replicas, held, strict=True)
        ]

    def _best(self, request: WaitingRequest, candidates: Sequence[_PlannedReplica], now: float) -> _PlannedReplica:
        """The cheapest replica; the cheapest with a free slot once the request has waited too long."""
        free = [candidate for candidate in candidates if candidate.is_free]
        declined = self._declined.get(request.id, now)
        is_patient = now - declined <= PATIENCE * min(candidate.load_s for candidate in candidates)
        homes = sum(request.adapters in candidate.held for candidate in candidates)
        extra = EXTRA_HOME_COST if homes >= self._home_limit(request.adapters, len(candidates)) else 0.0

        def cost(candidate: _PlannedReplica) -> tuple[float, bytes]:
            seconds = candidate.backlog * candidate.work_s
            if request.adapters not in candidate.held:
                # The next request may want a set that this replica holds, and would wait for this request.
                seconds += candidate.wanted * candidate.work_s
                if request.adapters:
                    seconds += candidate.load_s * (1 + extra)
            # Ties are broken by a hash. If the set has to be loaded, every router chooses the same replica for it, so
            # that it is loaded once. Otherwise the hash differs from request to request: with one choice for all, every
            # router would send its requests to the same idle replica.
            must_load = request.adapters and request.adapters not in candidate.held
            key = f"{request.adapters if must_load else request.id} {candidate.id}"
            return seconds, hashlib.sha256(key.encode()).digest()

        if free and not is_patient:
            return min(free, key=cost)
        return min(candidates, key=cost)

    def _home_limit(self, adapters: str, replicas: int) -> int:
        """The number of replicas that may hold a set before a further one costs extra: more if it is popular."""
        return max(1, round(self._share(adapters) * replicas / HOME_UTILISATION))

    def _share(self, adapters: str) -> float:
        """The share of recent requests that want this set of adapters."""
        return self._popularity.get(adapters, 0.0) / max(self._requests, REMEMBERED_REQUESTS / 4)


def answer_valid_s(replicas: int) -> float:
    """How long (s) a replica's queue length is valid, with this many replicas to ask."""
    return max(ANSWER_VALID_S, ANSWER_VALID_ROUNDS * replicas / PROBES_PER_S)


def _typical(measured: Iterable[float | None], unmeasured: float) -> float:
    known = [value for value in measured if value is not None]
    return fmean(known) if known else unmeasured


class MovingAverage:
    """An exponential moving average of measurements; None before the first."""

    WEIGHT = 0.2

    def __init__(self) -> None:
        self.value: float | None = None

    def add(self, measured: float) -> None:
        self.value = measured if self.value is None else self.value + self.WEIGHT * (measured - self.value)
