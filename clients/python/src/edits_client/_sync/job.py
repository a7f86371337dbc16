# Generated from ../_async by `python -m tools.client_code`: change that file.
"""A request that the service has accepted: follow it, get its images, cancel it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator
from contextlib import closing
from typing import TypeAlias

import httpx2

from edits_client import models
from edits_client._sync.clock import sleep
from edits_client._sync.transport import Transport
from edits_client.answers import Incomplete, failure_of, raise_for_error
from edits_client.deadline import Deadline
from edits_client.errors import ApiError, ConnectionFailed, EditsError, ImageNotFound, PreviewNotReady
from edits_client.events import ENDS, Ended, Event, ImageFinished, Queued, Started, Step, event_of, finished_event
from edits_client.images import Image
from edits_client.retries import RETRIED_STATUSES

Output: TypeAlias = models.ImageOutput | models.NumberedImage

# How often the status is asked for while events cannot be read (s).
POLL_S = 1.0
# Streams that break in a row, without an event, before the status is polled instead.
MAX_BROKEN_STREAMS = 3
# How long a stream may be silent (s). The service sends a comment every 15 s.
SILENCE_S = 45.0
# Errors of the service in place of a stream, with which another try may succeed.
BROKEN_STATUSES = RETRIED_STATUSES | {500}


class StreamBroken(EditsError):
    """A stream of events has ended otherwise than the service ends one."""


class Job:
    """A request by its `id`. Nothing is kept here: `client.job(id)` is the same job in another process."""

    def __init__(self, transport: Transport, request_id: str) -> None:
        self.id = request_id
        self._transport = transport

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}>"

    def status(self) -> models.RequestStatus:
        """Where the request stands now. Raises RequestNotFound."""
        return self._transport.get(models.RequestStatus, f"/v1/requests/{self.id}/status")

    def record(self) -> models.RequestResult:
        """The body of the result; its `outputs` are None until the request has succeeded. Raises RequestNotFound."""
        return self._transport.get(models.RequestResult, f"/v1/requests/{self.id}/result")

    def wait(self, timeout: float | None = 3600.0) -> models.RequestResult:
        """The record once the request has ended, however it ended. Raises WaitTimeout after `timeout` seconds."""
        deadline = Deadline(self.id, timeout)
        pause = 0.1
        while True:
            status = self.status()
            if status.status in ENDS:
                return self.record()
            deadline.check(pause)
            sleep(pause)
            pause = min(pause * 1.5, POLL_S)

    def result(self, timeout: float | None = 3600.0) -> list[Image]:
        """The finished images in prompt order, once all are finished.

        Raises WaitTimeout after `timeout` seconds, and for a request that failed or was canceled the error of its
        code: an EditFailed, or the ApiError of an adapter or control image that could not be used. Raises ImageNotFound
        if the images were deleted meanwhile.
        """
        record = self.wait(timeout)
        if record.status != "succeeded":
            raise failure_of(record)
        if record.outputs is None:
            raise ImageNotFound(f"the images of request {self.id} were deleted", job_id=self.id)
        return self.images(record)

    def images(self, record: models.RequestResult | None = None) -> list[Image]:
        """The images that are finished so far, also those of a request that failed. `record` saves a call."""
        record = record or self.record()
        finished = finished_outputs(record)
        return [self._image(record, index, output) for index, output in finished]

    def control_images(self) -> list[bytes]:
        """The files of the control images of the request: each once, in the order in which the prompts name them.

        Raises ImageNotFound for one that was deleted. A service that is older than this method lists none.
        """
        listed = (self.record()).metadata.control_images or []
        return [
            self._transport.call("GET", f"/v1/requests/{self.id}/control-images/{index}", whole_file)
            for index in range(len(listed))
        ]

    def preview(self, image: int = 0) -> bytes | None:
        """A small JPEG of what a running image will be, None before the first one. Asking makes the service draw them.

        Raises ImageNotFound for an image that does not exist.
        """
        try:
            return self._transport.call(
                "GET", f"/v1/requests/{self.id}/images/{image}/preview", lambda answer: answer.content
            )
        except PreviewNotReady:
            return None

    def cancel(self, *, purge: bool = False) -> models.RequestStatus:
        """Cancel the request; what has ended stays ended. With `purge` its images are deleted for good."""
        params = {"purge": "true"} if purge else None
        return self._transport.delete(models.RequestStatus, f"/v1/requests/{self.id}", params)

    def events(self, *, previews: bool = True, timeout: float | None = None) -> Generator[Event]:
        """The events of the request, oldest first; `Ended` is the last one.

        Each image is reported as finished once. A connection that breaks is made again, and the events go on after the
        last one. Where streams do not get through at all, the events are made from the status, once a second.
        `previews=False` spares the GPU the previews. Raises WaitTimeout about `timeout` seconds after the start.
        """
        finished: set[int] = set()
        with closing(self._any_events(previews, Deadline(self.id, timeout))) as found:
            for event in found:
                if isinstance(event, ImageFinished):
                    finished.add(event.image)
                elif isinstance(event, Ended):
                    for index, output in finished_outputs(event.result):
                        if index not in finished:
                            yield finished_event(index, output)
                yield event

    def _any_events(self, previews: bool, deadline: Deadline) -> Generator[Event]:
        """The events from each stream in turn, or from the status if streams keep breaking.

        Events of finished images may be missing: a stream that breaks loses what it had not delivered.
        """
        seen, broken = "", 0
        while broken < MAX_BROKEN_STREAMS:
            came = False
            try:
                with closing(self._stream(seen, previews, deadline)) as stream:
                    for event_id, event in stream:
                        seen, came = event_id or seen, True
                        yield event
                        if isinstance(event, Ended):
                            return
                        deadline.check()
            except StreamBroken:
                broken = 0 if came else broken + 1
                # Waits for a service that is away.
                self.status()
            deadline.check()
            if not came:
                sleep(POLL_S)
        with closing(self._polled_events(deadline)) as polled:
            for event in polled:
                yield event

    def _stream(self, seen: str, previews: bool, deadline: Deadline) -> Generator[tuple[str, Event]]:
        """One connection: events with their ids, until the service ends it. Raises StreamBroken."""
        headers = {"Last-Event-ID": seen} if seen else {}
        timeout = httpx2.Timeout(deadline.at_most(SILENCE_S))
        params = {} if previews else {"previews": "false"}
        path = f"/v1/requests/{self.id}/events"
        try:
            # The last event carries the result, which has no largest size.
            with self._transport.http.sse(
                path, headers=headers, params=params, timeout=timeout, max_event_size=None
            ) as source:
                if not source.response.is_success:
                    source.response.read()
                    raise_for_error(source.response)
                if source.response.status_code == 204:
                    # The service has nothing more to say after `seen`: the request had ended.
                    yield "", self._end()
                    return
                for message in source:
                    event = event_of(message.event, json.loads(message.data))
                    if event is not None:
                        yield message.id, event
        except ApiError as error:
            if error.status not in BROKEN_STATUSES:
                raise
            raise StreamBroken from error
        except (httpx2.TransportError, httpx2.DecodingError, json.JSONDecodeError, ConnectionFailed) as error:
            raise StreamBroken from error

    def _polled_events(self, deadline: Deadline) -> Generator[Event]:
        """The events that can be told from the status, which has the steps of all images together."""
        position, steps, started = None, -1, False
        while True:
            status = self.status()
            if status.queue_position is not None and status.queue_position != position:
                position = status.queue_position
                yield Queued(position)
            if status.started_at is not None and not started:
                started = True
                yield Started()
            progress = status.progress
            if started and progress.steps_done != steps:
                steps = progress.steps_done
                yield Step(None, progress.steps_done, progress.steps, progress.stage)
            if status.finished_at is not None:
                yield self._end()
                return
            deadline.check(POLL_S)
            sleep(POLL_S)

    def _end(self) -> Ended:
        return Ended(self.record())

    def _image(
        self, record: models.RequestResult, index: int, output: models.ImageOutput | models.NumberedImage
    ) -> Image:
        metadata = record.metadata
        return Image(
            data=self._transport.call("GET", f"/v1/requests/{self.id}/images/{index}", whole_file),
            format=output.format,
            width=output.width,
            height=output.height,
            seed=output.seed,
            url=output.url,
            index=index,
            request_id=self.id,
            gpu_seconds=metadata.gpu_seconds,
            effective=metadata.effective[index],
            notes=metadata.notes or [],
        )


def whole_file(response: httpx2.Response) -> bytes:
    """The file in an answer, whose ETag is its SHA-256. Raises Incomplete if it is not that file."""
    etag = response.headers.get("etag", "").strip('"')
    if etag and hashlib.sha256(response.content).hexdigest() != etag:
        raise Incomplete(f"the file from {response.request.url.path} is not the one that the service has")
    return response.content


def finished_outputs(record: models.RequestResult) -> list[tuple[int, Output]]:
    """The finished images of a request, each with its index."""
    if record.outputs is not None:
        return list(enumerate(record.outputs.images))
    return [(output.image, output) for output in record.metadata.partial or []]
