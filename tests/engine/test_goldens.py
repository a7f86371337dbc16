"""Images that the real reference server and trainer made, through HTTP. On another machine's CPU.

The last bits of an image depend on the CPU's instruction set, so the oracles are run here too: ours is equal to them,
and both are as far from the golden as one rounding. tests/service/test_family.py compares with the oracles through Ray.
"""

import json
import os

import numpy as np
import PIL.Image
import pytest

from tests.conftest import THREADS, as_base64
from tests.engine.once import computed_once, encode_once
from tests.engine.oracle import ORACLES
from tests.engine.pipelines import GOLDENS, pixels
from tests.engine.served import served

NEEDED = GOLDENS.is_dir() or bool(os.environ.get("CI"))
pytestmark = pytest.mark.skipif(not NEEDED, reason=f"the goldens are not in {GOLDENS}")
CASES = json.loads((GOLDENS / "cases.json").read_text()) if NEEDED else []
CHECKPOINTS = {"qwen_image_edit": "checkpoint", "qwen_image_edit_plus": "checkpoint-plus"}

# Measured here, the oracles themselves: 25..42 of 0.55..0.86 million values, one grey level each.
CPU_ROUNDING_SHARE = 1e-4


@pytest.fixture(scope="module")
def goldens(tmp_path_factory):
    models = [
        {"id": model, "checkpoint": str(GOLDENS / folder), "threads": THREADS, "device": "cpu"}
        for model, folder in CHECKPOINTS.items()
    ]
    folder = tmp_path_factory.mktemp("goldens")
    with served(folder, models=models, lora_root=str(GOLDENS / "lora"), require_lora=False) as service:
        for engine in service.engines.values():
            encode_once(engine._pipeline.vae)
        yield service


def controls(case: dict) -> list[bytes]:
    return [(GOLDENS / f"{case['id']}.ctrl{i + 1}.png").read_bytes() for i in range(len(case["ctrl"]))]


def golden_body(case: dict, **changes: object) -> dict:
    prompt = {"prompt": case["prompt"], "neg": case["neg"], "width": case["w"], "height": case["h"]}
    prompt |= {"sample_steps": case["steps"], "guidance_scale": case["cfg"], "seed": case["seed"]}
    prompt |= {f"ctrl_img_{i + 1}": as_base64(data) for i, data in enumerate(controls(case))}
    return {"model": case["model"], "loras": [], "prompts": [prompt], "output_format": "png"} | changes


def golden(case: dict, profile: str) -> np.ndarray:
    return pixels((GOLDENS / f"{case['id']}.{profile}.png").read_bytes())


@pytest.mark.parametrize("profile", ["reference", "trainer"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_golden(goldens, case, profile):
    pipeline = goldens.engines[case["model"]]._pipeline
    with computed_once(pipeline.transformer, pipeline.vae.decoder):
        made = pixels(goldens.edit(golden_body(case, profile=profile))[0])
        oracles = ORACLES[profile](
            pipeline,
            case["model"],
            [PIL.Image.open(GOLDENS / f"{case['id']}.ctrl{i + 1}.png") for i in range(len(case["ctrl"]))],
            prompt=case["prompt"],
            negative=case["neg"],
            width=case["w"],
            height=case["h"],
            steps=case["steps"],
            guidance=case["cfg"],
            seed=case["seed"],
        )
    assert np.array_equal(made, np.asarray(oracles).astype(int))
    assert_golden(made, golden(case, profile))


@pytest.mark.parametrize("scale", ["1.0", "-0.5"])
def test_with_a_lora(goldens, scale):
    case = next(case for case in CASES if case["id"] == "edit-small-control")
    loras = [{"path": "my_lora_job/my_lora.safetensors", "network_multiplier": float(scale)}]
    made = pixels(goldens.edit(golden_body(case, loras=loras))[0])
    expected = pixels((GOLDENS / f"edit-small-control-lora{scale}.reference.png").read_bytes())
    assert np.abs(made - expected).max() <= 1


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_bar_tells_the_profiles_apart(case):
    with pytest.raises(AssertionError):
        assert_golden(golden(case, "reference"), golden(case, "trainer"))


def assert_golden(made: np.ndarray, expected: np.ndarray) -> None:
    """Equal, but for a rounding that another CPU does otherwise: one grey level in one value of 10,000."""
    assert made.shape == expected.shape
    difference = np.abs(made - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() < CPU_ROUNDING_SHARE
