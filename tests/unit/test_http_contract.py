"""What existing clients send and read, over the real application with instant editors."""

import re
import time
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from serve_app.config import AuthConfig
from serve_app.intake.keys import new_key
from serve_app.tasks import Status
from tests.unit.conftest import IMAGE, SHARES_AN_APPLICATION, Application

pytestmark = SHARES_AN_APPLICATION

ISO_UTC = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z$")


def finished(client, body: dict) -> dict:
    """Post a body and poll until its request has ended; the result's JSON."""
    return ended(client, client.post("/v1/inference", json=body))


def ended(client, answer) -> dict:
    """Poll until the request of a POST's answer has ended; the result's JSON."""
    assert answer.status_code == 200, answer.text
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        result = client.get(answer.json()["result_url"]).json()
        if Status(result["status"]).ended:
            return result
        time.sleep(0.01)
    raise AssertionError("the request did not end")


def test_health(client):
    assert client.get("/health").json() == {"status": "healthy"}


def test_ready_names_the_models_without_an_editor(application, client):
    assert (client.get("/ready").status_code, client.get("/ready").json()["waiting_for"]) == (200, [])
    application.running["qwen_image_edit"] = 0
    answer = client.get("/ready")
    expected = {"ready": False, "waiting_for": ["qwen_image_edit"], "broken_presets": [], "editors": {}}
    assert (answer.status_code, answer.json()) == (503, expected)


def test_models_are_listed_with_every_field(client):
    assert client.get("/v1/models").json()["models"] == [
        {
            "id": "qwen_image_edit",
            "base_model": "Qwen/Qwen-Image-Edit",
            "resolution_divisor": 32,
            "default_steps": 25,
            "default_guidance_scale": 4.0,
            "requires_control_image": True,
            "is_video_model": False,
            "default_num_frames": None,
            "default_fps": None,
            "max_control_images": 1,
            "max_loras": 4,
            "requires_lora": True,
            "qualities": ["exact"],
            "tiers": [],
        }
    ]


def test_submission_is_answered_as_queued_with_urls_as_the_client_addressed_us(client, make_body):
    answer = client.post("/v1/inference", json=make_body()).json()
    base = f"http://testserver/v1/requests/{answer['request_id']}"
    assert set(answer) == {"request_id", "status", "status_url", "result_url", "created_at"}
    assert (answer["status"], answer["status_url"], answer["result_url"]) == (
        "queued",
        f"{base}/status",
        f"{base}/result",
    )
    assert ISO_UTC.match(answer["created_at"])


def test_urls_start_with_the_configured_base_url(client_with, make_body):
    answer = client_with(base_url="https://edits.example/api/").post("/v1/inference", json=make_body()).json()
    assert answer["status_url"] == f"https://edits.example/api/v1/requests/{answer['request_id']}/status"


def test_status_takes_the_contracts_values_in_order(application, client, make_body):
    application.editors.gate.clear()
    url = client.post("/v1/inference", json=make_body()).json()["status_url"]
    seen = client.get(url).json()
    assert seen["status"] in ("in_queue", "in_progress")
    assert (seen["finished_at"], seen["error"]) == (None, None)
    application.editors.gate.set()
    deadline = time.monotonic() + 5
    while client.get(url).json()["status"] != "succeeded":
        assert time.monotonic() < deadline
    seen = client.get(url).json()
    assert all(ISO_UTC.match(seen[key]) for key in ("created_at", "started_at", "finished_at"))
    assert seen["progress"] == {"images_done": 1, "images": 1, "steps_done": 2, "steps": 2, "stage": None}


def test_result_before_the_end_has_null_outputs(application, client, make_body):
    application.editors.gate.clear()
    result = client.get(client.post("/v1/inference", json=make_body()).json()["result_url"]).json()
    assert (result["outputs"], result["error"], result["finished_at"]) == (None, None, None)
    application.editors.gate.set()


def test_result_has_one_image_per_prompt_in_order(client, make_body):
    body = make_body()
    body["prompts"] = [body["prompts"][0] | {"width": width} for width in (64, 96, 128)]
    result = finished(client, body)
    assert result["status"] == "succeeded"
    assert result["outputs"]["videos"] == []
    images = result["outputs"]["images"]
    assert [(i["format"], i["width"], i["height"], i["seed"]) for i in images] == [
        ("jpeg", 64, 64, 42),
        ("jpeg", 96, 64, 43),
        ("jpeg", 128, 64, 44),
    ]
    metadata = result["metadata"]
    assert metadata["model"] == "qwen_image_edit"
    assert metadata["inference_time"] >= 0
    assert [set(t) >= {"generate", "load_control_images", "save"} for t in metadata["timings"]["prompts"]] == [True] * 3


def test_file_path_is_the_real_local_path(client, make_body):
    image = finished(client, make_body())["outputs"]["images"][0]
    assert Path(image["file_path"]).read_bytes() == IMAGE


def test_file_path_is_the_url_where_there_are_api_keys(config, make_body, tmp_path):
    """A tenant does not see paths of the server."""
    key, sha256 = new_key()
    (tmp_path / "keys.yaml").write_text(f"tenants: {{t: [{sha256}]}}")
    locked = Application(config.model_copy(update={"auth": AuthConfig(keys_file=str(tmp_path / "keys.yaml"))}))
    with TestClient(locked.app, headers={"X-API-Key": key}) as client:
        result = finished(client, make_body())
        [image] = result["outputs"]["images"]
        assert image["file_path"] == image["url"]
        assert client.get(image["file_path"]).content == IMAGE
        stream = client.get(f"/v1/requests/{result['request_id']}/events").text
    assert str(tmp_path) not in stream + str(result)


def test_image_is_downloaded_by_its_url(client, make_body):
    image = finished(client, make_body(output_format="png"))["outputs"]["images"][0]
    answer = client.get(image["url"])
    assert (answer.status_code, answer.headers["content-type"], answer.content) == (200, "image/png", IMAGE)


def test_size_is_floored_to_the_divisor(client, make_body):
    image = finished(client, make_body(width=100, height=127))["outputs"]["images"][0]
    assert (image["width"], image["height"]) == (96, 96)


def test_defaults_of_a_prompt_without_optional_fields(application, client, make_body):
    body = make_body()
    body["prompts"] = [{key: body["prompts"][0][key] for key in ("prompt", "ctrl_img")}]
    finished(client, body)
    plan = application.editors.tasks[0].plan
    assert (plan.width, plan.height, plan.steps, plan.guidance_scale) == (1024, 1024, 25, 4.0)
    assert (plan.negative_prompt, plan.seed, plan.adapters[0].scale, plan.output_format) == ("", 42, 1.0, "jpeg")


def test_drawn_seed_is_reported(client, make_body):
    body = make_body(seed=-1)
    seeds = {finished(client, body)["outputs"]["images"][0]["seed"] for _ in range(3)}
    assert len(seeds) == 3
    assert all(seed >= 0 for seed in seeds)


def test_largest_seed_is_taken_as_it_is(application, client, make_body):
    finished(client, make_body(seed=2**63 - 1))
    assert application.editors.tasks[0].plan.seed == 2**63 - 1


@pytest.mark.parametrize(
    ("of_request", "of_prompt", "expected"),
    [
        ("sks", None, "sks at night"),
        ("sks", "own", "own at night"),
        ("sks", "", "sks at night"),
        (None, None, "[trigger] at night"),
    ],
)
def test_trigger_word_is_filled_in(application, client, make_body, of_request, of_prompt, expected):
    finished(
        client,
        make_body(trigger_word=of_request) | {"prompts": [make_body()["prompts"][0] | {"trigger_word": of_prompt}]},
    )
    assert application.editors.tasks[0].plan.prompt == expected


def test_trigger_word_is_left_alone_in_the_negative_prompt(application, client, make_body):
    finished(client, make_body(neg="[trigger]", trigger_word="sks"))
    assert application.editors.tasks[0].plan.negative_prompt == "[trigger]"


def test_multiplier_is_the_adapters_scale(application, client, make_body):
    finished(client, make_body(loras=[{"path": "job/lora.safetensors", "network_multiplier": -0.5}]))
    assert [use.scale for use in application.editors.tasks[0].plan.adapters] == [-0.5]


def test_numbers_are_coerced_and_unknown_fields_ignored(application, client, make_body):
    finished(client, make_body(width="96", sample_steps=3.0, surprise=1) | {"kv_cache": True, "match_target_res": 1})
    plan = application.editors.tasks[0].plan
    assert (plan.width, plan.steps) == (96, 3)


def test_fields_that_mean_nothing_here_are_named(client, make_body):
    result = finished(client, make_body(sampler="ddpm", num_frames=5, fps=8))
    assert result["metadata"]["ignored"] == ["fps", "num_frames", "sampler"]


@pytest.mark.parametrize("sampler", ["flowmatch", "lightning"])
def test_sampler_that_is_known_is_not_ignored(client, make_body, sampler):
    explained = client.post("/v1/explain", json=make_body(sampler=sampler)).json()
    assert (explained["ignored"], explained["effective"][0]["scheduler"]["sampler"]) == ([], sampler)


def test_numbered_control_images_win(application, client, make_body):
    body = make_body(ctrl_img="this is not read", ctrl_img_2=make_body()["prompts"][0]["ctrl_img"])
    assert finished(client, body)["status"] == "succeeded"


def test_data_url_is_a_control_image(client, make_body):
    body = make_body(ctrl_img="data:image/png;base64," + make_body()["prompts"][0]["ctrl_img"])
    assert finished(client, body)["status"] == "succeeded"


def test_token_is_nowhere_in_the_store(client, config, make_body):
    request_id = finished(client, make_body(hf_token="hf_secret_token"))["request_id"]
    folder = Path(config.lora_root).parent
    stored = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert request_id.encode() in stored
    assert b"hf_secret_token" not in stored


def test_failed_request_lists_what_was_finished(application, client, make_body):
    application.editors.errors = [ValueError("a secret of the inside")]
    body = make_body()
    body["prompts"] *= 2
    result = finished(client, body)
    assert (result["status"], result["outputs"]) == ("failed", None)
    assert result["error"].startswith("prompt ")
    assert "secret" not in result["error"]
    [partial] = result["metadata"]["partial"]
    assert client.get(partial["url"]).content == IMAGE


def test_cors_is_open(client):
    answer = client.options(
        "/v1/inference", headers={"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    )
    assert answer.headers["access-control-allow-origin"] == "*"
    assert client.get("/health", headers={"Origin": "https://a.example"}).headers["access-control-allow-origin"] == "*"


def test_every_route_is_documented_with_examples(client):
    schema = client.get("/openapi.json").json()
    assert client.get("/docs").status_code == 200
    submit = schema["paths"]["/v1/inference"]["post"]
    refusals = submit["responses"]["400"]["content"]["application/json"]["examples"]
    assert {"MODEL_NOT_FOUND", "LORA_NOT_FOUND", "CONTROL_IMAGE_INVALID", "INVALID_PARAMETER"} <= set(refusals)
    assert {"413", "422"} <= set(submit["responses"])
    for name in ("InferenceRequest", "Submitted", "RequestStatus", "RequestResult", "ModelInfo", "ShapeErrors"):
        assert schema["components"]["schemas"][name]["examples"], name
