"""Every error that this service raises on purpose, and the one place that decides what a client sees.

ServiceError
├── RequestError                    the request cannot be served as it stands (status 400 unless said)
│   ├── PresetNotFound              PRESET_NOT_FOUND
│   ├── PresetBroken                PRESET_BROKEN
│   ├── ModelNotFound               MODEL_NOT_FOUND
│   ├── LoraFileRequired            LORA_FILE_REQUIRED
│   ├── MoeFormatNotSupported       MOE_FORMAT_NOT_SUPPORTED
│   ├── SingleLoraOnly              SINGLE_LORA_ONLY
│   ├── TooManyLoras                TOO_MANY_LORAS
│   ├── LoraPathForbidden           LORA_PATH_FORBIDDEN
│   ├── LoraNotFound                LORA_NOT_FOUND
│   │   └── LoraUnknown             LORA_NOT_FOUND, 404
│   ├── ControlImageRequired        CONTROL_IMAGE_REQUIRED
│   ├── TooManyControlImages        TOO_MANY_CONTROL_IMAGES
│   ├── ControlImageInvalid         CONTROL_IMAGE_INVALID
│   ├── InvalidParameter            INVALID_PARAMETER
│   ├── QualityUnavailable          QUALITY_UNAVAILABLE
│   ├── LoraInvalidFile             LORA_INVALID_FILE
│   │   └── LoraCutOff              LORA_INVALID_FILE: the end of the file is missing
│   ├── LoraIncompatible            LORA_INCOMPATIBLE
│   ├── LoraDownloadFailed          LORA_DOWNLOAD_FAILED
│   ├── LoraChanged                 LORA_CHANGED
│   ├── BodyInvalid                 BODY_INVALID: a form of several parts that cannot be read, or lacks a part
│   ├── BodyTooLarge                BODY_TOO_LARGE, 413
│   ├── RequestTooSlow              REQUEST_TIMEOUT, 408
│   ├── HostNotAllowed              HOST_NOT_ALLOWED
│   ├── NotFound                    NOT_FOUND, 404
│   ├── MethodNotAllowed            METHOD_NOT_ALLOWED, 405
│   ├── Unauthorized                UNAUTHORIZED, 401
│   ├── InsufficientScope           INSUFFICIENT_SCOPE, 403
│   ├── HistoryUnavailable          HISTORY_UNAVAILABLE, 403
│   ├── RequestNotFound             REQUEST_NOT_FOUND, 404
│   ├── ImageNotFound               IMAGE_NOT_FOUND, 404
│   ├── PreviewNotReady             PREVIEW_NOT_READY, 404
│   ├── UploadNotFound              UPLOAD_NOT_FOUND, 404
│   ├── TrainingJobNotFound         TRAINING_JOB_NOT_FOUND, 404
│   ├── SweepNotFound               SWEEP_NOT_FOUND, 404
│   ├── SweepCanceled               SWEEP_CANCELED, 409: a sweep that is to be extended was cancelled
│   ├── SweepPurged                 SWEEP_PURGED, 409: the images of a sweep that is to go on were deleted for good
│   ├── SampleNotFound              SAMPLE_NOT_FOUND, 404
│   ├── PreviewsNotFound            PREVIEWS_NOT_FOUND, 404
│   ├── PreviewsImpossible          PREVIEWS_IMPOSSIBLE
│   ├── IdempotencyConflict         IDEMPOTENCY_CONFLICT, 409
│   ├── UploadQuotaExceeded         UPLOAD_QUOTA_EXCEEDED, 409
│   ├── StorageQuotaExceeded        STORAGE_QUOTA_EXCEEDED, 409
│   ├── RequestCanceled             REQUEST_CANCELED, 409: for a client that waits for the result
│   ├── HeadersTooLarge             HEADERS_TOO_LARGE, 431
│   ├── TooManyRequests             TOO_MANY_REQUESTS, 429
│   ├── RateLimited                 RATE_LIMITED, 429
│   ├── TooManyUnfinished           TOO_MANY_UNFINISHED, 429
│   ├── GpuQuotaExceeded            GPU_QUOTA_EXCEEDED, 429
│   ├── SweepQuotaExceeded          SWEEP_QUOTA_EXCEEDED, 429
│   └── QueueFull                   QUEUE_FULL, 429
├── EditError                       an accepted edit could not be finished (status 500)
│   ├── EditCanceled                told to stop
│   ├── DeadlineExceeded            its request's deadline passed
│   ├── OutOfMemory                 this edit does not fit on the device
│   ├── UnusableResult              the image is not finite, or all of one colour
│   ├── DeviceLost                  retryable: the device's context is dead, the replica is replaced
│   ├── EditorLost                  retryable: the replica or its node was lost during the edit
│   └── EditorUnavailable           retryable, does not count as an attempt: no editor took the edit
├── ServiceUnavailable              the service starts, stops or has no free process (status 503)
├── NoAnswer                        the service took too long to answer (status 504)
├── StoreUnavailable                the job database cannot be reached (status 503)
├── StoreFailed                     the job database refused a statement; trying again would not help (status 500)
├── Overloaded                      retryable: a request waited too long for memory, connections or threads (status 503)
├── FetchFailed                     a download failed; carries the reason only
├── StorageFailed                   retryable: artifact storage did not do what it was asked to (status 503)
│   └── FilesGone                   what a request needs was deleted before it was committed
├── StorageRefused                  the config names artifact storage that cannot be used
├── ConfigRefused                   the config file cannot be used
├── FrontFailed                     the HTTP front cannot be started
├── StartFailed                     the service could not be started
├── KeysRefused                     the file of API keys cannot be used
└── CheckpointRefused               a checkpoint is not what the model's recipe assumes

An error carries one message and, where a client needs facts, a dict of details. There is no `__init__`:
Ray rebuilds an exception on the other side from its `args`.
"""

import traceback
from dataclasses import dataclass, field
from typing import Any, ClassVar


class ServiceError(Exception):
    """An error of this service: `raise X(message)` or `raise X(message, details)`."""

    code: ClassVar[str] = "INTERNAL_ERROR"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    @property
    def message(self) -> str:
        return str(self.args[0]) if self.args else self.code

    @property
    def details(self) -> dict[str, Any]:
        return dict(self.args[1]) if len(self.args) > 1 else {}

    def __str__(self) -> str:
        return self.message


class RequestError(ServiceError):
    status = 400


class PresetNotFound(RequestError):
    code = "PRESET_NOT_FOUND"


class PresetBroken(RequestError):
    """The preset itself is at fault, whatever else the request says."""

    code = "PRESET_BROKEN"


class ModelNotFound(RequestError):
    code = "MODEL_NOT_FOUND"


class LoraFileRequired(RequestError):
    code = "LORA_FILE_REQUIRED"


class MoeFormatNotSupported(RequestError):
    code = "MOE_FORMAT_NOT_SUPPORTED"


class SingleLoraOnly(RequestError):
    code = "SINGLE_LORA_ONLY"


class TooManyLoras(RequestError):
    code = "TOO_MANY_LORAS"


class LoraPathForbidden(RequestError):
    code = "LORA_PATH_FORBIDDEN"


class LoraNotFound(RequestError):
    code = "LORA_NOT_FOUND"


class LoraUnknown(LoraNotFound):
    """The route of one LoRA file does not find it. That is a 404, as for every other thing that a path names."""

    status = 404


class ControlImageRequired(RequestError):
    code = "CONTROL_IMAGE_REQUIRED"


class TooManyControlImages(RequestError):
    code = "TOO_MANY_CONTROL_IMAGES"


class ControlImageInvalid(RequestError):
    code = "CONTROL_IMAGE_INVALID"


class InvalidParameter(RequestError):
    code = "INVALID_PARAMETER"


class QualityUnavailable(RequestError):
    code = "QUALITY_UNAVAILABLE"


class LoraInvalidFile(RequestError):
    code = "LORA_INVALID_FILE"


class LoraCutOff(LoraInvalidFile):
    """The file ends before its last tensor: somebody is still writing it, or it was cut off."""


class LoraIncompatible(RequestError):
    code = "LORA_INCOMPATIBLE"


class LoraDownloadFailed(RequestError):
    code = "LORA_DOWNLOAD_FAILED"


class LoraChanged(RequestError):
    code = "LORA_CHANGED"


class BodyInvalid(RequestError):
    code = "BODY_INVALID"


class BodyTooLarge(RequestError):
    code = "BODY_TOO_LARGE"
    status = 413


class RequestTooSlow(RequestError):
    code = "REQUEST_TIMEOUT"
    status = 408


class HostNotAllowed(RequestError):
    code = "HOST_NOT_ALLOWED"


class NotFound(RequestError):
    """No route has this path."""

    code = "NOT_FOUND"
    status = 404


class MethodNotAllowed(RequestError):
    code = "METHOD_NOT_ALLOWED"
    status = 405


class RequestNotFound(RequestError):
    code = "REQUEST_NOT_FOUND"
    status = 404


class ImageNotFound(RequestError):
    code = "IMAGE_NOT_FOUND"
    status = 404


class PreviewNotReady(RequestError):
    code = "PREVIEW_NOT_READY"
    status = 404


class Unauthorized(RequestError):
    code = "UNAUTHORIZED"
    status = 401


class InsufficientScope(RequestError):
    """The key is known, but not good for this."""

    code = "INSUFFICIENT_SCOPE"
    status = 403


class HistoryUnavailable(RequestError):
    code = "HISTORY_UNAVAILABLE"
    status = 403


class SweepNotFound(RequestError):
    code = "SWEEP_NOT_FOUND"
    status = 404


class SweepCanceled(RequestError):
    """It can be extended once it was resumed."""

    code = "SWEEP_CANCELED"
    status = 409


class SweepPurged(RequestError):
    """Its images were deleted for good, and what they were made from: it cannot go on."""

    code = "SWEEP_PURGED"
    status = 409


class UploadNotFound(RequestError):
    code = "UPLOAD_NOT_FOUND"
    status = 404


class TrainingJobNotFound(RequestError):
    code = "TRAINING_JOB_NOT_FOUND"
    status = 404


class SampleNotFound(RequestError):
    code = "SAMPLE_NOT_FOUND"
    status = 404


class PreviewsNotFound(RequestError):
    code = "PREVIEWS_NOT_FOUND"
    status = 404


class PreviewsImpossible(RequestError):
    """No sample of the training job can be made again as asked."""

    code = "PREVIEWS_IMPOSSIBLE"


class IdempotencyConflict(RequestError):
    code = "IDEMPOTENCY_CONFLICT"
    status = 409


class UploadQuotaExceeded(RequestError):
    """Waiting a little does not help, so it is no 429: its sender has to delete something, or to wait for hours."""

    code = "UPLOAD_QUOTA_EXCEEDED"
    status = 409


class StorageQuotaExceeded(RequestError):
    """The tenant's requests that are kept have as many bytes as they may have."""

    code = "STORAGE_QUOTA_EXCEEDED"
    status = 409


class RequestCanceled(RequestError):
    code = "REQUEST_CANCELED"
    status = 409


class QueueFull(RequestError):
    code = "QUEUE_FULL"
    status = 429


class HeadersTooLarge(RequestError):
    code = "HEADERS_TOO_LARGE"
    status = 431


class TooManyRequests(RequestError):
    code = "TOO_MANY_REQUESTS"
    status = 429


class RateLimited(RequestError):
    """The tenant has sent too many HTTP requests within a minute."""

    code = "RATE_LIMITED"
    status = 429


class TooManyUnfinished(RequestError):
    """Too many requests of the tenant have not ended."""

    code = "TOO_MANY_UNFINISHED"
    status = 429


class GpuQuotaExceeded(RequestError):
    """The tenant's GPU seconds of this UTC day are used, or promised."""

    code = "GPU_QUOTA_EXCEEDED"
    status = 429


class SweepQuotaExceeded(RequestError):
    """The tenant's cells of sweeps of this UTC day are used."""

    code = "SWEEP_QUOTA_EXCEEDED"
    status = 429


class ServiceUnavailable(ServiceError):
    code = "SERVICE_UNAVAILABLE"
    status = 503
    retryable = True


class NoAnswer(ServiceError):
    code = "NO_ANSWER"
    status = 504


class StoreUnavailable(ServiceError):
    code = "STORE_UNAVAILABLE"
    status = 503


class StoreFailed(ServiceError):
    """A fault of this service or of the database's schema, so that clients see INTERNAL_ERROR."""


class Overloaded(ServiceError):
    """Other requests hold the memory, connections or threads that this one needs."""

    code = "OVERLOADED"
    status = 503
    retryable = True


class EditError(ServiceError):
    code = "EDIT_FAILED"


class EditCanceled(EditError):
    code = "EDIT_CANCELED"


class DeadlineExceeded(EditError):
    code = "DEADLINE_EXCEEDED"


class OutOfMemory(EditError):
    code = "OUT_OF_MEMORY"


class UnusableResult(EditError):
    code = "UNUSABLE_RESULT"


class DeviceLost(EditError):
    code = "DEVICE_LOST"
    retryable = True


class EditorLost(EditError):
    code = "EDITOR_LOST"
    retryable = True


class EditorUnavailable(EditError):
    code = "EDITOR_UNAVAILABLE"
    retryable = True


class FetchFailed(ServiceError):
    code = "FETCH_FAILED"


class StorageFailed(ServiceError):
    code = "STORAGE_FAILED"
    status = 503
    retryable = True


class FilesGone(StorageFailed):
    pass


class StorageRefused(ServiceError):
    code = "STORAGE_REFUSED"


class ConfigRefused(ServiceError):
    code = "CONFIG_REFUSED"


class FrontFailed(ServiceError):
    code = "FRONT_FAILED"


class StartFailed(ServiceError):
    code = "START_FAILED"


class KeysRefused(ServiceError):
    code = "KEYS_REFUSED"


class CheckpointRefused(ServiceError):
    code = "CHECKPOINT_REFUSED"


@dataclass(frozen=True)
class ErrorDescription:
    """What a client may know of an error. `retryable` is for callers inside the service."""

    code: str
    message: str
    status: int
    retryable: bool = False
    details: dict[str, Any] = field(default_factory=dict)


def describe(error: BaseException) -> ErrorDescription:
    """The client's view of any error. The text of a foreign error never leaks: it goes to the log alone."""
    if isinstance(error, ServiceError):
        return ErrorDescription(error.code, error.message, error.status, error.retryable, error.details)
    return ErrorDescription("INTERNAL_ERROR", "the service failed to handle this; its log says why", 500)


def status_of(code: str) -> int:
    """The status of the error with this code: of a stored failure, only the code is known."""
    kinds = [ServiceError]
    for kind in kinds:
        if kind.code == code:
            return kind.status
        kinds += kind.__subclasses__()
    return ServiceError.status


def clear_frames(error: BaseException | None) -> None:
    """Delete the local variables of the frames in the error's traceback, and in those of its causes.

    What they referred to becomes free. The traceback still tells the lines, so it can be logged.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
