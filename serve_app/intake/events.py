"""What happens to a request, as events that a watcher can resume: each has the request's version as its id.

An event is derived from the record, so any ingress can tell it, also long after. A watcher who comes late, or
again, is told of each image once and of the newest step instead of every one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from serve_app.intake.answers import Place, output_of, result_of
from serve_app.jobs.records import Delivery, ImageRecord, RequestRecord
from serve_app.tasks import Event, Status


@dataclass(frozen=True)
class RequestEvent:
    """`version` is null for an event that cannot be resumed after: a place in the queue."""

    event: Event
    version: int | None
    data: dict[str, Any]


def events_since(record: RequestRecord, version: int, place: Place) -> Iterator[RequestEvent]:
    """The events of a request after `version`, oldest first; its end comes last."""
    if record.started_version is not None and version < record.started_version:
        yield RequestEvent(Event.STARTED, record.started_version, {"request_id": record.id})
    # One that changed after its request was read belongs to the next time.
    changed = (image for image in record.images if version < image.version <= record.version)
    for image in sorted(changed, key=lambda image: image.version):
        if (event := _of_image(record, image, place)) is not None:
            yield event
    if record.status.ended and version < record.version:
        yield RequestEvent(Event(record.status), record.version, _result(record, place))


def payload_of(record: RequestRecord, delivery: Delivery, place: Place) -> dict[str, Any] | None:
    """What a webhook tells of its event, the request as it is now; None if there is nothing left to tell of."""
    request = {"request_id": record.id}
    if delivery.event == Event.STARTED:
        return request
    if delivery.image_index is None:
        return _result(record, place)
    event = _of_image(record, record.images[delivery.image_index], place)
    return request | event.data if event is not None and event.event == Event.IMAGE else None


def _result(record: RequestRecord, place: Place) -> dict[str, Any]:
    return result_of(record, place).model_dump(mode="json")


def _of_image(record: RequestRecord, image: ImageRecord, place: Place) -> RequestEvent | None:
    output = output_of(record, image, place)
    if output is not None:
        return RequestEvent(Event.IMAGE, image.version, {"image": image.index} | output.model_dump())
    if image.status == Status.IN_PROGRESS:
        data = {"image": image.index, "step": image.step, "steps": image.plan.steps, "stage": image.stage}
        return RequestEvent(Event.STEP, image.version, data)
    return None
