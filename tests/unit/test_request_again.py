"""`effective.request`: a body that makes an image again, as it stands in explain, in results and in PNGs."""

from dataclasses import replace

import pytest
import yaml
from starlette.testclient import TestClient

from serve_app.config import AuthConfig
from serve_app.intake.keys import new_key
from tests.conftest import as_base64
from tests.unit.conftest import ON_BOTH_DATABASES, Application
from tests.unit.test_explain import ALL_MODELS, IMAGES, explained, turned_jpeg

LORA = {"path": "job/lora.safetensors"}
# A request for each field that decides pixels, and for each way in which a value comes about.
REQUESTS = {
    "defaults": {},
    "prompt": {"prompt": "snow [trigger]"},
    "trigger_word": {"prompt": "a [trigger] [trigger]", "trigger_word": "sks"},
    "trigger_word that says [trigger]": {"prompt": "a [trigger]", "trigger_word": "[trigger]"},
    "neg": {"neg": "blurry [trigger]", "trigger_word": "sks"},
    "size": {"width": 127, "height": 4096},
    "guidance_scale": {"guidance_scale": 1.0, "neg": "x"},
    "sample_steps": {"sample_steps": 7},
    "seed": {"seed": 2**63 - 1},
    "drawn seed": {"seed": -1},
    "sampler": {"sampler": "lightning"},
    "sampler that is ignored": {"sampler": "ddim"},
    "loras": {"loras": [LORA | {"network_multiplier": -0.35}, LORA]},
    "profile": {"profile": "trainer-0.6.0"},
    "profile auto": {"profile": "auto"},
    "output_format": {"output_format": "webp"},
    "vae_tiling": {"vae_tiling": True},
    "exif": {"exif": "apply", "ctrl_img": as_base64(turned_jpeg())},
    "numbered image": {"ctrl_img_3": IMAGES[1]},
    "three images": {
        "model": "qwen_image_edit_plus",
        **{f"ctrl_img_{i + 1}": image for i, image in enumerate(IMAGES)},
    },
    "no image": {"model": "qwen_image", "ctrl_img": None, "width": 80},
}


@pytest.fixture
def served(config):
    application = Application(type(config).model_validate(config.model_dump() | {"models": ALL_MODELS}))
    with TestClient(application.app) as client:
        yield application, client


@pytest.mark.parametrize("fields", REQUESTS.values(), ids=REQUESTS.keys())
def test_record_that_is_posted_makes_the_same_plan(served, make_body, fields):
    application, client = served
    body = make_body(**{k: v for k, v in fields.items() if k != "vae_tiling"})
    body |= {k: v for k, v in fields.items() if k == "vae_tiling"}
    assert client.post("/v1/inference?wait=5", json=body).json()["status"] == "succeeded"
    # What the result tells is the plan's own record: see tests/engine for one that an engine has made.
    first = application.editors.tasks[-1].plan
    [told] = explained(client, body | {"prompts": [body["prompts"][0] | {"seed": first.seed}]})["effective"]
    record = told["request"]
    assert client.post("/v1/inference?wait=5", json=record).json()["status"] == "succeeded"
    again = application.editors.tasks[-1].plan
    assert replace(again, why={}) == replace(first, why={})
    # The record of the record is itself.
    assert explained(client, record)["effective"][0]["request"] == record


def test_record_has_a_request_for_each_image(served, make_body):
    _, client = served
    body = make_body(trigger_word="sks")
    body["prompts"] = [body["prompts"][0] | {"width": width} for width in (64, 96)]
    records = [record["request"] for record in explained(client, body)["effective"]]
    assert [record["prompts"][0]["width"] for record in records] == [64, 96]
    assert [record["prompts"][0]["seed"] for record in records] == [42, 43]
    assert [record["sampler"] for record in explained(client, body)["effective"]] == ["flowmatch"] * 2


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ("sha256:" + "0" * 64, "no stored request has the control image"),
        ("sha256:abc", "64 hex digits"),
        ("sha256:../../" + "0" * 58, "64 hex digits"),
        ("sha256:", "64 hex digits"),
    ],
)
def test_image_that_is_not_stored_is_refused_with_the_reason(client, make_body, image, reason):
    for route in ("/v1/inference", "/v1/explain"):
        error = client.post(route, json=make_body(ctrl_img=image)).json()["detail"]["error"]
        assert error["code"] == "CONTROL_IMAGE_INVALID"
        assert reason in error["details"]["reason"]


def test_explained_image_is_not_stored(client, make_body):
    record = explained(client, make_body())["effective"][0]["request"]
    error = client.post("/v1/inference", json=record).json()["detail"]["error"]
    assert "send the image itself" in error["details"]["reason"]


def test_purged_image_is_gone(client, make_body):
    request_id = client.post("/v1/inference?wait=5", json=make_body()).json()["request_id"]
    record = explained(client, make_body())["effective"][0]["request"]
    assert client.post("/v1/explain", json=record).status_code == 200
    client.delete(f"/v1/requests/{request_id}?purge=true")
    assert client.post("/v1/explain", json=record).status_code == 400


@ON_BOTH_DATABASES
def test_stored_image_is_its_tenants(config, tmp_path, make_body):
    keys = {who: new_key() for who in ("red", "blue", "operator")}
    file = tmp_path / "keys.yaml"
    tenants = {who: [keys[who][1]] for who in ("red", "blue")}
    file.write_text(yaml.safe_dump({"tenants": tenants, "operators": [keys["operator"][1]]}))
    application = Application(config.model_copy(update={"auth": AuthConfig(keys_file=str(file))}))
    with TestClient(application.app) as client:

        def post(who: str, body: dict, route: str = "/v1/inference"):
            return client.post(route, json=body, headers={"X-API-Key": keys[who][0]})

        record = post("blue", make_body(), "/v1/explain").json()["effective"][0]["request"]
        never = make_body(ctrl_img="sha256:" + "0" * 64)
        answers = [post("blue", body).json()["detail"]["error"]["details"]["reason"] for body in (record, never)]
        assert post("red", make_body()).status_code == 200
        answers.append(post("blue", record).json()["detail"]["error"]["details"]["reason"])
        # Nothing tells an image of somebody else from one that is nowhere.
        assert len({answer.partition("sha256:")[0] for answer in answers}) == 1
        assert [post(who, record).status_code for who in ("red", "operator")] == [200, 200]
