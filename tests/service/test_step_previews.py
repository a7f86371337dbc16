"""Step previews through a running service: from an editor's process to clients of two ingresses."""

import base64
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path

import PIL.Image
import pytest

from serve_app.storage import artifact_keys
from tests.service.conftest import Deployed
from tests.service.standin import STEP_S, NotingEngine, as_checkpoint

SEED = 77
# Steps of an edit of 5 s: a stream looks for previews every second.
STEPS = round(5 / STEP_S)


@pytest.fixture(scope="module")
def service(deploy, tmp_path_factory) -> Deployed:
    models = [{"checkpoint": str(as_checkpoint(tmp_path_factory.mktemp("notes"))), "device": "cpu"}]
    return deploy("previews", load=NotingEngine, models=models, require_lora=False)


@pytest.fixture
def body(make_body) -> dict:
    return make_body(loras=[], sample_steps=STEPS, seed=SEED, width=256, height=128)


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
    assert green == pytest.approx(255 * step / STEPS, abs=6)


def assert_leaves_nothing(service: Deployed, request_id: str) -> None:
    """The folder of the request's previews is deleted by a thread, just after the end is recorded."""
    folder = Path(service.config.artifacts_url, artifact_keys.previews(request_id))
    deadline = time.monotonic() + 10
    while folder.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_watched_request_has_previews_on_every_ingress_and_leaves_none(service, body):
    request_id = service.submit(body)
    previews, got = [], []
    for name, data in events(service, request_id):
        if name == "preview":
            previews.append(data)
            answer = service.client.get(f"/v1/requests/{request_id}/images/0/preview")
            # Whichever ingress answers. The edit may be over by then.
            if answer.status_code == 200:
                got.append(answer)
    assert name == "succeeded"
    steps = [data["step"] for data in previews]
    assert len(steps) >= 2
    assert steps == sorted(set(steps))
    for data in previews:
        assert data["image"] == 0
        assert_shows_step(base64.b64decode(data["jpeg_base64"]), data["step"])
    assert got
    for answer in got:
        assert answer.headers["x-steps"] == str(STEPS)
        assert_shows_step(answer.content, int(answer.headers["x-step"]))
    after = service.client.get(f"/v1/requests/{request_id}/images/0/preview")
    assert (after.status_code, after.json()["detail"]["error"]["code"]) == (404, "PREVIEW_NOT_READY")
    assert_leaves_nothing(service, request_id)


def test_unwatched_request_has_no_previews(service, body):
    request_id = service.submit(body)
    names = {name for name, _ in events(service, request_id, previews=False)}
    assert {"step", "succeeded"} <= names
    assert "preview" not in names
    assert_leaves_nothing(service, request_id)
