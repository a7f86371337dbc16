"""What clients get: the bodies of answers."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from serve_app.tasks import ImageStage, Priority, Receipt, Status

REQUEST_ID = "0f8fad5bd9cb469fa16570867728950e"
UPLOAD_ID = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
CREATED, STARTED, FINISHED = (f"2026-11-23T09:00:0{second}.250000Z" for second in (0, 1, 9))


def _from_epoch(value: Any) -> Any:
    return datetime.fromtimestamp(value, UTC) if isinstance(value, float) else value


def _iso_utc(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


# Seconds since the epoch in, ISO 8601 in UTC with one Z out.
Moment = Annotated[datetime, BeforeValidator(_from_epoch), PlainSerializer(_iso_utc, return_type=str)]


# Null unless the request failed, and for requests that failed before the service recorded codes.
ErrorCode = Annotated[str | None, Field(description="Why it failed, as a code: of the first prompt that failed.")]
ErrorDetails = Annotated[
    dict[str, Any] | None, Field(description="The facts of `error_code`; `prompt_index` says which prompt failed.")
]


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


class Upload(BaseModel):
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


class Progress(BaseModel):
    """How far a request is: images, the denoising steps of all images, and the current stage.

    Steps are not all of the work: after the last step, images are still decoded and stored.
    """

    images_done: int
    images: int
    steps_done: int
    steps: int
    stage: ImageStage | None = Field(
        description="The stage of the first image that an editor works on; null if there is none."
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
        description="How many images are ahead of this request's first waiting image; null if none of its images waits."
    )
    eta_s: float | None = Field(
        description="Predicted seconds until the request ends, from measured edits and the queue, never 0; null once "
        "it has ended, and before the first edit of its model was measured."
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
                                "file_path": f"/srv/artifacts/pictures/{'0' * 64}.jpeg",
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
    """What a request would do. `effective` has one record per prompt, the same as a result's `metadata.effective`."""

    model: str
    effective: list[dict[str, Any]]
    ignored: list[str] = Field(description="Fields that were sent and have no effect for this model.")
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
    """One file under the LoRA root. `problem` says why it fits none of the served models."""

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
