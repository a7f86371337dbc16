"""Serve's autoscaling policy for editors. It runs in Serve's controller ten times per second, without I/O.

`policy.scaling.Scaling` decides for one model; this module passes it the backlog that the ingresses report. A serve
config names it for the whole application:
`autoscaling_policy: {policy_function: "serve_app.replicas.autoscaler:Autoscaler"}`. Ingresses need an
`autoscaling_config` so that Serve asks them for the backlog; editors need one for their limits. See docs/scaling.md.
"""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from ray.serve._private.common import DeploymentID
from ray.serve.autoscaling_policy import replica_queue_length_autoscaling_policy
from ray.serve.config import AutoscalingContext
from ray.util.metrics import Gauge

from serve_app.policy.scaling import Backlog, Decision, Fleet, Limits, Scaling, counted

# Serve's own logger: the controller's log contains no other.
logger = logging.getLogger("ray.serve")

# Reports that are older than this (s) are ignored. It is several times the interval between two reports.
STALE_S = 15.0
# The fields of `Backlog` that ingresses report.
FIELDS = ("waiting_s", "running_s", "images", "oldest_s")
# Switches Serve's own delays and factors off: a decision of `Scaling` already includes them.
WITHOUT_DELAYS = {
    "upscale_delay_s": 0.0,
    "downscale_delay_s": 0.0,
    "downscale_to_zero_delay_s": 0.0,
    "upscaling_factor": 1.0,
    "downscaling_factor": 1.0,
}

Contexts = dict[DeploymentID, AutoscalingContext]


def to_stats(backlogs: Mapping[str, Backlog]) -> dict[str, float]:
    """The result of `record_autoscaling_stats` for backlogs by deployment: "<deployment>/<field>" to number."""
    return {f"{name}/{key}": getattr(backlog, key) for name, backlog in backlogs.items() for key in FIELDS}


class Autoscaler:
    """The policy object. Serve creates one per deployment of the application and calls it periodically.

    Editors follow `Scaling`, within `min_replicas` and `max_replicas` of their `autoscaling_config`, whose
    `downscale_delay_s` and `downscale_to_zero_delay_s` become `Limits.settle_s` and `idle_s`. `wait_s` is
    `Limits.wait_s`. Every other deployment follows Serve's default policy.
    """

    def __init__(self, wait_s: float = Limits.wait_s) -> None:
        self._wait_s = wait_s
        self._scaling: dict[DeploymentID, Scaling] = {}
        self._decisions: dict[DeploymentID, Decision] = {}
        self._without_report: set[DeploymentID] = set()
        tags = ("application", "deployment")
        self._wanted = Gauge("edits_replicas_wanted", "The number of editors that the autoscaler wants.", tags)
        self._cold_start = Gauge("edits_cold_start_seconds", "The measured duration of an editor's start.", tags)

    def __call__(self, contexts: Contexts) -> tuple[dict[DeploymentID, float], dict[DeploymentID, dict[str, Any]]]:
        """The number of replicas that each deployment should have; one that is not in the result keeps its number."""
        wanted: dict[DeploymentID, float] = {}
        states: dict[DeploymentID, dict[str, Any]] = {}
        try:
            for id, context in contexts.items():
                if not id.name.startswith("Editor-"):
                    wanted[id], states[id] = replica_queue_length_autoscaling_policy(context)
                elif (decision := self._decide(id, context, contexts.values())) is not None:
                    wanted[id] = decision.replicas
        except Exception:
            # An exception would abort the controller's control loop, which does other work too.
            logger.exception("the autoscaling decision failed")
        return wanted, states

    def _decide(
        self, id: DeploymentID, context: AutoscalingContext, all: Iterable[AutoscalingContext]
    ) -> Decision | None:
        backlog = latest_backlog(id.name, all, context.current_time)
        if backlog is None:
            if id not in self._without_report:
                self._without_report.add(id)
                logger.warning(f"{id}: no ingress reports its backlog; the number of replicas stays until one does")
            return None
        self._without_report.discard(id)
        config = context.config
        limits = Limits(
            context.capacity_adjusted_min_replicas,
            context.capacity_adjusted_max_replicas,
            self._wait_s,
            config.downscale_delay_s,
            config.downscale_delay_s if config.downscale_to_zero_delay_s is None else config.downscale_to_zero_delay_s,
        )
        context.config = config.model_copy(update=WITHOUT_DELAYS)
        scaling = self._scaling.setdefault(id, Scaling())
        running = context.current_num_replicas
        fleet = Fleet(running, max(0, context.target_num_replicas - running), scaling.cold_start_s)
        decision = scaling.decide(backlog, fleet, limits, context.current_time)
        self._publish(id, decision, scaling)
        return decision

    def _publish(self, id: DeploymentID, decision: Decision, scaling: Scaling) -> None:
        """Log a decision that changes the number of replicas, and set the metrics."""
        before = self._decisions.get(id)
        if before is None or before.replicas != decision.replicas:
            logger.info(f"{id}: {counted(decision.replicas, 'replica')}: {decision.reason}")
        self._decisions[id] = decision
        # On every call: Ray drops a gauge that is not set again.
        tags = {"application": id.app_name, "deployment": id.name}
        self._wanted.set(decision.replicas, tags)
        if scaling.cold_start_s is not None:
            self._cold_start.set(scaling.cold_start_s, tags)


def latest_backlog(deployment: str, contexts: Iterable[AutoscalingContext], now: float) -> Backlog | None:
    """The newest backlog that an ingress reported; None if none is newer than `STALE_S`.

    All ingresses count the same database, so their reports are not added up.
    """
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
