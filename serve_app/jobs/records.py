"""The values that the job store takes and returns. Times are seconds since the epoch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from serve_app.images.decode import ImageFacts
from serve_app.tasks import EditDone, EditPlan, EditTask, ImageStage, Priority, Status


@dataclass(frozen=True)
class WebhookTarget:
    """A request's webhook: where to post which events. `base_url` is the start of the URLs in their bodies."""

    url: str
    events: tuple[str, ...]
    base_url: str


@dataclass(frozen=True)
class NewImage:
    """One image to be made. `work` is the predicted work for it (FLOP)."""

    plan: EditPlan
    work: float


@dataclass(frozen=True)
class NewRequest:
    """A request to be committed.

    `files` are the artifacts that it needs: their sizes (bytes) by key. `notes` become part of its result's metadata.
    A request with the same `idempotency_key` and `body_sha256` is a repeat of this one. `traceparent` is the span of
    its POST (W3C Trace Context). `call_sha256` is the digest by which a repeated call finds it: see `waiting_clients`.
    `editors` is how many editors can make its images now; 0 if nothing is to be predicted.
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
    webhook: WebhookTarget | None = None
    traceparent: str | None = None
    call_sha256: str | None = None
    editors: int = 0

    @property
    def editor_group(self) -> str:
        """The editors that can make its images. They are the same for all, since all have one model and quality."""
        return self.images[0].plan.editor_group


@dataclass(frozen=True)
class WaitingClient:
    """A client that waits for the end of a request: number 0 made it, number n is the n-th repeat of its call."""

    request_id: str
    number: int = 0


@dataclass(frozen=True)
class NewUpload:
    """A control image that a tenant has sent ahead of its requests.

    `sha256` (hex) is the digest of its file, which lies in artifact storage under `key`. `facts` are those of the
    decoded image, by the value of a request's field `exif`.
    """

    tenant: str
    sha256: str
    key: str
    size_bytes: int
    facts: Mapping[str, ImageFacts]


@dataclass(frozen=True)
class Upload(NewUpload):
    """An upload that is stored. It may be used until `expires_at`."""

    created_at: float
    expires_at: float


@dataclass(frozen=True)
class ImageRecord:
    """One image of a request. `reasons` say how each lost attempt ended.

    `version` is the request's version at the image's last change.
    """

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
    """A request and its images, in prompt order. `version` increases with each change that clients can see."""

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
    """The status and progress of a request.

    `queue_position` is the number of images ahead of its first waiting image, None if none waits. `work_left` is the
    predicted work until its last image is made, including the queue ahead (FLOP). `speed` is the measured speed of
    `editor_group`, the editors that can make its images (FLOP/s). `current` is the first image that an editor works on,
    and `stage` its stage. `finished` are the first MAX_FINISHED_IMAGES finished images that are still stored.
    """

    request_id: str
    tenant: str
    model: str
    editor_group: str
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
    current: int | None = None
    finished: tuple[int, ...] = ()
    queue_position: int | None = None
    work_left: float = 0.0
    speed: float | None = None


@dataclass(frozen=True)
class Claim:
    """The right to work on one image. `reasons` say how each earlier attempt ended.

    `waited_s` is the time since the request was committed (s). `was_lost` says whether the previous owner let its lease
    expire.
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
    """Which requests the history lists. None means any. `since` <= creation time < `until`; `lora` is a path."""

    tenant: str | None = None
    status: Status | None = None
    model: str | None = None
    lora: str | None = None
    since: float | None = None
    until: float | None = None


@dataclass(frozen=True)
class Delivery:
    """A webhook to be posted. `attempts` counts the attempts, including the one that is about to be made."""

    id: str
    request_id: str
    event: str
    image_index: int | None
    created_at: float
    attempts: int
    webhook: WebhookTarget
    traceparent: str | None = None

    @property
    def host(self) -> str:
        """The host and port of its URL, in lower case, as `webhook_queue.host_of` computes it in SQL."""
        return self.webhook.url.split("/")[2].lower()


@dataclass(frozen=True)
class Usage:
    """What a tenant has used since the database was created."""

    tenant: str
    gpu_seconds: float
    images: int
