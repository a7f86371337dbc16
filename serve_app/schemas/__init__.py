"""The bodies of the HTTP contract. Lax on purpose: unknown fields are ignored and "512" is a number."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SecretStr,
    TypeAdapter,
)
from pydantic_core import PydanticCustomError

from serve_app.config import MAX_PROMPT_CHARS, ProfileName
from serve_app.images.output_formats import DEFAULT_OUTPUT_FORMAT, OutputFormatName, describe_output_formats
from serve_app.schemas.text import MAX_NAME_CHARS, Name, Nullable, Text, Url, check_image_url, check_token
from serve_app.tasks import ImageStage, Priority, Receipt, Status

MAX_SEED = 2**63 - 1
MAX_DEADLINE_S = 7 * 86400.0
# Entries of the two lists in one body. The configured limits are lower; these bound the work before they are compared.
MAX_PROMPTS, MAX_LORAS, MAX_EVENTS = 10_000, 100, 100
# Faults of a body's shape that an answer lists.
MAX_FAULTS = 20
WebhookEvent = Literal["started", "image", "succeeded", "failed", "canceled"]
DEFAULT_WEBHOOK_EVENTS: tuple[WebhookEvent, ...] = ("succeeded", "failed", "canceled")

SUBMIT_EXAMPLE: dict[str, Any] = {
    "model": "qwen_image_edit",
    "trigger_word": "sks",
    "prompts": [
        {
            "prompt": "[trigger] a photo of a person",
            "width": 1024,
            "height": 1024,
            "seed": 42,
            "sample_steps": 25,
            "guidance_scale": 4.0,
            "neg": "",
            "ctrl_img": "<base64_or_url>",
        }
    ],
    "loras": [{"path": "my_lora_job/my_lora.safetensors", "network_multiplier": 1.0}],
}
REQUEST_ID = "0f8fad5bd9cb469fa16570867728950e"
CREATED, STARTED, FINISHED = (f"2026-11-23T09:00:0{second}.250000Z" for second in (0, 1, 9))


def _from_epoch(value: Any) -> Any:
    return datetime.fromtimestamp(value, UTC) if isinstance(value, float) else value


def _iso_utc(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


# Seconds since the epoch in, ISO 8601 in UTC with one Z out.
Moment = Annotated[datetime, BeforeValidator(_from_epoch), PlainSerializer(_iso_utc, return_type=str)]


# Of a request that failed; null for those that failed before the service recorded codes.
ErrorCode = Annotated[str | None, Field(description="Why it failed, as a code: of the first prompt that failed.")]
ErrorDetails = Annotated[
    dict[str, Any] | None, Field(description="The facts of `error_code`; `prompt_index` says which prompt failed.")
]
# Text that the tokenizer reads. `max_prompt_chars` of the config is the limit with the trigger word filled in.
PromptText = Annotated[Text, Field(max_length=MAX_PROMPT_CHARS)]
ControlImageText = Annotated[Text, AfterValidator(check_image_url)]


class Tolerant(Nullable):
    """Takes fields that it does not know, as the contract has it, and remembers their names."""

    model_config = ConfigDict(extra="allow")


class Lora(Tolerant):
    path: Url = Field(description="Relative to the LoRA root, or an http(s) URL of a .safetensors file.")
    network_multiplier: float = Field(1.0, ge=-2.0, le=2.0)
    transformer: Literal["low", "high"] | None = Field(None, description="For models with two transformers only.")


class Prompt(Tolerant):
    prompt: PromptText
    trigger_word: PromptText | None = Field(None, description="Wins over the request's; an empty one does not.")
    width: int | None = Field(None, ge=64, le=4096, description="Pixels; floored to the model's divisor.")
    height: int | None = Field(None, ge=64, le=4096, description="Pixels; floored to the model's divisor.")
    guidance_scale: float | None = Field(None, ge=0, le=20)
    sample_steps: int | None = Field(None, ge=1, le=150)
    neg: PromptText | None = Field(None, description="Not used where guidance_scale is not above 1.")
    seed: int | None = Field(None, ge=-1, le=MAX_SEED, description="-1: drawn by the server. Default: 42 + index.")
    sampler: Name | None = Field(
        None,
        description="flowmatch (the default), or lightning for adapters distilled to few steps; others are ignored.",
    )
    num_frames: int | None = Field(None, ge=1, le=1000)
    fps: int | None = Field(None, ge=1, le=120)
    resolution: Literal["Default", "High"] | None = None
    ctrl_img: ControlImageText | None = Field(
        None,
        description="A URL (starts with http), base64, a data: URL, or sha256: and the hex digest of a control image "
        "that an earlier request of the same tenant sent and that is still stored.",
    )
    ctrl_img_1: ControlImageText | None = None
    ctrl_img_2: ControlImageText | None = None
    ctrl_img_3: ControlImageText | None = None

    @property
    def numbered_images(self) -> list[str]:
        """`ctrl_img_1..3`, those that are set."""
        return [image for image in (self.ctrl_img_1, self.ctrl_img_2, self.ctrl_img_3) if image]

    @property
    def control_images(self) -> list[str]:
        """The control images in order: `ctrl_img_1..3` if any is set, else `ctrl_img`."""
        return self.numbered_images or ([self.ctrl_img] if self.ctrl_img else [])


_FIRST_PROMPTS = TypeAdapter(list[Prompt])


def _check_prompts(prompts: Any) -> Any:
    """Count the prompts, then find all faults of the first ones. Of the others the first faulty one is enough."""
    if isinstance(prompts, list):
        if len(prompts) > MAX_PROMPTS:
            raise PydanticCustomError("too_long", "At most {most} prompts are accepted", {"most": MAX_PROMPTS})
        _FIRST_PROMPTS.validate_python(prompts[:MAX_FAULTS])
    return prompts


class InferenceRequest(Tolerant):
    model_config = ConfigDict(extra="allow", json_schema_extra={"examples": [SUBMIT_EXAMPLE]})

    model: Name
    loras: list[Lora] = Field(max_length=MAX_LORAS)
    prompts: Annotated[
        list[Prompt],
        Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True),
        BeforeValidator(_check_prompts),
    ]
    trigger_word: PromptText | None = Field(
        None, description="Replaces [trigger] in every prompt. `auto`: the word that a LoRA's file names."
    )
    hf_token: Annotated[SecretStr, AfterValidator(check_token)] | None = Field(
        None, max_length=MAX_NAME_CHARS, description="Used for this request's downloads; never stored."
    )
    profile: ProfileName | None = Field(None, description="Whose preparation is followed. Default: the service's.")
    output_format: OutputFormatName = Field(DEFAULT_OUTPUT_FORMAT, description=describe_output_formats())
    vae_tiling: bool = Field(False, description="The VAE works in tiles, as the trainer's low-memory setting has it.")
    exif: Literal["ignore", "apply"] = Field("ignore", description="Whether control images are turned as EXIF says.")
    deadline_s: float | None = Field(
        None, gt=0, le=MAX_DEADLINE_S, description="Seconds from now to its end at most. Default: the service's."
    )
    priority: Priority = Field(Priority.INTERACTIVE, description="bulk goes when no interactive one waits.")
    webhook_url: Url | None = Field(None, description="Where to post what becomes of it.")
    webhook_events: list[WebhookEvent] = Field(
        list(DEFAULT_WEBHOOK_EVENTS), max_length=MAX_EVENTS, description="Which events are posted to webhook_url."
    )


class Submitted(BaseModel):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "request_id": REQUEST_ID,
                    "status": "queued",
                    "status_url": f"http://127.0.0.1:8000/v1/requests/{REQUEST_ID}/status",
                    "result_url": f"http://127.0.0.1:8000/v1/requests/{REQUEST_ID}/result",
                    "created_at": CREATED,
                }
            ]
        }
    )

    request_id: str
    status: Literal["queued"] | Status = Field(
        description="queued; or, when an Idempotency-Key repeats a request, where that request stands."
    )
    status_url: str
    result_url: str
    created_at: Moment


class Progress(BaseModel):
    """How far a request is: images, denoising steps of all images, and what is being done now.

    Steps are not all of the work: when all are done, images are still decoded and stored.
    """

    images_done: int
    images: int
    steps_done: int
    steps: int
    stage: ImageStage | None = Field(
        description="What is being done for the first image that an editor has; null if none has one."
    )


class RequestStatus(BaseModel):
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
                }
            ]
        }
    )

    request_id: str
    status: Status
    created_at: Moment
    started_at: Moment | None
    finished_at: Moment | None
    error: str | None
    error_code: ErrorCode
    error_details: ErrorDetails
    progress: Progress
    queue_position: int | None = Field(
        description="How many images are ahead of this request's first that waits; null if none of its does."
    )
    eta_s: float | None = Field(
        description="Seconds until its end, as predicted from measured edits and the queue, never 0; null once it has "
        "ended, and before the first edit of its model was measured."
    )


class ImageOutput(BaseModel):
    format: str
    width: int
    height: int
    file_path: str = Field(
        description="Where artifacts are local and there are no API keys, the local path; without keys but in a "
        "remote store, the artifact's URL; with API keys, the same as `url`."
    )
    seed: int
    url: str = Field(description="Where a client downloads the image.")


class Outputs(BaseModel):
    images: list[ImageOutput]
    videos: list[Any] = []


class RequestResult(BaseModel):
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
                                "file_path": f"/srv/artifacts/results/{REQUEST_ID}/0.jpeg",
                                "seed": 42,
                                "url": f"http://127.0.0.1:8000/v1/requests/{REQUEST_ID}/images/0",
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
                    },
                }
            ]
        }
    )

    request_id: str
    status: Status
    outputs: Outputs | None
    error: str | None
    error_code: ErrorCode
    error_details: ErrorDetails
    created_at: Moment
    finished_at: Moment | None
    metadata: dict[str, Any]


class Explanation(BaseModel):
    """What would be done: `effective` has a record a prompt, the same as a result's `metadata.effective`."""

    model: str
    effective: list[dict[str, Any]]
    ignored: list[str] = Field(description="Fields that were sent and mean nothing for this model.")
    notes: list[str] = Field(description="What the sender may not have meant.")


class HistoryEntry(BaseModel):
    request_id: str
    tenant: str
    model: str
    priority: Priority
    status: Status
    created_at: Moment
    started_at: Moment | None
    finished_at: Moment | None
    gpu_seconds: float
    images: int
    images_done: int
    error: str | None
    error_code: ErrorCode
    error_details: ErrorDetails


class History(BaseModel):
    requests: list[HistoryEntry]
    next_cursor: str | None = Field(description="Send it as `cursor` for the next page; null on the last one.")


class TenantUsage(BaseModel):
    tenant: str
    gpu_seconds: float
    images: int


class UsageList(BaseModel):
    usage: list[TenantUsage]


class ModelInfo(BaseModel):
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
                }
            ]
        }
    )

    id: str
    base_model: str
    resolution_divisor: int
    default_steps: int
    default_guidance_scale: float
    requires_control_image: bool
    is_video_model: bool = False
    default_num_frames: int | None = None
    default_fps: int | None = None


class ModelList(BaseModel):
    models: list[ModelInfo]


class LoraInfo(BaseModel):
    """One file under the LoRA root. `problem` says why it fits none of the models that are served."""

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

    path: str
    fits: list[str] = Field(description="The served models that it can be applied to.")
    receipt: Receipt | None
    problem: str | None


class LoraList(BaseModel):
    loras: list[LoraInfo]
    next_cursor: str | None = Field(description="Send it as `cursor` for the next page; null on the last one.")


class Health(BaseModel):
    status: Literal["healthy"] = "healthy"


class Readiness(BaseModel):
    """Whether every configured model has a running replica; `waiting_for` names those that have none."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"ready": False, "waiting_for": ["qwen_image_edit"]}]})

    ready: bool
    waiting_for: list[str]


class ErrorFacts(BaseModel):
    code: str
    message: str
    details: dict[str, Any]


class ErrorDetail(BaseModel):
    error: ErrorFacts


class ErrorBody(BaseModel):
    """The reference server nests an error under `detail`; so do we."""

    detail: ErrorDetail


class ShapeError(BaseModel):
    """One thing that is wrong with the shape of a body."""

    type: str
    loc: list[str | int]
    msg: str


class ShapeErrors(BaseModel):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"detail": [{"type": "missing", "loc": ["body", "model"], "msg": "Field required"}]}]
        }
    )

    detail: list[ShapeError]
