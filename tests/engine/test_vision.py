"""The vision encoder: all windows at once are each by itself, and images are looked at once."""

import pytest
import torch

from serve_app.config import ModelConfig
from serve_app.engine.torch_engine import TorchEngine
from serve_app.models.registry import MODELS
from serve_app.pipeline import vision_encoder
from tests.conftest import THREADS, as_png, noise_image
from tests.engine.pipelines import EDIT, FORGETFUL

PLUS = "qwen_image_edit_plus"
IMAGE = as_png(noise_image(64, 48))


@pytest.mark.parametrize(
    "grid",
    [
        pytest.param([[1, 40, 40]], id="windows of several lengths"),
        pytest.param([[1, 4, 4]], id="less than a window"),
        pytest.param([[1, 12, 20], [1, 16, 8]], id="two images"),
    ],
)
def test_windows_at_once_are_each_window_by_itself(bench, grid, monkeypatch):
    visual = bench(EDIT.id).pipeline.text_encoder.model.visual
    # One layer of windows, and one in which each image is a whole.
    monkeypatch.setattr(visual, "fullatt_block_indexes", [len(visual.blocks) - 1])
    grids = torch.tensor(grid)
    config = visual.config
    width = config.in_channels * config.temporal_patch_size * config.patch_size**2
    pixels = torch.randn(int(grids.prod(-1).sum()), width, generator=torch.Generator().manual_seed(0))
    assert config._attn_implementation == vision_encoder.NAME
    with torch.no_grad():
        found = visual(pixels, grid_thw=grids).pooler_output
        monkeypatch.setattr(config, "_attn_implementation", "sdpa")
        expected = visual(pixels, grid_thw=grids).pooler_output
    assert torch.equal(found, expected)


def looks(engine: TorchEngine, monkeypatch) -> list[int]:
    """An entry for each time that the vision encoder computes."""
    seen: list[int] = []
    visual = engine._pipeline.text_encoder.model.visual
    look = visual.forward
    monkeypatch.setattr(visual, "forward", lambda *args, **kwargs: seen.append(1) or look(*args, **kwargs))
    return seen


def test_images_are_encoded_once_for_both_prompts(bench, make_plan, monkeypatch):
    engine = bench(EDIT.id).engine
    assert engine._config == FORGETFUL
    seen = looks(engine, monkeypatch)
    for count in (1, 2):
        engine.edit(make_plan(steps=1), [IMAGE])
        assert len(seen) == count
    # Restored as it was found.
    assert engine._pipeline.text_encoder.model.visual.forward.__name__ == "<lambda>"


def test_images_of_other_sizes_for_the_negative_prompt_are_encoded_separately(bench, make_plan, monkeypatch):
    seen = looks(bench(PLUS).engine, monkeypatch)
    bench(PLUS).engine.edit(make_plan(model=PLUS, steps=1, profile="trainer"), [as_png(noise_image(120, 80))])
    assert len(seen) == 2


def test_encoded_images_are_cached_for_another_prompt(bench, make_plan, monkeypatch):
    engine = TorchEngine(bench(EDIT.id).pipeline, MODELS[EDIT.id], ModelConfig(threads=THREADS))
    seen = looks(engine, monkeypatch)
    images = []
    for prompt in ("one", "another"):
        plan = make_plan(steps=1, prompt=prompt, negative_prompt=f"not {prompt}")
        images.append((engine.edit(plan, [IMAGE]).image, bench(EDIT.id).engine.edit(plan, [IMAGE]).image))
    # One by the engine that remembers, one for each edit by the other.
    assert len(seen) == 3
    assert all(found.tobytes() == expected.tobytes() for found, expected in images)
