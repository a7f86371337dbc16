# Generated from ../_async by `python -m tools.client_code`: change that file.
"""Training jobs of ai-toolkit on the service: what is in their folders, and their previews made again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from edits_client._sync.clock import sleep
from edits_client._sync.transport import Transport
from edits_client.deadline import Deadline
from edits_client.events import ENDS
from edits_client.models import PreviewsStarted, PreviewsStatus, TrainingJobEntry, TrainingJobInfo, TrainingJobList

# The first pause between two questions for the status, and the longest (s).
FIRST_PAUSE_S, POLL_S = 0.1, 1.0


def list_jobs(transport: Transport, search: str) -> Iterator[TrainingJobEntry]:
    """The training jobs, by name. Pages are read as they are needed."""
    params = {"search": search}
    while True:
        page = transport.get(TrainingJobList, "/v1/training-jobs", params)
        for job in page.training_jobs:
            yield job
        if page.next_cursor is None:
            return
        params = params | {"cursor": page.next_cursor}


def get_job(transport: Transport, name: str) -> TrainingJobInfo:
    """One training job."""
    return transport.get(TrainingJobInfo, job_path(name))


def get_sample_image(transport: Transport, name: str, file: str, *, thumbnail: bool) -> bytes:
    """The file of a sample image, or its thumbnail, a JPEG."""
    params = {"thumbnail": "true"} if thumbnail else {}
    path = f"{job_path(name)}/samples/{quote(file, safe='')}"
    return transport.call("GET", path, lambda answer: answer.content, params=params)


def start(
    transport: Transport,
    name: str,
    step: int,
    samples: Sequence[int] | None,
    control_images: Mapping[str, str],
    priority: str | None,
) -> PreviewsStarted:
    """Have previews made again. `control_images` are references, such as `upload:<id>`."""
    body: dict[str, Any] = {"step": step}
    if samples is not None:
        body["samples"] = list(samples)
    if control_images:
        body["control_images"] = dict(control_images)
    if priority is not None:
        body["priority"] = priority
    return transport.post(PreviewsStarted, f"{job_path(name)}/previews", body)


def get_status(transport: Transport, name: str, previews_id: str) -> PreviewsStatus:
    """Where previews stand."""
    return transport.get(PreviewsStatus, f"{job_path(name)}/previews/{quote(previews_id, safe='')}")


def wait(transport: Transport, name: str, previews_id: str, timeout: float | None) -> PreviewsStatus:
    """Previews once they have ended. Raises WaitTimeout after `timeout` seconds."""
    deadline, pause = Deadline(previews_id, timeout), FIRST_PAUSE_S
    while True:
        status = get_status(transport, name, previews_id)
        if status.status in ENDS:
            return status
        deadline.check(pause)
        sleep(pause)
        pause = min(pause * 1.5, POLL_S)


def job_path(name: str) -> str:
    """The path of a training job on the service."""
    return f"/v1/training-jobs/{quote(name)}"
