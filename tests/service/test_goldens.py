"""Pictures that the real reference server and trainer made, through HTTP and Ray. On another machine's CPU.

The last bits of a picture depend on the CPU's instruction set, so diffusers' own pipeline is run here too:
ours is equal to it, and both are as far from the golden as one rounding.
"""

import json
import os

import numpy as np
import PIL.Image
import pytest
from diffusers import QwenImageEditPipeline

from tests.conftest import THREADS, as_base64
from tests.engine.conftest import GOLDENS
from tests.engine.oracle import reference_edit
from tests.service.conftest import pixels

pytestmark = pytest.mark.skipif(
    not GOLDENS.is_dir() and not os.environ.get("CI"), reason=f"the goldens are not in {GOLDENS}"
)
CASES = (
    [case for case in json.loads((GOLDENS / "cases.json").read_text()) if case["model"] == "qwen_image_edit"]
    if GOLDENS.is_dir() or os.environ.get("CI")
    else []
)


@pytest.fixture(scope="module")
def goldens(deploy):
    models = [{"checkpoint": str(GOLDENS / "checkpoint"), "threads": THREADS, "device": "cpu"}]
    return deploy("goldens", models=models, lora_root=str(GOLDENS / "lora"), require_lora=False)


@pytest.fixture(scope="module")
def oracle():
    pipeline = QwenImageEditPipeline.from_pretrained(GOLDENS / "checkpoint")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def golden_body(case: dict, **changes: object) -> dict:
    control = as_base64((GOLDENS / f"{case['id']}.ctrl1.png").read_bytes())
    prompt = {"prompt": case["prompt"], "neg": case["neg"], "width": case["w"], "height": case["h"]}
    prompt |= {"sample_steps": case["steps"], "guidance_scale": case["cfg"], "seed": case["seed"]}
    body = {"model": case["model"], "loras": [], "prompts": [prompt | {"ctrl_img": control}]}
    return body | {"output_format": "png"} | changes


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_reference_profile(goldens, oracle, case):
    made = pixels(goldens.edit(golden_body(case))[1])
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
def test_trainer_profile(goldens, case):
    made = pixels(goldens.edit(golden_body(case, profile="trainer"))[1])
    assert_golden(made, pixels((GOLDENS / f"{case['id']}.trainer.png").read_bytes()))


@pytest.mark.parametrize("scale", ["1.0", "-0.5"])
def test_with_a_lora(goldens, scale):
    case = next(case for case in CASES if case["id"] == "edit-small-control")
    loras = [{"path": "my_lora_job/my_lora.safetensors", "network_multiplier": float(scale)}]
    made = pixels(goldens.edit(golden_body(case, loras=loras))[1])
    golden = pixels((GOLDENS / f"edit-small-control-lora{scale}.reference.png").read_bytes())
    assert np.abs(made - golden).max() <= 1


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_bar_tells_the_profiles_apart(case):
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
