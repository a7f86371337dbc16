"""Connects a replica's metrics, log lines and spans to Ray, Serve's logger and the trace exporter."""

import logging
from collections.abc import Mapping, Sequence
from typing import Literal

from ray.serve import metrics

from serve_app.telemetry import tracing
from serve_app.telemetry.metrics import EDITOR_LOOPS, INGRESS_LOOPS, METRICS, Kind, Meter, Metric

LOOPS = {"ingress": INGRESS_LOOPS, "editor": EDITOR_LOOPS}


def start(role: Literal["ingress", "editor"], models: Sequence[str], groups: Sequence[str]) -> Meter:
    """Set up telemetry in a replica's constructor.

    `role` names it in spans; `models` are its models of the config, and `groups` its editor groups.
    """
    # Serve configures only its own logger, again whenever `logging_config` changes. As its child, the logger of this
    # package uses the same handlers and level.
    package_logger = logging.getLogger("serve_app")
    package_logger.parent = logging.getLogger("ray.serve")
    tracing.add_ids_to_logs()
    tracing.export_spans(role)
    return RayMeter({"model": models, "group": groups, "loop": LOOPS[role]})


class RayMeter:
    """A `Meter` for Ray's metrics endpoint. Serve adds the tags application, deployment and replica."""

    def __init__(self, values: Mapping[str, Sequence[str]]) -> None:
        """`values` has the values of a tag in this process: see `Metric.series_at_zero`."""
        self._ray_metrics = {metric.name: _make(metric) for metric in METRICS}
        for metric in METRICS:
            if metric.kind == Kind.COUNTER:
                for tags in metric.series_at_zero(values):
                    # Ray's `inc` refuses 0.
                    self._ray_metrics[metric.name]._record(0.0, tags)

    def record(self, metric: Metric, value: float = 1.0, **tags: str) -> None:
        ray_metric = self._ray_metrics[metric.name]
        if metric.kind == Kind.COUNTER and value > 0:
            ray_metric.inc(value, tags)
        elif metric.kind == Kind.GAUGE:
            ray_metric.set(value, tags)
        elif metric.kind == Kind.HISTOGRAM:
            ray_metric.observe(value, tags)


def _make(metric: Metric) -> metrics.Counter | metrics.Gauge | metrics.Histogram:
    keys = tuple(metric.tags)
    if metric.kind == Kind.HISTOGRAM:
        return metrics.Histogram(metric.name, metric.help, list(metric.boundaries), keys)
    kind = metrics.Counter if metric.kind == Kind.COUNTER else metrics.Gauge
    return kind(metric.name, metric.help, keys)
