"""The errors of the client.

EditsError
├── ConnectionFailed     no complete answer, after every retry
├── UnexpectedAnswer     an answer that this version cannot read: of a newer service, or of another one
├── WaitTimeout          a request has not ended in time; it goes on, and `job_id` names it
└── ApiError             the service says what is wrong: a subclass per code, with `details`
    ├── ...              a call was refused: ModelNotFound, LoraNotFound, QueueFull, ...
    ├── ValidationFailed the shape of a request is wrong (HTTP 422)
    └── EditFailed       an accepted request ended without its images: EditCanceled, OutOfMemory, ...

A code that this version does not know is an `ApiError`, or an `EditFailed` for a request that failed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar


class EditsError(Exception):
    """Any error of this package."""


class ConnectionFailed(EditsError):
    """The service could not be reached, or gave no complete answer in time."""


class UnexpectedAnswer(EditsError):
    """The answer is JSON that this version cannot read: the service is much newer, or it is another service."""


class WaitTimeout(EditsError, TimeoutError):
    """The request has not ended within the timeout. It goes on: `client.job(error.job_id)` continues."""

    def __init__(self, message: str, job_id: str) -> None:
        super().__init__(message)
        self.job_id = job_id


class ApiError(EditsError):
    """What the service says is wrong: a `code`, a sentence in `message`, and facts in `details`.

    `status` is the HTTP status and `call_id` the X-Request-ID of a call that was refused. `job_id` is the id of a
    request that was accepted and failed.
    """

    code: str = ""
    by_code: ClassVar[dict[str, type[ApiError]]] = {}

    def __init_subclass__(cls) -> None:
        if "code" in vars(cls):
            ApiError.by_code[cls.code] = cls

    def __init__(
        self,
        message: str,
        *,
        code: str = "",
        details: Mapping[str, Any] | None = None,
        status: int | None = None,
        call_id: str | None = None,
        job_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.code
        self.details = dict(details or {})
        self.status = status
        self.call_id = call_id
        self.job_id = job_id

    def __str__(self) -> str:
        return f"{self.message} ({self.code})" if self.code else self.message


class ValidationFailed(ApiError):
    """Fields are missing, of the wrong type or out of range. `details["faults"]` has pydantic's type, loc and msg."""

    code = "VALIDATION_FAILED"


class EditFailed(ApiError):
    """An accepted request ended without its images. `details["prompt_index"]` says which prompt failed."""

    code = "EDIT_FAILED"


class ModelNotFound(ApiError):
    """The service does not serve this model."""

    code = "MODEL_NOT_FOUND"


class PresetNotFound(ApiError):
    """There is no such preset, or the caller may not use it."""

    code = "PRESET_NOT_FOUND"


class PresetBroken(ApiError):
    """The preset cannot be used now; its operator has to mend it."""

    code = "PRESET_BROKEN"


class QualityUnavailable(ApiError):
    """The quality is not available for this request."""

    code = "QUALITY_UNAVAILABLE"


class LoraFileRequired(ApiError):
    """The service needs at least one LoRA per request."""

    code = "LORA_FILE_REQUIRED"


class MoeFormatNotSupported(ApiError):
    """`transformer` was set for a model with one transformer."""

    code = "MOE_FORMAT_NOT_SUPPORTED"


class SingleLoraOnly(ApiError):
    """The service takes one LoRA per request."""

    code = "SINGLE_LORA_ONLY"


class TooManyLoras(ApiError):
    """More LoRAs than the service takes."""

    code = "TOO_MANY_LORAS"


class LoraPathForbidden(ApiError):
    """The path is absolute or leaves the LoRA root."""

    code = "LORA_PATH_FORBIDDEN"


class LoraNotFound(ApiError):
    """There is no such LoRA file."""

    code = "LORA_NOT_FOUND"


class LoraInvalidFile(ApiError):
    """The file is not a usable adapter."""

    code = "LORA_INVALID_FILE"


class LoraIncompatible(ApiError):
    """The adapter is for another model."""

    code = "LORA_INCOMPATIBLE"


class LoraDownloadFailed(ApiError):
    """The adapter could not be downloaded."""

    code = "LORA_DOWNLOAD_FAILED"


class LoraChanged(ApiError):
    """The adapter's file changed while the request waited."""

    code = "LORA_CHANGED"


class ControlImageRequired(ApiError):
    """An edit model needs a control image."""

    code = "CONTROL_IMAGE_REQUIRED"


class TooManyControlImages(ApiError):
    """More control images than the model takes."""

    code = "TOO_MANY_CONTROL_IMAGES"


class ControlImageInvalid(ApiError):
    """A control image cannot be used."""

    code = "CONTROL_IMAGE_INVALID"


class InvalidParameter(ApiError):
    """A value is well formed and cannot be served."""

    code = "INVALID_PARAMETER"


class BodyInvalid(ApiError):
    """A form of several parts cannot be read."""

    code = "BODY_INVALID"


class BodyTooLarge(ApiError):
    """The body is larger than the service accepts."""

    code = "BODY_TOO_LARGE"


class UploadQuotaExceeded(ApiError):
    """The tenant's uploads take all of its storage."""

    code = "UPLOAD_QUOTA_EXCEEDED"


class UploadNotFound(ApiError):
    """There is no such upload, it has expired, or it belongs to another tenant."""

    code = "UPLOAD_NOT_FOUND"


class TrainingJobNotFound(ApiError):
    """There is no such training job below the LoRA root."""

    code = "TRAINING_JOB_NOT_FOUND"


class SweepNotFound(ApiError):
    """There is no such sweep, it was deleted, or it belongs to another tenant."""

    code = "SWEEP_NOT_FOUND"


class SweepCanceled(ApiError):
    """A cancelled sweep cannot be extended: resume it first."""

    code = "SWEEP_CANCELED"


class SweepPurged(ApiError):
    """The images of this sweep were deleted for good, so it cannot go on."""

    code = "SWEEP_PURGED"


class SampleNotFound(ApiError):
    """The training job has no such sample image, or it is still being written."""

    code = "SAMPLE_NOT_FOUND"


class PreviewsNotFound(ApiError):
    """There are no such previews of the training job, or they belong to another tenant."""

    code = "PREVIEWS_NOT_FOUND"


class PreviewsImpossible(ApiError):
    """No sample of the training job can be made again as asked."""

    code = "PREVIEWS_IMPOSSIBLE"


class RequestTooSlow(ApiError):
    """The body arrived too slowly."""

    code = "REQUEST_TIMEOUT"


class HeadersTooLarge(ApiError):
    """The headers are larger than the service accepts."""

    code = "HEADERS_TOO_LARGE"


class HostNotAllowed(ApiError):
    """The service does not answer under this host name."""

    code = "HOST_NOT_ALLOWED"


class NotFound(ApiError):
    """There is no such route."""

    code = "NOT_FOUND"


class MethodNotAllowed(ApiError):
    """The route does not take this method."""

    code = "METHOD_NOT_ALLOWED"


class RequestNotFound(ApiError):
    """There is no such request, or it belongs to another tenant."""

    code = "REQUEST_NOT_FOUND"


class ImageNotFound(ApiError):
    """The image does not exist or is not finished."""

    code = "IMAGE_NOT_FOUND"


class PreviewNotReady(ApiError):
    """There is no step preview yet."""

    code = "PREVIEW_NOT_READY"


class Unauthorized(ApiError):
    """The service needs an API key."""

    code = "UNAUTHORIZED"


class InsufficientScope(ApiError):
    """The API key is not good for this call: `details` has the scope that it needs."""

    code = "INSUFFICIENT_SCOPE"


class HistoryUnavailable(ApiError):
    """Without API keys there is no history."""

    code = "HISTORY_UNAVAILABLE"


class RequestCanceled(ApiError):
    """The request was cancelled while an OpenAI client waited for it."""

    code = "REQUEST_CANCELED"


class IdempotencyConflict(ApiError):
    """The idempotency key was used for another body."""

    code = "IDEMPOTENCY_CONFLICT"


class QueueFull(ApiError):
    """Too many images wait; try again later."""

    code = "QUEUE_FULL"


class TooManyRequests(ApiError):
    """Too many calls; try again later."""

    code = "TOO_MANY_REQUESTS"


class StorageQuotaExceeded(ApiError):
    """The tenant's requests that are kept have as many bytes as they may have; delete some."""

    code = "STORAGE_QUOTA_EXCEEDED"


class RateLimited(ApiError):
    """The tenant has made too many calls within a minute."""

    code = "RATE_LIMITED"


class TooManyUnfinished(ApiError):
    """Too many requests of the tenant have not ended."""

    code = "TOO_MANY_UNFINISHED"


class GpuQuotaExceeded(ApiError):
    """The tenant's GPU seconds of this UTC day are used, or promised to requests that wait."""

    code = "GPU_QUOTA_EXCEEDED"


class SweepQuotaExceeded(ApiError):
    """The tenant's cells of sweeps of this UTC day are used."""

    code = "SWEEP_QUOTA_EXCEEDED"


class ServiceUnavailable(ApiError):
    """The service starts or stops; try again."""

    code = "SERVICE_UNAVAILABLE"


class NoAnswer(ApiError):
    """The service took too long to answer."""

    code = "NO_ANSWER"


class StoreUnavailable(ApiError):
    """The job database cannot be reached; try again."""

    code = "STORE_UNAVAILABLE"


class StorageFailed(ApiError):
    """Artifact storage does not work now; try again."""

    code = "STORAGE_FAILED"


class Overloaded(ApiError):
    """The service is overloaded; try again."""

    code = "OVERLOADED"


class InternalError(ApiError):
    """A fault of the service; its log says more."""

    code = "INTERNAL_ERROR"


class EditCanceled(EditFailed):
    """The request was canceled."""

    code = "EDIT_CANCELED"


class DeadlineExceeded(EditFailed):
    """The request's deadline passed."""

    code = "DEADLINE_EXCEEDED"


class OutOfMemory(EditFailed):
    """The edit does not fit on the device."""

    code = "OUT_OF_MEMORY"


class UnusableResult(EditFailed):
    """The image is not finite, or all of one color."""

    code = "UNUSABLE_RESULT"


class DeviceLost(EditFailed):
    """The device failed in every attempt."""

    code = "DEVICE_LOST"


class EditorLost(EditFailed):
    """The editor went away in every attempt."""

    code = "EDITOR_LOST"


class EditorUnavailable(EditFailed):
    """No editor took the edit."""

    code = "EDITOR_UNAVAILABLE"
