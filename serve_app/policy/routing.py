"""Who gets a request: the replica where it costs the fewest seconds. Pure: no Ray, no clock, no chance.

Each router has a `Routing` of its own and asks it for a plan when something has changed. Routers do not talk to
each other; they agree because they reckon alike, from what the replicas report and how many requests are in them.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Self

# What an edit and a load are taken to last until some replica has measured it, in seconds.
UNMEASURED_WORK_S = 10.0
UNMEASURED_LOAD_S = 1.0
# An assignment counts as the replica's own word that it has the adapters, until that word must be here.
CONFIRMED_WITHIN_S = 2.0
# Popularity is counted over about so many requests; before a quarter of them has come, nobody is popular.
REMEMBERED_REQUESTS = 100
# A set of adapters may have as many homes as its requests would keep busy to this share.
HOME_UTILISATION = 0.6
# A home more than that costs this much of a load on top: the place would have served other adapters.
SURPLUS_HOME = 0.5
# A request lets slots elsewhere go by for this much of a load, then it takes one. What it waits for was reckoned
# to be the shorter way; other routers may have got there first.
PATIENCE = 1.5
# How many queue lengths a second a router asks for while requests wait. Replicas have other callers too, so
# only asking tells, and beside edits of seconds it costs nothing.
PROBES_PER_S = 200
# A replica that has not answered for so long is not known: no request is sent to where nobody may be. Of many replicas
# each is asked more rarely, and may be silent for so many rounds.
ANSWERS_WITHIN_S, ANSWERS_WITHIN_ROUNDS = 3.0, 3
# How often replicas report: held sets and seconds change as often as edits end.
REPORT_PERIOD_S = 0.25
# A waiting request asks again this often at least: a slot that another caller's edit has left is seen so late.
LOOK_S = 0.05


@dataclass(frozen=True)
class Report:
    """What a replica tells the routers of itself, as Serve's `record_routing_stats` carries it.

    `held` are the adapter sets in its host memory or on their way there; `gone` are others whose names Serve may
    still spread. `work_s` and `load_s` are what an edit and the load of an adapter take, in seconds, as measured;
    None until they have been. One that is not `alive` takes nothing until it is replaced.
    """

    held: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    work_s: float | None = None
    load_s: float | None = None
    alive: bool = True

    @classmethod
    def of(cls, stats: Mapping[str, Any]) -> Self:
        """From the report's fields. A replica of another version may send others, or none."""
        return cls(**{key: value for key, value in stats.items() if key in cls.__dataclass_fields__})

    def held_and_named(self, named: Iterable[str]) -> frozenset[str]:
        """What is held, with the sets that Serve has `named` since: a load is named when it starts."""
        return frozenset(self.held) | (frozenset(named) - frozenset(self.gone))


@dataclass(frozen=True)
class Replica:
    """What a router knows of a replica: `running` requests are in it, of at most `slots`; the rest as reported."""

    id: str
    running: int
    slots: int
    held: frozenset[str] = frozenset()
    work_s: float | None = None
    load_s: float | None = None


@dataclass(frozen=True)
class Waiting:
    """A request that has no replica yet. `adapters` is the id of its adapter set, "" for the base model."""

    id: str
    adapters: str
    since: float


@dataclass
class _Outlook:
    """A replica as a request finds it once those that came earlier are there."""

    id: str
    backlog: int
    slots: int
    held: set[str]
    work_s: float
    load_s: float
    wanted: float
    """The share of the requests that want what it holds."""

    @property
    def is_free(self) -> bool:
        return self.backlog < self.slots


class Routing:
    """A router's judgement, and what it must remember for it. Times are seconds of one clock, the caller's."""

    def __init__(self) -> None:
        self._popularity: dict[str, float] = {}
        self._requests = 0.0
        self._seen: frozenset[str] = frozenset()
        self._declined: dict[str, float] = {}
        self._assigned: dict[str, tuple[str, str, float]] = {}  # by request: replica, adapters, when

    def plan(self, waiting: Iterable[Waiting], replicas: Sequence[Replica], now: float) -> dict[str, str]:
        """The replica for each request that should start now. The others wait: for a slot, or a warm replica.

        Earlier requests come first: each finds the replicas as those before it will leave them.
        """
        requests = sorted(waiting, key=lambda request: (request.since, request.id))
        self._note(requests, now)
        outlooks = self._outlooks(replicas)
        starts: dict[str, str] = {}
        for request in requests if outlooks else ():
            best = self._best(request, outlooks, now)
            if best.is_free:
                starts[request.id] = best.id
            elif any(outlook.is_free for outlook in outlooks):
                self._declined.setdefault(request.id, now)
            best.backlog += 1
            if request.adapters:
                best.held.add(request.adapters)
        return starts

    def assigned(self, request: Waiting, replica_id: str, now: float) -> None:
        """A request is on its way: what it needs counts as held there, before the replica can say so."""
        self._assigned[request.id] = replica_id, request.adapters, now

    def _note(self, requests: Sequence[Waiting], now: float) -> None:
        """Count those that are new, and forget those that are gone."""
        for request in requests:
            if request.id not in self._seen:
                kept = 1 - 1 / REMEMBERED_REQUESTS
                self._popularity = {id: count * kept for id, count in self._popularity.items() if count > 0.01}
                self._popularity[request.adapters] = self._popularity.get(request.adapters, 0.0) + 1
                self._requests = self._requests * kept + 1
        self._seen = frozenset(request.id for request in requests)
        self._declined = {id: since for id, since in self._declined.items() if id in self._seen}
        # Who waits again was turned away: another router was faster.
        self._assigned = {
            id: assigned
            for id, assigned in self._assigned.items()
            if id not in self._seen and now - assigned[-1] < CONFIRMED_WITHIN_S
        }

    def _outlooks(self, replicas: Sequence[Replica]) -> list[_Outlook]:
        assigned = defaultdict(set)
        for replica_id, adapters, _ in self._assigned.values():
            if adapters:
                assigned[replica_id].add(adapters)
        work_s = _typical([replica.work_s for replica in replicas], UNMEASURED_WORK_S)
        load_s = _typical([replica.load_s for replica in replicas], UNMEASURED_LOAD_S)
        held = [{*replica.held, *assigned[replica.id]} for replica in replicas]
        homes = Counter(adapters for sets in held for adapters in sets)
        return [
            _Outlook(
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

    def _best(self, request: Waiting, outlooks: Sequence[_Outlook], now: float) -> _Outlook:
        """The cheapest; once the request has waited for that long enough, the cheapest with a slot."""
        free = [outlook for outlook in outlooks if outlook.is_free]
        declined = self._declined.get(request.id, now)
        is_patient = now - declined <= PATIENCE * min(outlook.load_s for outlook in outlooks)
        homes = sum(request.adapters in outlook.held for outlook in outlooks)
        surplus = SURPLUS_HOME if homes >= self._home_limit(request.adapters, len(outlooks)) else 0.0

        def cost(outlook: _Outlook) -> tuple[float, bytes]:
            seconds = outlook.backlog * outlook.work_s
            if request.adapters not in outlook.held:
                # It could go elsewhere; the next request may want what is here, and would wait for this one.
                seconds += outlook.wanted * outlook.work_s
                if request.adapters:
                    seconds += outlook.load_s * (1 + surplus)
            # Of equals that would load them every router takes the same one for the same adapters, so that they meet;
            # of equals that need not, each request its own, or all routers would go to one that is idle at once.
            meets = request.adapters and request.adapters not in outlook.held
            key = f"{request.adapters if meets else request.id} {outlook.id}"
            return seconds, hashlib.sha256(key.encode()).digest()

        return min(outlooks if is_patient else free or outlooks, key=cost)

    def _home_limit(self, adapters: str, replicas: int) -> int:
        """On how many replicas a set may live before another home costs more: one, more if it is popular."""
        return max(1, round(self._share(adapters) * replicas / HOME_UTILISATION))

    def _share(self, adapters: str) -> float:
        """Of the requests that this router saw lately."""
        return self._popularity.get(adapters, 0.0) / max(self._requests, REMEMBERED_REQUESTS / 4)


def answers_within_s(replicas: int) -> float:
    """How long (s) what one of so many replicas has answered counts."""
    return max(ANSWERS_WITHIN_S, ANSWERS_WITHIN_ROUNDS * replicas / PROBES_PER_S)


def _typical(measured: Iterable[float | None], unmeasured: float) -> float:
    known = [value for value in measured if value is not None]
    return fmean(known) if known else unmeasured


class MovingAverage:
    """Of the last few measurements; None before the first."""

    WEIGHT = 0.2

    def __init__(self) -> None:
        self.value: float | None = None

    def add(self, measured: float) -> None:
        self.value = measured if self.value is None else self.value + self.WEIGHT * (measured - self.value)
