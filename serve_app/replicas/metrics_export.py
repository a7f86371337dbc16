"""Ray's end of telemetry: what a replica does once, so that its metrics, log lines and spans get out."""

import logging
from collections.abc import Sequence
from itertools import product

from ray.serve import metrics

from serve_app.telemetry import tracing
from serve_app.telemetry.metrics import METRICS, MODEL, Kind, Meter, Metric

# Values of a tag that are few enough to be told before they occur.
FEW = 10


def start(role: str, models: Sequence[str]) -> Meter:
    """In a replica's constructor. `role` is what its spans say they come from; `models` are those it serves."""
    # Serve sets up its own logger alone, anew whenever `logging_config` changes; ours has its handlers and level
    # as a child.
    ours = logging.getLogger("serve_app")
    ours.parent = logging.getLogger("ray.serve")
    tracing.add_ids_to_logs()
    tracing.export_spans(role)
    return RayMeter(models)


class RayMeter:
    """Leads to Ray's metrics endpoint. Serve adds the tags application, deployment and replica."""

    def __init__(self, models: Sequence[str]) -> None:
        self._made = {metric.name: _make(metric) for metric in METRICS}
        for metric in METRICS:
            if metric.kind == Kind.COUNTER:
                self._begin_at_zero(metric, models)

    def record(self, metric: Metric, value: float = 1.0, **tags: str) -> None:
        made = self._made[metric.name]
        if metric.kind == Kind.COUNTER and value > 0:
            made.inc(value, tags)
        elif metric.kind == Kind.GAUGE:
            made.set(value, tags)
        elif metric.kind == Kind.HISTOGRAM:
            made.observe(value, tags)

    def _begin_at_zero(self, metric: Metric, models: Sequence[str]) -> None:
        """So that the first of what happens rarely is an increase. Ray's public `inc` refuses 0.

        Not what has many values: Ray's agent keeps the series of every process that was ever on its node, and takes
        no new ones of a metric beyond a limit.
        """
        if any(len(known) > FEW for known in metric.tags.values()):
            return
        values = [models if key in MODEL else known for key, known in metric.tags.items()]
        for tags in product(*values):
            self._made[metric.name]._record(0.0, dict(zip(metric.tags, tags, strict=True)))


def _make(metric: Metric) -> metrics.Counter | metrics.Gauge | metrics.Histogram:
    keys = tuple(metric.tags)
    if metric.kind == Kind.HISTOGRAM:
        return metrics.Histogram(metric.name, metric.help, list(metric.boundaries), keys)
    kind = metrics.Counter if metric.kind == Kind.COUNTER else metrics.Gauge
    return kind(metric.name, metric.help, keys)
