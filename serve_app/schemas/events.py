"""What clients are told while a request runs: the data of server-sent events, and the bodies of webhooks."""

from typing import Literal

from pydantic import BaseModel, Field

from serve_app.schemas.answers import Moment, NumberedImage, RequestId, RequestResult
from serve_app.schemas.documented import Answer
from serve_app.tasks import ImageStage


class QueuedEvent(Answer):
    """The place in the queue has changed."""

    request_id: RequestId
    queue_position: int = Field(description="How many images are ahead of this request's first waiting image.")


class StartedEvent(Answer):
    """An editor has started the first image."""

    request_id: RequestId


class StepEvent(Answer):
    """An image has made progress."""

    image: int = Field(description="The number of the image, from 0, in prompt order.")
    step: int = Field(description="Denoising steps that are done.")
    steps: int = Field(description="All denoising steps of the image.")
    stage: ImageStage | None = Field(description="The stage of the image; null if it is not known yet.")


class PreviewEvent(Answer):
    """A step preview: what an image will be."""

    image: int = Field(description="The number of the image, from 0, in prompt order.")
    step: int = Field(description="The step that the preview was made after, from 1.")
    jpeg_base64: str = Field(description="A small JPEG, in base64.")


class ImageEvent(NumberedImage):
    """An image can be downloaded."""


class ImageOfRequest(ImageEvent):
    """A finished image, and its request."""

    request_id: RequestId


# The data of each server-sent event, by the event's name: `intake.events.Event`.
EVENT_DATA: dict[str, type[BaseModel]] = {
    "queued": QueuedEvent,
    "started": StartedEvent,
    "step": StepEvent,
    "preview": PreviewEvent,
    "image": ImageEvent,
    "succeeded": RequestResult,
    "failed": RequestResult,
    "canceled": RequestResult,
}


class StartedWebhook(Answer):
    """A request has started: an editor has taken up its first image."""

    type: Literal["request.started"] = Field(description="What happened.")
    timestamp: Moment = Field(description="When it happened.")
    data: StartedEvent = Field(description="The request.")


class ImageWebhook(Answer):
    """An image can be downloaded."""

    type: Literal["request.image"] = Field(description="What happened.")
    timestamp: Moment = Field(description="When it happened.")
    data: ImageOfRequest = Field(description="The image.")


class EndWebhook(Answer):
    """A request has ended."""

    type: Literal["request.succeeded", "request.failed", "request.canceled"] = Field(description="What happened.")
    timestamp: Moment = Field(description="When it happened.")
    data: RequestResult = Field(description="The result.")


WEBHOOKS: dict[str, type[BaseModel]] = {
    "request_started": StartedWebhook,
    "request_image": ImageWebhook,
    "request_ended": EndWebhook,
}
