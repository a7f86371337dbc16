"""The values that cross a process boundary: frozen dataclasses of plain data, without PIL objects or tensors."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from serve_app.config import GateRest, SamplerName, editor_group


class Status(StrEnum):
    """The status of a request or of one of its images. The values are those of the HTTP contract."""

    IN_QUEUE = "in_queue"  # committed, no step has run yet
    IN_PROGRESS = "in_progress"  # an editor has started; never returns to in_queue
    SUCCEEDED = "succeeded"  # every image can be downloaded
    FAILED = "failed"  # at least one image could not be made; `error` says why
    CANCELED = "canceled"  # cancelled by its owner

    @property
    def ended(self) -> bool:
        """Whether the status is final."""
        return self in (Status.SUCCEEDED, Status.FAILED, Status.CANCELED)


class WebhookEvent(StrEnum):
    """An event of a request for which a webhook can be sent."""

    STARTED = "started"  # an editor has started the first image
    IMAGE = "image"  # an image can be downloaded
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"


class Priority(StrEnum):
    """The priority class of a request in the queue."""

    INTERACTIVE = "interactive"  # a person waits for it: served first
    BULK = "bulk"  # served when no interactive image waits, otherwise one image in five


# Longest trigger word, trainer name or trainer version that is accepted from an adapter's file (characters).
MAX_TRIGGER_CHARS = 100


@dataclass(frozen=True)
class Factor:
    """The scale that an adapter's file gives its low-rank changes, before the request's `network_multiplier`.

    `min`, `median` and `max` are taken over the file's modules; they are None if they cannot be read from the header.
    `source` says where the scale comes from: "none" (no alpha, so 1), "alpha tensors", "lora_adapter_metadata", or
    several joined by +.
    """

    source: str
    min: float | None
    median: float | None
    max: float | None


@dataclass(frozen=True)
class Receipt:
    """The description of an adapter's file, read from its header.

    `kind` is lora, lokr, loha or full, or several joined by +. `ranks` are all ranks that occur. `dtype` is the name in
    safetensors. `modules` counts the modules of the model that the file changes, `top_level` names those outside the
    blocks, and `ignored` names tensors that do not change the model. `notes` are sentences about other content of the
    file and how it was treated. The other fields are what the trainer wrote.
    """

    kind: str
    ranks: tuple[int, ...]
    dtype: str
    size_bytes: int
    modules: int
    top_level: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    trigger_word: str | None = None
    trainer: str | None = None
    trainer_version: str | None = None
    step: int | None = None
    factor: Factor | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class AdapterUse:
    """One LoRA of a request.

    `id` is derived from the file's identity, so a file that is overwritten under the same name is another adapter.
    `path` is the name that the client sent, without secrets. `url` is where an editor opens the file: a local path or
    fsspec URL. With a `version` (ETag or modification time) it is an http(s) URL, and the file is downloaded under the
    same rules as every URL from a client. `of_tier` marks the LoRA of a tier, which the request did not name.
    """

    id: str
    path: str
    url: str
    scale: float
    receipt: Receipt | None = None
    version: str = ""
    of_tier: bool = False


# The quality of the images of a model whose own options change all of them. No request can ask for it.
LOSSY = "lossy"


@dataclass(frozen=True)
class LossRange:
    """One measure over all measured images: the worst image's, and the median. None stands for equal images."""

    worst: float | None
    median: float | None


@dataclass(frozen=True)
class Loss:
    """What a tier changes in an image compared with `exact`, as it was measured on `cases` images.

    `psnr_db` is in dB, `ssim` from 0 to 1; both are higher for images that are closer. `latents` is the relative error
    of the final latents of the worst image, and `lpips` the perceptual distance, lower for closer images; both are None
    if they were not measured. `exact_s` and `tier_s` are the median seconds of an edit. `measured_at` is the time (s
    since the epoch), and `on` says with which adapters, on which set of prompts and control images, and which steps and
    guidance the exact images had.
    """

    psnr_db: LossRange
    ssim: LossRange
    exact_s: float
    tier_s: float
    cases: int
    measured_at: float
    on: str
    latents: float | None = None
    lpips: LossRange | None = None


@dataclass(frozen=True)
class EditPlan:
    """Everything that decides the pixels of one image, as effective values.

    `width` and `height` are in pixels, rounded to sizes that the model accepts. `control_images` are SHA-256 digests
    (hex) of the encoded files as the client sent them, in order; `adapters` are in the request's order. `exif` says
    whether the EXIF rotation of control images is applied; `vae_tiling` whether the VAE works in tiles, as with the
    trainer's low-memory setting. `sampler` names the schedule, and `quantization` the format of the transformer's
    weights. `feature_cache` is the relative change of the first block's output below which a step skips the other
    blocks. `quality` is exact, the name of a tier, or lossy, if options of the model change all its images; `loss` is
    what was measured of the tier, None if it was not. `guidance_gate` is the share of the steps that compute both
    guidance branches, and `guidance_gate_rest` what later steps use: see `TierConfig`. `preset` is the name that the
    request gave; the preset's values are in the other fields. `why` explains effective values to a person, by field.
    """

    model: str
    profile: str
    prompt: str
    negative_prompt: str
    width: int
    height: int
    steps: int
    guidance_scale: float
    seed: int
    output_format: str
    control_images: tuple[str, ...]
    adapters: tuple[AdapterUse, ...] = ()
    exif: Literal["ignore", "apply"] = "ignore"
    vae_tiling: bool = False
    sampler: SamplerName = "flowmatch"
    quantization: str = "none"
    feature_cache: float | None = None
    quality: str = "exact"
    guidance_gate: float | None = None
    guidance_gate_rest: GateRest = "drop"
    loss: Loss | None = None
    preset: str | None = None
    why: dict[str, str] = field(default_factory=dict)

    @property
    def editor_group(self) -> str:
        """The name of the editors that can make the image: see `config.editor_group`."""
        return editor_group(self.model, self.quality, self.quantization)


@dataclass(frozen=True)
class EditTask:
    """One unit of work: the image number `index` (0-based, in prompt order) of a request.

    `traceparent` is the parent span (W3C Trace Context).
    """

    request_id: str
    index: int
    plan: EditPlan
    traceparent: str | None = None


class Stage(StrEnum):
    """The stage of an edit in its editor."""

    PREPARING = "preparing"
    WAITING = "waiting"  # prepared; another edit runs on the device
    RUNNING = "running"
    STORING = "storing"  # the device has finished; the image is encoded and stored


class ImageStage(StrEnum):
    """The stage of a claimed image, as clients see it."""

    PREPARING = "preparing"  # an editor is called, and loads control images and adapters
    WAITING = "waiting"  # prepared; another edit runs on the device
    DENOISING = "denoising"
    DECODING = "decoding"  # all steps are done
    STORING = "storing"


@dataclass(frozen=True)
class Heartbeat:
    """A sign that the editor is alive and has the edit: sent when a stage starts, and every few seconds."""

    stage: Stage


@dataclass(frozen=True)
class StepDone:
    """Denoising step number `step` (1-based) of `steps` has finished."""

    step: int
    steps: int


@dataclass(frozen=True)
class EditDone:
    """A finished image, which is already stored in artifact storage under `key`, at `url`.

    `timings` are seconds by stage. `effective` is the effective record, the same that `/v1/explain` returns beforehand.
    `runtime` is what only the editor knows: device, dtype, threads, versions.
    """

    key: str
    url: str
    format: str
    width: int
    height: int
    seed: int
    size_bytes: int
    sha256: str
    timings: dict[str, float] = field(default_factory=dict)
    effective: dict[str, Any] = field(default_factory=dict)
    runtime: dict[str, Any] = field(default_factory=dict)


EditEvent = Heartbeat | StepDone | EditDone
