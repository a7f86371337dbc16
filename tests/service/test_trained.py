"""The shipped default through HTTP and Ray: an instruction is followed, a LoRA's multiplier turns its style up."""

import numpy as np
import PIL.Image
import pytest

from tests.conftest import ROOT, THREADS, as_base64
from tests.service.conftest import pixels
from tools.miniature.edits import STYLES
from tools.miniature.evaluation import as_tensor, at_size

PHOTOGRAPH = ROOT / "samples/astronaut.jpg"
POSTER = next(style for style in STYLES if style.name == "poster")


@pytest.fixture(scope="module")
def trained(deploy):
    return deploy("trained", models=[{"threads": THREADS, "device": "cpu"}], lora_root=str(ROOT / "samples/loras"))


def edited(trained, prompt: str, multiplier: float) -> np.ndarray:
    """1024x1024; two steps are enough for what the photograph and the instruction decide alone."""
    fields = {"prompt": f"[trigger] {prompt}", "sample_steps": 2, "guidance_scale": 1.0}
    fields |= {"ctrl_img": as_base64(PHOTOGRAPH.read_bytes())}
    loras = [{"path": POSTER.file, "network_multiplier": multiplier}]
    body = {"model": "qwen_image_edit", "trigger_word": POSTER.trigger, "prompts": [fields], "loras": loras}
    return pixels(trained.edit(body | {"output_format": "png"})[1]) / 255


def photograph() -> PIL.Image.Image:
    return at_size(PIL.Image.open(PHOTOGRAPH).convert("RGB"))


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """Root mean square of the difference, for images in [0, 1]."""
    return float(np.sqrt(((one - other) ** 2).mean()))


def test_colours_are_inverted(trained):
    given = np.asarray(photograph()) / 255
    made = edited(trained, "invert the colours", 0.0)
    # 20 dB to the true inversion; the photograph itself is 0.65 away from that.
    assert distance(made, 1 - given) < 0.1
    assert distance(made, given) > 0.5


def test_multiplier_turns_a_loras_style_up(trained):
    style = POSTER.apply(as_tensor(photograph())[None])[0].permute(1, 2, 0).numpy()
    none, half, whole = (edited(trained, "keep the picture as it is", scale) for scale in (0.0, 0.5, 1.0))
    assert distance(none, style) > distance(half, style) > distance(whole, style)
    assert distance(whole, style) < distance(whole, none)
    assert distance(none, np.asarray(photograph()) / 255) < 0.05
