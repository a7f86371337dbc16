"""The values that the store of sweeps takes and returns. Times are seconds since the epoch."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from serve_app.jobs.records import WebhookTarget
from serve_app.policy.sweep_order import Lengths, Place
from serve_app.tasks import EditDone, EditPlan, Status


@dataclass(frozen=True)
class Axes:
    """The values of each axis, in the order in which they were named. A sweep that is extended adds values at the end.

    A checkpoint is the path of a LoRA, or None for no LoRA. Each value of `control_images` is a list of images, as a
    request names them. A profile is None if it is the service's.
    """

    checkpoints: tuple[str | None, ...]
    multipliers: tuple[float, ...]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    control_images: tuple[tuple[str, ...], ...]
    profiles: tuple[str | None, ...]
    qualities: tuple[str, ...]

    @property
    def lengths(self) -> Lengths:
        with_lora = [path is not None for path in self.checkpoints]
        names = ("multipliers", "prompts", "seeds", "control_images", "profiles", "qualities")
        return Lengths(with_lora, *(len(getattr(self, name)) for name in names))


@dataclass(frozen=True)
class SweepDefinition:
    """What a sweep is made of. `base` is the body of the request that its cells vary, without secrets.

    `notes` are sentences about what the sender may not have meant, `ignored` fields that have no effect.
    """

    base: dict[str, Any]
    axes: Axes
    notes: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class NewCell:
    """A cell to be stored. `work` is the predicted work (FLOP); `files` are the sizes (bytes) of its files, by key."""

    place: Place
    plan: EditPlan
    work: float
    files: Mapping[str, int]


@dataclass(frozen=True)
class NewSweep:
    """A sweep to be stored. `cells` are in the order in which they are made; `deadline_s` is that of each request."""

    id: str
    tenant: str
    model: str
    definition: SweepDefinition
    cells: tuple[NewCell, ...]
    deadline_s: float
    webhook: WebhookTarget | None = None
    traceparent: str | None = None
    idempotency_key: str | None = None
    body_sha256: str | None = None


@dataclass(frozen=True)
class SweepRecord:
    """A sweep, and how many of its cells have which status. `ended_at` is that of its last cell, None before."""

    id: str
    tenant: str
    model: str
    definition: SweepDefinition
    created_at: float
    changed_at: float
    ended_at: float | None
    canceled: bool
    purged: bool
    deadline_s: float
    counts: Mapping[Status, int]

    @property
    def cells(self) -> int:
        return sum(self.counts.values())

    @property
    def status(self) -> Status:
        """As of a request: it ends with its last cell, and has failed if one of them has."""
        counts = {status for status, count in self.counts.items() if count}
        if Status.IN_PROGRESS in counts:
            return Status.IN_PROGRESS
        if Status.IN_QUEUE in counts:
            return Status.IN_QUEUE if counts == {Status.IN_QUEUE} else Status.IN_PROGRESS
        return next(status for status in (Status.FAILED, Status.CANCELED, Status.SUCCEEDED) if status in counts)


@dataclass(frozen=True)
class CellRecord:
    """A cell. `request_id` is None until its request is in the queue; `changed_at` is when its status last changed.

    A cell whose request was deleted is canceled.
    """

    number: int
    place: Place
    request_id: str | None
    status: Status
    error: str | None
    error_code: str | None
    has_image: bool
    changed_at: float


@dataclass(frozen=True)
class Measures:
    """What was measured on a cell's image, each compared with the image of the cell or preview that is named.

    `psnr` is in dB, None for equal images; `ssim` is 1 for equal images.
    """

    against: str
    psnr: float | None
    ssim: float


@dataclass(frozen=True)
class CellImage:
    """The finished image of a cell."""

    number: int
    place: Place
    plan: EditPlan
    done: EditDone
    measures: dict[str, Measures] = field(default_factory=dict)


def request_id_of(sweep_id: str, place: Place, attempt: int) -> str:
    """The id of the request of a cell: always the same, so that its cell is never made twice."""
    return uuid.uuid5(uuid.UUID(sweep_id), f"{list(place)} {attempt}").hex
