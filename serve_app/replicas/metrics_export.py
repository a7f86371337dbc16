"""Connects a replica's metrics, log lines and spans to Ray, Serve's logger and the trace exporter."""

import logging
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Literal

from ray.serve import metrics

from serve_app.telemetry import tracing
from serve_app.telemetry.metrics import EDITOR_LOOPS, INGRESS_LOOPS, METRICS, Kind, Meter, Metric

# A counter starts at zero for every value of its tags if no tag has more values than this. An ingress has 11 loops.
MAX_VALUES_AT_ZERO = 20

LOOPS = {"ingress": INGRESS_LOOPS, "editor": EDITOR_LOOPS}


def start(role: Literal["ingress", "editor"], models: Sequence[str]) -> Meter:
    """Set up telemetry in a replica's constructor. `role` names it in spans; `models` are those it serves."""
    # Serve configures only its own logger, again whenever `logging_config` changes. As its child, the logger of this
    # package uses the same handlers and level.
    package_logger = logging.getLogger("serve_app")
    package_logger.parent = logging.getLogger("ray.serve")
    tracing.add_ids_to_logs()
    tracing.export_spans(role)
    return RayMeter({"model": models, "loop": LOOPS[role]})


class RayMeter:
    """A `Meter` for Ray's metrics endpoint. Serve adds the tags application, deployment and replica."""

    def __init__(self, values: Mapping[str, Sequence[str]]) -> None:
        """`values` has the values of a tag in this process, for tags of which it uses only some values."""
        self._ray_metrics = {metric.name: _make(metric) for metric in METRICS}
        for metric in METRICS:
            if metric.kind == Kind.COUNTER:
                self._start_at_zero(metric, values)

    def record(self, metric: Metric, value: float = 1.0, **tags: str) -> None:
        ray_metric = self._ray_metrics[metric.name]
        if metric.kind == Kind.COUNTER and value > 0:
            ray_metric.inc(value, tags)
        elif metric.kind == Kind.GAUGE:
            ray_metric.set(value, tags)
        elif metric.kind == Kind.HISTOGRAM:
            ray_metric.observe(value, tags)

    def _start_at_zero(self, metric: Metric, values: Mapping[str, Sequence[str]]) -> None:
        """Report 0 for every combination of tags, so that even the first event is an increase. Ray's `inc` refuses 0.

        Tags with many values are left out: Ray's agent keeps the series of every process that ever ran on its node, and
        accepts only a limited number of series per metric.
        """
        possible = [values.get(tag, known) for tag, known in metric.tags.items()]
        if any(len(each) > MAX_VALUES_AT_ZERO for each in possible):
            return
        for tags in product(*possible):
            self._ray_metrics[metric.name]._record(0.0, dict(zip(metric.tags, tags, strict=True)))


def _make(metric: Metric) -> metrics.Counter | metrics.Gauge | metrics.Histogram:
    keys = tuple(metric.tags)
    if metric.kind == Kind.HISTOGRAM:
        return metrics.Histogram(metric.name, metric.help, list(metric.boundaries), keys)
    kind = metrics.Counter if metric.kind == Kind.COUNTER else metrics.Gauge
    return kind(metric.name, metric.help, keys)
