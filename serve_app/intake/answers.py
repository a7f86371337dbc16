"""What clients are told of a request: its record as the bodies of the HTTP contract."""

from dataclasses import dataclass
from typing import Any

from serve_app.jobs.records import ImageRecord, RequestRecord, Standing
from serve_app.schemas import ImageOutput, Outputs, Progress, RequestResult, RequestStatus
from serve_app.tasks import Status


@dataclass(frozen=True)
class Place:
    """What URLs in answers start with, and whether clients may be told where artifacts lie on the server."""

    base_url: str
    tells_paths: bool


# What is predicted at least while a request has not ended, and what predictions are rounded to (s).
SHORTEST_ETA_S = 0.1


def status_of(standing: Standing, editors: int) -> RequestStatus:
    """Where a request stands, while so many editors of its model are running."""
    progress = Progress.model_validate(standing, from_attributes=True)
    return RequestStatus.model_validate({**vars(standing), "progress": progress, "eta_s": eta(standing, editors)})


def eta(standing: Standing, editors: int) -> float | None:
    """Seconds until the request is predicted to end, never 0; null once it has, and before the speed was measured."""
    if standing.status.ended or not standing.speed:
        return None
    # The queue is shared by all editors; what is being worked on has one each.
    at_once = max(editors, 1) if standing.queue_position is not None else 1
    return max(SHORTEST_ETA_S, round(standing.work_left / standing.speed / at_once, 1))


def output_of(record: RequestRecord, image: ImageRecord, place: Place) -> ImageOutput | None:
    """A finished image, None if it is not."""
    if image.result is None:
        return None
    url = f"{place.base_url}/v1/requests/{record.id}/images/{image.index}"
    return ImageOutput(
        format=image.result.format,
        width=image.result.width,
        height=image.result.height,
        file_path=image.result.url if place.tells_paths else url,
        seed=image.result.seed,
        url=url,
    )


def result_of(record: RequestRecord, place: Place) -> RequestResult:
    outputs = [output_of(record, image, place) for image in record.images]
    finished = [output for output in outputs if output is not None]
    metadata = metadata_of(record)
    if record.status in (Status.FAILED, Status.CANCELED):
        metadata["partial"] = [{"image": i} | output.model_dump() for i, output in enumerate(outputs) if output]
    is_there = record.status == Status.SUCCEEDED and not record.purged
    return RequestResult(
        request_id=record.id,
        status=record.status,
        outputs=Outputs(images=finished) if is_there else None,
        error=record.error,
        error_code=record.error_code,
        error_details=record.error_details,
        created_at=record.created_at,
        finished_at=record.finished_at,
        metadata=metadata,
    )


def metadata_of(record: RequestRecord) -> dict[str, Any]:
    # One entry a prompt, empty until its image is there.
    results = [image.result for image in record.images]
    timings = [{stage: round(s, 4) for stage, s in done.timings.items()} if done else {} for done in results]
    metadata: dict[str, Any] = {
        "model": record.model,
        "inference_time": None,
        "timings": {"prompts": timings},
        "gpu_seconds": round(record.gpu_seconds, 3),
        "effective": [done.effective if done else {} for done in results],
        "runtime": [done.runtime if done else {} for done in results],
        "attempts_lost": [list(image.reasons) for image in record.images],
    }
    if record.finished_at is not None and record.started_at is not None:
        metadata["inference_time"] = round(record.finished_at - record.started_at, 3)
    if record.purged:
        metadata["purged"] = True
    return metadata | record.notes
