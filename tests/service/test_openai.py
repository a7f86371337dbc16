"""OpenAI's images API on the real service, by OpenAI's own client: pixels, step previews, connections that break."""

import base64
import json
import sqlite3
import time
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from openai import OpenAI

from serve_app.config import SQLITE_PREFIX
from tests.conftest import as_base64
from tests.service.conftest import PRESET, Deployed, pixels

# Steps of an edit that takes a few seconds.
MANY_STEPS = 40
MANY_PIXELS = "256x256"


@pytest.fixture(scope="module")
def sdk(family: Deployed) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{family.client.base_url}v1", api_key="none") as client:
        yield client


def test_preset_is_the_same_edit_by_every_route(family, sdk, control_png):
    prompt = {"prompt": "[trigger] at night", "ctrl_img": as_base64(control_png)}
    body = {"preset": "house-style", "prompts": [prompt]}
    result, expected = family.edit(body)
    [explained] = family.client.post("/v1/explain", json=body).json()["effective"]
    answer = sdk.images.edit(model="house-style", prompt="[trigger] at night", image=control_png)
    made = base64.b64decode(answer.data[0].b64_json)
    assert np.array_equal(pixels(made), pixels(expected))
    of_call = family.client.get(f"/v1/requests/{answer.request_id}/result").json()
    assert of_call["metadata"]["effective"] == result["metadata"]["effective"] == [explained]
    assert (answer.size, answer.output_format) == ("96x64", "png")
    tokens = explained["tokens"]
    assert answer.usage.output_tokens == tokens["target"]
    assert answer.usage.input_tokens_details.image_tokens == tokens["control"]
    # One id, although both Serve and the application give answers one.
    assert "," not in answer._request_id


def test_loras_as_further_fields_are_those_of_a_request(family, sdk, control_png):
    loras = [{"path": PRESET["loras"][0]["path"], "network_multiplier": -0.5}]
    prompt = {"prompt": "x", "ctrl_img": as_base64(control_png), "size": "input", "sample_steps": 2, "seed": 7}
    body = {"model": "qwen_image_edit", "loras": loras, "prompts": [prompt], "output_format": "png"}
    result, expected = family.edit(body)
    answer = sdk.images.edit(
        model="qwen_image_edit", prompt="x", image=control_png, extra_body={"loras": loras, "steps": 2, "seed": 7}
    )
    assert np.array_equal(pixels(base64.b64decode(answer.data[0].b64_json)), pixels(expected))
    [image] = result["outputs"]["images"]
    assert answer.size == f"{image['width']}x{image['height']}" == "1248x832"


def test_stream_shows_the_image_while_it_is_made(sdk, control_png):
    with sdk.images.edit(
        model="house-style",
        prompt="x",
        image=control_png,
        size=MANY_PIXELS,
        stream=True,
        partial_images=2,
        extra_body={"steps": MANY_STEPS},
    ) as stream:
        *partial, completed = stream
    assert 1 <= len(partial) <= 2
    for index, event in enumerate(partial):
        assert (event.type, event.partial_image_index) == ("image_edit.partial_image", index)
        assert pixels(base64.b64decode(event.b64_json)).ndim == 3
    assert pixels(base64.b64decode(completed.b64_json)).shape == (256, 256, 3)


def test_client_that_hangs_up_is_noticed_and_its_repeat_gets_the_request(family, control_png):
    """Serve cancels the call of a client that is gone; the request is left to a repeat."""
    fields = {"model": "house-style", "prompt": "y", "size": MANY_PIXELS, "steps": str(MANY_STEPS)}
    files = {"image": control_png}

    def post(count: int, timeout: float) -> httpx.Response:
        headers = {"x-stainless-retry-count": str(count)}
        return family.client.post("/v1/images/edits", data=fields, files=files, headers=headers, timeout=timeout)

    with pytest.raises(httpx.ReadTimeout):
        post(0, 1.5)
    deadline = time.monotonic() + 10
    while not (seen := Newest(family)).departed:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert (seen.departed, seen.is_abandoned) == ([0], True)
    answer = post(1, 60).json()
    assert answer["request_id"] == seen.id
    assert Newest(family).attachments == 1


class Newest:
    """The newest request in the database of the service."""

    def __init__(self, service: Deployed) -> None:
        database = service.config.jobs.database_url.removeprefix(SQLITE_PREFIX)
        query = "SELECT id, departed, abandoned_at, attachments FROM requests ORDER BY created_at DESC LIMIT 1"
        with sqlite3.connect(database) as connection:
            self.id, departed, abandoned_at, self.attachments = connection.execute(query).fetchone()
        self.departed = json.loads(departed or "[]")
        self.is_abandoned = abandoned_at is not None
