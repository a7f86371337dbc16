"""Step previews of the stand-in engine, as a client of a running service sees them."""

import io
import json
import time
from collections.abc import Iterator
from pathlib import Path

import PIL.Image
import pytest

from serve_app.storage import artifact_keys
from tests.service.conftest import Deployed
from tests.service.standin import STEP_S

SEED = 77
# Of an edit of 5 s: a stream looks for previews every second.
WATCHED_STEPS = round(5 / STEP_S)
WATCHED_EDIT = {"sample_steps": WATCHED_STEPS, "seed": SEED, "width": 256, "height": 128}


def events(service: Deployed, request_id: str, **params: object) -> Iterator[tuple[str, dict]]:
    with service.client.stream("GET", f"/v1/requests/{request_id}/events", params=params) as answer:
        name = ""
        for line in answer.iter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                yield name, json.loads(line.removeprefix("data: "))


def assert_shows_step(jpeg: bytes, step: int) -> None:
    """The stand-in's preview has one color, which says the seed and the step."""
    image = PIL.Image.open(io.BytesIO(jpeg))
    assert (image.format, image.size) == ("JPEG", (32, 16))
    red, green, _ = image.getpixel((3, 3))
    assert red == pytest.approx(SEED, abs=6)
    assert green == pytest.approx(255 * step / WATCHED_STEPS, abs=6)


def assert_leaves_nothing(service: Deployed, request_id: str) -> None:
    """The folder of the request's previews is deleted by a thread, just after the end is recorded."""
    folder = Path(service.config.artifacts_url, artifact_keys.previews(request_id))
    deadline = time.monotonic() + 10
    while folder.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
