"""The bodies of sweeps: what clients send, and what they get."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from serve_app.schemas.answers import ErrorCode, ErrorText, Moment, NextCursor
from serve_app.schemas.documented import Answer, DescribedBy
from serve_app.schemas.requests import (
    MAX_SEED,
    ControlImageText,
    InferenceRequest,
    Profile,
    PromptText,
    QualityTier,
    Tolerant,
)
from serve_app.schemas.text import LookupText, Nullable, Url
from serve_app.tasks import Status

SWEEP_ID = "5a4f6c1e0d7b4c0f9e8d7c6b5a493827"
# Values of one axis. The config's limit of cells is usually lower; this bounds the work before that is checked.
MAX_VALUES = 10_000
# The trainer writes steps with nine digits.
MAX_STEP = 999_999_999

SWEEP_EXAMPLE: dict[str, Any] = {
    "base": {
        "model": "qwen_image_edit",
        "trigger_word": "sks",
        "loras": [{"path": "my_lora_job/my_lora.safetensors"}],
        "prompts": [{"prompt": "[trigger] a photo of a person", "seed": 42, "ctrl_img": "<base64_or_url>"}],
    },
    "axes": {"checkpoints": [None, "my_lora_job/*.safetensors"], "multipliers": [0.6, 0.8, 1.0]},
    "max_cells": 100,
}

Multiplier = Annotated[float, Field(ge=-2.0, le=2.0)]
Seed = Annotated[int, Field(ge=-1, le=MAX_SEED)]


class CheckpointRange(Tolerant):
    """Checkpoints of a training job, by their steps."""

    training_job: LookupText = Field(description="The folder of the job, below the LoRA root.")
    from_step: int | None = Field(None, ge=0, le=MAX_STEP, description="The first step. Default: 0.")
    to_step: int | None = Field(
        None,
        ge=0,
        le=MAX_STEP,
        description="The last step. Default: no limit. The final file counts at the last step of its job's config.",
    )


# One control image, or the list of those of one edit.
ControlImages = ControlImageText | Annotated[list[ControlImageText], Field(min_length=1, max_length=3)]


class SweepAxes(Nullable):
    """What a sweep varies: each axis that is named has these values, the others the value of `base`.

    Unknown axes are refused: the sweep would be another one than its sender means.
    """

    model_config = ConfigDict(extra="forbid")

    checkpoints: list[Url | CheckpointRange | None] | None = Field(
        None,
        min_length=1,
        max_length=MAX_VALUES,
        description="In place of `base.loras[0].path`: paths, patterns of paths below the LoRA root (`*`, `?`, `[...]` "
        "and `**` for any folders), checkpoints of training jobs, and null for no LoRA. A pattern stands for its files "
        "by step.",
    )
    multipliers: list[Multiplier] | None = Field(
        None, min_length=1, max_length=MAX_VALUES, description="In place of `base.loras[0].network_multiplier`."
    )
    prompts: list[PromptText] | None = Field(
        None, min_length=1, max_length=MAX_VALUES, description="In place of `base.prompts[0].prompt`."
    )
    seeds: list[Seed] | None = Field(
        None,
        min_length=1,
        max_length=MAX_VALUES,
        description="In place of `base.prompts[0].seed`. -1 is drawn once and is then the same for all cells.",
    )
    control_images: list[ControlImages] | None = Field(
        None,
        min_length=1,
        max_length=MAX_VALUES,
        description="In place of the control images of `base.prompts[0]`: each value is one image, or the list of "
        "those of one edit.",
    )
    profiles: list[Profile] | None = Field(
        None, min_length=1, max_length=MAX_VALUES, description="In place of `base.profile`."
    )
    qualities: list[QualityTier] | None = Field(
        None, min_length=1, max_length=MAX_VALUES, description="In place of `base.quality`."
    )


MaxCells = Annotated[
    int | None,
    Field(ge=1, le=1_000_000, description="The sweep is refused if it has more cells. Default: the service's limit."),
]
DryRun = Annotated[bool, Field(description="Check everything and count the cells, but start nothing.")]


class SweepRequest(Tolerant):
    """A sweep: one request for each combination of the axes' values."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"examples": [SWEEP_EXAMPLE]})

    base: InferenceRequest = Field(
        description="A body of `POST /v1/inference` with one prompt. The priority is always bulk, and images are PNG "
        "unless it says otherwise."
    )
    axes: SweepAxes = Field(description="What the sweep varies.")
    max_cells: MaxCells = None
    dry_run: DryRun = False


class SweepExtension(Tolerant):
    """Further values for the axes of a sweep."""

    axes: SweepAxes = Field(description="The values to add. Values that the sweep has already are left out.")
    max_cells: MaxCells = None
    dry_run: DryRun = False


SweepId = Annotated[str, Field(description="The id of the sweep.")]
Cells = Annotated[int, Field(description="The number of cells, which is the number of images.")]
# One enum, not a union: see `SubmittedStatus`.
CreatedStatus = Literal["queued", "dry_run", "in_queue", "in_progress", "succeeded", "failed", "canceled"]


class SweepCreated(Answer):
    """A sweep that was accepted, or that would be."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "sweep_id": SWEEP_ID,
                    "status": "queued",
                    "cells": 36,
                    "predicted_gpu_seconds": 288.0,
                    "status_url": f"http://127.0.0.1:8000/v1/sweeps/{SWEEP_ID}",
                    "notes": [],
                    "ignored": [],
                }
            ]
        }
    )

    sweep_id: str | None = Field(description="The id of the sweep; null after a dry run of a new one.")
    status: CreatedStatus = Field(
        description="queued; dry_run if nothing was started; or, when an Idempotency-Key repeats a sweep, where that "
        "sweep stands."
    )
    cells: Cells
    predicted_gpu_seconds: float | None = Field(
        description="How long GPUs will work on the cells that are new, from measured edits; null before the first "
        "edit of the model was measured."
    )
    status_url: str | None = Field(
        description="Where to poll the status of the sweep; null after a dry run of a new one."
    )
    notes: list[str] = Field(description="What the sender may not have meant.")
    ignored: list[str] = Field(description="Fields that were sent and have no effect for this model.")


class SweepCheckpoint(Answer):
    """A value of the axis `checkpoints`."""

    path: str | None = Field(description="The path of the LoRA; null for none.")
    step: int | None = Field(description="The training step in the file's name; null if it has none.")


class SweepValues(Answer):
    """The values of all axes, also of those that have only one. Cells name them by their index."""

    checkpoints: list[SweepCheckpoint] = Field(description="The checkpoints, as files.")
    multipliers: list[float] = Field(description="The strengths of the checkpoint.")
    prompts: list[str] = Field(description="The prompts, as they were sent.")
    seeds: list[int] = Field(description="The seeds; what was drawn is shown.")
    control_images: list[list[str]] = Field(description="The control images of each value, by their digests.")
    profiles: list[str | None] = Field(description="The profiles; null for the service's.")
    qualities: list[str] = Field(description="The qualities.")


class CellPlace(Answer):
    """Where a cell is in the grid: the index of its value on each axis, from 0."""

    checkpoint: int = Field(description="The index in `checkpoints`.")
    multiplier: int | None = Field(description="The index in `multipliers`; null without a LoRA.")
    prompt: int = Field(description="The index in `prompts`.")
    seed: int = Field(description="The index in `seeds`.")
    control_image: int = Field(description="The index in `control_images`.")
    profile: int = Field(description="The index in `profiles`.")
    quality: int = Field(description="The index in `qualities`.")


class SweepCell(Answer):
    """A cell of a sweep."""

    cell: int = Field(description="The number of the cell, from 0, in the order in which cells are made.")
    place: CellPlace = Field(description="Where the cell is in the grid.")
    request_id: str | None = Field(description="The id of its request; null until that is in the queue.")
    status: Status = Field(description="Where its request stands. A cell whose request was deleted is canceled.")
    error: ErrorText
    error_code: ErrorCode
    url: str | None = Field(
        description="Where a client downloads the image; null until it is finished. With API keys it has a token, as "
        "the `url` of an image of a request."
    )


class CellCounts(Answer):
    """How many cells have which status."""

    in_queue: int = Field(description="Cells that wait.")
    in_progress: int = Field(description="Cells that an editor works on.")
    succeeded: int = Field(description="Finished cells.")
    failed: int = Field(description="Cells that could not be made.")
    canceled: int = Field(description="Cells that were cancelled, or whose request was deleted.")


class SweepSummary(Answer):
    """A sweep without its cells."""

    sweep_id: SweepId
    tenant: str = Field(description="The tenant whose key was sent; empty for an operator's.")
    model: str = Field(description="The id of the model.")
    status: Status = Field(
        description="in_queue until the first cell starts; after the last cell failed if a cell has failed, else "
        "canceled if one was cancelled, else succeeded."
    )
    created_at: Moment = Field(description="When the sweep was accepted.")
    cells: Cells
    counts: CellCounts = Field(description="How many cells have which status.")
    purged: bool = Field(description="Whether its images were deleted by `purge`.")
    status_url: str = Field(description="Where the whole sweep is.")


class Sweep(SweepSummary):
    """A sweep with its cells."""

    axes: SweepValues = Field(description="The values of all axes.")
    base: Annotated[dict[str, Any], DescribedBy(InferenceRequest)] = Field(
        description="The body of the request that the cells vary, without secrets."
    )
    notes: list[str] = Field(description="What the sender may not have meant.")
    ignored: list[str] = Field(description="Fields that were sent and have no effect for this model.")
    grid: list[SweepCell] = Field(description="The cells, in the order in which they are made.")


class SweepList(Answer):
    """A page of sweeps."""

    sweeps: list[SweepSummary] = Field(description="Newest first.")
    next_cursor: NextCursor


# The data of each server-sent event of a sweep, by the event's name: `intake.sweeps.events.SweepEvent`.
SWEEP_EVENT_DATA: dict[str, type[BaseModel]] = {
    "cell": SweepCell,
    "succeeded": SweepSummary,
    "failed": SweepSummary,
    "canceled": SweepSummary,
}
