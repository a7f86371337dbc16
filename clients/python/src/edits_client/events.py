"""Events of a request, as `Job.events` yields them."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

from edits_client import models
from edits_client.answers import answer_as


@dataclass(frozen=True)
class Queued:
    """The place in the queue has changed: `queue_position` images are ahead."""

    queue_position: int


@dataclass(frozen=True)
class Started:
    """An editor has started the first image."""


@dataclass(frozen=True)
class Step:
    """An image has made progress: `step` of `steps` is done; `stage` says what happens now.

    `image` is None where events are made from the status, which counts the steps of all images together.
    """

    image: int | None
    step: int
    steps: int
    stage: str | None


@dataclass(frozen=True)
class Preview:
    """A small JPEG of what the image will be, as of `step`."""

    image: int
    step: int
    jpeg: bytes


@dataclass(frozen=True)
class ImageFinished:
    """An image can be downloaded from `url`."""

    image: int
    url: str
    format: str
    width: int
    height: int
    seed: int


@dataclass(frozen=True)
class Ended:
    """The request has ended."""

    result: models.RequestResult


Event = Queued | Started | Step | Preview | ImageFinished | Ended
ENDS = ("succeeded", "failed", "canceled")


def event_of(name: str, data: Any) -> Event | None:
    """The event that the service calls `name`, None for one that this version does not know.

    Raises UnexpectedAnswer.
    """
    if name in ENDS:
        return Ended(answer_as(models.RequestResult, data))
    if name == "queued":
        return Queued(answer_as(models.QueuedEvent, data).queue_position)
    if name == "started":
        return Started()
    if name == "step":
        step = answer_as(models.StepEvent, data)
        return Step(step.image, step.step, step.steps, step.stage)
    if name == "preview":
        preview = answer_as(models.PreviewEvent, data)
        return Preview(preview.image, preview.step, base64.b64decode(preview.jpeg_base64))
    if name == "image":
        image = answer_as(models.ImageEvent, data)
        return finished_event(image.image, image)
    return None


def finished_event(index: int, output: models.ImageOutput | models.NumberedImage | models.ImageEvent) -> ImageFinished:
    """The event for the finished image number `index`."""
    return ImageFinished(index, output.url, output.format, output.width, output.height, output.seed)
