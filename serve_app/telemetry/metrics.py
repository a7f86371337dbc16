"""Every metric of the service, and the `Meter` protocol through which code records them. Does not import Ray.

Code that measures something receives a `Meter`. `replicas/metrics_export.py` has the one that exports to Ray's metrics
endpoint, where each name has the prefix `ray_`. Tags take few values: models of the config, the words listed here, and
the codes in `errors`. Names of adapters and tenants are never tags.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import product
from typing import Protocol

from serve_app.errors import (
    DeviceLost,
    EditorLost,
    OutOfMemory,
    QueueFull,
    ServiceError,
    StorageFailed,
    StoreUnavailable,
)
from serve_app.tasks import Priority, Status


class Loop(StrEnum):
    """A loop that runs next to requests: see `concurrency.loops`."""

    CLAIMING = "claiming"  # claims images for this ingress
    LEASE_RENEWAL = "lease_renewal"  # renews the leases of the images that this ingress has claimed
    CLAIM_WATCH = "claim_watch"  # stops edits whose claim is lost
    REQUEST_WATCH = "request_watch"  # looks for changes of requests that clients watch
    BACKLOG_REPORT = "backlog_report"  # counts waiting images for the metrics
    WEBHOOKS = "webhooks"  # posts webhooks that are due
    PRESETS = "presets"  # checks the presets of the user config
    SWEEPER = "sweeper"  # deletes old requests and files
    SWEEP_CELLS = "sweep_cells"  # puts the cells of sweeps into the queue
    CALIBRATIONS = "calibrations"  # measures tiers when the images of a calibration are there
    WARM_LIST = "warm_list"  # writes the list of adapters that editors load first
    KEEP_WARM = "keep_warm"  # keeps adapters of the warm list in an editor's memory
    CACHE_REPORT = "cache_report"  # measures an editor's adapter cache
    PREVIEW_WATCH = "preview_watch"  # looks whether somebody watches the edit that runs


# The loops of an editor; an ingress has the others.
EDITOR_LOOPS = (Loop.KEEP_WARM, Loop.CACHE_REPORT, Loop.PREVIEW_WATCH)
INGRESS_LOOPS = tuple(loop for loop in Loop if loop not in EDITOR_LOOPS)


class Kind(StrEnum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


def codes(kind: type[ServiceError] = ServiceError) -> set[str]:
    """The error codes of a class and of all its subclasses."""
    return {kind.code}.union(*map(codes, kind.__subclasses__()))


CODES = tuple(sorted(codes()))
# Tags whose values are not listed here: models of the config, and the stages of a result's timings. In metrics of
# queues, attempts and editors, `model` is the editor group (`config.editor_group`): alerts compare them by this tag.
# Those of requests have `of_models`.
MODEL: dict[str, tuple[str, ...]] = {"model": ()}
STAGE: dict[str, tuple[str, ...]] = {"stage": ()}
# A counter does not start at zero if a tag has more values than this. An ingress has 11 loops.
MAX_VALUES_AT_ZERO = 20


@dataclass(frozen=True)
class Metric:
    """A metric's declaration.

    `help` is its description for operators. `tags` maps each tag to the values that it can take; the tuple is empty if
    the values are not known in advance. `boundaries` are the upper bounds of a histogram's buckets. `at_zero` has those
    values of a tag with many values with which a counter starts at zero: the ones that alerts ask for. With
    `of_models`, the tag `model` is a model of the config, otherwise an editor group.
    """

    name: str
    kind: Kind
    help: str
    tags: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    boundaries: tuple[float, ...] = ()
    at_zero: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    of_models: bool = False

    def series_at_zero(self, values: Mapping[str, Sequence[str]]) -> Iterator[dict[str, str]]:
        """The tags of the series with which a counter starts, so that even the first event is an increase.

        `values` has the values of a tag in this process, for tags of which it uses only some; `group` has those of
        `model` that are editor groups. Other values of tags with many values are left out: Ray's agent keeps the series
        of every process that ever ran on its node, and accepts only a limited number of series per metric.
        """
        name_of = {} if self.of_models else {"model": "group"}
        possible = [
            self.at_zero.get(tag) or values.get(name_of.get(tag, tag), known) for tag, known in self.tags.items()
        ]
        if all(len(each) <= MAX_VALUES_AT_ZERO for each in possible):
            yield from (dict(zip(self.tags, each, strict=True)) for each in product(*possible))


class Meter(Protocol):
    """Records values of metrics. It may be called from any thread."""

    def record(self, metric: Metric, value: float = 1.0, **tags: str) -> None:
        """Add `value` to a counter or a histogram, or set a gauge to it. `tags` must give a value for each tag."""
        ...


class NoMeter:
    """A meter that discards everything, for engines and services that run without Ray."""

    def record(self, metric: Metric, value: float = 1.0, **tags: str) -> None:
        pass


NO_METER = NoMeter()

# Outcomes of a POST. Others are error codes.
ACCEPTED, REPEATED = "ACCEPTED", "REPEATED"
# Outcomes of an attempt at an image (others are error codes), and of a step preview: made or failed.
MADE, FOUND, STOPPED, UNRECORDED = "made", "found", "stopped", "unrecorded"
# Outcomes of a post to a webhook.
DELIVERED, RETRIED, GIVEN_UP = "delivered", "retried", "given_up"
# Outcomes of a sweep.
FINISHED, FAILED = "finished", "failed"
# The tag `model` of a request for a model that this service does not serve.
NO_MODEL = "none"

SUBMISSIONS = Metric(
    "edits_submissions_total",
    Kind.COUNTER,
    "requests that were posted: ACCEPTED, REPEATED (the same Idempotency-Key), or the error code of the answer",
    MODEL | {"code": (ACCEPTED, REPEATED, *CODES)},
    at_zero={"code": (ACCEPTED, QueueFull.code, StoreUnavailable.code, StorageFailed.code)},
    of_models=True,
)
REQUESTS = Metric(
    "edits_requests_total",
    Kind.COUNTER,
    "requests that have ended, by final status",
    MODEL | {"status": (Status.SUCCEEDED, Status.FAILED, Status.CANCELED)},
    of_models=True,
)
PREDICTIONS = Metric(
    "edits_predictions_total",
    Kind.COUNTER,
    "finished requests for which a time was predicted at the POST; kept: whether they took no longer",
    MODEL | {"kept": ("true", "false")},
    of_models=True,
)
ATTEMPTS = Metric(
    "edits_attempts_total",
    Kind.COUNTER,
    "attempts at an image, by outcome: made, found (made earlier, for a dispatcher that died), stopped (the claim was "
    "lost or the dispatcher shut down), unrecorded (job database or artifact storage unavailable), or the error code",
    MODEL | {"outcome": (MADE, FOUND, STOPPED, UNRECORDED, *CODES)},
    at_zero={
        "outcome": (
            *(MADE, UNRECORDED, StoreUnavailable.code, StorageFailed.code),
            *(EditorLost.code, DeviceLost.code, OutOfMemory.code),
        )
    },
)
LEASES_LOST = Metric(
    "edits_leases_lost_total", Kind.COUNTER, "claims taken over from a dispatcher that did not renew its lease", MODEL
)
WAITING = Metric(
    "edits_waiting",
    Kind.GAUGE,
    "images that wait for a dispatcher to claim them",
    MODEL | {"priority": tuple(Priority)},
)
WAITING_GPU_SECONDS = Metric(
    "edits_waiting_gpu_seconds", Kind.GAUGE, "predicted editor time of the waiting images", MODEL
)
OLDEST_WAITING = Metric(
    "edits_oldest_waiting_seconds", Kind.GAUGE, "age of the oldest waiting image; 0 if none waits", MODEL
)
CLAIMED = Metric("edits_claimed", Kind.GAUGE, "images that dispatchers have claimed", MODEL)
EDITORS = Metric("edits_editors", Kind.GAUGE, "running editors", MODEL)
STAGE_SECONDS = Metric(
    "edits_stage_seconds",
    Kind.HISTOGRAM,
    "duration of the stages of finished images: queue (from the POST to the first claim), and the stages in `timings`",
    MODEL | STAGE,
    # From changing the weights on a GPU (10 ms) to an hour in the queue.
    (0.01, 0.03, 0.1, 0.3, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0),
)
GPU_SECONDS = Metric("edits_gpu_seconds_total", Kind.COUNTER, "device time of finished edits", MODEL)
ADAPTER_EDITS = Metric(
    "edits_adapter_edits_total",
    Kind.COUNTER,
    "edits with adapters; warm: whether all of the edit's adapters were in host memory when it arrived",
    MODEL | {"warm": ("true", "false")},
)
SWAPS = Metric("edits_swaps_total", Kind.COUNTER, "edits before which adapters in the weights were changed", MODEL)
SWAP_SECONDS = Metric("edits_swap_seconds_total", Kind.COUNTER, "time spent changing adapters in the weights", MODEL)
CACHE_BYTES = Metric("edits_adapter_cache_bytes", Kind.GAUGE, "size of the adapters in an editor's host memory", MODEL)
EVICTIONS = Metric("edits_adapter_evictions_total", Kind.COUNTER, "adapters evicted from host memory", MODEL)
COMPILATIONS = Metric(
    "edits_compilations_total", Kind.COUNTER, "graphs that torch.compile compiled during edits", MODEL
)
PREVIEWS = Metric(
    "edits_previews_total",
    Kind.COUNTER,
    "step previews, by outcome: made, or failed (an image could not be computed, encoded or stored)",
    MODEL | {"outcome": (MADE, FAILED)},
)
PREVIEW_SECONDS = Metric(
    "edits_preview_seconds_total", Kind.COUNTER, "device time spent on step previews, part of edits_gpu_seconds", MODEL
)
WEBHOOKS = Metric(
    "edits_webhooks_total", Kind.COUNTER, "posts to webhooks, by outcome", {"outcome": (DELIVERED, RETRIED, GIVEN_UP)}
)
SWEEPS = Metric(
    "edits_sweeps_total", Kind.COUNTER, "sweeps of old requests and files, by outcome", {"outcome": (FINISHED, FAILED)}
)
SWEPT = Metric(
    "edits_swept_total",
    Kind.COUNTER,
    "requests, uploads and files that sweeps deleted",
    {"what": ("requests", "uploads", "files")},
)
LOOP_FAILURES = Metric(
    "edits_loop_failures_total",
    Kind.COUNTER,
    "failed rounds of the loops that run next to requests; repeated: whether the previous round failed too",
    {"loop": tuple(Loop), "repeated": ("false", "true")},
)

METRICS = tuple(value for value in globals().values() if isinstance(value, Metric))
