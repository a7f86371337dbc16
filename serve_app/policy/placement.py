"""Replicas that no machine has room for: which, why, and what an operator can change. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# What an ingress and an editor without a GPU ask for, in CPUs. An editor computes on all cores, but only while nothing
# else wants them: what it asks for is counted, not reserved. It is so little that ten of them leave room for the
# ingresses on two cores. Serve places editors before ingresses, and without an ingress nobody is answered.
INGRESS_CPUS, EDITOR_CPUS = 0.25, 0.1
# What an editor with a GPU asks for: one core launches the GPU's work.
GPU_EDITOR_CPUS = 1.0
# How long a replica may be without a machine before that is reported (s): Ray starts a process on a busy machine within
# that time.
PATIENCE_S = 15.0
# Sums of fractions of resources may be off by so much.
ROUNDING = 1e-6
# Ray's options for the resources that have one of their own.
OPTIONS = {"CPU": "num_cpus", "GPU": "num_gpus"}

Amounts = Mapping[str, float]
Labels = Mapping[str, str]


@dataclass(frozen=True)
class Machine:
    """A machine of the cluster: all that it has, in use or not, by Ray's names (`CPU`, `GPU`), and its labels."""

    has: Amounts
    labels: Labels = field(default_factory=dict)


@dataclass(frozen=True)
class Fleet:
    """The replicas of one deployment.

    Each asks for the same resources, on a machine with these labels. `placed` of them have a machine; each of the
    others has been without one for a time of `waits_s` (s).
    """

    name: str
    asks: Amounts
    placed: int
    waits_s: tuple[float, ...] = ()
    labels: Labels = field(default_factory=dict)

    @property
    def wish(self) -> str:
        asks = " and ".join(f"{amount:g} {resource}" for resource, amount in self.asks.items()) or "nothing"
        labels = ", ".join(f"{key}: {value}" for key, value in self.labels.items())
        return f"{asks} on a machine labelled {labels}" if labels else asks


def fleets(application: Mapping[str, Any], now: float) -> list[Fleet]:
    """The fleets of one application, as Serve's details describe it. `now` is in seconds since the epoch."""
    return [_fleet(name, each, now) for name, each in application["deployments"].items()]


def _fleet(name: str, deployment: Mapping[str, Any], now: float) -> Fleet:
    options = deployment["deployment_config"].get("ray_actor_options") or {}
    asks = {resource: options.get(option) for resource, option in OPTIONS.items()} | (options.get("resources") or {})
    # A replica has a node from the moment when Ray has started its process there.
    starting = [each for each in deployment["replicas"] if each["state"] == "STARTING" and not each.get("node_id")]
    return Fleet(
        name,
        {resource: float(amount) for resource, amount in asks.items() if amount},
        len(deployment["replicas"]) - len(starting),
        tuple(now - each["start_time_s"] for each in starting),
        options.get("label_selector") or {},
    )


def unplaced(fleets: Sequence[Fleet], machines: Sequence[Machine], patience_s: float = PATIENCE_S) -> dict[str, str]:
    """A sentence for the log on each deployment with replicas that have waited for longer than `patience_s`."""
    late = [fleet for fleet in fleets if max(fleet.waits_s, default=0.0) > patience_s]
    return {fleet.name: f"{_count(fleet, patience_s)}. {_reason(fleet, fleets, machines)}" for fleet in late}


def _count(fleet: Fleet, patience_s: float) -> str:
    late, replicas = sum(wait > patience_s for wait in fleet.waits_s), fleet.placed + len(fleet.waits_s)
    verb = "has" if late == 1 else "have"
    return f"{fleet.name}: {late} of {replicas} replicas {verb} no machine after {max(fleet.waits_s):.0f} s"


def _reason(fleet: Fleet, fleets: Sequence[Fleet], machines: Iterable[Machine]) -> str:
    fitting = [machine for machine in machines if _is_labelled(machine, fleet.labels)]
    if not fitting:
        return f"Each asks for {fleet.wish}, and there is no such machine. {_advice(fleet.asks)}"
    able = [machine for machine in fitting if not _missing(machine, fleet.asks)]
    if not able:
        nearest = min(fitting, key=lambda machine: len(_missing(machine, fleet.asks)))
        has = " and ".join(f"{nearest.has.get(resource, 0.0):g} {resource}" for resource in fleet.asks)
        advice = _advice(_missing(nearest, fleet.asks))
        return f"Each asks for {fleet.wish}, and the machine that comes nearest has {has}. {advice}"
    uses = "; ".join(_use(resource, fleets, able) for resource in fleet.asks)
    if all(_free(resource, fleets, able) + ROUNDING >= amount for resource, amount in fleet.asks.items()):
        parts = ", or no machine has all of it free" if len(able) > 1 else ""
        return (
            f"Each asks for {fleet.wish}, and this application leaves room for that ({uses}): its process is still "
            f"starting, or another application has the room{parts}. `ray status` shows what is in use"
        )
    return f"Each asks for {fleet.wish}, and no machine has that free ({uses}). {_advice(fleet.asks)}"


def _missing(machine: Machine, asks: Amounts) -> list[str]:
    return [resource for resource, amount in asks.items() if machine.has.get(resource, 0.0) < amount]


def _free(resource: str, fleets: Iterable[Fleet], machines: Iterable[Machine]) -> float:
    """What this application leaves of these machines, if all of its replicas are there."""
    return sum(each.has.get(resource, 0.0) for each in machines) - sum(
        fleet.placed * fleet.asks.get(resource, 0.0) for fleet in fleets
    )


def _is_labelled(machine: Machine, labels: Labels) -> bool:
    """Whether the machine fulfils a selector. Values with an operator (`!a`, `in(a, b)`) count as fulfilled."""
    plain = {key: value for key, value in labels.items() if not value.startswith(("!", "in("))}
    return plain.items() <= machine.labels.items()


def _use(resource: str, fleets: Iterable[Fleet], machines: Iterable[Machine]) -> str:
    total = sum(machine.has.get(resource, 0.0) for machine in machines)
    users = [(fleet.name, fleet.placed * fleet.asks.get(resource, 0.0)) for fleet in fleets]
    used = ", ".join(f"{name} has {amount:g}" for name, amount in users if amount)
    return f"of {total:g} {resource}, {used or 'this application has none'}"


def _advice(resources: Iterable[str]) -> str:
    asked = ", ".join(f"{OPTIONS.get(resource, 'resources')}: ..." for resource in resources)
    gpu = ", set the model's device to cpu" if "GPU" in resources else ""
    return (
        f"Add a machine, serve fewer models or replicas{gpu}, or lower `ray_actor_options: {{{asked}}}` "
        "of a deployment in the serve config"
    )
