"""A call of OpenAI's images API that is answered with events: previews while an image is made, then the image."""

import logging
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from serve_app.errors import ErrorDescription, StorageFailed, describe
from serve_app.intake.answers.events import PREVIEWS_S, is_being_made
from serve_app.intake.answers.previews import Previews
from serve_app.intake.answers.queries import Queries
from serve_app.intake.openai.answers import completed_event, failure_of, finished_images, partial_event
from serve_app.jobs.records import ImageRecord, RequestRecord
from serve_app.tasks import Status

logger = logging.getLogger(__name__)

# A stream without an event for this long gets a sign of life (s), so that nobody takes its connection for dead.
SILENCE_S = 15.0


@dataclass(frozen=True)
class StreamedImage:
    """An event with an image: `facts` are its other fields, `image` is the file."""

    facts: dict[str, Any]
    image: bytes = field(repr=False)


class SignOfLife:
    """Nothing has happened for a while."""


StreamItem = StreamedImage | SignOfLife | ErrorDescription


class OpenAIStream:
    """The events of one call, whose request is `record` and which asks for so many previews of each image."""

    def __init__(
        self, queries: Queries, previews: Previews, route: str, record: RequestRecord, partial_images: int
    ) -> None:
        self._queries = queries
        self._previews = previews
        self._route = route
        self._record = record
        self._partial_images = partial_images
        self._finished: set[int] = set()
        # How many previews of each image were sent.
        self._partial: Counter[int] = Counter()
        self._sent_at = time.monotonic()

    async def items(self) -> AsyncIterator[StreamItem]:
        """What happens until the request ends. An error is the last item: the status of the answer was sent before."""
        try:
            async for item in self._items():
                self._sent_at = time.monotonic()
                yield item
        except Exception as error:
            description = describe(error)
            if description.status == 500:
                logger.exception("the stream of request %s failed", self._record.id)
            yield description

    async def _items(self) -> AsyncIterator[StreamItem]:
        if self._partial_images:
            # An editor that finds the mark when it begins makes previews from its first step on.
            await self._previews.watch(self._record.id)
        while True:
            async for event in self._new_images():
                yield event
            if self._record.status.ended:
                break
            seconds = max(0.0, self._sent_at + SILENCE_S - time.monotonic())
            if self._partial_images and is_being_made(self._record):
                await self._previews.watch(self._record.id)
                async for event in self._new_previews():
                    yield event
                seconds = min(seconds, PREVIEWS_S)
            self._record = await self._queries.changed(self._record, seconds)
            if time.monotonic() >= self._sent_at + SILENCE_S:
                yield SignOfLife()
        if self._record.status != Status.SUCCEEDED:
            yield failure_of(self._record)
        else:
            # Raises for images that were deleted before they could be sent.
            finished_images(self._record)

    async def _new_previews(self) -> AsyncIterator[StreamedImage]:
        """A preview of each image that has come far enough for its next one."""
        for image in self._record.images:
            if image.stage is None or not self._is_due(image, image.step):
                continue
            try:
                preview = await self._previews.latest(self._record.id, image.index)
            except StorageFailed:
                continue
            if preview is not None and self._is_due(image, preview.step):
                facts = partial_event(self._route, image, self._partial[image.index], time.time())
                self._partial[image.index] += 1
                yield StreamedImage(facts, preview.jpeg)

    def _is_due(self, image: ImageRecord, step: int) -> bool:
        """Whether an image's next preview may show it after `step`: the previews divide its steps equally."""
        sent = self._partial[image.index]
        return sent < self._partial_images and step * (self._partial_images + 1) >= image.plan.steps * (sent + 1)

    async def _new_images(self) -> AsyncIterator[StreamedImage]:
        """The images that are finished and not yet sent."""
        record = self._record
        for image in record.images:
            if image.result is not None and image.index not in self._finished:
                self._finished.add(image.index)
                data = await self._queries.image_file(record.id, image.index, image.result)
                yield StreamedImage(completed_event(self._route, image, image.result, time.time()), data)
