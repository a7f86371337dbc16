"""The trained miniature, on photographs that it never saw: it follows what it was taught."""

import json

import PIL.Image
import pytest

from serve_app.config import ModelConfig
from serve_app.engine.torch_engine import TorchEngine
from serve_app.models.architecture import TRAINED_MINIATURE
from serve_app.models.registry import MODELS
from serve_app.pipeline import trained_miniature
from serve_app.pipeline.checkpoint import constants
from tests.conftest import ROOT, THREADS
from tools.miniature.edits import INSTRUCTIONS, STYLES
from tools.miniature.evaluation import at_size, follow, vae_quality

PROMISED = {instruction.name: instruction for instruction in INSTRUCTIONS if instruction.promised}
FIGURES = json.loads((TRAINED_MINIATURE / "figures.json").read_text())


@pytest.fixture(scope="module")
def miniature():
    return TorchEngine.load(ModelConfig(threads=THREADS, device="cpu"))


def photograph(name: str) -> PIL.Image.Image:
    return at_size(PIL.Image.open(ROOT / f"tests/photographs/{name}.jpg").convert("RGB"))


def test_photograph_survives_the_vae(miniature):
    assert vae_quality(miniature, photograph("coffee")) >= 27


@pytest.mark.parametrize(("name", "instruction"), [("chelsea", "blur"), ("coffee", "black and white")])
def test_instruction_is_followed(miniature, name, instruction):
    found = follow(miniature, photograph(name), PROMISED[instruction], steps=2)
    assert found["to_edit_db"] >= 20
    assert found["to_edit_db"] >= found["to_input_db"] + 4


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
