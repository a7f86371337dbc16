"""What the job store tells of requests. Times are seconds since the epoch."""

from dataclasses import dataclass, field
from typing import Any

from serve_app.tasks import EditDone, EditPlan, EditTask, ImageStage, Priority, Status


@dataclass(frozen=True)
class Webhook:
    """Whom to tell of which events; `base_url` is what the URLs in what is told start with."""

    url: str
    events: tuple[str, ...]
    base_url: str


@dataclass(frozen=True)
class NewImage:
    """One image to be made; `work` is what it is predicted to take (FLOP)."""

    plan: EditPlan
    work: float


@dataclass(frozen=True)
class NewRequest:
    """A request as it is committed.

    `files` are the artifacts that it needs, by key, with their sizes (bytes). `notes` becomes part of its
    result's metadata. `idempotency_key` and `body_sha256` say what the same request is. `traceparent` is the
    span (W3C Trace Context) that took it in.
    """

    id: str
    tenant: str
    model: str
    images: tuple[NewImage, ...]
    deadline_s: float
    priority: Priority = Priority.INTERACTIVE
    notes: dict[str, Any] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)
    idempotency_key: str | None = None
    body_sha256: str | None = None
    webhook: Webhook | None = None
    traceparent: str | None = None


@dataclass(frozen=True)
class ImageRecord:
    index: int
    plan: EditPlan
    status: Status
    step: int
    stage: ImageStage | None
    error: str | None
    error_code: str | None
    error_details: dict[str, Any] | None
    result: EditDone | None
    version: int
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class RequestRecord:
    """A request and its images, in prompt order. `version` grows with every change that a client may see."""

    id: str
    tenant: str
    model: str
    priority: Priority
    status: Status
    error: str | None
    error_code: str | None
    error_details: dict[str, Any] | None
    notes: dict[str, Any]
    created_at: float
    started_at: float | None
    finished_at: float | None
    version: int
    started_version: int | None
    gpu_seconds: float
    purged: bool
    images: tuple[ImageRecord, ...]


@dataclass(frozen=True)
class RequestState:
    """Where a request stands.

    `queue_position` is the number of images ahead of its first that waits, null if none does; `work_left`
    is what is predicted until its last image is made, the queue ahead included (FLOP), `speed` how fast
    editors of its model were seen to work (FLOP/s). `stage` is that of the first image that somebody works on.
    """

    request_id: str
    tenant: str
    model: str
    status: Status
    error: str | None
    error_code: str | None
    error_details: dict[str, Any] | None
    created_at: float
    started_at: float | None
    finished_at: float | None
    version: int
    images_done: int
    images: int
    steps_done: int
    steps: int
    stage: ImageStage | None = None
    queue_position: int | None = None
    work_left: float = 0.0
    speed: float | None = None


@dataclass(frozen=True)
class Claim:
    """The right to work on one image. `reasons` says how each try before this one ended.

    `waited_s` is since when its request is there; `was_lost` whether an owner that was not heard of had it before.
    """

    task: EditTask
    tenant: str
    generation: int
    reasons: tuple[str, ...]
    work: float
    waited_s: float
    was_lost: bool


@dataclass(frozen=True)
class Summary:
    """A row of the history."""

    request_id: str
    tenant: str
    model: str
    priority: Priority
    status: Status
    created_at: float
    started_at: float | None
    finished_at: float | None
    gpu_seconds: float
    images: int
    images_done: int
    error: str | None
    error_code: str | None
    error_details: dict[str, Any] | None


@dataclass(frozen=True)
class HistoryFilter:
    """Which requests a history tells of; null: whatever it is. Times are of creation, `until` not included."""

    tenant: str | None = None
    status: Status | None = None
    model: str | None = None
    lora: str | None = None
    since: float | None = None
    until: float | None = None


@dataclass(frozen=True)
class Delivery:
    """A webhook to be delivered: its id, what it tells of, and how often it was tried, this time included."""

    id: str
    request_id: str
    event: str
    image_index: int | None
    created_at: float
    attempts: int
    webhook: Webhook
    traceparent: str | None = None

    @property
    def host(self) -> str:
        """The host and port that it goes to, in lower case: the same as `webhook_queue.host_of`."""
        return self.webhook.url.split("/")[2].lower()


@dataclass(frozen=True)
class Usage:
    """What a tenant has used since the database began."""

    tenant: str
    gpu_seconds: float
    images: int
