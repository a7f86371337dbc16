"""Serve's autoscaling policy around `Scaling`: it runs in Serve's controller, ten times a second, without I/O.

A serve config names it for the whole application, since its input comes from the ingresses, also while a model has no
editor: `autoscaling_policy: {policy_function: "serve_app.replicas.autoscaler:Autoscaler"}`. The ingresses need an
`autoscaling_config` to be asked, the editors one for their limits. See docs/scaling.md.
"""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from ray.serve._private.common import DeploymentID
from ray.serve.autoscaling_policy import replica_queue_length_autoscaling_policy
from ray.serve.config import AutoscalingContext
from ray.util.metrics import Gauge

from serve_app.policy.scaling import Backlog, Decision, Fleet, Limits, Scaling, counted

# Serve's own logger: no other is written to the controller's log.
logger = logging.getLogger("ray.serve")

# A report that is older than this (s) is no ground for a decision: several times what lies between two.
STALE_S = 15.0
FIELDS = ("waiting_s", "running_s", "images", "oldest_s")
# Serve's own delays and factors would come on top of a decision that has seen to them.
AT_ONCE = {
    "upscale_delay_s": 0.0,
    "downscale_delay_s": 0.0,
    "downscale_to_zero_delay_s": 0.0,
    "upscaling_factor": 1.0,
    "downscaling_factor": 1.0,
}

Contexts = dict[DeploymentID, AutoscalingContext]


def to_stats(backlogs: Mapping[str, Backlog]) -> dict[str, float]:
    """Backlogs by deployment, as `record_autoscaling_stats` carries them: numbers by name."""
    return {f"{name}/{key}": getattr(backlog, key) for name, backlog in backlogs.items() for key in FIELDS}


class Autoscaler:
    """Serve makes one for each deploy of the application and calls it from then on.

    Editors follow `Scaling`, within `min_replicas` and `max_replicas` of their `autoscaling_config`, whose
    `downscale_delay_s` and `downscale_to_zero_delay_s` are `Limits.settle_s` and `idle_s`. `wait_s` is that of
    `Limits`. Every other deployment has Serve's default policy.
    """

    def __init__(self, wait_s: float = Limits.wait_s) -> None:
        self._wait_s = wait_s
        self._scaling: dict[DeploymentID, Scaling] = {}
        self._decisions: dict[DeploymentID, Decision] = {}
        self._blind: set[DeploymentID] = set()
        tags = ("application", "deployment")
        self._wanted = Gauge("edits_replicas_wanted", "How many editors there should be.", tags)
        self._cold_start = Gauge("edits_cold_start_seconds", "What starts of an editor were seen to take.", tags)

    def __call__(self, contexts: Contexts) -> tuple[dict[DeploymentID, float], dict[DeploymentID, dict[str, Any]]]:
        """How many replicas each deployment should have; one that is left out stays as it is."""
        wanted: dict[DeploymentID, float] = {}
        states: dict[DeploymentID, dict[str, Any]] = {}
        try:
            for id, context in contexts.items():
                if not id.name.startswith("Editor-"):
                    wanted[id], states[id] = replica_queue_length_autoscaling_policy(context)
                elif (decision := self._decide(id, context, contexts.values())) is not None:
                    wanted[id] = decision.replicas
        except Exception:
            # It would end the controller's round, with all else that was to be done in it.
            logger.exception("no autoscaling decision")
        return wanted, states

    def _decide(
        self, id: DeploymentID, context: AutoscalingContext, all: Iterable[AutoscalingContext]
    ) -> Decision | None:
        backlog = latest(id.name, all, context.current_time)
        if backlog is None:
            if id not in self._blind:
                self._blind.add(id)
                logger.warning(f"{id}: no ingress says what there is to do; nothing is decided until one does")
            return None
        self._blind.discard(id)
        config = context.config
        limits = Limits(
            context.capacity_adjusted_min_replicas,
            context.capacity_adjusted_max_replicas,
            self._wait_s,
            config.downscale_delay_s,
            config.downscale_delay_s if config.downscale_to_zero_delay_s is None else config.downscale_to_zero_delay_s,
        )
        context.config = config.model_copy(update=AT_ONCE)
        scaling = self._scaling.setdefault(id, Scaling())
        running = context.current_num_replicas
        fleet = Fleet(running, max(0, context.target_num_replicas - running), scaling.cold_start_s)
        decision = scaling.decide(backlog, fleet, limits, context.current_time)
        self._tell(id, decision, scaling)
        return decision

    def _tell(self, id: DeploymentID, decision: Decision, scaling: Scaling) -> None:
        before = self._decisions.get(id)
        if before is None or before.replicas != decision.replicas:
            logger.info(f"{id}: {counted(decision.replicas, 'replica')}: {decision.reason}")
        self._decisions[id] = decision
        # Every time: Ray forgets a gauge that is not set anew.
        tags = {"application": id.app_name, "deployment": id.name}
        self._wanted.set(decision.replicas, tags)
        if scaling.cold_start_s is not None:
            self._cold_start.set(scaling.cold_start_s, tags)


def latest(deployment: str, contexts: Iterable[AutoscalingContext], now: float) -> Backlog | None:
    """What the ingress that looked last says there is to do. All look at the same: nothing is to be summed up."""
    found: dict[str, float] = {}
    for context in contexts:
        for key in FIELDS:
            points = [series[-1] for series in context.raw_metrics.get(f"{deployment}/{key}", {}).values() if series]
            newest = max(points, key=lambda point: point.timestamp, default=None)
            if newest is not None and now - newest.timestamp <= STALE_S:
                found[key] = newest.value
    if len(found) < len(FIELDS):
        return None
    return Backlog(found["waiting_s"], found["running_s"], int(found["images"]), found["oldest_s"])
