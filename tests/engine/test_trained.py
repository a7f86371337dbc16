"""The trained miniature, the shipped default, on photographs that it never saw: it follows what it was taught.

At 1024x1024, which it was trained at. One step is enough for what the photograph and the instruction decide alone.
"""

import json

import numpy as np
import PIL.Image
import pytest

from serve_app.models.architecture import TRAINED_MINIATURE
from serve_app.models.registry import MODELS
from serve_app.pipeline import trained_miniature
from serve_app.pipeline.checkpoint import constants
from tests.conftest import ROOT, THREADS, as_base64
from tests.engine.once import encode_once
from tests.engine.pipelines import pixels
from tests.engine.served import served
from tools.miniature.edits import INSTRUCTIONS, STYLES
from tools.miniature.evaluation import as_tensor, at_size, follow, vae_quality

PROMISED = {instruction.name: instruction for instruction in INSTRUCTIONS if instruction.promised}
FIGURES = json.loads((TRAINED_MINIATURE / "figures.json").read_text())
ASTRONAUT = ROOT / "samples/astronaut.jpg"
POSTER = next(style for style in STYLES if style.name == "poster")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    models = [{"threads": THREADS, "device": "cpu"}]
    folder = tmp_path_factory.mktemp("trained")
    with served(folder, models=models, lora_root=str(ROOT / "samples/loras")) as service:
        yield service


@pytest.fixture(scope="module")
def miniature(trained):
    engine = trained.engines["qwen_image_edit"]
    encode_once(engine._pipeline.vae)
    return engine


def photograph(name: str) -> PIL.Image.Image:
    return at_size(PIL.Image.open(ROOT / f"tests/photographs/{name}.jpg").convert("RGB"))


def test_photograph_survives_the_vae(miniature):
    assert vae_quality(miniature, photograph("coffee")) >= 27


@pytest.mark.parametrize(("name", "instruction"), [("chelsea", "blur"), ("coffee", "black and white")])
def test_instruction_is_followed(miniature, name, instruction):
    found = follow(miniature, photograph(name), PROMISED[instruction], steps=1)
    assert found["to_edit_db"] >= 20
    assert found["to_edit_db"] >= found["to_input_db"] + 4


def edited(trained, prompt: str, multiplier: float) -> np.ndarray:
    """The astronaut's edit through HTTP with the poster LoRA, (H, W, 3) in [0, 1]."""
    fields = {"prompt": f"[trigger] {prompt}", "sample_steps": 1, "guidance_scale": 1.0}
    fields |= {"ctrl_img": as_base64(ASTRONAUT.read_bytes())}
    loras = [{"path": POSTER.file, "network_multiplier": multiplier}]
    body = {"model": "qwen_image_edit", "trigger_word": POSTER.trigger, "prompts": [fields], "loras": loras}
    return pixels(trained.edit(body | {"output_format": "png"})[0]) / 255


def astronaut() -> PIL.Image.Image:
    return at_size(PIL.Image.open(ASTRONAUT).convert("RGB"))


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """Root mean square of the difference, for images in [0, 1]."""
    return float(np.sqrt(((one - other) ** 2).mean()))


def test_colours_are_inverted(trained):
    given = np.asarray(astronaut()) / 255
    made = edited(trained, "invert the colours", 0.0)
    # 20 dB to the true inversion; the photograph itself is 0.65 away from that.
    assert distance(made, 1 - given) < 0.1
    assert distance(made, given) > 0.5


def test_multiplier_turns_a_loras_style_up(trained):
    style = POSTER.apply(as_tensor(astronaut())[None])[0].permute(1, 2, 0).numpy()
    none, half, whole = (edited(trained, "keep the picture as it is", scale) for scale in (0.0, 0.5, 1.0))
    assert distance(none, style) > distance(half, style) > distance(whole, style)
    assert distance(whole, style) < distance(whole, none)
    assert distance(none, np.asarray(astronaut()) / 255) < 0.05


def test_shipped_figures_meet_the_promises_of_the_model_card():
    """Those that the training script printed, at 8 steps, on all three photographs."""
    assert len(PROMISED) >= 8
    assert min(FIGURES["vae_db"].values()) >= 27
    for name in PROMISED:
        for row in FIGURES["instructions"][name].values():
            assert row["to_edit_db"] >= 20
            # An edit that changes the image little cannot be told from it by so much.
            if row["edit_to_input_db"] < 24:
                assert row["to_edit_db"] >= row["to_input_db"] + 4
    for style in STYLES:
        for row in FIGURES["loras"][style.name].values():
            assert row["to_style_db"] == sorted(row["to_style_db"])
            assert row["to_style_db"][-1] > row["to_base_db"][-1]


@pytest.mark.parametrize("model", MODELS)
def test_trained_miniature_is_a_checkpoint_of_every_model(model):
    spec = MODELS[model]
    assert all(
        constant.found == constant.needed for constant in constants(trained_miniature.checkpoint_folder(spec), spec)
    )


def test_shipped_files_are_small():
    weights = sum(file.stat().st_size for file in TRAINED_MINIATURE.rglob("*") if file.is_file())
    assert weights <= 12_000_000
    assert all((ROOT / "samples/loras" / style.file).stat().st_size <= 400_000 for style in STYLES)
    assert (ROOT / "samples/loras/few_steps/few_steps.safetensors").stat().st_size <= 1_000_000
