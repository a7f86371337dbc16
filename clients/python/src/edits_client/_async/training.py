"""Training jobs of ai-toolkit on the service: what is in their folders, and their previews made again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from edits_client._async.clock import sleep
from edits_client._async.transport import AsyncTransport
from edits_client.deadline import Deadline
from edits_client.events import ENDS
from edits_client.models import PreviewsStarted, PreviewsStatus, TrainingJobEntry, TrainingJobInfo, TrainingJobList

# The first pause between two questions for the status, and the longest (s).
FIRST_PAUSE_S, POLL_S = 0.1, 1.0


async def list_jobs(transport: AsyncTransport, search: str) -> AsyncIterator[TrainingJobEntry]:
    """The training jobs, by name. Pages are read as they are needed."""
    params = {"search": search}
    while True:
        page = await transport.get(TrainingJobList, "/v1/training-jobs", params)
        for job in page.training_jobs:
            yield job
        if page.next_cursor is None:
            return
        params = params | {"cursor": page.next_cursor}


async def get_job(transport: AsyncTransport, name: str) -> TrainingJobInfo:
    """One training job."""
    return await transport.get(TrainingJobInfo, job_path(name))


async def get_sample_image(transport: AsyncTransport, name: str, file: str, *, thumbnail: bool) -> bytes:
    """The file of a sample image, or its thumbnail, a JPEG."""
    params = {"thumbnail": "true"} if thumbnail else {}
    path = f"{job_path(name)}/samples/{quote(file, safe='')}"
    return await transport.call("GET", path, lambda answer: answer.content, params=params)


async def start(
    transport: AsyncTransport,
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
    return await transport.post(PreviewsStarted, f"{job_path(name)}/previews", body)


async def get_status(transport: AsyncTransport, name: str, previews_id: str) -> PreviewsStatus:
    """Where previews stand."""
    return await transport.get(PreviewsStatus, f"{job_path(name)}/previews/{quote(previews_id, safe='')}")


async def wait(transport: AsyncTransport, name: str, previews_id: str, timeout: float | None) -> PreviewsStatus:
    """Previews once they have ended. Raises WaitTimeout after `timeout` seconds."""
    deadline, pause = Deadline(previews_id, timeout), FIRST_PAUSE_S
    while True:
        status = await get_status(transport, name, previews_id)
        if status.status in ENDS:
            return status
        deadline.check(pause)
        await sleep(pause)
        pause = min(pause * 1.5, POLL_S)


def job_path(name: str) -> str:
    """The path of a training job on the service."""
    return f"/v1/training-jobs/{quote(name)}"
