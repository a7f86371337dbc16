"""`POST /v1/explain`, and what the HTTP contract says of the other models of the family."""

import io
import sqlite3
from contextlib import closing
from pathlib import Path

import PIL.Image
import pytest

from serve_app.config import MINIATURE_RANDOM, SQLITE_PREFIX
from serve_app.models.registry import MODELS
from tests.conftest import as_base64, as_png, noise_image
from tests.unit.conftest import SHARES_AN_APPLICATION
from tests.unit.profiles import icc_profile

pytestmark = SHARES_AN_APPLICATION

ALL_MODELS = [{"id": model, "checkpoint": MINIATURE_RANDOM} for model in MODELS]
IMAGES = [as_base64(as_png(noise_image(*size))) for size in ((640, 256), (90, 120), (64, 64))]


def explained(client, body: dict) -> dict:
    answer = client.post("/v1/explain", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def turned_jpeg() -> bytes:
    image = noise_image(90, 60)
    image.getexif()[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=image.getexif())
    return buffer.getvalue()


def test_explanation_answers_what_one_compares_when_images_differ(client, make_body):
    """The seed page's list, point by point."""
    loras = [{"path": "job/lora.safetensors", "network_multiplier": 0.5}]
    body = make_body(width=1000, height=640, ctrl_img=IMAGES[0], loras=loras, guidance_scale=3.0, sample_steps=8)
    answer = explained(client, body)
    [record] = answer["effective"]
    assert (record["width"], record["height"]) == (992, 640)
    assert "floored to a multiple of 32" in record["why"]["size"]
    assert record["sample_steps"] == 8
    assert record["scheduler"]["class"] == "FlowMatchEulerDiscreteScheduler"
    assert len(record["scheduler"]["sigmas"]) == 9
    assert record["guidance"] | {"meaning": ""} == {
        "true_cfg_scale": 3.0,
        "guided": True,
        "rescaled_to_conditional_norm": True,
        "forwards_a_step": 2,
        "guided_steps": 8,
        "meaning": "",
    }
    assert record["forwards"] == 16
    [lora] = record["loras"]
    assert (lora["network_multiplier"], lora["receipt"]["modules"], lora["modules_of_a_whole_one"]) == (0.5, 1, 28)
    assert "from an untouched W0" in record["loras_applied"]
    [image] = record["control_images"]
    assert image["size"] == [640, 256]
    assert image["vision_encoder"]["sizes"] == [[640, 1632]]
    assert image["vae"] == [{"size": [992, 640], "kernel": "lanczos"}, {"size": [1280, 832], "kernel": "lanczos"}]
    assert len(image["sha256"]) == 64
    assert record["transformer_flops_estimated"] > 0


def test_profile_shows_in_the_explanation(client, make_body):
    [record] = explained(client, make_body(ctrl_img=IMAGES[0], profile="trainer"))["effective"]
    assert record["profile"] == "trainer"
    assert record["control_images"][0]["vision_encoder"]["sizes"] == [[1632, 640]]
    assert record["control_images"][0]["vae"][0]["kernel"] == "bilinear"


def test_work_that_orders_the_queue_is_the_explained_one(client, config, make_body):
    """With a negative prompt, which doubles the forwards."""
    body = make_body(width=96, guidance_scale=3.0, neg="blurry")
    [record] = explained(client, body)["effective"]
    assert client.post("/v1/inference", json=body).status_code == 200
    with closing(sqlite3.connect(config.jobs.database_url.removeprefix(SQLITE_PREFIX))) as database:
        assert database.execute("SELECT work FROM images").fetchall() == [(record["transformer_flops_estimated"],)]


def test_explaining_keeps_nothing_and_edits_nothing(application, client, config, make_body):
    explained(client, make_body())
    assert application.editors.tasks == []
    assert [path for path in Path(config.artifacts_url).rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"model": "flux"}, "MODEL_NOT_FOUND"),
        ({"loras": []}, "LORA_FILE_REQUIRED"),
        ({"loras": [{"path": "gone.safetensors"}]}, "LORA_NOT_FOUND"),
        ({"ctrl_img": None}, "CONTROL_IMAGE_REQUIRED"),
        ({"ctrl_img": "bm8gcGljdHVyZQ=="}, "CONTROL_IMAGE_INVALID"),
        ({"resolution": "High"}, "INVALID_PARAMETER"),
    ],
)
def test_explain_refuses_what_a_submission_is_refused_for(client, make_body, changes, code):
    body = make_body(**changes)
    answers = [client.post(route, json=body) for route in ("/v1/explain", "/v1/inference")]
    assert [answer.status_code for answer in answers] == [400, 400]
    assert answers[0].json() == answers[1].json()
    assert answers[0].json()["detail"]["error"]["code"] == code


def test_every_prompt_has_its_record(client, make_body):
    body = make_body()
    body["prompts"] = [body["prompts"][0] | {"width": width, "seed": -1} for width in (64, 96)]
    answer = explained(client, body)
    assert [record["width"] for record in answer["effective"]] == [64, 96]
    assert all("drawn" in record["why"]["seed"] for record in answer["effective"])


def test_models_are_those_that_the_config_serves(client_with):
    listed = client_with(models=ALL_MODELS).get("/v1/models").json()["models"]
    found = {m["id"]: (m["base_model"], m["resolution_divisor"], m["requires_control_image"]) for m in listed}
    assert found == {
        "qwen_image_edit": ("Qwen/Qwen-Image-Edit", 32, True),
        "qwen_image_edit_plus": ("Qwen/Qwen-Image-Edit-2509", 32, True),
        "qwen_image_edit_plus_2511": ("Qwen/Qwen-Image-Edit-2511", 32, True),
        "qwen_image": ("Qwen/Qwen-Image", 16, False),
        "qwen_image_2512": ("Qwen/Qwen-Image-2512", 16, False),
    }
    assert [m["id"] for m in client_with(models=ALL_MODELS[1:2]).get("/v1/models").json()["models"]] == [
        "qwen_image_edit_plus"
    ]


def test_edit_plus_takes_three_images_in_order_and_no_fourth(client_with, make_body):
    client = client_with(models=ALL_MODELS)
    numbered = {f"ctrl_img_{i + 1}": image for i, image in enumerate(IMAGES)}
    body = make_body(model="qwen_image_edit_plus", ctrl_img="ignored, since numbered ones are there", **numbered)
    [record] = explained(client, body)["effective"]
    assert [image["size"] for image in record["control_images"]] == [[640, 256], [90, 120], [64, 64]]
    assert record["text_encoder"]["prompt_prefix"].startswith("Picture 1: <|vision_start|>")
    assert record["control_images"][1]["vae"] == [{"size": [896, 1184], "kernel": "lanczos"}]
    refused = client.post("/v1/explain", json=body | {"model": "qwen_image_edit"}).json()["detail"]["error"]
    assert (refused["code"], refused["details"]["max"]) == ("TOO_MANY_CONTROL_IMAGES", 1)


def test_text_to_image_needs_no_control_image_and_says_that_it_ignored_one(client_with, make_body):
    client = client_with(models=ALL_MODELS)
    body = make_body(model="qwen_image", ctrl_img=None, width=1000)
    [record] = explained(client, body)["effective"]
    assert (record["width"], record["control_images"]) == (992, [])
    assert record["text_encoder"]["max_prompt_tokens"] == 512
    answer = explained(client, make_body(model="qwen_image", ctrl_img="not even an image"))
    assert answer["ignored"] == ["ctrl_img"]
    submitted = client.post("/v1/inference", json=body)
    assert submitted.status_code == 200


def test_exif_rotation_is_noted_in_the_results_metadata(client, make_body):
    body = make_body(ctrl_img=as_base64(turned_jpeg()), width=96)
    url = client.post("/v1/inference", json=body).json()["result_url"]
    [note] = client.get(url).json()["metadata"]["notes"]
    assert "EXIF orientation 6, which is ignored" in note
    assert explained(client, body)["notes"] == [note]


def test_exif_rotation_is_applied_when_asked(client, make_body):
    answer = explained(client, make_body(ctrl_img=as_base64(turned_jpeg()), exif="apply", height=96))
    [image] = answer["effective"][0]["control_images"]
    assert (image["size"], image["exif_orientation"]) == ([60, 90], 6)
    assert answer["notes"] == []


def test_conversions_of_a_control_image_are_reported(client, make_body):
    clear = as_base64(as_png(PIL.Image.new("RGBA", (64, 64), (1, 2, 3, 0))))
    [record] = explained(client, make_body(ctrl_img=clear))["effective"]
    assert record["control_images"][0]["conversions"] == ["alpha dropped"]


@pytest.mark.parametrize("token", ["<|image_pad|>", "<|video_pad|>"])
def test_prompt_with_a_reserved_token_is_refused(client, make_body, token):
    """The processor would look for an image that belongs to it."""
    error = client.post("/v1/inference", json=make_body(prompt=f"a {token} hat")).json()["detail"]["error"]
    assert (error["code"], error["details"]) == ("INVALID_PARAMETER", {"prompt_index": 0, "parameter": "prompt"})


def test_misspelt_and_misplaced_fields_are_reported(client, make_body):
    body = make_body(sampel_steps=3, profile="reference") | {"steps": 3}
    body["prompts"][0]["output_format"] = "png"
    assert explained(client, body)["ignored"] == ["prompts[].output_format", "prompts[].sampel_steps", "steps"]
    url = client.post("/v1/inference", json=body).json()["result_url"]
    assert "steps" in client.get(url).json()["metadata"]["ignored"]


def test_path_in_place_of_an_image_is_recognised(client, make_body):
    error = client.post("/v1/inference", json=make_body(ctrl_img="samples/astronaut.jpg")).json()["detail"]["error"]
    assert error["code"] == "CONTROL_IMAGE_INVALID"
    assert "looks like a path, and this service reads no paths: send base64 or an http(s) URL" in error["message"]


def test_result_of_another_shape_is_noted_in_explanation_and_result(client, make_body):
    body = make_body(ctrl_img=as_base64(as_png(noise_image(64, 128))))
    [note] = explained(client, body)["notes"]
    assert note == "prompt 0: the control image is 64x128, the result 64x64: it will be stretched; use size: input"
    url = client.post("/v1/inference", json=body).json()["result_url"]
    assert client.get(url).json()["metadata"]["notes"] == [note]


def test_colour_profile_is_named_in_explanation(client, make_body):
    buffer = io.BytesIO()
    noise_image(64, 64).save(buffer, "PNG", icc_profile=icc_profile("Display P3"))
    [record] = explained(client, make_body(ctrl_img=as_base64(buffer.getvalue())))["effective"]
    assert record["control_images"][0]["conversions"] == ["colour profile 'Display P3' not applied"]
