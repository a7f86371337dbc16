"""The real path: HTTP, Ray Serve, a replica with the real classes, a LoRA, a picture back."""

import io
import json

import numpy as np
import PIL.Image
import pytest

from tests.conftest import ROOT, THREADS, as_base64, as_png, noise_picture
from tests.engine.conftest import GOLDENS, use
from tests.engine.oracle import reference_edit

SAMPLE = "my_lora_job/my_lora.safetensors"


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(PIL.Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def test_seed_pages_request(miniature):
    """The documented request, only smaller: trigger word, prompt, control image, LoRA."""
    photograph = (ROOT / "samples/astronaut.jpg").read_bytes()
    prompt = {"prompt": "[trigger] a photo of a person", "width": 256, "height": 256, "seed": 42, "sample_steps": 3}
    prompt |= {"guidance_scale": 4.0, "neg": "", "ctrl_img": as_base64(photograph)}
    body = {"model": "qwen_image_edit", "trigger_word": "sks", "prompts": [prompt]}
    result, picture = miniature.edit(body | {"loras": [{"path": SAMPLE, "network_multiplier": 1.0}]})
    [image] = result["outputs"]["images"]
    assert (image["format"], image["width"], image["height"], image["seed"]) == ("jpeg", 256, 256, 42)
    assert open(image["file_path"], "rb").read() == picture
    opened = PIL.Image.open(io.BytesIO(picture))
    assert (opened.format, opened.size) == ("JPEG", (256, 256))
    assert result["metadata"]["effective"][0]["prompt"] == "sks a photo of a person"


@pytest.mark.parametrize("scale", [None, 1.0, 0.5, 0.0, -0.5])
def test_pixels_are_those_of_the_engine_in_one_process(miniature, engine, make_plan, control_png, make_body, scale):
    lora = ROOT / "samples/loras" / SAMPLE
    adapters = () if scale is None else (use(lora, scale),)
    expected = engine.edit(make_plan(adapters=adapters, width=96, height=64), [control_png]).image
    loras = [] if scale is None else [{"path": SAMPLE, "network_multiplier": scale}]
    body = make_body(width=96, height=64, prompt="make it night", output_format="png", loras=loras)
    if scale is None:
        # The shipped config wants a LoRA; 0.0 is the base model, and the engine's own tests hold that.
        body["loras"] = [{"path": SAMPLE, "network_multiplier": 0}]
    _, picture = miniature.edit(body)
    assert np.array_equal(pixels(picture), np.asarray(expected))


def test_prompts_of_a_request_keep_their_order(miniature, make_body):
    body = make_body(loras=[{"path": SAMPLE}])
    body["prompts"] = [body["prompts"][0] | {"width": width} for width in (64, 96, 128)]
    images = miniature.result(miniature.submit(body))["outputs"]["images"]
    assert [image["width"] for image in images] == [64, 96, 128]


def test_bad_lora_fails_its_own_request_and_the_replica_serves_on(miniature, deploy, make_body, tmp_path_factory):
    from safetensors.numpy import save_file

    name = "diffusion_model.transformer_blocks.0.attn.to_q.lora_{}.weight"
    bad = {name.format("A"): np.ones((4, 999), np.float32), name.format("B"): np.ones((999, 4), np.float32)}
    target = ROOT / "samples/loras/wide_of_a_test.safetensors"
    try:
        save_file(bad, target)
        result = miniature.result(miniature.submit(make_body(loras=[{"path": target.name}])))
    finally:
        target.unlink()
    assert result["status"] == "failed"
    assert "does not fit the model" in result["error"]
    assert miniature.edit(make_body(loras=[{"path": SAMPLE}]))[0]["status"] == "succeeded"


class TestGoldens:
    """Pictures that the real reference server and trainer made, on another machine's CPU."""

    # How far diffusers' own pipeline is from them here is measured in the same test: its last bits depend on
    # the CPU's instruction set. Without that, equal would be the bar.
    CASES = [case for case in json.loads((GOLDENS / "cases.json").read_text()) if case["model"] == "qwen_image_edit"]

    @pytest.fixture(scope="class")
    def goldens(self, deploy):
        models = [{"checkpoint": str(GOLDENS / "checkpoint"), "threads": THREADS, "device": "cpu"}]
        return deploy("goldens", models=models, lora_root=str(GOLDENS / "lora"), require_lora=False)

    @pytest.fixture(scope="class")
    def oracle(self):
        from diffusers import QwenImageEditPipeline

        pipeline = QwenImageEditPipeline.from_pretrained(GOLDENS / "checkpoint")
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def body(self, case: dict, **changes: object) -> dict:
        control = as_base64((GOLDENS / f"{case['id']}.ctrl1.png").read_bytes())
        prompt = {"prompt": case["prompt"], "neg": case["neg"], "width": case["w"], "height": case["h"]}
        prompt |= {"sample_steps": case["steps"], "guidance_scale": case["cfg"], "seed": case["seed"]}
        body = {"model": case["model"], "loras": [], "prompts": [prompt | {"ctrl_img": control}]}
        return body | {"output_format": "png"} | changes

    @pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
    def test_reference_profile(self, goldens, oracle, case):
        made = pixels(goldens.edit(self.body(case))[1])
        golden = pixels((GOLDENS / f"{case['id']}.reference.png").read_bytes())
        pipelines = reference_edit(
            oracle,
            PIL.Image.open(GOLDENS / f"{case['id']}.ctrl1.png"),
            prompt=case["prompt"],
            negative=case["neg"],
            width=case["w"],
            height=case["h"],
            steps=case["steps"],
            guidance=case["cfg"],
            seed=case["seed"],
        )
        assert np.array_equal(made, np.asarray(pipelines).astype(int))
        assert_golden(made, golden)

    @pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
    def test_trainer_profile(self, goldens, case):
        made = pixels(goldens.edit(self.body(case, profile="trainer"))[1])
        assert_golden(made, pixels((GOLDENS / f"{case['id']}.trainer.png").read_bytes()))

    @pytest.mark.parametrize("scale", ["1.0", "-0.5"])
    def test_with_a_lora(self, goldens, scale):
        case = next(case for case in self.CASES if case["id"] == "edit-small-control")
        loras = [{"path": "my_lora_job/my_lora.safetensors", "network_multiplier": float(scale)}]
        made = pixels(goldens.edit(self.body(case, loras=loras))[1])
        golden = pixels((GOLDENS / f"edit-small-control-lora{scale}.reference.png").read_bytes())
        assert np.abs(made - golden).max() <= 1

    @pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
    def test_bar_tells_the_profiles_apart(self, case):
        reference, trainer = (
            pixels((GOLDENS / f"{case['id']}.{profile}.png").read_bytes()) for profile in ("reference", "trainer")
        )
        with pytest.raises(AssertionError):
            assert_golden(reference, trainer)


# Measured here, diffusers' own pipeline: 25..42 of 0.55..0.86 million values, one grey level each.
CPU_ROUNDING_SHARE = 1e-4


def assert_golden(made: np.ndarray, golden: np.ndarray) -> None:
    """Equal, but for a rounding that another CPU does otherwise: one grey level in one value of 10,000."""
    assert made.shape == golden.shape
    difference = np.abs(made - golden)
    assert difference.max() <= 1
    assert (difference > 0).mean() < CPU_ROUNDING_SHARE


def test_two_loras_at_once(miniature, make_body):
    one = make_body(loras=[{"path": SAMPLE}], output_format="png")
    two = make_body(loras=[{"path": SAMPLE}, {"path": SAMPLE, "network_multiplier": -1.0}], output_format="png")
    base = make_body(loras=[{"path": SAMPLE, "network_multiplier": 0.0}], output_format="png")
    pictures = [pixels(miniature.edit(body)[1]) for body in (one, two, base)]
    assert np.array_equal(pictures[1], pictures[2])
    assert not np.array_equal(pictures[0], pictures[2])


def test_control_image_by_url(deploy, miniature, make_body):
    """Refused as shipped: the picture lies on this very machine."""
    url = str(miniature.client.base_url) + "/v1/models"
    answer = miniature.client.post("/v1/inference", json=make_body(loras=[{"path": SAMPLE}], ctrl_img=url))
    assert answer.json()["detail"]["error"]["code"] == "CONTROL_IMAGE_INVALID"


def test_larger_picture_than_the_control_image(miniature, make_body):
    body = make_body(loras=[{"path": SAMPLE}], width=320, height=160, ctrl_img=as_base64(as_png(noise_picture(20, 30))))
    result, picture = miniature.edit(body)
    assert PIL.Image.open(io.BytesIO(picture)).size == (320, 160)
