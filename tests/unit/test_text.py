"""One rule for each text that a client sends or a file brings: UTF-8 has to carry it."""

import json
from pathlib import Path

import pytest

from serve_app.schemas.requests import InferenceRequest
from tests.unit.conftest import SHARES_AN_APPLICATION, safetensors_bytes
from tests.unit.test_http_contract import finished

pytestmark = SHARES_AN_APPLICATION

# What is left of an emoji that was cut in two.
HALF = "at night \ud83d"
JSON = {"content-type": "application/json"}


def string_fields() -> list[tuple[str | int, ...]]:
    """Where each string of a request stands, as its schema has it."""
    schema = InferenceRequest.model_json_schema()

    def of(name: str) -> dict:
        return schema["$defs"][name]

    def is_string(field: dict) -> bool:
        options = field.get("anyOf", [field])
        return any((of(x["$ref"].split("/")[-1]) if "$ref" in x else x).get("type") == "string" for x in options)

    found = [(name,) for name, field in schema["properties"].items() if is_string(field)]
    for items, kind in (("loras", "Lora"), ("prompts", "Prompt")):
        found += [(items, 0, name) for name, field in of(kind)["properties"].items() if is_string(field)]
    return [*found, ("webhook_events", 0)]


def post(client, body: dict, route: str = "/v1/inference", **headers: str):
    """As a client sends it that escapes what is not ASCII: half an emoji passes for JSON."""
    return client.post(route, content=json.dumps(body), headers=JSON | headers)


def test_every_string_of_a_request_is_among_those_looked_at():
    assert {place[-1] for place in string_fields()} >= {"model", "path", "prompt", "neg", "trigger_word", "ctrl_img_3"}


@pytest.mark.parametrize("place", string_fields(), ids=lambda place: ".".join(map(str, place)))
def test_text_that_utf8_cannot_encode_is_refused_with_its_field(client, make_body, place):
    body = make_body() | {"webhook_events": ["failed"]}
    inner = body
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = HALF
    for route in ("/v1/inference", "/v1/explain"):
        answer = post(client, body, route)
        assert answer.status_code == 422, answer.text
        [fault] = answer.json()["detail"]
        assert set(fault) == {"type", "loc", "msg"}
        assert fault["loc"] == ["body", *place]


def test_names_and_values_of_unknown_fields_may_be_anything(client, make_body):
    deep: object = HALF
    for _ in range(300):
        deep = [deep]
    odd = {HALF: HALF, "surprise": {HALF: [HALF]}, "deep": deep}
    body = make_body() | odd
    body["prompts"][0] |= odd
    body["loras"][0] = body["loras"][0] | odd
    answer = post(client, body, "/v1/explain")
    assert answer.status_code == 200, answer.text
    levels = ("", "prompts[].", "loras[].")
    assert set(answer.json()["ignored"]) == {level + name for level in levels for name in ("deep", "surprise")}
    first, second = (post(client, body, **{"idempotency-key": "k"}) for _ in range(2))
    assert first.json()["request_id"] == second.json()["request_id"]
    assert post(client, body | {"deep": 1}, **{"idempotency-key": "k"}).status_code == 409


def test_digest_tells_requests_apart_by_each_part_of_their_bodies(client, make_body):
    body = make_body()
    assert post(client, body, **{"idempotency-key": "k"}).status_code == 200
    changed = [body | {"exif": "apply"}, body | {"unknown": None}, body | {"loras": body["loras"] * 2}]
    changed.append(body | {"prompts": [body["prompts"][0] | {"steps": 3}]})
    changed.append(body | {"loras": [body["loras"][0] | {"scale": 3}]})
    assert [post(client, other, **{"idempotency-key": "k"}).status_code for other in changed] == [409] * len(changed)
    same = body | {"hf_token": "hf_x", "output_format": None}
    assert post(client, same, **{"idempotency-key": "k"}).status_code == 200


def test_token_that_a_header_cannot_contain_is_refused_and_not_echoed(client, make_body):
    answer = post(client, make_body(hf_token="hf_secret\r\nX-Injected: 1"))
    assert (answer.status_code, answer.json()["detail"][0]["loc"]) == (422, ["body", "hf_token"])
    assert "hf_secret" not in answer.text


def test_nul_is_refused_in_lookups_and_allowed_in_prompts(client, make_body):
    for query in ("model", "lora", "tenant"):
        assert client.get("/v1/requests", params={query: "a\0b"}).status_code == 422
    result = finished(client, make_body(prompt="a \0 b"))
    assert result["status"] == "succeeded"


def test_image_token_is_refused_wherever_it_comes_from(client, config, make_body):
    metadata = {"ss_tag_frequency": json.dumps({"1_<|image_pad|>": {}})}
    Path(config.lora_root, "odd.safetensors").write_bytes(safetensors_bytes(metadata=metadata))
    ways = (
        {"prompt": "a <|video_pad|>"},
        {"neg": "a <|image_pad|>"},
        {"trigger_word": "<|image_pad|>"},
        {"prompt": "a <|image_[trigger]|>", "trigger_word": "pad"},
        {"trigger_word": "auto", "loras": [{"path": "odd.safetensors"}]},
    )
    for fields in ways:
        answer = client.post("/v1/inference", json=make_body(**fields))
        assert answer.status_code == 400, fields
        error = answer.json()["detail"]["error"]
        parameter = "neg" if "neg" in fields else "prompt"
        assert (error["code"], error["details"]) == ("INVALID_PARAMETER", {"prompt_index": 0, "parameter": parameter})


def test_other_special_tokens_are_read_as_the_reference_reads_them(client, make_body):
    for token in ("<|im_end|>", "<|vision_start|>", "<|endoftext|>"):
        assert client.post("/v1/explain", json=make_body(prompt=f"a {token} hat")).status_code == 200
