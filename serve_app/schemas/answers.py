"""What clients get: the bodies of answers. The records in them are in `records`."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, PlainSerializer

from serve_app.schemas.documented import Answer, DescribedBy, Record, absent
from serve_app.schemas.records import EffectiveJson, RuntimeJson, StoredEffectiveJson
from serve_app.tasks import ImageStage, Priority, Status

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
