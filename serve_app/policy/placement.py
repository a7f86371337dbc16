"""Explains which replicas no machine has room for, why, and what an operator can change."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# The CPUs that an ingress and an editor without a GPU request. An editor computes on all idle cores: Ray counts the
# requested CPUs and does not reserve them. They are so few that ten editors leave room for the ingresses on two cores.
# Serve places editors before ingresses, and without an ingress no client gets an answer.
INGRESS_CPUS, EDITOR_CPUS = 0.25, 0.1
# The CPUs that an editor with a GPU requests: one core launches the GPU's work.
GPU_EDITOR_CPUS = 1.0
# How long a replica may be without a machine before that is reported (s). Even on a busy machine, Ray starts a process
# within that time.
PATIENCE_S = 15.0
# The tolerance for rounding errors in sums of fractional resources.
ROUNDING = 1e-6
# Ray's actor options for the resources that have their own option.
OPTIONS = {"CPU": "num_cpus", "GPU": "num_gpus"}

Amounts = Mapping[str, float]
Labels = Mapping[str, str]


@dataclass(frozen=True)
class Machine:
    """A machine of the cluster: its total resources by Ray's names (`CPU`, `GPU`), in use or not, and its labels."""

    resources: Amounts
    labels: Labels = field(default_factory=dict)


@dataclass(frozen=True)
class ReplicaGroup:
    """The replicas of one deployment.

    Each requests the same resources, on a machine with these labels. `placed` of them have a machine; `waits_s` says
    how long (s) each of the others has waited for one.
    """

    name: str
    resources: Amounts
    placed: int
    waits_s: tuple[float, ...] = ()
    labels: Labels = field(default_factory=dict)

    @property
    def requirements(self) -> str:
        """What one replica needs, as part of a sentence."""
        resources = " and ".join(f"{amount:g} {resource}" for resource, amount in self.resources.items()) or "nothing"
        labels = ", ".join(f"{key}: {value}" for key, value in self.labels.items())
        return f"{resources} on a machine labelled {labels}" if labels else resources


def replica_groups(application: Mapping[str, Any], now: float) -> list[ReplicaGroup]:
    """The replicas of each deployment of an application, from Serve's details of it. `now`: seconds since the epoch."""
    return [_replica_group(name, each, now) for name, each in application["deployments"].items()]


def _replica_group(name: str, deployment: Mapping[str, Any], now: float) -> ReplicaGroup:
    options = deployment["deployment_config"].get("ray_actor_options") or {}
    resources = {resource: options.get(option) for resource, option in OPTIONS.items()} | (
        options.get("resources") or {}
    )
    # Serve's details name a replica's node once Ray has started its process there.
    starting = [each for each in deployment["replicas"] if each["state"] == "STARTING" and not each.get("node_id")]
    return ReplicaGroup(
        name,
        {resource: float(amount) for resource, amount in resources.items() if amount},
        len(deployment["replicas"]) - len(starting),
        tuple(now - each["start_time_s"] for each in starting),
        options.get("label_selector") or {},
    )


def explain_unplaced(
    groups: Sequence[ReplicaGroup], machines: Sequence[Machine], patience_s: float = PATIENCE_S
) -> dict[str, str]:
    """A sentence for each deployment (by name) with replicas that have waited for a machine for over `patience_s`."""
    late = [group for group in groups if max(group.waits_s, default=0.0) > patience_s]
    return {group.name: f"{_count(group, patience_s)}. {_reason(group, groups, machines)}" for group in late}


def _count(group: ReplicaGroup, patience_s: float) -> str:
    late, replicas = sum(wait > patience_s for wait in group.waits_s), group.placed + len(group.waits_s)
    verb = "has" if late == 1 else "have"
    return f"{group.name}: {late} of {replicas} replicas {verb} no machine after {max(group.waits_s):.0f} s"


def _reason(group: ReplicaGroup, groups: Sequence[ReplicaGroup], machines: Iterable[Machine]) -> str:
    fitting = [machine for machine in machines if _is_labelled(machine, group.labels)]
    if not fitting:
        return f"Each asks for {group.requirements}, and there is no such machine. {_advice(group.resources)}"
    able = [machine for machine in fitting if not _missing(machine, group.resources)]
    if not able:
        best_match = min(fitting, key=lambda machine: len(_missing(machine, group.resources)))
        has = " and ".join(f"{best_match.resources.get(resource, 0.0):g} {resource}" for resource in group.resources)
        advice = _advice(_missing(best_match, group.resources))
        return f"Each asks for {group.requirements}, and the best matching machine has {has}. {advice}"
    uses = "; ".join(_use(resource, groups, able) for resource in group.resources)
    if all(_free(resource, groups, able) + ROUNDING >= amount for resource, amount in group.resources.items()):
        fragmented = ", or no machine has all of it free" if len(able) > 1 else ""
        return (
            f"Each asks for {group.requirements}, and this application leaves room for that ({uses}): its process is "
            f"still starting, or another application has the room{fragmented}. `ray status` shows what is in use"
        )
    return f"Each asks for {group.requirements}, and no machine has that free ({uses}). {_advice(group.resources)}"


def _missing(machine: Machine, resources: Amounts) -> list[str]:
    return [resource for resource, amount in resources.items() if machine.resources.get(resource, 0.0) < amount]


def _free(resource: str, groups: Iterable[ReplicaGroup], machines: Iterable[Machine]) -> float:
    """The amount of a resource that this application leaves on these machines, if it uses no others."""
    return sum(machine.resources.get(resource, 0.0) for machine in machines) - sum(
        group.placed * group.resources.get(resource, 0.0) for group in groups
    )


def _is_labelled(machine: Machine, labels: Labels) -> bool:
    """Whether the machine matches a label selector. Values with an operator (`!a`, `in(a, b)`) count as matched."""
    plain = {key: value for key, value in labels.items() if not value.startswith(("!", "in("))}
    return plain.items() <= machine.labels.items()


def _use(resource: str, groups: Iterable[ReplicaGroup], machines: Iterable[Machine]) -> str:
    total = sum(machine.resources.get(resource, 0.0) for machine in machines)
    users = [(group.name, group.placed * group.resources.get(resource, 0.0)) for group in groups]
    used = ", ".join(f"{name} has {amount:g}" for name, amount in users if amount)
    return f"of {total:g} {resource}, {used or 'this application has none'}"


def _advice(resources: Iterable[str]) -> str:
    asked = ", ".join(f"{OPTIONS.get(resource, 'resources')}: ..." for resource in resources)
    gpu = ", set the model's device to cpu" if "GPU" in resources else ""
    return (
        f"Add a machine, serve fewer models or replicas{gpu}, or lower `ray_actor_options: {{{asked}}}` "
        "of a deployment in the serve config"
    )
