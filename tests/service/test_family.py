"""Every model of the family through HTTP and Ray: the same PNG pixels as the oracles in this process."""

import io
import json
from functools import cache
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from serve_app.models.registry import MODELS
from serve_app.pipeline import checkpoint, miniature
from serve_app.replicas.edit_storage import OF_ONE_RUN
from tests.conftest import LORAS, THREADS, as_base64, as_png, edits_server, noise_image
from tests.engine.once import encode_once
from tests.engine.oracle import ORACLES, merge_lora
from tests.service.conftest import pixels

SAMPLE = "my_lora_job/my_lora.safetensors"
LORA = LORAS / SAMPLE
IMAGES = [noise_image(*size, seed=seed) for seed, size in enumerate(((120, 80), (64, 100), (80, 80)))]
EDIT = {"width": 128, "height": 96, "sample_steps": 2, "guidance_scale": 3.0, "seed": 5, "neg": "blurry"}


@pytest.fixture(scope="module")
def expected():
    """What an oracle makes of the request that `body` gives, with the sample LoRA at a scale, or without."""
    torch.set_num_threads(THREADS)

    @cache
    def pipeline_with(model: str, scale: float | None):
        pipeline = checkpoint.read(miniature.checkpoint_folder(MODELS[model]), torch.float32)
        encode_once(pipeline.vae)
        if scale is not None:
            merge_lora(pipeline, LORA, scale)
        return pipeline

    @cache
    def expected(model: str, profile: str, scale: float | None = None) -> np.ndarray:
        made = ORACLES[profile](
            pipeline_with(model, scale),
            model,
            IMAGES[: MODELS[model].max_control_images],
            prompt="make it night",
            negative=EDIT["neg"],
            width=EDIT["width"],
            height=EDIT["height"],
            steps=EDIT["sample_steps"],
            guidance=EDIT["guidance_scale"],
            seed=EDIT["seed"],
        )
        return np.asarray(made).astype(int)

    return expected


def body(model: str, scale: float | None = None, **changes: object) -> dict:
    controls = IMAGES[: MODELS[model].max_control_images]
    prompt = {"prompt": "make it night"} | EDIT
    prompt |= {f"ctrl_img_{i + 1}": as_base64(as_png(image)) for i, image in enumerate(controls)}
    loras = [] if scale is None else [{"path": SAMPLE, "network_multiplier": scale}]
    return {"model": model, "loras": loras, "prompts": [prompt], "output_format": "png"} | changes


@pytest.mark.parametrize("profile", ["reference", "trainer"])
@pytest.mark.parametrize("model", MODELS)
def test_pixels_are_the_oracles(family, expected, model, profile):
    _, image = family.edit(body(model, profile=profile))
    assert np.array_equal(pixels(image), expected(model, profile))


@pytest.mark.parametrize(
    ("scale", "profile"), [(1.0, "reference"), (0.5, "trainer"), (0.0, "trainer"), (-0.5, "reference")]
)
def test_pixels_with_a_lora_are_the_oracles(family, expected, scale, profile):
    _, image = family.edit(body("qwen_image_edit", scale, profile=profile))
    oracles = expected("qwen_image_edit", profile, scale)
    assert np.array_equal(pixels(image), oracles)
    # A multiplier of 0 is no LoRA, bit for bit; any other one is not.
    assert np.array_equal(oracles, expected("qwen_image_edit", profile)) == (scale == 0.0)


def test_ingress_never_loads_torch(family):
    """Not even to unpickle an editor's answer: it would cost the first edit of each ingress seconds."""
    family.edit(body("qwen_image"))

    def has_torch(pid: int) -> bool:
        return "libtorch" in Path(f"/proc/{pid}/maps").read_text()

    assert not any(has_torch(pid) for pid in family.replica_pids("Ingress"))
    assert all(has_torch(pid) for model in MODELS for pid in family.replica_pids(f"Editor-{model}"))


def test_lora_works_on_every_model(family, expected):
    for model in MODELS:
        image = pixels(family.edit(body(model, 1.0, profile="reference"))[1])
        assert not np.array_equal(image, expected(model, "reference"))


@pytest.mark.parametrize("model", ["qwen_image_edit_plus", "qwen_image"])
def test_explanation_is_the_results_record(family, model):
    request = body(model, 0.5, profile="auto")
    explained = family.client.post("/v1/explain", json=request).json()
    result, image = family.edit(request)
    assert explained["effective"] == result["metadata"]["effective"]
    assert explained["effective"][0]["profile"] == "trainer"
    text = PIL.Image.open(io.BytesIO(image)).text
    assert json.loads(text["effective"]) == explained["effective"][0]
    # Without what differs from run to run, so that the same image is the same file.
    runtime = result["metadata"]["runtime"][0]
    assert json.loads(text["runtime"]) == {key: value for key, value in runtime.items() if key not in OF_ONE_RUN}


def test_image_can_be_made_again_from_itself(family):
    """From the PNG's own text and the control images that it names by their hash."""
    _, image = family.edit(body("qwen_image_edit_plus", -0.5, profile="trainer"))
    record = json.loads(PIL.Image.open(io.BytesIO(image)).text["effective"])
    prompt = {key: record[key] for key in ("prompt", *EDIT)}
    prompt |= {f"ctrl_img_{i + 1}": as_base64(as_png(image)) for i, image in enumerate(IMAGES)}
    loras = [{key: lora[key] for key in ("path", "network_multiplier")} for lora in record["loras"]]
    again = {key: record[key] for key in ("model", "profile", "exif", "output_format")}
    _, second = family.edit(again | {"loras": loras, "prompts": [prompt]})
    assert second == image


def test_compare_says_which_parameter_made_the_difference(family, tmp_path, capsys):
    paths = [tmp_path / f"{profile}.png" for profile in ("reference", "trainer")]
    for path in paths:
        path.write_bytes(family.edit(body("qwen_image_edit", profile=path.stem))[1])
    assert edits_server("compare", *paths) == 1
    out = capsys.readouterr().out
    assert "effective.profile: 'reference' | 'trainer'" in out
    assert "effective.control_images[0].vae[0].kernel: 'lanczos' | 'bilinear'" in out
    assert "effective.seed" not in out
