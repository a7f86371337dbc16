"""Events of a request: everything that server-sent events and webhooks say about it is made here.

A new event is a member of `Event` and the place in `events_since` or `Events.stream` that yields it. Every event of
`events_since` is derived from the stored record and has the request's version as its id, so any ingress can send it,
also long after it happened. A watcher that comes late, or again, gets each image once and only the newest step.
"""

import base64
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from serve_app.errors import RequestNotFound, StorageFailed
from serve_app.intake.answers.bodies import STAGES_WITH_PREVIEWS, Links, output_of, result_of
from serve_app.intake.answers.previews import Previews
from serve_app.intake.answers.watch import MAX_UNCHANGED_S, Watch
from serve_app.jobs.records import Delivery, ImageRecord, RequestRecord
from serve_app.jobs.store import JobStore
from serve_app.storage.step_previews import StepPreview
from serve_app.tasks import Status, WebhookEvent

# How old a watcher's view of its place in the queue may be (s).
POSITION_S = 1.0
# How often a stream looks for step previews (s).
PREVIEWS_S = 1.0
# How long a stream lasts (s), so that watchers do not keep an ingress from shutting down; they resume with another one.
# Less than a drained pod has (120 s).
STREAM_S = 90.0


class Event(StrEnum):
    """The name of a server-sent event."""

    QUEUED = "queued"  # the place in the queue has changed
    STARTED = "started"  # an editor has taken up the first image
    STEP = "step"  # a denoising step of one image is done
    PREVIEW = "preview"  # a step preview: a small image of what an image will be
    IMAGE = "image"  # an image can be downloaded
    # The ends of a request, with its result. Their names are those of `Status`.
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"


@dataclass(frozen=True)
class RequestEvent:
    """`version` is None for an event that a watcher cannot resume after: a place in the queue, a step preview."""

    event: Event
    version: int | None
    data: dict[str, Any]


class Events:
    """Streams of events, fed from the database."""

    def __init__(self, store: JobStore, watch: Watch, previews: Previews) -> None:
        self._store = store
        self._watch = watch
        self._previews = previews

    async def stream(
        self, record: RequestRecord, since: int, links: Links, *, with_previews: bool = True
    ) -> AsyncIterator[RequestEvent]:
        """The events of a request after its version `since`, until it ends or `STREAM_S` are over.

        With previews, the request counts as watched while the stream is open and an editor works on it.
        """
        position: int | None = None
        previews = PreviewEvents(self._previews) if with_previews else None
        until = time.monotonic() + STREAM_S
        while True:
            for event in events_since(record, since, links):
                yield event
            since = record.version
            if record.status.ended or time.monotonic() > until:
                return
            try:
                state = await self._store.requests.state(record.id)
                if state.queue_position is not None and state.queue_position != position:
                    position = state.queue_position
                    yield RequestEvent(Event.QUEUED, None, {"request_id": record.id, "queue_position": position})
                is_waiting, seconds = state.queue_position is not None, MAX_UNCHANGED_S
                if previews is not None and is_being_made(record):
                    seconds = PREVIEWS_S
                    for event in await previews.new(record):
                        yield event
                await self._watch.changed(record.id, since, min(seconds, POSITION_S) if is_waiting else seconds)
                record = await self._store.requests.get(record.id)
            except RequestNotFound:
                return


class PreviewEvents:
    """The step previews of one stream: each is sent once."""

    def __init__(self, previews: Previews) -> None:
        self._previews = previews
        self._looked_at = float("-inf")
        # The latest preview of each image that was sent.
        self._sent: dict[int, StepPreview] = {}

    async def new(self, record: RequestRecord) -> list[RequestEvent]:
        """The previews that are new since the last call, nothing if that was less than `PREVIEWS_S` ago.

        Without storage there are none.
        """
        now = time.monotonic()
        if now - self._looked_at < PREVIEWS_S:
            return []
        self._looked_at = now
        await self._previews.watch(record.id)
        events = []
        for image in record.images:
            if image.stage in STAGES_WITH_PREVIEWS and (preview := await self._latest(record.id, image.index)):
                data = {
                    "image": image.index,
                    "step": preview.step,
                    "jpeg_base64": base64.b64encode(preview.jpeg).decode(),
                }
                events.append(RequestEvent(Event.PREVIEW, None, data))
        return events

    async def _latest(self, request_id: str, index: int) -> StepPreview | None:
        """The newest preview of an image, None if it was sent already or cannot be read."""
        try:
            preview = await self._previews.latest(request_id, index)
        except StorageFailed:
            # The watcher gets the next one.
            return None
        if preview is None or preview == self._sent.get(index):
            return None
        self._sent[index] = preview
        return preview


def is_being_made(record: RequestRecord) -> bool:
    """Whether an editor works on an image of the request."""
    return any(image.stage is not None for image in record.images)


def events_since(record: RequestRecord, version: int, links: Links) -> Iterator[RequestEvent]:
    """The events of a request after `version`, oldest first; its end comes last."""
    if record.started_version is not None and version < record.started_version:
        yield RequestEvent(Event.STARTED, record.started_version, {"request_id": record.id})
    # An image that changed after its request was read is left for the next call.
    changed = (image for image in record.images if version < image.version <= record.version)
    for image in sorted(changed, key=lambda image: image.version):
        if (event := _of_image(record, image, links)) is not None:
            yield event
    if record.status.ended and version < record.version:
        yield RequestEvent(Event(record.status), record.version, _result(record, links))


def payload_of(record: RequestRecord, delivery: Delivery, links: Links) -> dict[str, Any] | None:
    """The payload of a webhook for its event, with the request as it is now; None if its image no longer exists."""
    request = {"request_id": record.id}
    if delivery.event == WebhookEvent.STARTED:
        return request
    if delivery.image_index is None:
        return _result(record, links)
    event = _of_image(record, record.images[delivery.image_index], links)
    return request | event.data if event is not None and event.event == Event.IMAGE else None


def _result(record: RequestRecord, links: Links) -> dict[str, Any]:
    return result_of(record, links).model_dump(mode="json")


def _of_image(record: RequestRecord, image: ImageRecord, links: Links) -> RequestEvent | None:
    """What is new about one image: that it is finished, its newest step, or nothing."""
    output = output_of(record, image, links)
    if output is not None:
        return RequestEvent(Event.IMAGE, image.version, {"image": image.index} | output.model_dump())
    if image.status == Status.IN_PROGRESS:
        data = {"image": image.index, "step": image.step, "steps": image.plan.steps, "stage": image.stage}
        return RequestEvent(Event.STEP, image.version, data)
    return None
