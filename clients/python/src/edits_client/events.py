"""Events of a request, as `Job.events` yields them."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edits_client import models


@dataclass(frozen=True)
class Queued:
    """The place in the queue has changed: `queue_position` images are ahead."""

    queue_position: int


@dataclass(frozen=True)
class Started:
    """An editor has started the first image."""


@dataclass(frozen=True)
class Step:
    """An image has made progress: `step` of `steps` is done; `stage` says what happens now."""

    image: int
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


def event_of(name: str, data: Mapping[str, Any]) -> Event | None:
    """The event that the service calls `name`, None for one that this version does not know."""
    if name in ENDS:
        return Ended(models.RequestResult.model_validate(data))
    if name == "queued":
        return Queued(data["queue_position"])
    if name == "started":
        return Started()
    if name == "step":
        return Step(data["image"], data["step"], data["steps"], data.get("stage"))
    if name == "preview":
        return Preview(data["image"], data["step"], base64.b64decode(data["jpeg_base64"]))
    if name == "image":
        return ImageFinished(data["image"], data["url"], data["format"], data["width"], data["height"], data["seed"])
    return None
