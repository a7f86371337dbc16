"""What clients get: the bodies of answers. The records in them are in `records`."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, PlainSerializer

from serve_app import tasks
from serve_app.schemas.documented import Answer, DescribedBy, Record, absent
from serve_app.schemas.records import EffectiveJson, Receipt, RuntimeJson, StoredEffectiveJson
from serve_app.schemas.requests import QualityTier
from serve_app.tasks import ImageStage, Priority, Status
from serve_app.telemetry.start_progress import StartState

REQUEST_ID = "0f8fad5bd9cb469fa16570867728950e"
UPLOAD_ID = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
CREATED, STARTED, FINISHED = (f"2026-11-23T09:00:0{second}.250000Z" for second in (0, 1, 9))
# How many finished images a status lists: it is polled often.
MAX_FINISHED_IMAGES = 50
URL = f"http://127.0.0.1:8000/v1/requests/{REQUEST_ID}"


def _from_epoch(value: Any) -> Any:
    return datetime.fromtimestamp(value, UTC) if isinstance(value, float) else value


def _iso_utc(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


# Seconds since the epoch in, ISO 8601 in UTC with one Z out.
Moment = Annotated[datetime, BeforeValidator(_from_epoch), PlainSerializer(_iso_utc, return_type=str)]


class FailureDetails(Record):
    """The facts of a failure. Which ones there are depends on its code."""

    prompt_index: int = Field(default_factory=absent, description="The number of the prompt that failed, from 0.")


RequestId = Annotated[str, Field(description="The id of the request.")]
ModelId = Annotated[str, Field(description="The id of the model.")]
CreatedAt = Annotated[Moment, Field(description="When the request was accepted.")]
StartedAt = Annotated[Moment | None, Field(description="When an editor first started an image; null before that.")]
FinishedAt = Annotated[Moment | None, Field(description="When the request ended; null before that.")]
StatusNow = Annotated[Status, Field(description="Where the request stands.")]
ErrorText = Annotated[str | None, Field(description="Why the request failed, in words; null unless it failed.")]
# Null unless the request failed, and for requests that failed before the service recorded codes.
ErrorCode = Annotated[str | None, Field(description="Why it failed, as a code: of the first prompt that failed.")]
ErrorDetails = Annotated[
    Annotated[dict[str, Any], DescribedBy(FailureDetails)] | None,
    Field(description="The facts of `error_code`; `prompt_index` says which prompt failed."),
]
ImageUrl = Annotated[
    str,
    Field(
        description="Where a client downloads the image. With API keys it has a token, so that it needs no key for an "
        "hour or more (`auth.url_lifetime_s`)."
    ),
]
NextCursor = Annotated[str | None, Field(description="Send it as `cursor` for the next page; null on the last one.")]

# One enum, not a union: clients that are generated from unions of texts and enums read only the first kind.
SubmittedStatus = Literal["queued", "in_queue", "in_progress", "succeeded", "failed", "canceled"]


class Submitted(Answer):
    """An accepted request."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "request_id": REQUEST_ID,
                    "status": "queued",
                    "status_url": f"{URL}/status",
                    "result_url": f"{URL}/result",
                    "created_at": CREATED,
                }
            ]
        }
    )

    request_id: RequestId
    status: SubmittedStatus = Field(
        description="queued; or, when an Idempotency-Key repeats a request, where that request stands."
    )
    status_url: str = Field(description="Where to poll the request's status.")
    result_url: str = Field(description="Where the result is.")
    created_at: CreatedAt


class Upload(Answer):
    """A stored image that requests can name."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": UPLOAD_ID,
                    "sha256": UPLOAD_ID,
                    "width": 4000,
                    "height": 3000,
                    "format": "jpeg",
                    "notes": [
                        "the image has EXIF orientation 6, which is ignored as the trainer does; send exif: apply in "
                        "the request to have it turned"
                    ],
                    "expires_at": "2026-11-24T09:00:00.250000Z",
                }
            ]
        }
    )

    id: str = Field(description="What requests name after `upload:`.")
    sha256: str = Field(description="The digest (hex) of the file; the same as the id.")
    width: int = Field(description="Pixels, as the file has them: before an EXIF rotation.")
    height: int = Field(description="Pixels, as the file has them: before an EXIF rotation.")
    format: str = Field(description="The format of the file, such as jpeg or png, whatever its sender called it.")
    notes: list[str] = Field(description="Sentences about what the sender may not have meant.")
    expires_at: Moment = Field(
        description="The upload may be used until then, and after that for as long as a stored request of the tenant "
        "refers to it."
    )


class Progress(Answer):
    """How far a request is: images, the denoising steps of all images, and the current stage.

    Steps are not all of the work: after the last step, images are still decoded and stored.
    """

    images_done: int = Field(description="Finished images.")
    images: int = Field(description="All images of the request.")
    steps_done: int = Field(description="Denoising steps that are done, of all images.")
    steps: int = Field(description="Denoising steps of all images.")
    stage: ImageStage | None = Field(
        description="The stage of the first image that an editor works on; null if there is none."
    )


class FinishedImage(Answer):
    """An image that can be downloaded."""

    image: int = Field(description="The number of the image, from 0, in prompt order.")
    url: ImageUrl


class RequestStatus(Answer):
    """The status and progress of a request."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "request_id": REQUEST_ID,
                    "status": "in_progress",
                    "created_at": CREATED,
                    "started_at": STARTED,
                    "finished_at": None,
                    "error": None,
                    "error_code": None,
                    "error_details": None,
                    "progress": {"images_done": 0, "images": 1, "steps_done": 7, "steps": 25, "stage": "denoising"},
                    "queue_position": None,
                    "eta_s": 6.3,
                    "finished_images": [],
                    "preview_url": f"{URL}/images/0/preview",
                }
            ]
        }
    )

    request_id: RequestId
    status: StatusNow
    created_at: CreatedAt
    started_at: StartedAt
    finished_at: FinishedAt
    error: ErrorText
    error_code: ErrorCode
    error_details: ErrorDetails
    progress: Progress = Field(description="How far the request is.")
    queue_position: int | None = Field(
        description="How many images are ahead of this request's first waiting image; null if none of its images waits."
    )
    eta_s: float | None = Field(
        description="Predicted seconds until the request ends, from measured edits and the queue, never 0; null once "
        "it has ended, and before the first edit of its model was measured."
    )
    finished_images: list[FinishedImage] = Field(
        description=f"The first {MAX_FINISHED_IMAGES} images that can be downloaded, also before the request has ended."
    )
    preview_url: str | None = Field(
        description="Where the step preview of the first image is that an editor makes; null if there is none. With "
        "API keys it has a token, as the `url` of an image."
    )


class ImageOutput(Answer):
    """A finished image."""

    format: str = Field(description="The file format.")
    width: int = Field(description="The width in pixels.")
    height: int = Field(description="The height in pixels.")
    file_path: str = Field(
        description="Where artifacts are local and there are no API keys, the local path; without keys but in a "
        "remote store, the artifact's URL; with API keys, the same as `url`."
    )
    seed: int = Field(description="The seed, also where the service drew it.")
    url: ImageUrl


class NumberedImage(ImageOutput):
    """A finished image of a request."""

    image: int = Field(description="The number of the image, from 0, in prompt order.")


class Outputs(Answer):
    """The images of a request that has succeeded."""

    images: list[ImageOutput] = Field(description="One image per prompt, in prompt order.")
    videos: list[Any] = Field([], description="Always empty: no model makes videos.")


class Timings(Record):
    """How long the parts of the edits took."""

    prompts: list[dict[str, float]] = Field(
        description="Seconds by stage, for each prompt; empty until its image is finished. `generate` is the whole "
        "edit, `load_control_images` and `save` are reading and storing."
    )


class ControlImageLink(Record):
    """A stored control image of a request."""

    sha256: str = Field(description="The digest (hex) of its file; `sha256:` and this name it in another request.")
    url: ImageUrl


class Metadata(Record):
    """What is known of a request besides its images. Its lists have one entry per prompt."""

    model: ModelId
    inference_time: float | None = Field(
        description="Seconds from the start of the first image to the end of the request; null before the end."
    )
    timings: Timings = Field(description="How long the parts of the edits took.")
    gpu_seconds: float = Field(description="GPU seconds that the request has used, lost attempts included.")
    effective: list[StoredEffectiveJson] = Field(description="Every value that decided each image.")
    runtime: list[RuntimeJson] = Field(description="What only the editor knows of each edit.")
    attempts_lost: list[list[str]] = Field(description="How each lost attempt at each image ended.")
    control_images: list[Annotated[dict[str, Any], DescribedBy(ControlImageLink)]] = Field(
        default_factory=absent,
        description="The request's control images, each once, in the order in which the prompts name them; absent if "
        "they were deleted by `purge`.",
    )
    partial: list[Annotated[dict[str, Any], DescribedBy(NumberedImage)]] = Field(
        default_factory=absent, description="The finished images of a request that failed or was canceled."
    )
    purged: bool = Field(default_factory=absent, description="True if the images were deleted by `purge`.")
    ignored: list[str] = Field(
        default_factory=absent, description="Fields that were sent and have no effect for this model."
    )
    notes: list[str] = Field(default_factory=absent, description="What the sender may not have meant.")


class RequestResult(Answer):
    """The result of a request."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "request_id": REQUEST_ID,
                    "status": "succeeded",
                    "outputs": {
                        "images": [
                            {
                                "format": "jpeg",
                                "width": 1024,
                                "height": 1024,
                                "file_path": f"/srv/artifacts/pictures/{'0' * 64}.jpeg",
                                "seed": 42,
                                "url": f"{URL}/images/0",
                            }
                        ],
                        "videos": [],
                    },
                    "error": None,
                    "error_code": None,
                    "error_details": None,
                    "created_at": CREATED,
                    "finished_at": FINISHED,
                    "metadata": {
                        "model": "qwen_image_edit",
                        "inference_time": 8.0,
                        "timings": {"prompts": [{"generate": 7.8, "load_control_images": 0.02, "save": 0.05}]},
                        "gpu_seconds": 7.8,
                        "effective": [{"model": "qwen_image_edit", "width": 1024, "height": 1024, "seed": 42}],
                        "runtime": [{"device": "NVIDIA H200", "dtype": "bfloat16"}],
                        "attempts_lost": [[]],
                    },
                }
            ]
        }
    )

    request_id: RequestId
    status: StatusNow
    outputs: Outputs | None = Field(description="The images; null until the request has succeeded, and once purged.")
    error: ErrorText
    error_code: ErrorCode
    error_details: ErrorDetails
    created_at: CreatedAt
    finished_at: FinishedAt
    metadata: Annotated[dict[str, Any], DescribedBy(Metadata)] = Field(description="What else is known of the request.")


class Explanation(Answer):
    """What a request would do. `effective` has one record per prompt, the same as a result's `metadata.effective`."""

    model: ModelId
    effective: list[EffectiveJson] = Field(description="Every value that decides each image, in prompt order.")
    ignored: list[str] = Field(description="Fields that were sent and have no effect for this model.")
    notes: list[str] = Field(description="What the sender may not have meant.")


class HistoryEntry(Answer):
    """One request of the history."""

    request_id: RequestId
    tenant: str = Field(description="The tenant whose key was sent; empty for an operator's.")
    model: ModelId
    priority: Priority = Field(description="The priority of the request.")
    status: StatusNow
    created_at: CreatedAt
    started_at: StartedAt
    finished_at: FinishedAt
    gpu_seconds: float = Field(description="GPU seconds that the request has used.")
    images: int = Field(description="All images of the request.")
    images_done: int = Field(description="Finished images.")
    error: ErrorText
    error_code: ErrorCode
    error_details: ErrorDetails


class History(Answer):
    """A page of the history."""

    requests: list[HistoryEntry] = Field(description="Requests, newest first.")
    next_cursor: NextCursor


class TenantUsage(Answer):
    """What a tenant has used since the database was created."""

    tenant: str = Field(description="The tenant; empty for operators.")
    gpu_seconds: float = Field(description="GPU seconds.")
    images: int = Field(description="Finished images.")


class UsageList(Answer):
    """The usage of tenants."""

    usage: list[TenantUsage] = Field(description="The key's tenant; for an operator's key all tenants.")


class TierInfo(Answer):
    """A tier of a model: what it does, and the fields of a prompt that it sets."""

    quality: QualityTier = Field(description="What `quality` of a request names.")
    sample_steps: int | None = Field(description="Its denoising steps; null: the prompt's.")
    guidance_scale: float | None = Field(description="Its guidance scale; null: the prompt's.")
    sampler: str | None = Field(description="Its sampler; null: the prompt's.")
    quantization: str = Field(description="The format of the transformer's weights: `none` is that of the checkpoint.")
    feature_cache: float | None = Field(
        description="The change of the first block's output below which a step skips the other blocks; null: never."
    )
    guidance_gate: float | None = Field(
        description="The share of the steps that compute the negative prompt's branch too; null: all."
    )
    needs_calibration: bool = Field(
        description="Whether requests are refused if nobody has measured the tier's loss for their LoRAs."
    )


class ModelInfo(Answer):
    """A model that this service serves."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "qwen_image_edit",
                    "base_model": "Qwen/Qwen-Image-Edit",
                    "resolution_divisor": 32,
                    "default_steps": 25,
                    "default_guidance_scale": 4.0,
                    "requires_control_image": True,
                    "is_video_model": False,
                    "default_num_frames": None,
                    "default_fps": None,
                    "max_control_images": 1,
                    "max_loras": 4,
                    "requires_lora": True,
                    "qualities": ["exact", "fast"],
                    "tiers": [
                        {
                            "quality": "fast",
                            "sample_steps": None,
                            "guidance_scale": None,
                            "sampler": None,
                            "quantization": "none",
                            "feature_cache": 0.12,
                            "guidance_gate": 0.5,
                            "needs_calibration": True,
                        }
                    ],
                }
            ]
        }
    )

    id: str = Field(description="The id, as requests name the model.")
    base_model: str = Field(description="The checkpoint on the hub.")
    resolution_divisor: int = Field(description="Width and height are rounded down to a multiple of it.")
    default_steps: int = Field(description="The steps of a prompt that names none.")
    default_guidance_scale: float = Field(description="The guidance scale of a prompt that names none.")
    requires_control_image: bool = Field(description="Whether a prompt needs a control image.")
    is_video_model: bool = Field(False, description="Always false.")
    default_num_frames: int | None = Field(None, description="Always null: no model makes videos.")
    default_fps: int | None = Field(None, description="Always null: no model makes videos.")
    max_control_images: int = Field(description="How many control images a prompt may have; 0: it uses none.")
    max_loras: int = Field(description="How many LoRAs a request may have.")
    requires_lora: bool = Field(description="Whether a request needs a LoRA.")
    qualities: list[QualityTier] = Field(
        description="What `quality` of a request may be, the most exact first. Empty: the model has lossy options of "
        "its own, and requests leave `quality` out."
    )
    tiers: list[TierInfo] = Field(description="What each quality other than `exact` does.")


class OpenAiModel(Answer):
    """A model, or a preset of the caller, as OpenAI's clients list them."""

    id: str = Field(description="What `model` may be in OpenAI's routes: the id of a model, or the name of a preset.")
    object: Literal["model"] = Field("model", description="Always model.")
    created: int = Field(description="Seconds since the epoch: the first release of this service, for every entry.")
    owned_by: str = Field(description="The organisation of a model's checkpoint; `presets` for a preset.")


class ModelList(Answer):
    """The models in two shapes: `models` as in the reference server, `object` and `data` as in OpenAI's API."""

    models: list[ModelInfo] = Field(description="The models, in the order of the config.")
    object: Literal["list"] = Field("list", description="Always list.")
    data: list[OpenAiModel] = Field(description="The served models, then the usable presets of the caller.")


class PresetLora(Answer):
    """A LoRA of a preset."""

    path: str = Field(description="Relative to the LoRA root, or a URL, without its secret parts.")
    network_multiplier: float = Field(description="The strength, -2 to 2.")


class PresetProblem(Answer):
    """Why a preset cannot be used at the moment."""

    code: str = Field(description="The error code of what is wrong.")
    message: str = Field(description="A sentence that says what is wrong.")


class PresetMaxLoss(Answer):
    """The largest loss of a tier that a preset accepts."""

    psnr_db: float | None = Field(None, description="The lowest PSNR (dB) of a measured image.")
    ssim: float | None = Field(None, description="The lowest SSIM of a measured image.")


class PresetInfo(Answer):
    """A preset. A field that it does not set is null: the request's own value or the service's default applies."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "house-style",
                    "model": "qwen_image_edit",
                    "loras": [{"path": "my_lora_job/my_lora.safetensors", "network_multiplier": 0.8}],
                    "sample_steps": 8,
                    "guidance_scale": 1.0,
                    "neg": None,
                    "size": "input",
                    "trigger_word": "sks",
                    "profile": None,
                    "output_format": "png",
                    "quality": "fast",
                    "max_loss": {"psnr_db": 35.0, "ssim": None},
                    "problem": None,
                }
            ]
        }
    )

    name: str = Field(description="What a request's `preset` says.")
    model: str = Field(description="The id of the model.")
    loras: list[PresetLora] = Field(description="The LoRAs, unless a request sends `loras`.")
    sample_steps: int | None = Field(None, description="1 to 150, for each prompt.")
    guidance_scale: float | None = Field(None, description="0 to 20, for each prompt.")
    neg: str | None = Field(None, description="The negative prompt, for each prompt.")
    size: str | None = Field(None, description="`input`, or width and height as `1024x768`, for each prompt.")
    trigger_word: str | None = Field(None, description="What `[trigger]` in a prompt is replaced by.")
    profile: str | None = Field(None, description="Whose preparation of images and prompts is followed.")
    output_format: str | None = Field(None, description="The file format of the images.")
    quality: str | None = Field(None, description="How exactly the model's own pixels are made.")
    max_loss: PresetMaxLoss | None = Field(
        None, description="The largest loss that the quality may have; with a larger one the images are `exact`."
    )
    problem: PresetProblem | None = Field(None, description="Why it cannot be used at the moment; null if it can.")


class PresetList(Answer):
    """The presets of the caller."""

    presets: list[PresetInfo] = Field(description="The presets that the caller may use, by name.")


class LoraInfo(Answer):
    """One file under the LoRA root."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "path": "my_lora_job/my_lora.safetensors",
                    "fits": ["qwen_image_edit"],
                    "problem": None,
                    "receipt": {
                        "kind": "lora",
                        "ranks": [32],
                        "dtype": "BF16",
                        "size_bytes": 590058784,
                        "modules": 840,
                        "top_level": [],
                        "ignored": [],
                        "trigger_word": "sks",
                        "trainer": "ai-toolkit",
                        "trainer_version": "0.12.26",
                        "step": 2000,
                        "factor": {"source": "none", "min": 1.0, "median": 1.0, "max": 1.0},
                        "notes": [],
                    },
                }
            ]
        }
    )

    path: str = Field(description="The path below the LoRA root, as requests name the file.")
    fits: list[str] = Field(description="The served models that it can be applied to.")
    receipt: Annotated[tasks.Receipt, DescribedBy(Receipt)] | None = Field(
        description="What the file's header says; null if it fits no served model."
    )
    problem: str | None = Field(description="Why it fits none of the served models; null if it fits one.")


class LoraList(Answer):
    """A page of the files under the LoRA root."""

    loras: list[LoraInfo] = Field(description="The files, by path.")
    next_cursor: NextCursor


class Health(Answer):
    """This process answers."""

    status: Literal["healthy"] = Field("healthy", description="Always healthy.")


class BrokenPreset(PresetProblem):
    """A preset that cannot be used at the moment, and why."""

    name: str = Field(description="The preset's name in the `user_config` of the ingress.")


class EditorStart(Answer):
    """How far the start of an editor is."""

    state: StartState = Field(
        description="`starting`: nothing is read yet. `downloading`: a remote checkpoint to the node's disk. "
        "`loading`: weights to where they are needed. `preparing`: they are there; the editor compiles and warms up."
    )
    bytes_read: int = Field(description="Bytes that it has read in this state, or before it, if it is `preparing`.")
    bytes: int = Field(description="Bytes that it has to read. 0: not known yet.")


class Readiness(Answer):
    """Whether every configured model has a running editor. Broken presets do not make the service unready."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "ready": False,
                    "waiting_for": ["qwen_image_edit"],
                    "editors": {
                        "qwen_image_edit": {"state": "loading", "bytes_read": 21474836480, "bytes": 57705037824}
                    },
                    "broken_presets": [
                        {
                            "name": "house-style",
                            "code": "LORA_NOT_FOUND",
                            "message": "there is no LoRA file 'my_lora_job/my_lora.safetensors' under the LoRA root",
                        }
                    ],
                }
            ]
        }
    )

    ready: bool = Field(description="Whether no model waits for an editor.")
    waiting_for: list[str] = Field(
        description="The models that have no running editor and are not scaled to zero; tiers with own editors "
        "likewise, as `<model id>-<tier>`."
    )
    broken_presets: list[BrokenPreset] = Field(
        description="The presets that requests cannot use at the moment, by name. Each ingress checks them by itself."
    )
    editors: dict[str, EditorStart] = Field(
        description="The progress of one starting editor of each name in `waiting_for`, if it reports one."
    )
