"""What one body may cost: refused before anything is fetched or stored, in an answer that is smaller than the body."""

import json
import tracemalloc
from pathlib import Path

import pytest

from serve_app.api.bodies.json_bodies import MAX_VALUES
from serve_app.config import MAX_PROMPT_CHARS, IngressSettings
from serve_app.intake.admission.checks import MAX_KEPT_CHARS
from serve_app.schemas.requests import MAX_FAULTS, MAX_LORAS, MAX_PROMPTS
from tests.unit.conftest import SHARES_AN_APPLICATION, safetensors_bytes

pytestmark = SHARES_AN_APPLICATION


def refusal(client, body: dict) -> dict:
    answer = client.post("/v1/inference", json=body)
    assert answer.status_code == 400, answer.text[:500]
    return answer.json()["detail"]["error"]


def faults(client, body: dict) -> list[dict]:
    answer = client.post("/v1/inference", json=body)
    assert answer.status_code == 422, answer.text[:500]
    assert len(answer.content) < 10_000
    return answer.json()["detail"]


def test_nearly_a_million_prompts_are_refused_for_little_memory(client, make_body):
    content = json.dumps(make_body() | {"prompts": [1] * 900_000}, separators=(",", ":")).encode()
    tracemalloc.start()
    answer = client.post("/v1/inference", content=content, headers={"content-type": "application/json"})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (answer.status_code, answer.json()["detail"][0]["type"]) == (422, "too_long")
    assert answer.json()["detail"][0]["loc"] == ["body", "prompts"]
    assert len(answer.content) < 1_000
    # The list that the JSON parser makes has 8 MB, the body 2 MB a copy.
    assert peak < 40_000_000


def test_faults_of_a_body_are_listed_up_to_a_number(client, make_body):
    bad = {"prompt": "x", "width": 0, "height": 0}
    found = faults(client, make_body() | {"prompts": [bad] * MAX_PROMPTS})
    assert len(found) == MAX_FAULTS
    assert [fault["loc"][2] for fault in found[:3]] == [0, 0, 1]
    assert len(faults(client, make_body(loras=[{}] * MAX_LORAS))) == MAX_FAULTS


def test_fault_behind_many_good_prompts_is_named(client, make_body):
    prompts = make_body()["prompts"] * 100
    [fault] = faults(client, make_body() | {"prompts": [*prompts, {"prompt": "x", "width": 0}, {}]})
    assert fault["loc"] == ["body", "prompts", 100, "width"]


@pytest.mark.parametrize(
    ("field", "sent"),
    [("prompts", [{"prompt": "x"}] * (MAX_PROMPTS + 1)), ("loras", [{"path": "x"}] * (MAX_LORAS + 1))],
    ids=["prompts", "loras"],
)
def test_lists_have_a_length(client, make_body, field, sent):
    [fault] = faults(client, make_body() | {field: sent})
    assert (fault["type"], fault["loc"]) == ("too_long", ["body", field])


def test_error_does_not_echo_every_lora(client, make_body):
    loras = [{"path": f"{number}"} for number in range(MAX_LORAS)]
    error = refusal(client, make_body(loras=loras))
    assert (error["code"], error["details"]["loras"]) == ("TOO_MANY_LORAS", [str(number) for number in range(20)])
    error = refusal(client, make_body(loras=[lora | {"transformer": "low"} for lora in loras]))
    assert (error["code"], len(error["details"]["loras"])) == ("MOE_FORMAT_NOT_SUPPORTED", 20)


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"model": "x" * 1_001}, ["model"]),
        ({"trigger_word": "x" * (MAX_PROMPT_CHARS + 1)}, ["trigger_word"]),
        ({"prompt": "x" * (MAX_PROMPT_CHARS + 1)}, ["prompts", 0, "prompt"]),
        ({"neg": "x" * (MAX_PROMPT_CHARS + 1)}, ["prompts", 0, "neg"]),
        ({"sampler": "x" * 1_001}, ["prompts", 0, "sampler"]),
        ({"ctrl_img": "http://" + "x" * 8_001}, ["prompts", 0, "ctrl_img"]),
        ({"loras": [{"path": "x" * 8_001}]}, ["loras", 0, "path"]),
        ({"hf_token": "x" * 1_001}, ["hf_token"]),
    ],
)
def test_texts_have_a_length(client, make_body, fields, place):
    [fault] = faults(client, make_body(**fields))
    assert fault["loc"] == ["body", *place]


def kept_nothing(config) -> bool:
    return not [path for path in Path(config.artifacts_url).rglob("*") if path.is_file()]


def test_trigger_word_in_thousands_of_prompts_is_refused_before_anything_is_kept(client, config, make_body):
    """A body of 1.4 MB would become rows of more than 100."""
    prompts = [{"prompt": "[trigger]", "ctrl_img": "http://127.0.0.1:1/x.png"}] * 5_000
    error = refusal(client, make_body(trigger_word="x" * 20_000) | {"prompts": prompts})
    details = {"parameter": "prompts", "prompt_index": 399, "max": MAX_KEPT_CHARS}
    assert (error["code"], error["details"]) == ("INVALID_PARAMETER", details)
    assert "100100000 characters" in error["message"]
    assert kept_nothing(config)


@pytest.mark.parametrize(
    ("trigger", "prompt"), [("x" * 10_000, "[trigger]"), ("auto", "[trigger]" * 100), (None, "x" * 10_000)]
)
def test_texts_are_bounded_in_all_wherever_they_come_from(client, make_body, trigger, prompt):
    """A word that a file names counts as the longest one that is believed."""
    prompts = [make_body()["prompts"][0] | {"prompt": prompt}] * 1_000
    error = refusal(client, make_body(trigger_word=trigger) | {"prompts": prompts})
    assert 0 < error["details"].pop("prompt_index") < 1_000
    assert error["details"] == {"parameter": "prompts", "max": MAX_KEPT_CHARS}


def test_long_paths_count_for_each_image(client, make_body):
    loras = [{"path": "https://loras.example/" + "x" * 4_000}] * 2
    error = refusal(client, make_body(loras=loras) | {"prompts": make_body()["prompts"] * 1_000})
    assert 0 < error["details"].pop("prompt_index") < 1_000
    assert error["details"] == {"parameter": "prompts", "max": MAX_KEPT_CHARS}


def test_more_prompts_than_may_wait_are_refused_before_their_images_are_looked_at(client_with, make_body):
    client = client_with(jobs={"max_queued_per_tenant": 2})
    body = make_body(ctrl_img="http://127.0.0.1:1/x.png")
    error = refusal(client, body | {"prompts": body["prompts"] * 3})
    assert (error["code"], error["details"]) == (
        "INVALID_PARAMETER",
        {"parameter": "prompts", "prompt_index": 2, "max": 2},
    )


def test_limit_on_prompts_is_that_of_now(application, client, make_body):
    """The limits on the queue change while the service runs."""
    body = make_body() | {"prompts": make_body()["prompts"] * 3}
    application.service.reconfigure(IngressSettings(max_queued_per_tenant=2))
    for route in ("/v1/inference", "/v1/explain"):
        assert client.post(route, json=body).json()["detail"]["error"]["details"]["max"] == 2
    application.service.reconfigure(IngressSettings(max_queued_per_tenant=3))
    assert client.post("/v1/inference", json=body).status_code == 200


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"model": "none"}, "MODEL_NOT_FOUND"),
        ({"loras": []}, "LORA_FILE_REQUIRED"),
        ({"loras": [{"path": "../x"}]}, "LORA_PATH_FORBIDDEN"),
        ({"loras": [{"path": "no.safetensors"}]}, "LORA_NOT_FOUND"),
        ({"prompts": [{"prompt": "x"}] * 3}, "CONTROL_IMAGE_REQUIRED"),
    ],
)
def test_faults_of_a_request_are_told_before_its_amount_and_a_full_queue(client_with, make_body, changes, code):
    client = client_with(jobs={"max_queued_per_tenant": 2})
    body = make_body() | {"prompts": make_body()["prompts"] * 3} | changes
    assert refusal(client, body)["code"] == code


@pytest.mark.parametrize("field", ["prompt", "neg"])
@pytest.mark.parametrize("count", [1_000, 20_000])
def test_text_of_more_tokens_than_the_model_takes_is_refused_at_the_post(client, config, make_body, field, count):
    """An emoji is four tokens of the miniature."""
    error = refusal(client, make_body(**{field: "\N{GRINNING FACE}" * count}))
    tokens = error["details"].pop("tokens")
    assert tokens > 4 * count
    assert error["code"] == "INVALID_PARAMETER"
    assert error["details"] == {"prompt_index": 0, "parameter": field, "most": 4064}
    assert kept_nothing(config)


def test_negative_prompt_that_nobody_reads_may_be_long(client, make_body):
    body = make_body(neg="\N{GRINNING FACE}" * 10_000, guidance_scale=1.0)
    assert client.post("/v1/inference", json=body).status_code == 200


def test_trigger_word_of_a_file_is_filled_in_before_a_prompt_is_measured(client, config, make_body):
    metadata = {"ss_tag_frequency": json.dumps({"1_" + "x" * 100: {}})}
    Path(config.lora_root, "long.safetensors").write_bytes(safetensors_bytes(metadata=metadata))
    body = make_body(prompt="[trigger]" * 300, trigger_word="auto", loras=[{"path": "long.safetensors"}])
    error = refusal(client, body)
    assert "prompt has 30000 characters" in error["message"]


def test_null_of_an_optional_field_means_absent(application, client, make_body):
    fields = ("output_format", "vae_tiling", "exif", "priority", "webhook_events", "webhook_url", "deadline_s")
    body = make_body(trigger_word=None, hf_token=None, profile=None) | dict.fromkeys(fields)
    optional = ("trigger_word", "guidance_scale", "neg", "seed", "sampler", "num_frames", "fps", "resolution")
    body["prompts"][0] |= dict.fromkeys((*optional, "ctrl_img_1", "ctrl_img_2", "ctrl_img_3"))
    body["loras"] = [{"path": "job/lora.safetensors", "network_multiplier": None, "transformer": None}]
    answers = [client.post("/v1/explain", json=sent).json() for sent in (make_body(), body)]
    assert answers[0] == answers[1]
    assert client.post("/v1/inference?wait=5", json=body).json()["status"] == "succeeded"
    assert application.editors.tasks[0].plan.adapters[0].scale == 1.0


@pytest.mark.parametrize("field", ["model", "loras", "prompts"])
def test_null_of_a_required_field_is_refused(client, make_body, field):
    assert [fault["loc"] for fault in faults(client, make_body() | {field: None})] == [["body", field]]


def test_openapi_says_that_optional_fields_take_null(client):
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    for name in ("InferenceRequest", "Prompt", "Lora"):
        required = schemas[name]["required"]
        for field, schema in schemas[name]["properties"].items():
            assert ({"type": "null"} in schema.get("anyOf", ())) == (field not in required), (name, field)
    assert schemas["InferenceRequest"]["properties"]["prompts"]["maxItems"] == MAX_PROMPTS
    loras, _ = schemas["InferenceRequest"]["properties"]["loras"]["anyOf"]
    assert loras["maxItems"] == MAX_LORAS


@pytest.mark.parametrize("value", ["{}", "[]", '{"a":[]}', "0"])
def test_body_of_too_many_values_is_refused_before_it_is_parsed(client, value):
    """Ten megabytes of empty objects would take a quarter of a gigabyte."""
    content = b'{"x":[' + b",".join([value.encode()] * MAX_VALUES) + b"]}"
    tracemalloc.start()
    answer = client.post("/v1/inference", content=content, headers={"content-type": "application/json"})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    [fault] = answer.json()["detail"]
    assert (answer.status_code, fault["type"]) == (422, "json_invalid")
    assert "more than 1000000 values" in fault["msg"]
    assert peak < 4 * len(content) + 10_000_000
