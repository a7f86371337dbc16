# Generated from the OpenAPI document by `python -m tools.client_code`.
"""The answers of the service, field by field, as its OpenAPI document describes them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field


class BrokenPreset(BaseModel):
    """
    A preset that cannot be used at the moment, and why.
    """

    code: str
    """
    The error code of what is wrong.
    """
    message: str
    """
    A sentence that says what is wrong.
    """
    name: str
    """
    The preset's name in the `user_config` of the ingress.
    """


class CalibratedLora(BaseModel):
    """
    A LoRA that a loss was measured with.
    """

    path: str
    """
    The path or URL, as requests name it.
    """
    id: str
    """
    The identity of the file: another file under the same path has another.
    """
    network_multiplier: float
    """
    The strength.
    """


class CalibrationRunInfo(BaseModel):
    """
    A calibration that goes through the queue of edits.
    """

    id: str
    """
    The id of the calibration.
    """
    model: str
    """
    The id of the model.
    """
    tiers: list[str]
    """
    The tiers that it measures.
    """
    requests: list[str]
    """
    The ids of the requests that make its images, of priority bulk.
    """
    created_at: AwareDatetime
    """
    When it was started.
    """
    ended_at: AwareDatetime | None
    """
    When it ended; null while it is under way.
    """
    problem: str | None
    """
    Why it could not measure everything, in words.
    """


class CellCounts(BaseModel):
    """
    How many cells have which status.
    """

    in_queue: int
    """
    Cells that wait.
    """
    in_progress: int
    """
    Cells that an editor works on.
    """
    succeeded: int
    """
    Finished cells.
    """
    failed: int
    """
    Cells that could not be made.
    """
    canceled: int
    """
    Cells that were cancelled, or whose request was deleted.
    """


class CellPlace(BaseModel):
    """
    Where a cell is in the grid: the index of its value on each axis, from 0.
    """

    checkpoint: int
    """
    The index in `checkpoints`.
    """
    multiplier: int | None
    """
    The index in `multipliers`; null without a LoRA.
    """
    prompt: int
    """
    The index in `prompts`.
    """
    seed: int
    """
    The index in `seeds`.
    """
    control_image: int
    """
    The index in `control_images`.
    """
    profile: int
    """
    The index in `profiles`.
    """
    quality: int
    """
    The index in `qualities`.
    """


class CheckpointRange(BaseModel):
    """
    Checkpoints of a training job, by their steps.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    training_job: str
    """
    The folder of the job, below the LoRA root.
    """
    from_step: int | None = None
    """
    The first step. Default: 0.
    """
    to_step: int | None = None
    """
    The last step. Default: no limit. The final file counts at the last step of its job's config.
    """


class ControlImageLink(BaseModel):
    """
    A stored control image of a request.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    sha256: str
    """
    The digest (hex) of its file; `sha256:` and this name it in another request.
    """
    url: str
    """
    Where a client downloads the image. With API keys it has a token, so that it needs no key for an hour or more (`auth.url_lifetime_s`).
    """


class EditorStart(BaseModel):
    """
    How far the start of an editor is.
    """

    state: str
    """
    `starting`: nothing is read yet. `downloading`: a remote checkpoint to the node's disk. `loading`: weights to where they are needed. `preparing`: they are there; the editor compiles and warms up.
    """
    bytes_read: int
    """
    Bytes that it has read in this state, or before it, if it is `preparing`.
    """
    bytes: int
    """
    Bytes that it has to read. 0: not known yet.
    """


class ErrorFacts(BaseModel):
    """
    An error.
    """

    code: str
    """
    The kind of error, for programs.
    """
    message: str
    """
    What is wrong, for people.
    """
    details: dict[str, Any]
    """
    Facts about the error; which ones depends on the code.
    """


class FactInfo(BaseModel):
    """
    Something to know when a preview is compared.
    """

    code: str
    """
    A short name of the fact.
    """
    text: str
    """
    The fact, in words.
    """
    differs: bool
    """
    Whether it makes images differ, although all else is done as in training.
    """


class Factor(BaseModel):
    """
    The scale that a LoRA's file gives its low-rank changes, before `network_multiplier`.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    source: str
    """
    Where the scale comes from: `none` (no alpha, so 1), `alpha tensors`, `lora_adapter_metadata`, or several joined by +.
    """
    min: float | None
    """
    The smallest scale of a module; null if the header does not tell it.
    """
    median: float | None
    """
    The median over the modules; null if the header does not tell it.
    """
    max: float | None
    """
    The largest scale of a module; null if the header does not tell it.
    """


class FailureDetails(BaseModel):
    """
    The facts of a failure. Which ones there are depends on its code.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    prompt_index: int | None = None
    """
    The number of the prompt that failed, from 0.
    """


class FinishedImage(BaseModel):
    """
    An image that can be downloaded.
    """

    image: int
    """
    The number of the image, from 0, in prompt order.
    """
    url: str
    """
    Where a client downloads the image. With API keys it has a token, so that it needs no key for an hour or more (`auth.url_lifetime_s`).
    """


class Guidance(BaseModel):
    """
    How guidance_scale is applied.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    true_cfg_scale: float
    """
    The guidance scale.
    """
    guided: bool
    """
    Whether the negative prompt is used: the scale is above 1.
    """
    rescaled_to_conditional_norm: bool
    """
    Whether the guided prediction is rescaled.
    """
    forwards_a_step: int
    """
    Forward passes of the transformer per step: 1, or 2 if guided; 1 in guided steps beyond `guided_steps`.
    """
    guided_steps: int | None = None
    """
    How many steps, from the first on, compute both guidance branches.
    """
    meaning: str
    """
    The same in a sentence.
    """


class Health(BaseModel):
    """
    This process answers.
    """

    status: Literal["healthy"]
    """
    Always healthy.
    """


class ImageData(BaseModel):
    """
    An image: its file or its address, as the call asked for; the other one is null.
    """

    b64_json: str | None
    """
    The file of the image, in base64.
    """
    url: str | None
    """
    Where a client downloads the image.
    """
    seed: int
    """
    The seed of this image.
    """


class ImageEvent(BaseModel):
    """
    An image can be downloaded.
    """

    format: str
    """
    The file format.
    """
    width: int
    """
    The width in pixels.
    """
    height: int
    """
    The height in pixels.
    """
    file_path: str
    """
    Where artifacts are local and there are no API keys, the local path; without keys but in a remote store, the artifact's URL; with API keys, the same as `url`.
    """
    seed: int
    """
    The seed, also where the service drew it.
    """
    url: str
    """
    Where a client downloads the image. With API keys it has a token, so that it needs no key for an hour or more (`auth.url_lifetime_s`).
    """
    image: int
    """
    The number of the image, from 0, in prompt order.
    """


class ImageOfRequest(BaseModel):
    """
    A finished image, and its request.
    """

    format: str
    """
    The file format.
    """
    width: int
    """
    The width in pixels.
    """
    height: int
    """
    The height in pixels.
    """
    file_path: str
    """
    Where artifacts are local and there are no API keys, the local path; without keys but in a remote store, the artifact's URL; with API keys, the same as `url`.
    """
    seed: int
    """
    The seed, also where the service drew it.
    """
    url: str
    """
    Where a client downloads the image. With API keys it has a token, so that it needs no key for an hour or more (`auth.url_lifetime_s`).
    """
    image: int
    """
    The number of the image, from 0, in prompt order.
    """
    request_id: str
    """
    The id of the request.
    """


class ImageOutput(BaseModel):
    """
    A finished image.
    """

    format: str
    """
    The file format.
    """
    width: int
    """
    The width in pixels.
    """
    height: int
    """
    The height in pixels.
    """
    file_path: str
    """
    Where artifacts are local and there are no API keys, the local path; without keys but in a remote store, the artifact's URL; with API keys, the same as `url`.
    """
    seed: int
    """
    The seed, also where the service drew it.
    """
    url: str
    """
    Where a client downloads the image. With API keys it has a token, so that it needs no key for an hour or more (`auth.url_lifetime_s`).
    """


class ImageReference(BaseModel):
    """
    An image in a JSON body.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    image_url: str
    """
    An http(s) URL, or a `data:` URL.
    """
    file_id: str | None = None
    """
    Not supported.
    """


class ImageWebhook(BaseModel):
    """
    An image can be downloaded.
    """

    type: Literal["request.image"]
    """
    What happened.
    """
    timestamp: AwareDatetime
    """
    When it happened.
    """
    data: ImageOfRequest
    """
    The image.
    """


class InputTokens(BaseModel):
    """
    Tokens by what they stand for.
    """

    image_tokens: int
    """
    Tokens of the images to edit, as the transformer sees them.
    """
    text_tokens: int
    """
    Tokens that the text encoder reads: an estimate.
    """


class MaxLoss(BaseModel):
    """
    The largest loss of a tier that a request accepts; every image that was measured has to be within it.

    At least one limit is set. Unknown fields are refused, so that a misspelt limit is not taken for none.
    """

    model_config = ConfigDict(
        extra="forbid",
    )
    psnr_db: float | None = None
    """
    The lowest PSNR (dB) of a measured image compared with `exact`.
    """
    ssim: float | None = None
    """
    The lowest SSIM of a measured image compared with `exact`.
    """


class MeasuredRange(BaseModel):
    """
    One measure over all measured images.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    worst: float | None
    """
    That of the image with the largest difference; null: equal images.
    """
    median: float | None
    """
    The median over all images; null: equal images.
    """


class ModelOperation(BaseModel):
    """
    A model, or a tier of a model that has editors of its own: the editors and their queue.
    """

    id: str
    """
    The name of the editors: the model's id, for a tier `<model id>-<tier>`.
    """
    model: str
    """
    The id of the model.
    """
    tier: str | None
    """
    The tier; null for the editors that make everything else.
    """
    editors_running: int
    """
    Editors that take work.
    """
    editors_starting: int
    """
    Editors that were ordered and do not take work yet.
    """
    waiting: int
    """
    Images in the queue, of those requests that the caller may see.
    """
    working: int
    """
    Images that editors work on, of those requests that the caller may see.
    """
    predicted_wait_s: float | None
    """
    Predicted seconds until an editor would begin an image that is sent now, from measured edits and the queues of all tenants; null before the first edit of the model was measured, and while it has no editor.
    """


class Noise(BaseModel):
    """
    The initial noise.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    generator: str
    """
    The device of the random generator.
    """
    seed: int
    """
    The generator's seed.
    """
    shape: list[int]
    """
    The shape of the latents.
    """


class NotRedone(BaseModel):
    """
    A sample that cannot be made again.
    """

    sample: int
    """
    The number of the sample, from 0.
    """
    problem: str
    """
    The reason, in words.
    """


class NumberedImage(BaseModel):
    """
    A finished image of a request.
    """

    format: str
    """
    The file format.
    """
    width: int
    """
    The width in pixels.
    """
    height: int
    """
    The height in pixels.
    """
    file_path: str
    """
    Where artifacts are local and there are no API keys, the local path; without keys but in a remote store, the artifact's URL; with API keys, the same as `url`.
    """
    seed: int
    """
    The seed, also where the service drew it.
    """
    url: str
    """
    Where a client downloads the image. With API keys it has a token, so that it needs no key for an hour or more (`auth.url_lifetime_s`).
    """
    image: int
    """
    The number of the image, from 0, in prompt order.
    """


class OpenAIErrorFacts(BaseModel):
    """
    An error, as OpenAI's clients read it.
    """

    message: str
    """
    What is wrong, for people.
    """
    type: str
    """
    The kind of error, as OpenAI names it.
    """
    param: str | None
    """
    The field that is at fault.
    """
    code: str
    """
    The kind of error, for programs.
    """


class OpenAiModel(BaseModel):
    """
    A model, or a preset of the caller, as OpenAI's clients list them.
    """

    id: str
    """
    What `model` may be in OpenAI's routes: the id of a model, or the name of a preset.
    """
    object: Literal["model"]
    """
    Always model.
    """
    created: int
    """
    Seconds since the epoch: the first release of this service, for every entry.
    """
    owned_by: str
    """
    The organisation of a model's checkpoint; `presets` for a preset.
    """


class OperationLinks(BaseModel):
    """
    Pages and documents about this service.
    """

    docs: str
    """
    The interactive documentation.
    """
    reference: str
    """
    The same documentation, for reading.
    """
    openapi: str
    """
    The OpenAPI document.
    """
    history: str
    """
    The history of requests.
    """


class Outputs(BaseModel):
    """
    The images of a request that has succeeded.
    """

    images: list[ImageOutput]
    """
    One image per prompt, in prompt order.
    """
    videos: list[Any]
    """
    Always empty: no model makes videos.
    """


class PairComparison(BaseModel):
    """
    How far two images are apart, after ours was saved as the trainer saved its own.
    """

    is_equal: bool
    """
    Whether all pixels are equal.
    """
    equal_share: float
    """
    The share of pixels that are equal, from 0 to 1.
    """
    psnr_db: float | None
    """
    The peak signal-to-noise ratio (dB); null if all pixels are equal.
    """


class PartialImage(BaseModel):
    """
    A preview of an image that is being made: a small JPEG.
    """

    created_at: int
    """
    When the event was sent, in seconds since the epoch.
    """
    index: int
    """
    The number of the image, from 0.
    """
    background: Literal["opaque"]
    """
    Images are opaque.
    """
    size: str
    """
    The size of the finished image in pixels, `WxH`.
    """
    quality: str
    """
    The quality of the finished image.
    """
    output_format: str
    """
    The file format of `b64_json`.
    """
    b64_json: str
    """
    The file, in base64.
    """
    type: Literal["image_edit.partial_image", "image_generation.partial_image"]
    """
    The name of the event.
    """
    partial_image_index: int
    """
    The number of this preview of the image, from 0.
    """


class PresetLora(BaseModel):
    """
    A LoRA of a preset.
    """

    path: str
    """
    Relative to the LoRA root, or a URL, without its secret parts.
    """
    network_multiplier: float
    """
    The strength, -2 to 2.
    """


class PresetMaxLoss(BaseModel):
    """
    The largest loss of a tier that a preset accepts.
    """

    psnr_db: float | None
    """
    The lowest PSNR (dB) of a measured image.
    """
    ssim: float | None
    """
    The lowest SSIM of a measured image.
    """


class PresetProblem(BaseModel):
    """
    Why a preset cannot be used at the moment.
    """

    code: str
    """
    The error code of what is wrong.
    """
    message: str
    """
    A sentence that says what is wrong.
    """


class PreviewEvent(BaseModel):
    """
    A step preview: what an image will be.
    """

    image: int
    """
    The number of the image, from 0, in prompt order.
    """
    step: int
    """
    The step that the preview was made after, from 1.
    """
    jpeg_base64: str
    """
    A small JPEG, in base64.
    """


class PreviewsStarted(BaseModel):
    """
    Previews that are being made.
    """

    id: str
    """
    The id of these previews. The same body has the same id, and makes nothing again.
    """
    status_url: str
    """
    Where to poll their status.
    """


class Progress(BaseModel):
    """
    How far a request is: images, the denoising steps of all images, and the current stage.

    Steps are not all of the work: after the last step, images are still decoded and stored.
    """

    images_done: int
    """
    Finished images.
    """
    images: int
    """
    All images of the request.
    """
    steps_done: int
    """
    Denoising steps that are done, of all images.
    """
    steps: int
    """
    Denoising steps of all images.
    """
    stage: str | None
    """
    The stage of the first image that an editor works on; null if there is none.
    """


class QueuedEvent(BaseModel):
    """
    The place in the queue has changed.
    """

    request_id: str
    """
    The id of the request.
    """
    queue_position: int
    """
    How many images are ahead of this request's first waiting image.
    """


class Readiness(BaseModel):
    """
    Whether every configured model has a running editor. Broken presets do not make the service unready.
    """

    ready: bool
    """
    Whether no model waits for an editor.
    """
    waiting_for: list[str]
    """
    The models that have no running editor and are not scaled to zero; tiers with own editors likewise, as `<model id>-<tier>`.
    """
    broken_presets: list[BrokenPreset]
    """
    The presets that requests cannot use at the moment, by name. Each ingress checks them by itself.
    """
    editors: dict[str, EditorStart]
    """
    The progress of one starting editor of each name in `waiting_for`, if it reports one.
    """


class Receipt(BaseModel):
    """
    The description of a LoRA's file, read from its header.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    kind: str
    """
    lora, lokr, loha or full, or several joined by +.
    """
    ranks: list[int]
    """
    All ranks that occur.
    """
    dtype: str
    """
    The data type of the tensors, by its name in safetensors.
    """
    size_bytes: int
    """
    The size of the file.
    """
    modules: int
    """
    How many modules of the model the file changes.
    """
    top_level: list[str]
    """
    The changed modules outside of the transformer's blocks.
    """
    ignored: list[str]
    """
    Tensors that do not change the model.
    """
    trigger_word: str | None
    """
    The trigger word that the trainer wrote.
    """
    trainer: str | None
    """
    The program that wrote the file.
    """
    trainer_version: str | None
    """
    The version of that program.
    """
    step: int | None
    """
    The training step at which the file was written.
    """
    factor: Factor | None = None
    """
    The scale that the file gives its changes; null if it is unknown.
    """
    notes: list[str] | None = None
    """
    Sentences about other content of the file and how it was treated.
    """


class RecentError(BaseModel):
    """
    A request that failed.
    """

    request_id: str
    """
    The id of the request.
    """
    tenant: str
    """
    The tenant whose request it was; empty for an operator's.
    """
    model: str
    """
    The id of the model.
    """
    at: AwareDatetime
    """
    When it failed.
    """
    code: str | None
    """
    Why it failed, as a code; null if it failed before codes were recorded.
    """
    message: str | None
    """
    Why it failed, in words.
    """
    details: FailureDetails | None
    """
    The facts of `error_code`; `prompt_index` says which prompt failed.
    """


class Resize(BaseModel):
    """
    One resize of a control image.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    size: list[int]
    """
    Width and height afterwards.
    """
    kernel: str
    """
    The resize filter.
    """


class Reused(BaseModel):
    """
    What the editor had computed for earlier edits.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    prompts: int
    """
    Encoded prompts.
    """
    controls: int
    """
    Encoded control images.
    """


class SampleControlImage(BaseModel):
    """
    A control image that a sample names.
    """

    path: str
    """
    The path on the training machine.
    """
    found: str | None
    """
    The file below the LoRA root that it means; null if there is no single one.
    """
    reference: str | None
    """
    What the request names: the file is uploaded under this id when previews are made.
    """


class SampleImageInfo(BaseModel):
    """
    An image that the trainer made while it trained.
    """

    step: int
    """
    The training step.
    """
    sample: int
    """
    The number of the sample, from 0.
    """
    file: str
    """
    The name of the file.
    """
    url: str
    """
    Where a client downloads the image.
    """
    thumbnail_url: str
    """
    Where a client downloads a JPEG of at most 300x300 pixels.
    """


class Scheduler(BaseModel):
    """
    The noise schedule.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    sampler: str
    """
    The name of the schedule.
    """
    class_: Annotated[str, Field(alias="class")]
    """
    The scheduler's class in diffusers.
    """
    base_image_seq_len: int
    """
    The scheduler's constant of this name.
    """
    max_image_seq_len: int
    """
    The scheduler's constant of this name.
    """
    base_shift: float
    """
    The scheduler's constant of this name.
    """
    max_shift: float
    """
    The scheduler's constant of this name.
    """
    shift_terminal: float | None
    """
    The scheduler's constant of this name; null for one step.
    """
    mu: float
    """
    The shift of the schedule, which follows from the image's size.
    """
    sigmas: list[float]
    """
    The noise level of each step, and the final 0.
    """


class ShapeError(BaseModel):
    """
    One thing that is wrong with the shape of a request.
    """

    type: str
    """
    The kind of fault, as pydantic names it.
    """
    loc: list[str | int]
    """
    Where it is: the part of the request, then fields and indices.
    """
    msg: str
    """
    What is wrong, for people.
    """


class ShapeErrors(BaseModel):
    """
    What is wrong with the shape of a request: of its body, its parameters or its headers.
    """

    detail: list[ShapeError]
    """
    The first faults.
    """


class StartedEvent(BaseModel):
    """
    An editor has started the first image.
    """

    request_id: str
    """
    The id of the request.
    """


class StartedWebhook(BaseModel):
    """
    A request has started: an editor has taken up its first image.
    """

    type: Literal["request.started"]
    """
    What happened.
    """
    timestamp: AwareDatetime
    """
    When it happened.
    """
    data: StartedEvent
    """
    The request.
    """


class StepEvent(BaseModel):
    """
    An image has made progress.
    """

    image: int
    """
    The number of the image, from 0, in prompt order.
    """
    step: int
    """
    Denoising steps that are done.
    """
    steps: int
    """
    All denoising steps of the image.
    """
    stage: str | None
    """
    The stage of the image; null if it is not known yet.
    """


class StreamError(BaseModel):
    """
    An error after the stream has begun. It is the last event.
    """

    error: OpenAIErrorFacts
    """
    The error.
    """
    type: Literal["error"]
    """
    The name of the event.
    """


class Submitted(BaseModel):
    """
    An accepted request.
    """

    request_id: str
    """
    The id of the request.
    """
    status: Literal["queued", "in_queue", "in_progress", "succeeded", "failed", "canceled"]
    """
    queued; or, when an Idempotency-Key repeats a request, where that request stands.
    """
    status_url: str
    """
    Where to poll the request's status.
    """
    result_url: str
    """
    Where the result is.
    """
    created_at: AwareDatetime
    """
    When the request was accepted.
    """


class SweepAxes(BaseModel):
    """
    What a sweep varies: each axis that is named has these values, the others the value of `base`.

    Unknown axes are refused: the sweep would be another one than its sender means.
    """

    model_config = ConfigDict(
        extra="forbid",
    )
    checkpoints: list[str | CheckpointRange | None] | None = None
    """
    In place of `base.loras[0].path`: paths, patterns of paths below the LoRA root (`*`, `?`, `[...]` and `**` for any folders), checkpoints of training jobs, and null for no LoRA. A pattern stands for its files by step.
    """
    multipliers: list[float] | None = None
    """
    In place of `base.loras[0].network_multiplier`.
    """
    prompts: list[str] | None = None
    """
    In place of `base.prompts[0].prompt`.
    """
    seeds: list[int] | None = None
    """
    In place of `base.prompts[0].seed`. -1 is drawn once and is then the same for all cells.
    """
    control_images: list[str | list[str]] | None = None
    """
    In place of the control images of `base.prompts[0]`: each value is one image, or the list of those of one edit.
    """
    profiles: list[str] | None = None
    """
    In place of `base.profile`.
    """
    qualities: list[str] | None = None
    """
    In place of `base.quality`.
    """


class SweepCell(BaseModel):
    """
    A cell of a sweep.
    """

    cell: int
    """
    The number of the cell, from 0, in the order in which cells are made.
    """
    place: CellPlace
    """
    Where the cell is in the grid.
    """
    request_id: str | None
    """
    The id of its request; null until that is in the queue.
    """
    status: Literal["in_queue", "in_progress", "succeeded", "failed", "canceled"]
    """
    Where its request stands. A cell whose request was deleted is canceled.
    """
    error: str | None
    """
    Why the request failed, in words; null unless it failed.
    """
    error_code: str | None
    """
    Why it failed, as a code: of the first prompt that failed.
    """
    url: str | None
    """
    Where a client downloads the image; null until it is finished. With API keys it has a token, as the `url` of an image of a request.
    """


class SweepCheckpoint(BaseModel):
    """
    A value of the axis `checkpoints`.
    """

    path: str | None
    """
    The path of the LoRA; null for none.
    """
    step: int | None
    """
    The training step in the file's name; null if it has none.
    """


class SweepCreated(BaseModel):
    """
    A sweep that was accepted, or that would be.
    """

    sweep_id: str | None
    """
    The id of the sweep; null after a dry run of a new one.
    """
    status: Literal["queued", "dry_run", "in_queue", "in_progress", "succeeded", "failed", "canceled"]
    """
    queued; dry_run if nothing was started; or, when an Idempotency-Key repeats a sweep, where that sweep stands.
    """
    cells: int
    """
    The number of cells, which is the number of images.
    """
    predicted_gpu_seconds: float | None
    """
    How long GPUs will work on the cells that are new, from measured edits; null before the first edit of the model was measured.
    """
    status_url: str | None
    """
    Where to poll the status of the sweep; null after a dry run of a new one.
    """
    notes: list[str]
    """
    What the sender may not have meant.
    """
    ignored: list[str]
    """
    Fields that were sent and have no effect for this model.
    """


class SweepExtension(BaseModel):
    """
    Further values for the axes of a sweep.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    axes: SweepAxes
    """
    The values to add. Values that the sweep has already are left out.
    """
    max_cells: int | None = None
    """
    The sweep is refused if it has more cells. Default: the service's limit.
    """
    dry_run: bool | None = None
    """
    Check everything and count the cells, but start nothing. Default: false.
    """


class SweepSummary(BaseModel):
    """
    A sweep without its cells.
    """

    sweep_id: str
    """
    The id of the sweep.
    """
    tenant: str
    """
    The tenant whose key was sent; empty for an operator's.
    """
    model: str
    """
    The id of the model.
    """
    status: Literal["in_queue", "in_progress", "succeeded", "failed", "canceled"]
    """
    in_queue until the first cell starts; after the last cell failed if a cell has failed, else canceled if one was cancelled, else succeeded.
    """
    created_at: AwareDatetime
    """
    When the sweep was accepted.
    """
    cells: int
    """
    The number of cells, which is the number of images.
    """
    counts: CellCounts
    purged: bool
    """
    Whether its images were deleted by `purge`.
    """
    status_url: str
    """
    Where the whole sweep is.
    """


class SweepValues(BaseModel):
    """
    The values of all axes, also of those that have only one. Cells name them by their index.
    """

    checkpoints: list[SweepCheckpoint]
    """
    The checkpoints, as files.
    """
    multipliers: list[float]
    """
    The strengths of the checkpoint.
    """
    prompts: list[str]
    """
    The prompts, as they were sent.
    """
    seeds: list[int]
    """
    The seeds; what was drawn is shown.
    """
    control_images: list[list[str]]
    """
    The control images of each value, by their digests.
    """
    profiles: list[str | None]
    """
    The profiles; null for the service's.
    """
    qualities: list[str]
    """
    The qualities.
    """


class TenantUsage(BaseModel):
    """
    What a tenant has used since the database was created.
    """

    tenant: str
    """
    The tenant; empty for operators.
    """
    gpu_seconds: float
    """
    GPU seconds.
    """
    images: int
    """
    Finished images.
    """


class TextEncoder(BaseModel):
    """
    How the prompt is encoded.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    position_ids: str
    """
    The kind of position ids that the text encoder gets.
    """
    prompt_prefix: str
    """
    Text that is put before the prompt.
    """
    max_prompt_tokens: int | None
    """
    The prompt is cut after so many tokens; null: never.
    """


class TheirImage(BaseModel):
    """
    The trainer's image of a pair.
    """

    file: str
    """
    The name of the file.
    """
    url: str
    """
    Where a client downloads it.
    """


class TierInfo(BaseModel):
    """
    A tier of a model: what it does, and the fields of a prompt that it sets.
    """

    quality: str
    """
    What `quality` of a request names.
    """
    sample_steps: int | None
    """
    Its denoising steps; null: the prompt's.
    """
    guidance_scale: float | None
    """
    Its guidance scale; null: the prompt's.
    """
    sampler: str | None
    """
    Its sampler; null: the prompt's.
    """
    quantization: str
    """
    The format of the transformer's weights: `none` is that of the checkpoint.
    """
    feature_cache: float | None
    """
    The change of the first block's output below which a step skips the other blocks; null: never.
    """
    guidance_gate: float | None
    """
    The share of the steps that compute the negative prompt's branch too; null: all.
    """
    needs_calibration: bool
    """
    Whether requests are refused if nobody has measured the tier's loss for their LoRAs.
    """


class Timings(BaseModel):
    """
    How long the parts of the edits took.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    prompts: list[dict[str, float]]
    """
    Seconds by stage, for each prompt; empty until its image is finished. `generate` is the whole edit, `load_control_images` and `save` are reading and storing.
    """


class Tokens(BaseModel):
    """
    The lengths of the transformer's sequences.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    target: int
    """
    Tokens of the image that is made.
    """
    control: int
    """
    Tokens of the control images.
    """
    text_estimated: int
    """
    An estimate of the tokens of prompt and control images as text.
    """


class Upload(BaseModel):
    """
    A stored image that requests can name.
    """

    id: str
    """
    What requests name after `upload:`.
    """
    sha256: str
    """
    The digest (hex) of the file; the same as the id.
    """
    width: int
    """
    Pixels, as the file has them: before an EXIF rotation.
    """
    height: int
    """
    Pixels, as the file has them: before an EXIF rotation.
    """
    format: str
    """
    The format of the file, such as jpeg or png, whatever its sender called it.
    """
    notes: list[str]
    """
    Sentences about what the sender may not have meant.
    """
    expires_at: AwareDatetime
    """
    The upload may be used until then, and after that for as long as a stored request of the tenant refers to it.
    """


class UsageList(BaseModel):
    """
    The usage of tenants.
    """

    usage: list[TenantUsage]
    """
    The key's tenant; for an operator's key all tenants.
    """


class VisionEncoder(BaseModel):
    """
    The copies of a control image that the vision encoder gets.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    sizes: list[list[int]]
    """
    Width and height to which it is resized, one after the other.
    """
    sizes_for_neg: list[list[int]]
    """
    The same for the negative prompt.
    """
    kernel: str
    """
    How it is resized.
    """


class WeightsFile(BaseModel):
    """
    A file of weights that the trainer wrote.
    """

    path: str
    """
    What `loras[].path` of a request names.
    """
    step: int | None
    """
    The training step: by the name of the file, or its header, or the training config.
    """
    size_bytes: int | None
    """
    The size of the file; null for one that cannot be read.
    """
    state: str
    """
    `incomplete`: the trainer is still writing it, or it was cut off. `unknown`: its header was not read; the list of all jobs reads only the newest file of each.
    """
    fits: list[str] | None
    """
    The ids of the served models that it fits; null if it was not read.
    """
    problem: str | None
    """
    Why it cannot be used, in words; null if it can, or was not read.
    """


class AdapterFile(BaseModel):
    """
    The file of a LoRA, as the editor loaded it.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    id: str
    """
    The LoRA's `id` in the effective record.
    """
    sha256: str
    """
    The digest of the file, in hex.
    """
    factor: Factor | None = None
    """
    The scale that the file gives its changes; null if it is unknown.
    """


class AppliedLora(BaseModel):
    """
    A LoRA of the edit.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    path: str
    """
    The path or URL that the request named, without the secret parts of a URL.
    """
    network_multiplier: float
    """
    The strength.
    """
    of_tier: bool | None = None
    """
    Whether it is the tier's own LoRA, which no request named.
    """
    id: str
    """
    The identity of the file: another file under the same path has another.
    """
    receipt: Receipt | None
    """
    What the file's header says.
    """
    modules_of_a_whole_one: int
    """
    How many modules a LoRA of the whole transformer changes.
    """


class ControlImage(BaseModel):
    """
    A control image and how it is prepared.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    sha256: str
    """
    The digest of the file, in hex.
    """
    size: list[int]
    """
    Width and height of the decoded image.
    """
    exif_orientation: int | None
    """
    The EXIF orientation; null if the file has none.
    """
    conversions: list[str]
    """
    What was done to make it 8-bit RGB.
    """
    vision_encoder: VisionEncoder
    """
    The vision encoder's copies.
    """
    vae: list[Resize]
    """
    The resizes before the VAE, one after the other.
    """
    tokens: int
    """
    The image's tokens in the transformer.
    """


class ErrorDetail(BaseModel):
    """
    The wrapping of an error.
    """

    error: ErrorFacts
    """
    The error.
    """


class HistoryEntry(BaseModel):
    """
    One request of the history.
    """

    request_id: str
    """
    The id of the request.
    """
    tenant: str
    """
    The tenant whose key was sent; empty for an operator's.
    """
    model: str
    """
    The id of the model.
    """
    priority: str
    """
    The priority of the request.
    """
    status: Literal["in_queue", "in_progress", "succeeded", "failed", "canceled"]
    """
    Where the request stands.
    """
    created_at: AwareDatetime
    """
    When the request was accepted.
    """
    started_at: AwareDatetime | None
    """
    When an editor first started an image; null before that.
    """
    finished_at: AwareDatetime | None
    """
    When the request ended; null before that.
    """
    gpu_seconds: float
    """
    GPU seconds that the request has used.
    """
    images: int
    """
    All images of the request.
    """
    images_done: int
    """
    Finished images.
    """
    error: str | None
    """
    Why the request failed, in words; null unless it failed.
    """
    error_code: str | None
    """
    Why it failed, as a code: of the first prompt that failed.
    """
    error_details: FailureDetails | None
    """
    The facts of `error_code`; `prompt_index` says which prompt failed.
    """


class ImageLora(BaseModel):
    """
    A LoRA of a call.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    path: str
    """
    Relative to the LoRA root, or an http(s) URL of a .safetensors file.
    """
    network_multiplier: float | None = None
    """
    Its strength. Default: 1.0.
    """
    scale: float | None = None
    """
    Another name of `network_multiplier`.
    """
    transformer: str | None = None
    """
    For models with two transformers only.
    """


class ImagesEdit(BaseModel):
    """
    The body of `POST /v1/images/edits`, as JSON.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    prompt: str
    """
    What to make. `[trigger]` in it is replaced by the trigger word.
    """
    model: str | None = None
    """
    The id of a model, or the name of a preset.
    """
    preset: str | None = None
    """
    The name of a preset, where `model` does not name it.
    """
    n: int | None = None
    """
    How many images to make, with seeds s, s + 1 and so on. Default: 1.
    """
    size: str | None = None
    """
    `WxH` in pixels, each from 64 to 4096 and floored to the model's divisor. `auto`, the default: the preset's, or else the first image's aspect at about 1 MP.
    """
    quality: str | None = None
    """
    `auto`, `high`, `standard` and `hd` are exact. `medium` is balanced and `low` is fast, where the service has them.
    """
    output_format: str | None = None
    """
    Default: the preset's, or else `png`.
    """
    output_compression: int | None = None
    """
    Ignored: JPEG has quality 95.
    """
    response_format: str | None = None
    """
    Whether the answer holds each image, or its address. Default: "b64_json".
    """
    stream: bool | None = None
    """
    Answer with server-sent events. Default: false.
    """
    partial_images: int | None = None
    """
    How many previews of each image a stream brings. Default: 0.
    """
    background: str | None = None
    """
    Ignored: images are opaque.
    """
    user: str | None = None
    """
    Ignored.
    """
    safety_identifier: str | None = None
    """
    Ignored.
    """
    moderation: str | None = None
    """
    Ignored.
    """
    input_fidelity: str | None = None
    """
    Ignored.
    """
    style: str | None = None
    """
    Ignored.
    """
    loras: list[ImageLora] | None = None
    """
    The LoRAs, instead of a preset's. In a form: this list as JSON.
    """
    num_inference_steps: int | None = None
    """
    Denoising steps.
    """
    steps: int | None = None
    """
    Another name of `num_inference_steps`.
    """
    sample_steps: int | None = None
    """
    Another name of `num_inference_steps`.
    """
    guidance_scale: float | None = None
    """
    How strongly the prompt is followed.
    """
    true_cfg_scale: float | None = None
    """
    Another name of `guidance_scale`.
    """
    negative_prompt: str | None = None
    """
    Used only if `guidance_scale` is above 1.
    """
    neg: str | None = None
    """
    Another name of `negative_prompt`.
    """
    seed: int | None = None
    """
    Default: 42. -1: drawn by the service.
    """
    sampler: str | None = None
    """
    As in `/v1/inference`.
    """
    trigger_word: str | None = None
    """
    As in `/v1/inference`.
    """
    profile: str | None = None
    """
    As in `/v1/inference`.
    """
    priority: str | None = None
    """
    As in `/v1/inference`.
    """
    deadline_s: float | None = None
    """
    As in `/v1/inference`.
    """
    exif: str | None = None
    """
    As in `/v1/inference`.
    """
    vae_tiling: bool | None = None
    """
    As in `/v1/inference`.
    """
    hf_token: str | None = None
    """
    As in `/v1/inference`; never stored.
    """
    image: list[str] | None = None
    """
    The images to edit: URLs, `data:` URLs or base64. In a form: the files.
    """
    images: list[ImageReference] | None = None
    """
    The images to edit.
    """
    mask: str | None = None
    """
    Not supported.
    """


class ImagesGeneration(BaseModel):
    """
    The body of `POST /v1/images/generations`.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    prompt: str
    """
    What to make. `[trigger]` in it is replaced by the trigger word.
    """
    model: str | None = None
    """
    The id of a model, or the name of a preset.
    """
    preset: str | None = None
    """
    The name of a preset, where `model` does not name it.
    """
    n: int | None = None
    """
    How many images to make, with seeds s, s + 1 and so on. Default: 1.
    """
    size: str | None = None
    """
    `WxH` in pixels, each from 64 to 4096 and floored to the model's divisor. `auto`, the default: the preset's, or else the first image's aspect at about 1 MP.
    """
    quality: str | None = None
    """
    `auto`, `high`, `standard` and `hd` are exact. `medium` is balanced and `low` is fast, where the service has them.
    """
    output_format: str | None = None
    """
    Default: the preset's, or else `png`.
    """
    output_compression: int | None = None
    """
    Ignored: JPEG has quality 95.
    """
    response_format: str | None = None
    """
    Whether the answer holds each image, or its address. Default: "b64_json".
    """
    stream: bool | None = None
    """
    Answer with server-sent events. Default: false.
    """
    partial_images: int | None = None
    """
    How many previews of each image a stream brings. Default: 0.
    """
    background: str | None = None
    """
    Ignored: images are opaque.
    """
    user: str | None = None
    """
    Ignored.
    """
    safety_identifier: str | None = None
    """
    Ignored.
    """
    moderation: str | None = None
    """
    Ignored.
    """
    input_fidelity: str | None = None
    """
    Ignored.
    """
    style: str | None = None
    """
    Ignored.
    """
    loras: list[ImageLora] | None = None
    """
    The LoRAs, instead of a preset's. In a form: this list as JSON.
    """
    num_inference_steps: int | None = None
    """
    Denoising steps.
    """
    steps: int | None = None
    """
    Another name of `num_inference_steps`.
    """
    sample_steps: int | None = None
    """
    Another name of `num_inference_steps`.
    """
    guidance_scale: float | None = None
    """
    How strongly the prompt is followed.
    """
    true_cfg_scale: float | None = None
    """
    Another name of `guidance_scale`.
    """
    negative_prompt: str | None = None
    """
    Used only if `guidance_scale` is above 1.
    """
    neg: str | None = None
    """
    Another name of `negative_prompt`.
    """
    seed: int | None = None
    """
    Default: 42. -1: drawn by the service.
    """
    sampler: str | None = None
    """
    As in `/v1/inference`.
    """
    trigger_word: str | None = None
    """
    As in `/v1/inference`.
    """
    profile: str | None = None
    """
    As in `/v1/inference`.
    """
    priority: str | None = None
    """
    As in `/v1/inference`.
    """
    deadline_s: float | None = None
    """
    As in `/v1/inference`.
    """
    exif: str | None = None
    """
    As in `/v1/inference`.
    """
    vae_tiling: bool | None = None
    """
    As in `/v1/inference`.
    """
    hf_token: str | None = None
    """
    As in `/v1/inference`; never stored.
    """


class ImagesUsage(BaseModel):
    """
    What was computed, in tokens of the model's transformer. Nothing is charged by it.
    """

    input_tokens: int
    """
    Tokens of the prompt and of the images to edit, for all images made.
    """
    input_tokens_details: InputTokens
    """
    The same by kind.
    """
    output_tokens: int
    """
    Tokens of the images that were made.
    """
    total_tokens: int
    """
    The sum of both.
    """


class Lora(BaseModel):
    """
    A LoRA and its strength.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    path: str
    """
    Relative to the LoRA root, or an http(s) URL of a .safetensors file.
    """
    network_multiplier: float | None = None
    """
    The strength; 0 has no effect. Default: 1.0.
    """
    transformer: str | None = None
    """
    For models with two transformers only.
    """


class LoraInfo(BaseModel):
    """
    One file under the LoRA root.
    """

    path: str
    """
    The path below the LoRA root, as requests name the file.
    """
    fits: list[str]
    """
    The served models that it can be applied to.
    """
    receipt: Receipt | None
    """
    What the file's header says; null if it fits no served model.
    """
    problem: str | None
    """
    Why it fits none of the served models; null if it fits one.
    """


class LoraList(BaseModel):
    """
    A page of the files under the LoRA root.
    """

    loras: list[LoraInfo]
    """
    The files, by path.
    """
    next_cursor: str | None
    """
    Send it as `cursor` for the next page; null on the last one.
    """


class MeasuredLoss(BaseModel):
    """
    What a tier changes compared with `exact`, as it was measured.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    psnr_db: MeasuredRange
    """
    The peak signal-to-noise ratio (dB); higher is closer to exact.
    """
    ssim: MeasuredRange
    """
    The structural similarity, 1 for equal images; higher is closer to exact.
    """
    latents: float | None
    """
    The relative error of the final latents of the worst image; null if it was not measured.
    """
    lpips: MeasuredRange | None
    """
    The perceptual distance; lower is closer to exact; null if it was not measured.
    """
    exact_s: float
    """
    Median seconds of an exact edit.
    """
    tier_s: float
    """
    Median seconds of the tier's edit of the same image.
    """
    cases: int
    """
    How many images were compared.
    """
    measured_at: AwareDatetime
    """
    When it was measured.
    """
    on: str
    """
    On which LoRAs, prompts and control images, and which steps and guidance the exact images had.
    """


class ModelInfo(BaseModel):
    """
    A model that this service serves.
    """

    id: str
    """
    The id, as requests name the model.
    """
    base_model: str
    """
    The checkpoint on the hub.
    """
    resolution_divisor: int
    """
    Width and height are rounded down to a multiple of it.
    """
    default_steps: int
    """
    The steps of a prompt that names none.
    """
    default_guidance_scale: float
    """
    The guidance scale of a prompt that names none.
    """
    requires_control_image: bool
    """
    Whether a prompt needs a control image.
    """
    is_video_model: bool
    """
    Always false.
    """
    default_num_frames: int | None
    """
    Always null: no model makes videos.
    """
    default_fps: int | None
    """
    Always null: no model makes videos.
    """
    max_control_images: int
    """
    How many control images a prompt may have; 0: it uses none.
    """
    max_loras: int
    """
    How many LoRAs a request may have.
    """
    requires_lora: bool
    """
    Whether a request needs a LoRA.
    """
    qualities: list[str]
    """
    What `quality` of a request may be, the most exact first. Empty: the model has lossy options of its own, and requests leave `quality` out.
    """
    tiers: list[TierInfo]
    """
    What each quality other than `exact` does.
    """


class ModelList(BaseModel):
    """
    The models in two shapes: `models` as in the reference server, `object` and `data` as in OpenAI's API.
    """

    models: list[ModelInfo]
    """
    The models, in the order of the config.
    """
    object: Literal["list"]
    """
    Always list.
    """
    data: list[OpenAiModel]
    """
    The served models, then the usable presets of the caller.
    """


class OpenAIErrorBody(BaseModel):
    """
    An error in the shape that OpenAI's clients read.
    """

    error: OpenAIErrorFacts
    """
    The error.
    """


class OperationStatus(BaseModel):
    """
    How the service is doing, as far as the caller may know.
    """

    version: str
    """
    The version of the service.
    """
    models: list[ModelOperation]
    """
    The models, in the order of the config.
    """
    waiting: int
    """
    Images in the queues of all models, of requests that the caller may see.
    """
    working: int
    """
    Images that editors work on, of requests that the caller may see.
    """
    recent_errors: list[RecentError]
    """
    The newest requests of the last day that failed, of those that the caller may see; empty if it sees no history.
    """
    sees_history: bool
    """
    Whether the caller may read the history.
    """
    links: OperationLinks
    """
    Where to read on.
    """


class OurImage(BaseModel):
    """
    This service's image of a pair.
    """

    request_id: str
    """
    The id of the request that makes it.
    """
    status: Literal["in_queue", "in_progress", "succeeded", "failed", "canceled"]
    """
    Where this request stands.
    """
    url: str | None
    """
    Where a client downloads the image; null until it is finished.
    """
    error: str | None
    """
    Why the request failed, in words; null unless it failed.
    """
    error_code: str | None
    """
    Why it failed, as a code: of the first prompt that failed.
    """


class Pair(BaseModel):
    """
    The trainer's image of a sample, and this service's.
    """

    sample: int
    """
    The number of the sample, from 0.
    """
    theirs: TheirImage | None
    """
    The trainer's image; null if there is none of this step.
    """
    ours: OurImage
    """
    This service's image.
    """
    comparison: PairComparison | None
    """
    How far they are apart; null until both are there.
    """
    problem: str | None
    """
    Why they cannot be compared, in words.
    """
    facts: list[FactInfo]
    """
    What there is to know when they are compared.
    """


class PresetInfo(BaseModel):
    """
    A preset. A field that it does not set is null: the request's own value or the service's default applies.
    """

    name: str
    """
    What a request's `preset` says.
    """
    model: str
    """
    The id of the model.
    """
    loras: list[PresetLora]
    """
    The LoRAs, unless a request sends `loras`.
    """
    sample_steps: int | None
    """
    1 to 150, for each prompt.
    """
    guidance_scale: float | None
    """
    0 to 20, for each prompt.
    """
    neg: str | None
    """
    The negative prompt, for each prompt.
    """
    size: str | None
    """
    `input`, or width and height as `1024x768`, for each prompt.
    """
    trigger_word: str | None
    """
    What `[trigger]` in a prompt is replaced by.
    """
    profile: str | None
    """
    Whose preparation of images and prompts is followed.
    """
    output_format: str | None
    """
    The file format of the images.
    """
    quality: str | None
    """
    How exactly the model's own pixels are made.
    """
    max_loss: PresetMaxLoss | None
    """
    The largest loss that the quality may have; with a larger one the images are `exact`.
    """
    problem: PresetProblem | None
    """
    Why it cannot be used at the moment; null if it can.
    """


class PresetList(BaseModel):
    """
    The presets of the caller.
    """

    presets: list[PresetInfo]
    """
    The presets that the caller may use, by name.
    """


class PreviewsRequest(BaseModel):
    """
    Which previews to make again.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    step: int
    """
    The training step. 0 is the model without a LoRA.
    """
    samples: list[int] | None = None
    """
    The numbers of the samples. Default: all.
    """
    control_images: dict[str, str] | None = None
    """
    Control images that are not below the LoRA root: by the trainer's path or file name, each as in a request, such as upload: and the id of an upload. Default: none.
    """
    priority: str | None = None
    """
    The priority of the requests. Default: "bulk".
    """


class PreviewsStatus(BaseModel):
    """
    Previews that were made again, next to the trainer's own.
    """

    id: str
    """
    The id of these previews.
    """
    training_job: str
    """
    The path of the job's folder below the LoRA root.
    """
    step: int
    """
    The training step.
    """
    status: Literal["in_queue", "in_progress", "succeeded", "failed", "canceled"]
    """
    Where the requests stand, all together.
    """
    pairs: list[Pair]
    """
    One pair for each sample that is made again.
    """
    not_redone: list[NotRedone]
    """
    The job's samples that no service can make again.
    """
    summary: str
    """
    What came out, in words.
    """


class Prompt(BaseModel):
    """
    One image to be made.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    prompt: str
    """
    The instruction. `[trigger]` in it is replaced by the trigger word.
    """
    trigger_word: str | None = None
    """
    Used instead of the request's, unless it is empty. Default: the request's.
    """
    width: int | None = None
    """
    Pixels; floored to the model's divisor. Default: the preset's, or 1024.
    """
    height: int | None = None
    """
    Pixels; floored to the model's divisor. Default: the preset's, or 1024.
    """
    size: str | None = None
    """
    Instead of width and height: `input` is the aspect of the first control image at about 1 MP, `1024x768` is width and height in pixels. Default: the preset's.
    """
    guidance_scale: float | None = None
    """
    How strongly the prompt is followed; at 1 or less the negative prompt has no effect. Default: the preset's, or the model's `default_guidance_scale`.
    """
    sample_steps: int | None = None
    """
    Denoising steps. Default: the preset's, or the model's `default_steps`.
    """
    neg: str | None = None
    """
    The negative prompt, used only if guidance_scale is above 1. Default: the preset's, or empty.
    """
    seed: int | None = None
    """
    -1: drawn by the service. Default: 42 + the prompt's index.
    """
    sampler: str | None = None
    """
    flowmatch, or lightning for adapters distilled to few steps; others are ignored. Default: flowmatch.
    """
    num_frames: int | None = None
    """
    Ignored: no model makes videos.
    """
    fps: int | None = None
    """
    Ignored: no model makes videos.
    """
    resolution: str | None = None
    """
    Of video models. `High` is refused.
    """
    ctrl_img: str | None = None
    """
    A URL (starts with http), base64, a data: URL, part: and the name of a part of the same body, upload: and the id of an upload, or sha256: and the hex digest of a control image that an earlier request of the same tenant sent and that is still stored. It is not used if a numbered control image is sent.
    """
    ctrl_img_1: str | None = None
    """
    The first control image, as in `ctrl_img`.
    """
    ctrl_img_2: str | None = None
    """
    The second control image, as in `ctrl_img`.
    """
    ctrl_img_3: str | None = None
    """
    The third control image, as in `ctrl_img`.
    """


class RequestStatus(BaseModel):
    """
    The status and progress of a request.
    """

    request_id: str
    """
    The id of the request.
    """
    status: Literal["in_queue", "in_progress", "succeeded", "failed", "canceled"]
    """
    Where the request stands.
    """
    created_at: AwareDatetime
    """
    When the request was accepted.
    """
    started_at: AwareDatetime | None
    """
    When an editor first started an image; null before that.
    """
    finished_at: AwareDatetime | None
    """
    When the request ended; null before that.
    """
    error: str | None
    """
    Why the request failed, in words; null unless it failed.
    """
    error_code: str | None
    """
    Why it failed, as a code: of the first prompt that failed.
    """
    error_details: FailureDetails | None
    """
    The facts of `error_code`; `prompt_index` says which prompt failed.
    """
    progress: Progress
    """
    How far the request is.
    """
    queue_position: int | None
    """
    How many images are ahead of this request's first waiting image; null if none of its images waits.
    """
    eta_s: float | None
    """
    Predicted seconds until the request ends, from measured edits and the queue, never 0; null once it has ended, and before the first edit of its model was measured.
    """
    finished_images: list[FinishedImage]
    """
    The first 50 images that can be downloaded, also before the request has ended.
    """
    preview_url: str | None
    """
    Where the step preview of the first image is that an editor makes; null if there is none. With API keys it has a token, as the `url` of an image.
    """


class RuntimeRecord(BaseModel):
    """
    What only the editor knows of an edit. It is empty until the image is finished.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    device: str | None = None
    """
    The name of the GPU, or `cpu`.
    """
    peak_memory_gib: float | None = None
    """
    The most GPU memory that was allocated; null on a CPU.
    """
    dtype: str | None = None
    """
    The data type of the transformer's computations.
    """
    threads: int | None = None
    """
    CPU threads.
    """
    adapter_weights: str | None = None
    """
    Where the untouched copy of the weights is.
    """
    offload: str | None = None
    """
    Where the weights are: `none` (on the device) or `stream` (in host memory).
    """
    placement: str | None = None
    """
    Why they are there, with the memory that was free at the start.
    """
    transformers: int | None = None
    """
    How many devices have a copy of the transformer.
    """
    attention: str | None = None
    """
    The attention kernel.
    """
    compile: str | None = None
    """
    The setting `compile` of the model.
    """
    quantization: str | None = None
    """
    The setting `quantization` of the model.
    """
    feature_cache: float | None = None
    """
    The setting `feature_cache` of the model.
    """
    recompilations: int | None = None
    """
    How often a compiled part was compiled again since the editor's start.
    """
    adapters: list[AdapterFile] | None = None
    """
    The LoRAs' files, in the request's order.
    """
    versions: dict[str, str] | None = None
    """
    Versions of libraries, by name.
    """
    reused: Reused | None = None
    """
    What was computed for earlier edits.
    """


class SweepList(BaseModel):
    """
    A page of sweeps.
    """

    sweeps: list[SweepSummary]
    """
    Newest first.
    """
    next_cursor: str | None
    """
    Send it as `cursor` for the next page; null on the last one.
    """


class TrainingJobEntry(BaseModel):
    """
    A training job in the list of all.
    """

    name: str
    """
    The path of the job's folder below the LoRA root.
    """
    url: str
    """
    Where the whole job is.
    """
    model: str | None
    """
    The id of the model that it trains; null if it is none of the family.
    """
    base: str | None
    """
    The checkpoint that the training config names.
    """
    is_served: bool
    """
    Whether this service serves that model.
    """
    trigger_word: str | None
    """
    The trigger word of the training config.
    """
    trainer_version: str | None
    """
    The version of ai-toolkit that wrote the newest file.
    """
    profile: str
    """
    The profile of that version, which makes the trainer's own pixels.
    """
    checkpoints: list[WeightsFile]
    """
    The checkpoints, by step.
    """
    final: WeightsFile | None
    """
    The file that the trainer writes at the end.
    """
    sample_steps: list[int]
    """
    The steps that have sample images, also without their checkpoint.
    """
    problem: str | None
    """
    Why the samples cannot be read from the training config, in words.
    """


class TrainingJobList(BaseModel):
    """
    A page of training jobs, by name.
    """

    training_jobs: list[TrainingJobEntry]
    """
    The jobs of this page.
    """
    next_cursor: str | None
    """
    Send it as `cursor` for the next page; null on the last one.
    """


class CalibrationInfo(BaseModel):
    """
    What was measured of one tier for one set of LoRAs.
    """

    model: str
    """
    The id of the model.
    """
    tier: str
    """
    The tier.
    """
    loras: list[CalibratedLora]
    """
    The LoRAs; empty for the model without one.
    """
    is_current: bool
    """
    Whether the tier and the checkpoint are still what they were. If not, the figures hold no more, and requests count as not calibrated.
    """
    loss: MeasuredLoss
    speedup: float
    """
    How many times as fast as exact.
    """
    measured_at: AwareDatetime
    """
    When it was measured.
    """
    settings: dict[str, str | int | float]
    """
    What the tier was, by the keys of `models[].tiers`.
    """
    checkpoint: str
    """
    The checkpoint that it was measured on.
    """
    set: str
    """
    Where the prompts and control images came from.
    """
    sizes: list[str]
    """
    The sizes of the images in pixels, `WxH`.
    """
    steps: list[int]
    """
    The denoising steps of the exact images.
    """
    guidance_scales: list[float]
    """
    The guidance scales of the exact images; empty if an earlier version measured it without them.
    """
    how: str
    """
    By the command on one machine, or through the service's queue.
    """


class CalibrationList(BaseModel):
    """
    What is measured, and what is being measured.
    """

    calibrations: list[CalibrationInfo]
    """
    The measured losses, the newest first.
    """
    runs: list[CalibrationRunInfo]
    """
    Calibrations that go through the queue: those under way, then the newest of those that have ended.
    """


class CalibrationRequest(BaseModel):
    """
    What to measure.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    model: str
    """
    An id from `/v1/models`.
    """
    tiers: list[str] | None = None
    """
    The tiers to measure. Default: all of the model.
    """
    loras: list[list[Lora]] | None = None
    """
    Sets of LoRAs, each of which is measured on its own. Default: none.
    """
    base: bool | None = None
    """
    Whether the model without LoRAs is measured, too. Default: true.
    """
    prompts: list[Prompt] | None = None
    """
    The prompts and control images to measure on. Default: none.
    """
    training_job: str | None = None
    """
    The name of a training job, whose samples are measured on instead of `prompts`.
    """


class CompletedImage(BaseModel):
    """
    A finished image.
    """

    created_at: int
    """
    When the event was sent, in seconds since the epoch.
    """
    index: int
    """
    The number of the image, from 0.
    """
    background: Literal["opaque"]
    """
    Images are opaque.
    """
    size: str
    """
    The size of the finished image in pixels, `WxH`.
    """
    quality: str
    """
    The quality of the finished image.
    """
    output_format: str
    """
    The file format of `b64_json`.
    """
    b64_json: str
    """
    The file, in base64.
    """
    type: Literal["image_edit.completed", "image_generation.completed"]
    """
    The name of the event.
    """
    seed: int
    """
    The seed of this image.
    """
    usage: ImagesUsage
    """
    What was computed for this image.
    """
    tier: str
    """
    The service's own name of `quality`: `exact`, the name of a tier, or `lossy`.
    """
    loss: MeasuredLoss | None
    """
    What was measured of the tier for these LoRAs; null for `exact`, and if nobody has measured it.
    """


class ErrorBody(BaseModel):
    """
    An error. The reference server nests it under `detail`; so do we.
    """

    detail: ErrorDetail
    """
    The error.
    """


class History(BaseModel):
    """
    A page of the history.
    """

    requests: list[HistoryEntry]
    """
    Requests, newest first.
    """
    next_cursor: str | None
    """
    Send it as `cursor` for the next page; null on the last one.
    """


class ImagesAnswer(BaseModel):
    """
    The answer to a call.
    """

    created: int
    """
    When the images were finished, in seconds since the epoch.
    """
    background: Literal["opaque"]
    """
    Images are opaque.
    """
    output_format: str
    """
    The file format of the images.
    """
    quality: str
    """
    What was done: `high` is exact, `medium` balanced, `low` fast or turbo. With a model that has lossy options of its own it is `medium`.
    """
    size: str
    """
    The size of the first image in pixels, `WxH`.
    """
    usage: ImagesUsage
    """
    What was computed.
    """
    tier: str
    """
    The service's own name of `quality`: `exact`, the name of a tier, or `lossy`.
    """
    loss: MeasuredLoss | None
    """
    What was measured of the tier for these LoRAs; null for `exact`, and if nobody has measured it.
    """
    request_id: str
    """
    The id of the request.
    """
    ignored: list[str]
    """
    Fields that were sent and have no effect.
    """
    notes: list[str]
    """
    What the sender may not have meant.
    """
    data: list[ImageData]
    """
    The images.
    """


class InferenceRequest(BaseModel):
    """
    A request for one image per prompt.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    preset: str | None = None
    """
    A name from `/v1/presets`, which sets the fields that the request does not send.
    """
    model: str | None = None
    """
    An id from `/v1/models`. Required without a preset.
    """
    loras: list[Lora] | None = None
    """
    Required without a preset, whose LoRAs the list replaces.
    """
    prompts: list[Prompt]
    """
    Each makes one image.
    """
    trigger_word: str | None = None
    """
    Replaces [trigger] in every prompt. `auto`: the word that a LoRA's file names. Default: the preset's.
    """
    hf_token: str | None = None
    """
    Used for the downloads of this request; never stored.
    """
    profile: str | None = None
    """
    Whose preparation of images and prompts is followed. Default: the preset's, or the service's.
    """
    quality: str | None = None
    """
    How exactly the model's own pixels are made: `exact`, or a tier that `/v1/models` lists for the model, which is faster. Default: the preset's, or exact.
    """
    max_loss: MaxLoss | None = None
    """
    Make the images `exact`, and say so, if the loss of the tier that `quality` names is larger than this or was not measured for these LoRAs. Default: the preset's, or none: then a tier that was not measured is refused.
    """
    output_format: str | None = None
    """
    Lossless: png, webp. Lossy: jpeg (quality 95). Default: the preset's, or jpeg.
    """
    vae_tiling: bool | None = None
    """
    The VAE works in tiles, as the trainer's low-memory setting has it. Default: false.
    """
    exif: str | None = None
    """
    Whether control images are rotated by their EXIF orientation. Default: "ignore".
    """
    deadline_s: float | None = None
    """
    The request must end within so many seconds. Default: the service's.
    """
    priority: str | None = None
    """
    While interactive images wait, one image in five is of a bulk request. Default: "interactive".
    """
    webhook_url: str | None = None
    """
    A URL that the service posts the request's events to.
    """
    webhook_events: list[str] | None = None
    """
    Which events are posted to webhook_url. Default: ["succeeded", "failed", "canceled"].
    """


class SampleInfo(BaseModel):
    """
    The settings of one sample, by the trainer's rules.
    """

    sample: int
    """
    The number of the sample, from 0.
    """
    prompt: str
    """
    The prompt, with the trigger word and without flags.
    """
    body: InferenceRequest | None
    """
    The body of `POST /v1/inference` that makes this image with the newest file of weights. Control images that were not found are left out. Null if the sample cannot be made again.
    """
    control_images: list[SampleControlImage]
    """
    Its control images, in the order of the request.
    """
    problem: str | None
    """
    Why it cannot be made again, in words.
    """
    facts: list[FactInfo]
    """
    What there is to know when it is compared.
    """


class StoredEffectiveRecord(BaseModel):
    """
    The EffectiveRecord of an image of a request. It is empty until the image is finished.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    model: str | None = None
    """
    The id of the model.
    """
    base_model: str | None = None
    """
    The model's checkpoint on the hub.
    """
    preset: str | None = None
    """
    The preset that the request named.
    """
    profile: str | None = None
    """
    Whose preparation of images and prompts is followed.
    """
    prompt: str | None = None
    """
    The prompt, with the trigger word filled in.
    """
    neg: str | None = None
    """
    The negative prompt.
    """
    width: int | None = None
    """
    The image's width in pixels.
    """
    height: int | None = None
    """
    The image's height in pixels.
    """
    sample_steps: int | None = None
    """
    The number of denoising steps.
    """
    guidance_scale: float | None = None
    """
    The guidance scale.
    """
    seed: int | None = None
    """
    The seed, also where the service drew it.
    """
    sampler: str | None = None
    """
    The name of the noise schedule.
    """
    output_format: str | None = None
    """
    The image's file format.
    """
    exif: str | None = None
    """
    `apply` if control images are rotated by their EXIF orientation, else `ignore`.
    """
    vae_tiling: bool | None = None
    """
    Whether the VAE works in tiles.
    """
    quantization: str | None = None
    """
    The format of the transformer's weights: `none` is that of the checkpoint.
    """
    feature_cache: float | None = None
    """
    The change of the first block's output below which a step skips the other blocks; null: never.
    """
    quality: str | None = None
    """
    `exact`, the name of a tier, or `lossy`: the model has options that change all of its images.
    """
    loss: MeasuredLoss | None = None
    """
    What was measured of the tier for these LoRAs; null for `exact`, and if nobody has measured it.
    """
    why: dict[str, str] | None = None
    """
    Where values come from, in words, by field.
    """
    request: InferenceRequest | None = None
    """
    The body of a request for this one image, with every value that decides its pixels. Its control images are named by their digest.
    """
    guidance: Guidance | None = None
    """
    How the guidance scale is applied.
    """
    forwards: int | None = None
    """
    Forward passes of the transformer.
    """
    scheduler: Scheduler | None = None
    noise: Noise | None = None
    text_encoder: TextEncoder | None = None
    control_images: list[ControlImage] | None = None
    """
    The control images, in order.
    """
    loras: list[AppliedLora] | None = None
    """
    The LoRAs: that of the tier, then the request's in their order.
    """
    loras_applied: str | None = None
    """
    How the LoRAs change the weights, in words.
    """
    tokens: Tokens | None = None
    transformer_flops_estimated: int | None = None
    """
    Floating-point operations of all forward passes.
    """


class Sweep(BaseModel):
    """
    A sweep with its cells.
    """

    sweep_id: str
    """
    The id of the sweep.
    """
    tenant: str
    """
    The tenant whose key was sent; empty for an operator's.
    """
    model: str
    """
    The id of the model.
    """
    status: Literal["in_queue", "in_progress", "succeeded", "failed", "canceled"]
    """
    in_queue until the first cell starts; after the last cell failed if a cell has failed, else canceled if one was cancelled, else succeeded.
    """
    created_at: AwareDatetime
    """
    When the sweep was accepted.
    """
    cells: int
    """
    The number of cells, which is the number of images.
    """
    counts: CellCounts
    purged: bool
    """
    Whether its images were deleted by `purge`.
    """
    status_url: str
    """
    Where the whole sweep is.
    """
    axes: SweepValues
    """
    The values of all axes.
    """
    base: InferenceRequest
    """
    The body of the request that the cells vary, without secrets.
    """
    notes: list[str]
    """
    What the sender may not have meant.
    """
    ignored: list[str]
    """
    Fields that were sent and have no effect for this model.
    """
    grid: list[SweepCell]
    """
    The cells, in the order in which they are made.
    """


class SweepRequest(BaseModel):
    """
    A sweep: one request for each combination of the axes' values.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    base: InferenceRequest
    """
    A body of `POST /v1/inference` with one prompt. The priority is always bulk, and images are PNG unless it says otherwise.
    """
    axes: SweepAxes
    """
    What the sweep varies.
    """
    max_cells: int | None = None
    """
    The sweep is refused if it has more cells. Default: the service's limit.
    """
    dry_run: bool | None = None
    """
    Check everything and count the cells, but start nothing. Default: false.
    """


class TrainingJobInfo(BaseModel):
    """
    A training job: its files, its sample images, and the settings of its samples.
    """

    name: str
    """
    The path of the job's folder below the LoRA root.
    """
    url: str
    """
    Where the whole job is.
    """
    model: str | None
    """
    The id of the model that it trains; null if it is none of the family.
    """
    base: str | None
    """
    The checkpoint that the training config names.
    """
    is_served: bool
    """
    Whether this service serves that model.
    """
    trigger_word: str | None
    """
    The trigger word of the training config.
    """
    trainer_version: str | None
    """
    The version of ai-toolkit that wrote the newest file.
    """
    profile: str
    """
    The profile of that version, which makes the trainer's own pixels.
    """
    checkpoints: list[WeightsFile]
    """
    The checkpoints, by step.
    """
    final: WeightsFile | None
    """
    The file that the trainer writes at the end.
    """
    sample_steps: list[int]
    """
    The steps that have sample images, also without their checkpoint.
    """
    problem: str | None
    """
    Why the samples cannot be read from the training config, in words.
    """
    sample_images: list[SampleImageInfo]
    """
    The newest image of each step and sample.
    """
    samples: list[SampleInfo]
    """
    The settings of the samples, by number.
    """


class EffectiveRecord(BaseModel):
    """
    Every value that decides an image, and what follows from it.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    model: str
    """
    The id of the model.
    """
    base_model: str
    """
    The model's checkpoint on the hub.
    """
    preset: str | None = None
    """
    The preset that the request named.
    """
    profile: str
    """
    Whose preparation of images and prompts is followed.
    """
    prompt: str
    """
    The prompt, with the trigger word filled in.
    """
    neg: str
    """
    The negative prompt.
    """
    width: int
    """
    The image's width in pixels.
    """
    height: int
    """
    The image's height in pixels.
    """
    sample_steps: int
    """
    The number of denoising steps.
    """
    guidance_scale: float
    """
    The guidance scale.
    """
    seed: int
    """
    The seed, also where the service drew it.
    """
    sampler: str | None = None
    """
    The name of the noise schedule.
    """
    output_format: str
    """
    The image's file format.
    """
    exif: str
    """
    `apply` if control images are rotated by their EXIF orientation, else `ignore`.
    """
    vae_tiling: bool
    """
    Whether the VAE works in tiles.
    """
    quantization: str
    """
    The format of the transformer's weights: `none` is that of the checkpoint.
    """
    feature_cache: float | None
    """
    The change of the first block's output below which a step skips the other blocks; null: never.
    """
    quality: str | None = None
    """
    `exact`, the name of a tier, or `lossy`: the model has options that change all of its images.
    """
    loss: MeasuredLoss | None = None
    """
    What was measured of the tier for these LoRAs; null for `exact`, and if nobody has measured it.
    """
    why: dict[str, str]
    """
    Where values come from, in words, by field.
    """
    request: InferenceRequest | None = None
    """
    The body of a request for this one image, with every value that decides its pixels. Its control images are named by their digest.
    """
    guidance: Guidance
    """
    How the guidance scale is applied.
    """
    forwards: int
    """
    Forward passes of the transformer.
    """
    scheduler: Scheduler
    noise: Noise
    text_encoder: TextEncoder
    control_images: list[ControlImage]
    """
    The control images, in order.
    """
    loras: list[AppliedLora]
    """
    The LoRAs: that of the tier, then the request's in their order.
    """
    loras_applied: str
    """
    How the LoRAs change the weights, in words.
    """
    tokens: Tokens
    transformer_flops_estimated: int
    """
    Floating-point operations of all forward passes.
    """


class Explanation(BaseModel):
    """
    What a request would do. `effective` has one record per prompt, the same as a result's `metadata.effective`.
    """

    model: str
    """
    The id of the model.
    """
    effective: list[EffectiveRecord]
    """
    Every value that decides each image, in prompt order.
    """
    ignored: list[str]
    """
    Fields that were sent and have no effect for this model.
    """
    notes: list[str]
    """
    What the sender may not have meant.
    """


class Metadata(BaseModel):
    """
    What is known of a request besides its images. Its lists have one entry per prompt.
    """

    model_config = ConfigDict(
        extra="allow",
    )
    model: str
    """
    The id of the model.
    """
    inference_time: float | None
    """
    Seconds from the start of the first image to the end of the request; null before the end.
    """
    timings: Timings
    gpu_seconds: float
    """
    GPU seconds that the request has used, lost attempts included.
    """
    effective: list[StoredEffectiveRecord]
    """
    Every value that decided each image.
    """
    runtime: list[RuntimeRecord]
    """
    What only the editor knows of each edit.
    """
    attempts_lost: list[list[str]]
    """
    How each lost attempt at each image ended.
    """
    control_images: list[ControlImageLink] | None = None
    """
    The request's control images, each once, in the order in which the prompts name them; absent if they were deleted by `purge`.
    """
    partial: list[NumberedImage] | None = None
    """
    The finished images of a request that failed or was canceled.
    """
    purged: bool | None = None
    """
    True if the images were deleted by `purge`.
    """
    ignored: list[str] | None = None
    """
    Fields that were sent and have no effect for this model.
    """
    notes: list[str] | None = None
    """
    What the sender may not have meant.
    """


class RequestResult(BaseModel):
    """
    The result of a request.
    """

    request_id: str
    """
    The id of the request.
    """
    status: Literal["in_queue", "in_progress", "succeeded", "failed", "canceled"]
    """
    Where the request stands.
    """
    outputs: Outputs | None
    """
    The images; null until the request has succeeded, and once purged.
    """
    error: str | None
    """
    Why the request failed, in words; null unless it failed.
    """
    error_code: str | None
    """
    Why it failed, as a code: of the first prompt that failed.
    """
    error_details: FailureDetails | None
    """
    The facts of `error_code`; `prompt_index` says which prompt failed.
    """
    created_at: AwareDatetime
    """
    When the request was accepted.
    """
    finished_at: AwareDatetime | None
    """
    When the request ended; null before that.
    """
    metadata: Metadata
    """
    What else is known of the request.
    """


class EndWebhook(BaseModel):
    """
    A request has ended.
    """

    type: Literal["request.succeeded", "request.failed", "request.canceled"]
    """
    What happened.
    """
    timestamp: AwareDatetime
    """
    When it happened.
    """
    data: RequestResult
    """
    The result.
    """
