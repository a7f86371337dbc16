"""What is remembered of an earlier edit is exactly what would be computed, and nothing that differs in anything."""

import io

import numpy as np
import PIL.Image
import pytest
import torch

from serve_app.config import ModelConfig
from serve_app.engine.torch_engine import TorchEngine
from serve_app.images.decode import decode
from serve_app.models.profile import PROFILES
from serve_app.models.recipe import make_recipe
from serve_app.models.registry import MODELS
from serve_app.pipeline import encoders as encoders_module
from serve_app.pipeline.device import StageTimer
from serve_app.pipeline.encoders import Conditions, Encoders
from serve_app.pipeline.offloading import Placement
from serve_app.pipeline.tensor_cache import TensorCache
from tests.conftest import THREADS, noise_image
from tests.engine.pipelines import CPU, EDIT, run_out_of_memory_once

PLUS = "qwen_image_edit_plus"


def turned(image: PIL.Image.Image) -> bytes:
    """A PNG that asks to be rotated."""
    exif, buffer = PIL.Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    image.save(buffer, "PNG", exif=exif)
    return buffer.getvalue()


# Not square, so that sides and their order count.
IMAGE, OTHER = (turned(noise_image(120, 80, seed)) for seed in (0, 1))
# A change to the first edit of a model, and what may be remembered of it then.
CHANGES = {
    "nothing": (PLUS, {}, (IMAGE,), {"prompts": 2, "controls": 1}),
    "seed, steps": (PLUS, {"seed": 1, "steps": 1}, (IMAGE,), {"prompts": 2, "controls": 1}),
    "prompt": (PLUS, {"prompt": "make it day"}, (IMAGE,), {"prompts": 1, "controls": 1}),
    "negative prompt": (PLUS, {"negative_prompt": "blurry"}, (IMAGE,), {"prompts": 1, "controls": 1}),
    "no guidance": (PLUS, {"guidance_scale": 1.0}, (IMAGE,), {"prompts": 1, "controls": 1}),
    "one more image": (PLUS, {}, (OTHER, IMAGE), {"prompts": 0, "controls": 1}),
    "encoder's sizes": (PLUS, {"profile": "trainer"}, (IMAGE,), {"prompts": 0, "controls": 1}),
    "position ids": (PLUS, {"profile": "trainer-0.7.32"}, (IMAGE,), {"prompts": 0, "controls": 1}),
    "tiling": (PLUS, {"vae_tiling": True}, (IMAGE,), {"prompts": 2, "controls": 0}),
    "exif": (PLUS, {"exif": "apply"}, (IMAGE,), {"prompts": 0, "controls": 0}),
    "resizes": (EDIT.id, {"guidance_scale": 1.0, "width": 64}, (IMAGE,), {"prompts": 1, "controls": 0}),
}
FIRST = {PLUS: {}, EDIT.id: {"guidance_scale": 1.0}}


@pytest.fixture(scope="module")
def encoders(bench):
    """For a model, one that has seen the first edit and remembers, and one that does not remember; and what it saw."""
    torch.set_num_threads(THREADS)

    def encoders(model: str, size: int) -> Encoders:
        pipeline = bench(model).pipeline
        return Encoders(pipeline, Placement(CPU), size, size)

    return {model: (encoders(model, 2**30), encoders(model, 0)) for model in FIRST}


def conditions(encoders: Encoders, plan, files) -> Conditions:
    images = [decode(data, plan.exif) for data in files]
    recipe = make_recipe(MODELS[plan.model], PROFILES[plan.profile], plan, [p.facts.size for p in images])
    with torch.no_grad():
        return encoders.conditions(plan, images, recipe, StageTimer(CPU))


@pytest.mark.parametrize("change", CHANGES)
def test_cached_results_equal_computed_ones(encoders, make_plan, change):
    model, changes, files, reused = CHANGES[change]
    remembering, forgetful = encoders[model]
    conditions(remembering, make_plan(model=model, **FIRST[model]), (IMAGE,))
    plan = make_plan(model=model, **FIRST[model] | changes)
    found, expected = conditions(remembering, plan, files), conditions(forgetful, plan, files)
    assert found.reused == reused
    assert expected.reused == {"prompts": 0, "controls": 0}
    assert torch.equal(found.positive, expected.positive)
    assert torch.equal(found.control, expected.control)
    assert (found.negative is None) == (expected.negative is None) == (plan.guidance_scale <= 1)
    assert found.negative is None or torch.equal(found.negative, expected.negative)


def test_edit_reports_what_came_from_the_caches(bench, make_plan):
    engine = TorchEngine(bench(PLUS).pipeline, MODELS[PLUS], ModelConfig(threads=THREADS))
    first, again = (engine.edit(make_plan(model=PLUS), [IMAGE]) for _ in range(2))
    assert (first.runtime["reused"], again.runtime["reused"]) == (
        {"prompts": 0, "controls": 0},
        {"prompts": 2, "controls": 1},
    )
    assert np.array_equal(np.asarray(first.image), np.asarray(again.image))
    assert again.timings["encode_control"] < first.timings["encode_control"]


def test_cached_tensors_are_complete_even_after_a_failure(bench, make_plan, monkeypatch):
    """The next one to ask may be on another stream of the device than the one that computed."""
    pipeline = bench(EDIT.id).pipeline
    remembering, finished = Encoders(pipeline, Placement(CPU), 2**30, 2**30), []
    monkeypatch.setattr(encoders_module, "synchronise_stream", finished.append)
    run_out_of_memory_once(pipeline.text_encoder.model.language_model)
    with pytest.raises(torch.OutOfMemoryError):
        conditions(remembering, make_plan(), (IMAGE,))
    assert finished == [CPU]
    assert remembering._prompts.size_bytes > 0


def test_least_recently_used_tensors_are_evicted():
    cache, made = TensorCache(100), []

    def get(name: str, size: int = 40) -> None:
        def make() -> torch.Tensor:
            made.append(name)
            return torch.zeros(size, dtype=torch.uint8)

        cache.get(name, make)

    for name in ("a", "b", "a", "c", "a", "c", "b"):  # b was used least recently when c came
        get(name)
    assert made == ["a", "b", "c", "b"]
    assert (cache.size_bytes, cache.hits) == (80, 3)
    # A tensor larger than the budget is computed, is not cached and evicts nothing.
    get("huge", 101), get("huge", 101), get("b")
    assert made == ["a", "b", "c", "b", "huge", "huge"]


def test_a_view_counts_with_all_the_memory_that_it_holds():
    cache = TensorCache(100)
    cache.get("view", lambda: torch.zeros(101, dtype=torch.uint8)[:1])
    assert cache.size_bytes == 0
