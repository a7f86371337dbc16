"""The real path: HTTP, Ray Serve, a replica with the real classes, a LoRA, an image back."""

import io
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from safetensors.numpy import save_file

from tests.conftest import LORAS, ROOT, as_base64, as_png, noise_image
from tests.engine.pipelines import use
from tests.service.conftest import pixels

SAMPLE = "my_lora_job/my_lora.safetensors"


def test_seed_pages_request(family):
    """The documented request, only smaller: trigger word, prompt, control image, LoRA."""
    photograph = (ROOT / "samples/astronaut.jpg").read_bytes()
    prompt = {"prompt": "[trigger] a photo of a person", "width": 256, "height": 256, "seed": 42, "sample_steps": 3}
    prompt |= {"guidance_scale": 4.0, "neg": "", "ctrl_img": as_base64(photograph)}
    body = {"model": "qwen_image_edit", "trigger_word": "sks", "prompts": [prompt]}
    result, data = family.edit(body | {"loras": [{"path": SAMPLE, "network_multiplier": 1.0}]})
    [image] = result["outputs"]["images"]
    assert (image["format"], image["width"], image["height"], image["seed"]) == ("jpeg", 256, 256, 42)
    assert Path(image["file_path"]).read_bytes() == data
    opened = PIL.Image.open(io.BytesIO(data))
    assert (opened.format, opened.size) == ("JPEG", (256, 256))
    assert result["metadata"]["effective"][0]["prompt"] == "sks a photo of a person"


@pytest.mark.parametrize("scale", [None, 1.0, 0.5, 0.0, -0.5])
def test_pixels_are_those_of_the_engine_in_one_process(family, engine, make_plan, control_png, make_body, scale):
    lora = LORAS / SAMPLE
    adapters = () if scale is None else (use(lora, scale),)
    expected = engine.edit(make_plan(adapters=adapters, width=96, height=64), [control_png]).image
    loras = [] if scale is None else [{"path": SAMPLE, "network_multiplier": scale}]
    body = make_body(width=96, height=64, prompt="make it night", output_format="png", loras=loras)
    _, data = family.edit(body)
    assert np.array_equal(pixels(data), np.asarray(expected))


def test_prompts_of_a_request_keep_their_order(family, make_body):
    body = make_body(loras=[{"path": SAMPLE}])
    body["prompts"] = [body["prompts"][0] | {"width": width} for width in (64, 96, 128)]
    images = family.result(family.submit(body))["outputs"]["images"]
    assert [image["width"] for image in images] == [64, 96, 128]


def test_lora_of_another_model_is_refused_before_any_editor_sees_it(family, make_body):
    name = "diffusion_model.transformer_blocks.0.attn.to_q.lora_{}.weight"
    bad = {name.format("A"): np.ones((4, 999), np.float32), name.format("B"): np.ones((999, 4), np.float32)}
    target = Path(family.config.lora_root) / "wide_of_a_test.safetensors"
    save_file(bad, target)
    answer = family.client.post("/v1/inference", json=make_body(loras=[{"path": target.name}]))
    error = answer.json()["detail"]["error"]
    assert (answer.status_code, error["code"]) == (400, "LORA_INCOMPATIBLE")
    assert "its change is 999x999, the model's module 16x16" in error["message"]
    assert family.edit(make_body(loras=[{"path": SAMPLE}]))[0]["status"] == "succeeded"


def test_two_loras_at_once(family, make_body):
    one = make_body(loras=[{"path": SAMPLE}], output_format="png")
    two = make_body(loras=[{"path": SAMPLE}, {"path": SAMPLE, "network_multiplier": -1.0}], output_format="png")
    base = make_body(loras=[{"path": SAMPLE, "network_multiplier": 0.0}], output_format="png")
    images = [pixels(family.edit(body)[1]) for body in (one, two, base)]
    assert np.array_equal(images[1], images[2])
    assert not np.array_equal(images[0], images[2])


def test_larger_image_than_the_control_image(family, make_body):
    body = make_body(loras=[{"path": SAMPLE}], width=320, height=160, ctrl_img=as_base64(as_png(noise_image(20, 30))))
    _, data = family.edit(body)
    assert PIL.Image.open(io.BytesIO(data)).size == (320, 160)
