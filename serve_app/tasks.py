"""The values that cross a process boundary: frozen, made of plain data, without PIL objects or tensors."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal


class Status(StrEnum):
    """Where a request, or one image of it, stands. Members are the words of the HTTP contract."""

    IN_QUEUE = "in_queue"  # committed, no step has run yet
    IN_PROGRESS = "in_progress"  # an editor has taken it up; never goes back to in_queue
    SUCCEEDED = "succeeded"  # every image is readable
    FAILED = "failed"  # at least one image could not be made; `error` says why
    CANCELED = "canceled"  # ended by its owner

    @property
    def ended(self) -> bool:
        return self in (Status.SUCCEEDED, Status.FAILED, Status.CANCELED)


# The schedules that there are: the checkpoint's, and that of adapters distilled to few steps. See models/recipe.py.
SamplerName = Literal["flowmatch", "lightning"]


class WebhookEvent(StrEnum):
    """An event of a request that webhooks can be sent for."""

    STARTED = "started"  # an editor has taken up the first image
    IMAGE = "image"  # an image can be downloaded
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"


class Priority(StrEnum):
    """A class of the queue."""

    INTERACTIVE = "interactive"  # somebody waits for it: goes first
    BULK = "bulk"  # goes when nobody waits, and now and then all the same


# Longest trigger word, or name or version of a trainer, that is believed of an adapter's file.
MAX_TRIGGER_CHARS = 100


@dataclass(frozen=True)
class Factor:
    """What an adapter's file multiplies its low-rank changes by, before the request's `network_multiplier`.

    The smallest, the median and the largest over its modules: null if the numbers lie where only a reader of the whole
    file finds them. `source` says where they are from: "none" (no alpha: 1), "alpha tensors",
    "lora_adapter_metadata", or several joined by +.
    """

    source: str
    min: float | None
    median: float | None
    max: float | None


@dataclass(frozen=True)
class Receipt:
    """What an adapter's file is, read from its header.

    `kind` is lora, lokr, loha or full, or several joined by +; `ranks` are all that occur; `dtype` is safetensors'
    name. `modules` is how many of the model's modules the file changes, `top_level` those of them outside the
    blocks, `ignored` the tensors that are no change to the model. `notes` are sentences about what else the file says
    and what became of it. The rest is what its trainer wrote.
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

    `id` is derived from the file's identity, so that a file overwritten under the same name is another
    adapter; `path` is the client's word for it, without secrets. `url` is where an editor opens it: a local path
    or fsspec URL; or, with a `version` (ETag or time of change), an http(s) URL, from which the file is downloaded
    under the same rules as everything that a client may name.
    """

    id: str
    path: str
    url: str
    scale: float
    receipt: Receipt | None = None
    version: str = ""


@dataclass(frozen=True)
class EditPlan:
    """Everything that decides the pixels of one image, effective values only.

    `width` and `height` are pixels after snapping. `control_images` are the sha256 digests (hex) of the
    encoded files as the client sent them, in order; `adapters` are in request order. `exif` says whether the
    control images' EXIF rotation is obeyed; `vae_tiling` whether the VAE works in tiles, as the trainer's
    low-memory setting has it; `sampler` names the schedule, `quantization` what the transformer's weights are rounded
    to, `feature_cache` below which change of its first block a forward leaves out the others. `why` holds, for a
    person, how an effective value came about.
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
    why: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class EditTask:
    """One unit of work: the image number `index` (0-based, prompt order) of a request.

    `traceparent` names the span that it is part of, as W3C's Trace Context writes it.
    """

    request_id: str
    index: int
    plan: EditPlan
    traceparent: str | None = None


class Stage(StrEnum):
    """How far an editor is with an edit."""

    PREPARING = "preparing"
    WAITING = "waiting"  # prepared; another edit runs on the device
    RUNNING = "running"
    STORING = "storing"  # nothing more to do for the device


class ImageStage(StrEnum):
    """What is being done for an image that is claimed, as clients are told."""

    PREPARING = "preparing"  # an editor is called, and loads what the edit needs
    WAITING = "waiting"  # prepared; the device makes another image
    DENOISING = "denoising"
    DECODING = "decoding"  # all steps are done
    STORING = "storing"


@dataclass(frozen=True)
class Alive:
    """The editor has the edit and is there: said at each stage's start, and again every few seconds."""

    stage: Stage


@dataclass(frozen=True)
class StepDone:
    """`step` of `steps` denoising steps has run (1-based)."""

    step: int
    steps: int


@dataclass(frozen=True)
class EditDone:
    """A finished image, already readable under `key` in artifact storage, where `url` says it is.

    `timings` are seconds by stage; `effective` is what was done, the same record that `/v1/explain` gives
    beforehand; `runtime` is what only the editor knows: device, dtype, threads, versions.
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


EditEvent = Alive | StepDone | EditDone
