"""What operators are told: every metric that there is, and the seam through which it is told. No Ray here.

Whoever measures is given a `Meter`; `meter.py` has the one that leads to Ray's metrics endpoint, where each name is
prefixed with `ray_`. Tags are bounded: models of the config, words listed here, codes of `errors`. Never an adapter's
name, never a tenant's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from serve_app.errors import ServiceError
from serve_app.tasks import Priority, Status


class Loop(StrEnum):
    """A loop that runs next to requests: see `concurrency.loops`."""

    CLAIMING = "claiming"  # claims images for this ingress
    LEASE_RENEWAL = "lease_renewal"  # renews the leases of what this ingress has claimed
    CLAIM_WATCH = "claim_watch"  # stops the edits whose claim is lost
    REQUEST_WATCH = "request_watch"  # looks for changes of requests that clients wait for
    BACKLOG_REPORT = "backlog_report"  # measures what waits
    WEBHOOKS = "webhooks"  # posts webhooks that are due
    SWEEPER = "sweeper"  # deletes old requests and files
    WARM_LIST = "warm_list"  # writes down which adapters editors should load first
    KEEP_WARM = "keep_warm"  # keeps adapters of the warm list in an editor's memory
    CACHE_REPORT = "cache_report"  # measures an editor's adapter cache


class Kind(StrEnum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


def codes(kind: type[ServiceError] = ServiceError) -> set[str]:
    """The codes of an error and of all that descend from it."""
    return {kind.code}.union(*map(codes, kind.__subclasses__()))


CODES = tuple(sorted(codes()))
# A tag whose values are not listed here: the models of the config, the stages of a result's timings.
MODEL: dict[str, tuple[str, ...]] = {"model": ()}
STAGE: dict[str, tuple[str, ...]] = {"stage": ()}


@dataclass(frozen=True)
class Metric:
    """`tags` has for each tag the values that it takes, empty where they are not listed here.

    A histogram's `boundaries` are its buckets' upper ends.
    """

    name: str
    kind: Kind
    meaning: str
    tags: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    boundaries: tuple[float, ...] = ()


class Meter(Protocol):
    """Any thread may record."""

    def record(self, metric: Metric, value: float = 1.0, **tags: str) -> None:
        """A counter grows by `value`, a gauge becomes it, a histogram takes it in. Every tag is given."""
        ...


class NoMeter:
    """Where nobody looks: engines and services outside of Ray."""

    def record(self, metric: Metric, value: float = 1.0, **tags: str) -> None:
        pass


NO_METER = NoMeter()

# What beside an error's code becomes of a POST, and of an attempt.
ACCEPTED, REPEATED = "ACCEPTED", "REPEATED"
MADE, FOUND, STOPPED, UNRECORDED = "made", "found", "stopped", "unrecorded"
# What becomes of a post to a webhook.
DELIVERED, RETRIED, GIVEN_UP = "delivered", "retried", "given_up"
FINISHED, FAILED = "finished", "failed"
# A request for a model that the config does not serve.
NO_MODEL = "none"

SUBMISSIONS = Metric(
    "edits_submissions_total",
    Kind.COUNTER,
    "POSTs of requests: ACCEPTED, REPEATED (the same Idempotency-Key), or the code of the refusal",
    MODEL | {"code": (ACCEPTED, REPEATED, *CODES)},
)
REQUESTS = Metric(
    "edits_requests_total",
    Kind.COUNTER,
    "requests that ended",
    MODEL | {"status": (Status.SUCCEEDED, Status.FAILED, Status.CANCELED)},
)
ATTEMPTS = Metric(
    "edits_attempts_total",
    Kind.COUNTER,
    "attempts at an image: made, found (made for a dispatcher that was lost), stopped (its claim was lost or its "
    "dispatcher left), unrecorded (store or storage away), or the code of the error",
    MODEL | {"outcome": (MADE, FOUND, STOPPED, UNRECORDED, *CODES)},
)
LEASES_LOST = Metric(
    "edits_leases_lost_total", Kind.COUNTER, "claims taken over from a dispatcher that was not heard of", MODEL
)
WAITING = Metric("edits_waiting", Kind.GAUGE, "images that wait to be claimed", MODEL | {"priority": tuple(Priority)})
WAITING_GPU_SECONDS = Metric(
    "edits_waiting_gpu_seconds", Kind.GAUGE, "what the waiting images are predicted to take of an editor", MODEL
)
OLDEST_WAITING = Metric(
    "edits_oldest_waiting_seconds", Kind.GAUGE, "since when the oldest waiting image is there, 0 if none waits", MODEL
)
CLAIMED = Metric("edits_claimed", Kind.GAUGE, "images that dispatchers have claimed", MODEL)
EDITORS = Metric("edits_editors", Kind.GAUGE, "running editors", MODEL)
STAGE_SECONDS = Metric(
    "edits_stage_seconds",
    Kind.HISTOGRAM,
    "a finished image's stages: queue (from the POST to the first claim), and those of the result's timings",
    MODEL | STAGE,
    # From a swap of weights on a GPU to a queue of an hour.
    (0.01, 0.03, 0.1, 0.3, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0),
)
GPU_SECONDS = Metric("edits_gpu_seconds_total", Kind.COUNTER, "what finished edits took of a device", MODEL)
ADAPTER_EDITS = Metric(
    "edits_adapter_edits_total",
    Kind.COUNTER,
    "edits with adapters, by whether all of them were in host memory when the edit came",
    MODEL | {"warm": ("true", "false")},
)
SWAPS = Metric("edits_swaps_total", Kind.COUNTER, "edits before which weights had to be set anew", MODEL)
SWAP_SECONDS = Metric("edits_swap_seconds_total", Kind.COUNTER, "what setting them took", MODEL)
CACHE_BYTES = Metric("edits_adapter_cache_bytes", Kind.GAUGE, "adapters in the host memory of an editor", MODEL)
EVICTIONS = Metric("edits_adapter_evictions_total", Kind.COUNTER, "adapters given up for want of room there", MODEL)
COMPILATIONS = Metric("edits_compilations_total", Kind.COUNTER, "graphs that torch.compile made during an edit", MODEL)
WEBHOOKS = Metric(
    "edits_webhooks_total", Kind.COUNTER, "posts to webhooks", {"outcome": (DELIVERED, RETRIED, GIVEN_UP)}
)
SWEEPS = Metric("edits_sweeps_total", Kind.COUNTER, "sweeps of old requests", {"outcome": (FINISHED, FAILED)})
SWEPT = Metric("edits_swept_total", Kind.COUNTER, "what sweeps removed", {"what": ("requests", "files")})
LOOP_FAILURES = Metric(
    "edits_loop_failures_total",
    Kind.COUNTER,
    "failed rounds of the loops that run next to requests; repeated: the round before it failed too",
    {"loop": tuple(Loop), "repeated": ("false", "true")},
)

METRICS = tuple(value for value in globals().values() if isinstance(value, Metric))
