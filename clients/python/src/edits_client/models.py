# Generated from the OpenAPI document by `python -m tools.client_code`.
"""The answers of the service, field by field, as its OpenAPI document describes them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel, SecretStr


class ErrorFacts(BaseModel):
    code: Annotated[str, Field(title="Code")]
    message: Annotated[str, Field(title="Message")]
    details: Annotated[dict[str, Any], Field(title="Details")]


class Explanation(BaseModel):
    """
    What a request would do. `effective` has one record per prompt, the same as a result's `metadata.effective`.
    """

    model: Annotated[str, Field(title="Model")]
    effective: Annotated[list[dict[str, Any]], Field(title="Effective")]
    ignored: Annotated[list[str], Field(title="Ignored")]
    """
    Fields that were sent and have no effect for this model.
    """
    notes: Annotated[list[str], Field(title="Notes")]
    """
    What the sender may not have meant.
    """


class Factor(BaseModel):
    """
    The scale that an adapter's file gives its low-rank changes, before the request's `network_multiplier`.

    `min`, `median` and `max` are taken over the file's modules; they are None if they cannot be read from the header.
    `source` says where the scale comes from: "none" (no alpha, so 1), "alpha tensors", "lora_adapter_metadata", or
    several joined by +.
    """

    source: Annotated[str, Field(title="Source")]
    min: Annotated[float | None, Field(title="Min")]
    median: Annotated[float | None, Field(title="Median")]
    max: Annotated[float | None, Field(title="Max")]


class Health(BaseModel):
    status: Annotated[Literal["healthy"], Field(title="Status")] = "healthy"


class ImageOutput(BaseModel):
    format: Annotated[str, Field(title="Format")]
    width: Annotated[int, Field(title="Width")]
    height: Annotated[int, Field(title="Height")]
    file_path: Annotated[str, Field(title="File Path")]
    """
    Where artifacts are local and there are no API keys, the local path; without keys but in a remote store, the artifact's URL; with API keys, the same as `url`.
    """
    seed: Annotated[int, Field(title="Seed")]
    url: Annotated[str, Field(title="Url")]
    """
    Where a client downloads the image.
    """


class ImageStage(RootModel[Literal["preparing", "waiting", "denoising", "decoding", "storing"]]):
    root: Annotated[
        Literal["preparing", "waiting", "denoising", "decoding", "storing"],
        Field(title="ImageStage"),
    ]
    """
    The stage of a claimed image, as clients see it.
    """


class Preset(RootModel[str]):
    root: Annotated[str, Field(max_length=1000, title="Preset")]
    """
    A name from `/v1/presets`, which sets the fields that the request does not send.
    """


class Model(RootModel[str]):
    root: Annotated[str, Field(max_length=1000, title="Model")]
    """
    An id from `/v1/models`. Required without a preset.
    """


class TriggerWord(RootModel[str]):
    root: Annotated[str, Field(max_length=100000, title="Trigger Word")]
    """
    Replaces [trigger] in every prompt. `auto`: the word that a LoRA's file names.
    """


class HfToken(RootModel[SecretStr]):
    root: Annotated[SecretStr, Field(max_length=1000, title="Hf Token")]
    """
    Used for the downloads of this request; never stored.
    """


class DeadlineS(RootModel[float]):
    root: Annotated[float, Field(gt=0.0, le=604800.0, title="Deadline S")]
    """
    The request must end within so many seconds. Default: the service's.
    """


class WebhookUrl(RootModel[str]):
    root: Annotated[str, Field(max_length=8000, title="Webhook Url")]
    """
    A URL that the service posts the request's events to.
    """


class WebhookEvents(RootModel[list[Literal["started", "image", "succeeded", "failed", "canceled"]]]):
    root: Annotated[
        list[Literal["started", "image", "succeeded", "failed", "canceled"]],
        Field(max_length=100, title="Webhook Events"),
    ] = ["succeeded", "failed", "canceled"]
    """
    Which events are posted to webhook_url.
    """


class NetworkMultiplier(RootModel[float]):
    root: Annotated[float, Field(ge=-2.0, le=2.0, title="Network Multiplier")] = 1.0


class Lora(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    path: Annotated[str, Field(max_length=8000, title="Path")]
    """
    Relative to the LoRA root, or an http(s) URL of a .safetensors file.
    """
    network_multiplier: Annotated[
        NetworkMultiplier | None,
        Field(title="Network Multiplier", validate_default=True),
    ] = 1.0
    transformer: Annotated[Literal["low", "high"] | None, Field(title="Transformer")] = None
    """
    For models with two transformers only.
    """


class ModelInfo(BaseModel):
    id: Annotated[str, Field(title="Id")]
    base_model: Annotated[str, Field(title="Base Model")]
    resolution_divisor: Annotated[int, Field(title="Resolution Divisor")]
    default_steps: Annotated[int, Field(title="Default Steps")]
    default_guidance_scale: Annotated[float, Field(title="Default Guidance Scale")]
    requires_control_image: Annotated[bool, Field(title="Requires Control Image")]
    is_video_model: Annotated[bool | None, Field(title="Is Video Model")] = False
    default_num_frames: Annotated[int | None, Field(title="Default Num Frames")] = None
    default_fps: Annotated[int | None, Field(title="Default Fps")] = None


class ModelList(BaseModel):
    models: Annotated[list[ModelInfo], Field(title="Models")]


class Outputs(BaseModel):
    images: Annotated[list[ImageOutput], Field(title="Images")]
    videos: Annotated[list[Any] | None, Field(title="Videos")] = []


class Priority(RootModel[Literal["interactive", "bulk"]]):
    root: Annotated[Literal["interactive", "bulk"], Field(title="Priority")]
    """
    The priority class of a request in the queue.
    """


class Progress(BaseModel):
    """
    How far a request is: images, the denoising steps of all images, and the current stage.

    Steps are not all of the work: after the last step, images are still decoded and stored.
    """

    images_done: Annotated[int, Field(title="Images Done")]
    images: Annotated[int, Field(title="Images")]
    steps_done: Annotated[int, Field(title="Steps Done")]
    steps: Annotated[int, Field(title="Steps")]
    stage: ImageStage | None
    """
    The stage of the first image that an editor works on; null if there is none.
    """


class TriggerWord1(RootModel[str]):
    root: Annotated[str, Field(max_length=100000, title="Trigger Word")]
    """
    Used instead of the request's, unless it is empty.
    """


class Width(RootModel[int]):
    root: Annotated[int, Field(ge=64, le=4096, title="Width")]
    """
    Pixels; floored to the model's divisor.
    """


class Height(RootModel[int]):
    root: Annotated[int, Field(ge=64, le=4096, title="Height")]
    """
    Pixels; floored to the model's divisor.
    """


class Size(RootModel[str]):
    root: Annotated[str, Field(pattern="^(input|[0-9]+x[0-9]+)$", title="Size")]
    """
    Instead of width and height: `input` is the aspect of the first control image at about 1 MP, `1024x768` is width and height in pixels.
    """


class GuidanceScale(RootModel[float]):
    root: Annotated[float, Field(ge=0.0, le=20.0, title="Guidance Scale")]


class SampleSteps(RootModel[int]):
    root: Annotated[int, Field(ge=1, le=150, title="Sample Steps")]


class Neg(RootModel[str]):
    root: Annotated[str, Field(max_length=100000, title="Neg")]
    """
    Used only if guidance_scale is above 1.
    """


class Seed(RootModel[int]):
    root: Annotated[int, Field(ge=-1, le=9223372036854776000, title="Seed")]
    """
    -1: drawn by the service. Default: 42 + the prompt's index.
    """


class Sampler(RootModel[str]):
    root: Annotated[str, Field(max_length=1000, title="Sampler")]
    """
    flowmatch (the default), or lightning for adapters distilled to few steps; others are ignored.
    """


class NumFrames(RootModel[int]):
    root: Annotated[int, Field(ge=1, le=1000, title="Num Frames")]


class Fps(RootModel[int]):
    root: Annotated[int, Field(ge=1, le=120, title="Fps")]


class Prompt(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    prompt: Annotated[str, Field(max_length=100000, title="Prompt")]
    trigger_word: Annotated[TriggerWord1 | None, Field(title="Trigger Word")] = None
    """
    Used instead of the request's, unless it is empty.
    """
    width: Annotated[Width | None, Field(title="Width")] = None
    """
    Pixels; floored to the model's divisor.
    """
    height: Annotated[Height | None, Field(title="Height")] = None
    """
    Pixels; floored to the model's divisor.
    """
    size: Annotated[Size | None, Field(title="Size")] = None
    """
    Instead of width and height: `input` is the aspect of the first control image at about 1 MP, `1024x768` is width and height in pixels.
    """
    guidance_scale: Annotated[GuidanceScale | None, Field(title="Guidance Scale")] = None
    sample_steps: Annotated[SampleSteps | None, Field(title="Sample Steps")] = None
    neg: Annotated[Neg | None, Field(title="Neg")] = None
    """
    Used only if guidance_scale is above 1.
    """
    seed: Annotated[Seed | None, Field(title="Seed")] = None
    """
    -1: drawn by the service. Default: 42 + the prompt's index.
    """
    sampler: Annotated[Sampler | None, Field(title="Sampler")] = None
    """
    flowmatch (the default), or lightning for adapters distilled to few steps; others are ignored.
    """
    num_frames: Annotated[NumFrames | None, Field(title="Num Frames")] = None
    fps: Annotated[Fps | None, Field(title="Fps")] = None
    resolution: Annotated[Literal["Default", "High"] | None, Field(title="Resolution")] = None
    ctrl_img: Annotated[str | None, Field(title="Ctrl Img")] = None
    """
    A URL (starts with http), base64, a data: URL, part: and the name of a part of the same body, upload: and the id of an upload, or sha256: and the hex digest of a control image that an earlier request of the same tenant sent and that is still stored.
    """
    ctrl_img_1: Annotated[str | None, Field(title="Ctrl Img 1")] = None
    ctrl_img_2: Annotated[str | None, Field(title="Ctrl Img 2")] = None
    ctrl_img_3: Annotated[str | None, Field(title="Ctrl Img 3")] = None


class Readiness(BaseModel):
    """
    Whether every configured model has a running replica; `waiting_for` names those that have none.
    """

    ready: Annotated[bool, Field(title="Ready")]
    waiting_for: Annotated[list[str], Field(title="Waiting For")]


class Receipt(BaseModel):
    """
    The description of an adapter's file, read from its header.

    `kind` is lora, lokr, loha or full, or several joined by +. `ranks` are all ranks that occur. `dtype` is the name in
    safetensors. `modules` counts the modules of the model that the file changes, `top_level` names those outside the
    blocks, and `ignored` names tensors that do not change the model. `notes` are sentences about other content of the
    file and how it was treated. The other fields are what the trainer wrote.
    """

    kind: Annotated[str, Field(title="Kind")]
    ranks: Annotated[list[int], Field(title="Ranks")]
    dtype: Annotated[str, Field(title="Dtype")]
    size_bytes: Annotated[int, Field(title="Size Bytes")]
    modules: Annotated[int, Field(title="Modules")]
    top_level: Annotated[list[str] | None, Field(title="Top Level")] = []
    ignored: Annotated[list[str] | None, Field(title="Ignored")] = []
    trigger_word: Annotated[str | None, Field(title="Trigger Word")] = None
    trainer: Annotated[str | None, Field(title="Trainer")] = None
    trainer_version: Annotated[str | None, Field(title="Trainer Version")] = None
    step: Annotated[int | None, Field(title="Step")] = None
    factor: Factor | None = None
    notes: Annotated[list[str] | None, Field(title="Notes")] = []


class ShapeError(BaseModel):
    """
    One thing that is wrong with the shape of a body.
    """

    type: Annotated[str, Field(title="Type")]
    loc: Annotated[list[str | int], Field(title="Loc")]
    msg: Annotated[str, Field(title="Msg")]


class ShapeErrors(BaseModel):
    detail: Annotated[list[ShapeError], Field(title="Detail")]


class Status(RootModel[Literal["in_queue", "in_progress", "succeeded", "failed", "canceled"]]):
    root: Annotated[
        Literal["in_queue", "in_progress", "succeeded", "failed", "canceled"],
        Field(title="Status"),
    ]
    """
    The status of a request or of one of its images. The values are those of the HTTP contract.
    """


class Submitted(BaseModel):
    request_id: Annotated[str, Field(title="Request Id")]
    status: Annotated[Literal["queued"] | Status, Field(title="Status")]
    """
    queued; or, when an Idempotency-Key repeats a request, where that request stands.
    """
    status_url: Annotated[str, Field(title="Status Url")]
    result_url: Annotated[str, Field(title="Result Url")]
    created_at: Annotated[str, Field(title="Created At")]


class TenantUsage(BaseModel):
    tenant: Annotated[str, Field(title="Tenant")]
    gpu_seconds: Annotated[float, Field(title="Gpu Seconds")]
    images: Annotated[int, Field(title="Images")]


class Upload(BaseModel):
    id: Annotated[str, Field(title="Id")]
    """
    What requests name after `upload:`.
    """
    sha256: Annotated[str, Field(title="Sha256")]
    """
    The digest (hex) of the file; the same as the id.
    """
    width: Annotated[int, Field(title="Width")]
    """
    Pixels, as the file has them: before an EXIF rotation.
    """
    height: Annotated[int, Field(title="Height")]
    """
    Pixels, as the file has them: before an EXIF rotation.
    """
    format: Annotated[str, Field(title="Format")]
    """
    The format of the file, such as jpeg or png, whatever its sender called it.
    """
    notes: Annotated[list[str], Field(title="Notes")]
    """
    Sentences about what the sender may not have meant.
    """
    expires_at: Annotated[str, Field(title="Expires At")]
    """
    The upload may be used until then, and after that for as long as a stored request of the tenant refers to it.
    """


class UsageList(BaseModel):
    usage: Annotated[list[TenantUsage], Field(title="Usage")]


class ValidationError(BaseModel):
    loc: Annotated[list[str | int], Field(title="Location")]
    msg: Annotated[str, Field(title="Message")]
    type: Annotated[str, Field(title="Error Type")]
    input: Annotated[Any | None, Field(title="Input")] = None
    ctx: Annotated[dict[str, Any] | None, Field(title="Context")] = None


class ErrorDetail(BaseModel):
    error: ErrorFacts


class HTTPValidationError(BaseModel):
    detail: Annotated[list[ValidationError] | None, Field(title="Detail")] = None


class HistoryEntry(BaseModel):
    request_id: Annotated[str, Field(title="Request Id")]
    tenant: Annotated[str, Field(title="Tenant")]
    model: Annotated[str, Field(title="Model")]
    priority: Priority
    status: Status
    created_at: Annotated[str, Field(title="Created At")]
    started_at: Annotated[str | None, Field(title="Started At")]
    finished_at: Annotated[str | None, Field(title="Finished At")]
    gpu_seconds: Annotated[float, Field(title="Gpu Seconds")]
    images: Annotated[int, Field(title="Images")]
    images_done: Annotated[int, Field(title="Images Done")]
    error: Annotated[str | None, Field(title="Error")]
    error_code: Annotated[str | None, Field(title="Error Code")]
    """
    Why it failed, as a code: of the first prompt that failed.
    """
    error_details: Annotated[dict[str, Any] | None, Field(title="Error Details")]
    """
    The facts of `error_code`; `prompt_index` says which prompt failed.
    """


class Loras(RootModel[list[Lora]]):
    root: Annotated[list[Lora], Field(max_length=100, title="Loras")]
    """
    Required without a preset, whose LoRAs the list replaces.
    """


class InferenceRequest(BaseModel):
    model_config = ConfigDict(
        extra="allow",
    )
    preset: Annotated[Preset | None, Field(title="Preset")] = None
    """
    A name from `/v1/presets`, which sets the fields that the request does not send.
    """
    model: Annotated[Model | None, Field(title="Model")] = None
    """
    An id from `/v1/models`. Required without a preset.
    """
    loras: Annotated[Loras | None, Field(title="Loras")] = None
    """
    Required without a preset, whose LoRAs the list replaces.
    """
    prompts: Annotated[list[Prompt], Field(max_length=10000, min_length=1, title="Prompts")]
    trigger_word: Annotated[TriggerWord | None, Field(title="Trigger Word")] = None
    """
    Replaces [trigger] in every prompt. `auto`: the word that a LoRA's file names.
    """
    hf_token: Annotated[HfToken | None, Field(title="Hf Token")] = None
    """
    Used for the downloads of this request; never stored.
    """
    profile: Annotated[
        Literal["reference", "trainer", "auto", "trainer-0.6.0", "trainer-0.7.32", "trainer-0.9.0"] | None,
        Field(title="Profile"),
    ] = None
    """
    Whose preparation of images and prompts is followed. Default: the service's.
    """
    quality: Annotated[Literal["exact", "balanced", "fast", "turbo"] | None, Field(title="Quality")] = "exact"
    """
    How exactly the model's own pixels are made. This service makes `exact` ones only.
    """
    output_format: Annotated[Literal["jpeg", "png", "webp"] | None, Field(title="Output Format")] = "jpeg"
    """
    Lossless: png, webp. Lossy: jpeg (quality 95).
    """
    vae_tiling: Annotated[bool | None, Field(title="Vae Tiling")] = False
    """
    The VAE works in tiles, as the trainer's low-memory setting has it.
    """
    exif: Annotated[Literal["ignore", "apply"] | None, Field(title="Exif")] = "ignore"
    """
    Whether control images are rotated by their EXIF orientation.
    """
    deadline_s: Annotated[DeadlineS | None, Field(title="Deadline S")] = None
    """
    The request must end within so many seconds. Default: the service's.
    """
    priority: Annotated[Priority | None, Field(validate_default=True)] = "interactive"
    """
    While interactive images wait, one image in five is of a bulk request.
    """
    webhook_url: Annotated[WebhookUrl | None, Field(title="Webhook Url")] = None
    """
    A URL that the service posts the request's events to.
    """
    webhook_events: Annotated[WebhookEvents | None, Field(title="Webhook Events", validate_default=True)] = [
        "succeeded",
        "failed",
        "canceled",
    ]
    """
    Which events are posted to webhook_url.
    """


class LoraInfo(BaseModel):
    """
    One file under the LoRA root. `problem` says why it fits none of the served models.
    """

    path: Annotated[str, Field(title="Path")]
    fits: Annotated[list[str], Field(title="Fits")]
    """
    The served models that it can be applied to.
    """
    receipt: Receipt | None
    problem: Annotated[str | None, Field(title="Problem")]


class LoraList(BaseModel):
    loras: Annotated[list[LoraInfo], Field(title="Loras")]
    next_cursor: Annotated[str | None, Field(title="Next Cursor")]
    """
    Send it as `cursor` for the next page; null on the last one.
    """


class RequestResult(BaseModel):
    request_id: Annotated[str, Field(title="Request Id")]
    status: Status
    outputs: Outputs | None
    error: Annotated[str | None, Field(title="Error")]
    error_code: Annotated[str | None, Field(title="Error Code")]
    """
    Why it failed, as a code: of the first prompt that failed.
    """
    error_details: Annotated[dict[str, Any] | None, Field(title="Error Details")]
    """
    The facts of `error_code`; `prompt_index` says which prompt failed.
    """
    created_at: Annotated[str, Field(title="Created At")]
    finished_at: Annotated[str | None, Field(title="Finished At")]
    metadata: Annotated[dict[str, Any], Field(title="Metadata")]


class RequestStatus(BaseModel):
    request_id: Annotated[str, Field(title="Request Id")]
    status: Status
    created_at: Annotated[str, Field(title="Created At")]
    started_at: Annotated[str | None, Field(title="Started At")]
    finished_at: Annotated[str | None, Field(title="Finished At")]
    error: Annotated[str | None, Field(title="Error")]
    error_code: Annotated[str | None, Field(title="Error Code")]
    """
    Why it failed, as a code: of the first prompt that failed.
    """
    error_details: Annotated[dict[str, Any] | None, Field(title="Error Details")]
    """
    The facts of `error_code`; `prompt_index` says which prompt failed.
    """
    progress: Progress
    queue_position: Annotated[int | None, Field(title="Queue Position")]
    """
    How many images are ahead of this request's first waiting image; null if none of its images waits.
    """
    eta_s: Annotated[float | None, Field(title="Eta S")]
    """
    Predicted seconds until the request ends, from measured edits and the queue, never 0; null once it has ended, and before the first edit of its model was measured.
    """


class ErrorBody(BaseModel):
    """
    The reference server nests an error under `detail`; so do we.
    """

    detail: ErrorDetail


class History(BaseModel):
    requests: Annotated[list[HistoryEntry], Field(title="Requests")]
    next_cursor: Annotated[str | None, Field(title="Next Cursor")]
    """
    Send it as `cursor` for the next page; null on the last one.
    """
