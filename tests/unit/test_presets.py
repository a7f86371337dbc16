"""Presets: what a request gets of the one that it names, and who may name it."""

from collections.abc import Mapping
from typing import Any

import pytest
import yaml
from starlette.testclient import TestClient

from serve_app.config import AuthConfig, Preset, read_ingress_settings
from serve_app.intake.keys import new_key
from serve_app.intake.presets import PROMPT_FIELDS, REQUEST_FIELDS
from serve_app.intake.submission import digest_of
from serve_app.schemas.requests import InferenceRequest, Prompt
from tests.conftest import as_base64, as_png, noise_image
from tests.unit.conftest import ON_BOTH_DATABASES, SHARES_AN_APPLICATION, Application
from tests.unit.test_explain import ALL_MODELS, explained
from tests.unit.test_http_contract import finished

pytestmark = SHARES_AN_APPLICATION

LORA = {"path": "job/lora.safetensors"}
# Each field has another value than the service's default.
STYLE = {
    "model": "qwen_image_edit",
    "loras": [LORA | {"network_multiplier": 0.5}],
    "sample_steps": 3,
    "guidance_scale": 2.0,
    "neg": "blurry",
    "trigger_word": "sks",
    "profile": "trainer",
    "output_format": "png",
    "size": "128x96",
    "quality": "exact",
    "max_loss": {"psnr_db": 35.0, "ssim": 0.9},
}
IMAGE = as_base64(as_png(noise_image(96, 64)))
PROMPT = {"prompt": "[trigger] at night", "ctrl_img": IMAGE}


def configure(application: Application, **presets: object) -> None:
    application.service.reconfigure(*read_ingress_settings({"presets": presets}))


def planned(application: Application, client: TestClient, body: Mapping[str, Any]) -> dict[str, Any]:
    """The effective record of a request's only image, on which explain and the editor's plan agree."""
    [record] = explained(client, dict(body))["effective"]
    assert finished(client, dict(body))["status"] == "succeeded"
    plan = application.editors.tasks[-1].plan
    for name in ("model", "profile", "prompt", "width", "height", "guidance_scale", "seed", "output_format", "preset"):
        assert getattr(plan, name) == record[name], name
    assert (plan.steps, plan.negative_prompt) == (record["sample_steps"], record["neg"])
    assert [use.scale for use in plan.adapters] == [lora["network_multiplier"] for lora in record["loras"]]
    return record


def refusal(client: TestClient, body: Mapping[str, Any]) -> dict[str, Any]:
    """The error that explain and a submission agree on."""
    answers = [client.post(route, json=dict(body)) for route in ("/v1/explain", "/v1/inference")]
    assert [answer.status_code for answer in answers] == [400, 400], answers[0].text
    assert answers[0].json() == answers[1].json()
    return answers[0].json()["detail"]["error"]


def test_preset_sets_every_field_that_is_not_sent(application, client):
    configure(application, style=STYLE)
    record = planned(application, client, {"preset": "style", "prompts": [PROMPT]})
    expected = {
        "preset": "style",
        "model": "qwen_image_edit",
        "prompt": "sks at night",
        "neg": "blurry",
        "width": 128,
        "height": 96,
        "sample_steps": 3,
        "guidance_scale": 2.0,
        "profile": "trainer",
        "output_format": "png",
    }
    assert {name: record[name] for name in expected} == expected
    assert [(lora["path"], lora["network_multiplier"]) for lora in record["loras"]] == [(LORA["path"], 0.5)]


@pytest.mark.parametrize(
    ("of_request", "of_prompt", "expected"),
    [
        ({"loras": [LORA | {"network_multiplier": -1.0}, LORA]}, {}, {"scales": [-1.0, 1.0]}),
        ({"trigger_word": "abc"}, {}, {"prompt": "abc at night"}),
        ({"trigger_word": ""}, {}, {"prompt": "[trigger] at night"}),
        ({"profile": "reference"}, {}, {"profile": "reference"}),
        ({"output_format": "webp"}, {}, {"output_format": "webp"}),
        # The same as the service's own default, and sent.
        ({"output_format": "jpeg"}, {}, {"output_format": "jpeg"}),
        ({}, {"trigger_word": "own"}, {"prompt": "own at night"}),
        ({}, {"sample_steps": 25}, {"sample_steps": 25}),
        ({}, {"guidance_scale": 0}, {"guidance_scale": 0.0}),
        ({}, {"neg": ""}, {"neg": ""}),
        ({}, {"size": "64x64"}, {"width": 64, "height": 64}),
        ({}, {"size": "input"}, {"width": 1248, "height": 832}),
        ({}, {"width": 64}, {"width": 64, "height": 1024}),
        ({}, {"height": 64}, {"width": 1024, "height": 64}),
        # Null is not sent.
        ({"loras": None, "profile": None}, {"neg": None, "width": None}, {"width": 128, "neg": "blurry"}),
    ],
)
def test_field_that_is_sent_wins(application, client, of_request, of_prompt, expected):
    configure(application, style=STYLE)
    record = planned(application, client, {"preset": "style", "prompts": [PROMPT | of_prompt]} | of_request)
    found = record | {"scales": [lora["network_multiplier"] for lora in record["loras"]]}
    assert {name: found[name] for name in expected} == expected
    if "sample_steps" not in of_prompt:
        assert record["sample_steps"] == 3


def test_sent_model_wins(config):
    application = Application(type(config).model_validate(config.model_dump() | {"models": ALL_MODELS}))
    configure(application, style=STYLE)
    with TestClient(application.app) as client:
        body = {"preset": "style", "model": "qwen_image_edit_plus", "prompts": [PROMPT]}
        assert planned(application, client, body)["model"] == "qwen_image_edit_plus"


def test_each_prompt_is_filled_by_itself(application, client):
    configure(application, style=STYLE)
    prompts = [PROMPT, PROMPT | {"sample_steps": 1, "size": "64x64"}, PROMPT | {"width": 256, "height": 256}]
    records = explained(client, {"preset": "style", "prompts": prompts})["effective"]
    assert [record["sample_steps"] for record in records] == [3, 1, 3]
    assert [(record["width"], record["height"]) for record in records] == [(128, 96), (64, 64), (256, 256)]


def test_empty_list_of_loras_replaces_the_presets(application, client):
    configure(application, style=STYLE)
    body = {"preset": "style", "loras": [], "prompts": [PROMPT]}
    assert refusal(client, body)["code"] == "LORA_FILE_REQUIRED"


def test_preset_without_loras_takes_those_of_the_request(application, client):
    configure(application, plain={"model": "qwen_image_edit"})
    body = {"preset": "plain", "prompts": [PROMPT | {"width": 64, "height": 64, "sample_steps": 2}]}
    assert refusal(client, body)["code"] == "LORA_FILE_REQUIRED"
    assert planned(application, client, body | {"loras": [LORA]})["width"] == 64


def test_record_makes_the_image_again_whatever_became_of_the_preset(application, client):
    configure(application, style=STYLE)
    before = planned(application, client, {"preset": "style", "prompts": [PROMPT]})
    assert "preset" not in before["request"]
    configure(application)
    after = planned(application, client, before["request"])
    assert after["preset"] is None
    # The record says where its values come from, which is the request now.
    changed = {"preset": None, "why": after["why"]}
    assert before | changed == after


def test_without_a_preset_model_and_loras_are_required(client, make_body):
    answer = client.post("/v1/inference", json={"prompts": [{}], "preset": None, "loras": None})
    assert answer.status_code == 422
    missing = [["body", "model"], ["body", "loras"], ["body", "prompts", 0, "prompt"]]
    assert answer.json()["detail"] == [{"type": "missing", "loc": loc, "msg": "Field required"} for loc in missing]


def test_unknown_preset_comes_before_an_unknown_model(application, client):
    configure(application, style=STYLE)
    error = refusal(client, {"preset": "stile", "model": "flux", "prompts": [PROMPT]})
    assert (error["code"], error["details"]) == ("PRESET_NOT_FOUND", {"preset": "stile"})
    assert refusal(client, {"preset": "style", "model": "flux", "prompts": [PROMPT]})["code"] == "MODEL_NOT_FOUND"


def test_presets_are_replaced_in_place(application, client):
    body = {"preset": "style", "prompts": [PROMPT]}
    assert refusal(client, body)["code"] == "PRESET_NOT_FOUND"
    configure(application, style=STYLE)
    assert planned(application, client, body)["sample_steps"] == 3
    configure(application, style=STYLE | {"sample_steps": 4})
    assert planned(application, client, body)["sample_steps"] == 4


@ON_BOTH_DATABASES
def test_retry_is_the_same_request_after_its_preset_has_changed(application, client):
    configure(application, style=STYLE)
    body, headers = {"preset": "style", "prompts": [PROMPT]}, {"Idempotency-Key": "once"}
    first = client.post("/v1/inference", json=body, headers=headers).json()
    for presets in ({"style": STYLE | {"sample_steps": 9}}, {}):
        configure(application, **presets)
        again = client.post("/v1/inference", json=body, headers=headers)
        assert (again.status_code, again.json()["request_id"]) == (200, first["request_id"])
    other = client.post("/v1/inference", json=body | {"preset": "other"}, headers=headers)
    assert other.json()["detail"]["error"]["code"] == "IDEMPOTENCY_CONFLICT"


@ON_BOTH_DATABASES
def test_preset_is_not_found_by_tenants_that_it_is_not_for(config, tmp_path):
    keys = {who: new_key() for who in ("red", "blue", "operator")}
    tenants = {who: [keys[who][1]] for who in ("red", "blue")}
    file = tmp_path / "keys.yaml"
    file.write_text(yaml.safe_dump({"tenants": tenants, "operators": [keys["operator"][1]]}))
    application = Application(config.model_copy(update={"auth": AuthConfig(keys_file=str(file))}))
    configure(application, private=STYLE | {"tenants": ["red"]}, public=STYLE)
    with TestClient(application.app) as client:

        def post(who: str, preset: str):
            headers = {"X-API-Key": keys[who][0]}
            return client.post("/v1/inference", json={"preset": preset, "prompts": [PROMPT]}, headers=headers)

        assert [post(who, "private").status_code for who in keys] == [200, 400, 200]
        assert [post(who, "public").status_code for who in keys] == [200, 200, 200]
        hidden, unknown = (post("blue", name).text.replace(name, "NAME") for name in ("private", "nowhere"))
        assert hidden == unknown
        assert "PRESET_NOT_FOUND" in hidden


@pytest.mark.parametrize("quality", ["balanced", "fast", "turbo"])
def test_quality_that_is_not_there_is_refused(application, client, make_body, quality):
    error = refusal(client, make_body(quality=quality))
    assert (error["code"], error["details"]) == ("QUALITY_UNAVAILABLE", {"quality": quality, "available": ["exact"]})
    assert explained(client, make_body(quality="exact"))["ignored"] == []
    assert client.post("/v1/explain", json=make_body(quality="best")).status_code == 422


def test_every_field_of_a_preset_has_its_place_in_a_request():
    assert {*REQUEST_FIELDS, *PROMPT_FIELDS, "tenants"} == set(Preset.model_fields)
    assert set(REQUEST_FIELDS) <= set(InferenceRequest.model_fields)
    assert set(PROMPT_FIELDS) <= set(Prompt.model_fields)
    assert set(STYLE) | {"tenants"} == set(Preset.model_fields)


def test_key_that_an_older_version_stored_is_still_that_of_the_same_body():
    lora, prompt = {"path": "a", "x": 1}, {"prompt": "p", "seed": 1, "ctrl_img": "http://a/b"}
    body = {"model": "m", "loras": [lora], "prompts": [prompt], "unknown": [1]}
    digests = [digest_of(InferenceRequest.model_validate(body | more)) for more in ({}, {"preset": "style"})]
    # What version 0.2.0 stored.
    assert digests[0] == "f743819637391423fc3f1d60a2b7de0ba877976bb556ed6594af6fe84c8f12f7"
    assert digests[1] != digests[0]
