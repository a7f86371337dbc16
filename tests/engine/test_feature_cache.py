"""Steps that leave blocks out: which ones, never beyond an image, and nothing else about an edit is another."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from serve_app.config import ModelConfig
from serve_app.engine.protocol import Edited
from serve_app.engine.torch_engine import TorchEngine
from serve_app.errors import EditCanceled, OutOfMemory, QualityUnavailable
from serve_app.models.registry import MODELS
from serve_app.pipeline import miniature
from serve_app.pipeline.acceleration import compile_blocks
from serve_app.tasks import EditPlan
from tests.conftest import THREADS
from tests.engine.pipelines import CPU, GRAPHS, run_out_of_memory_once, use

MODEL = MODELS["qwen_image"]
# Of the change that the first block makes: below any that there is, and above all.
NEVER, ALWAYS = 1e-6, 1e6
STEPS = 4


class Counted:
    """An engine whose edits have this threshold, and how often each block of its transformers was computed."""

    def __init__(self, threshold: float | None, more_devices: Sequence[torch.device] = ()) -> None:
        self.threshold = threshold
        config = ModelConfig(id=MODEL.id, threads=THREADS, warm_up=((64, 64),))
        self.engine = TorchEngine(miniature.make(MODEL), MODEL, config, more_devices=more_devices)
        self.engine.make_ready()
        transformers = self.engine._denoiser.transformers
        self.blocks = [0] * len(transformers[0].transformer_blocks)
        for transformer in transformers:
            for index, block in enumerate(transformer.transformer_blocks):
                block.attn.register_forward_pre_hook(lambda *_, index=index: self._count(index))

    def _count(self, index: int) -> None:
        self.blocks[index] += 1

    def edit(self, plan: EditPlan, **options: object) -> Edited:
        self.blocks = [0] * len(self.blocks)
        return self.engine.edit(replace(plan, feature_cache=self.threshold), [], **options)


@pytest.fixture
def plan(make_plan):
    return make_plan(model=MODEL.id, control_images=(), steps=STEPS)


@pytest.fixture(scope="module")
def always() -> Counted:
    return Counted(ALWAYS)


def pixels(edited: Edited) -> np.ndarray:
    return np.asarray(edited.image).astype(int)


def test_without_a_small_change_no_block_is_skipped_and_every_bit_is_equal(plan, bench):
    counted = Counted(NEVER)
    made = counted.edit(plan)
    assert counted.blocks == [2 * STEPS] * len(counted.blocks)
    assert np.array_equal(pixels(made), pixels(bench(MODEL.id).engine.edit(plan, [])))


def test_after_a_branchs_first_forward_all_but_the_first_block_are_skipped(plan, bench, always):
    made = always.edit(plan)
    assert always.blocks == [2 * STEPS] + [2] * (len(always.blocks) - 1)
    assert not np.array_equal(pixels(made), pixels(bench(MODEL.id).engine.edit(plan, [])))


def test_editor_takes_thresholds_in_turns_and_none_leaves_no_trace(plan, bench):
    counted = Counted(None)
    exact = pixels(bench(MODEL.id).engine.edit(plan, []))
    skipped = [2 * STEPS] + [2] * (len(counted.blocks) - 1)
    for threshold in (None, ALWAYS, None, NEVER, ALWAYS, None):
        counted.threshold = threshold
        made = pixels(counted.edit(plan))
        assert np.array_equal(made, exact) == (threshold != ALWAYS)
        assert counted.blocks == (skipped if threshold == ALWAYS else [2 * STEPS] * len(counted.blocks))


def test_features_are_dropped_after_each_image(plan, make_plan, loras, always):
    expected = pixels(always.edit(plan))
    others = (
        {"seed": 7},
        {"width": 64, "height": 128, "negative_prompt": "blurry"},
        {"guidance_scale": 1.0},
        {"adapters": (use(loras[0]),)},
    )
    for changes in others:
        always.edit(make_plan(model=MODEL.id, control_images=(), steps=STEPS, **changes))
        assert np.array_equal(pixels(always.edit(plan)), expected)
    with pytest.raises(EditCanceled):
        always.edit(make_plan(model=MODEL.id, control_images=(), seed=8), should_stop=lambda: always.blocks[0] > 1)
    assert np.array_equal(pixels(always.edit(plan)), expected)


def test_two_devices_make_the_images_of_one(plan, always):
    paired = Counted(ALWAYS, more_devices=[CPU])
    assert np.array_equal(pixels(paired.edit(plan)), pixels(always.edit(plan)))
    assert paired.blocks == always.blocks


def test_other_branch_of_a_failed_edit_leaves_no_features(plan, make_plan, always):
    paired = Counted(ALWAYS, more_devices=[CPU])
    first, second = paired.engine._denoiser.transformers
    run_out_of_memory_once(first)
    slow = second.register_forward_pre_hook(lambda *_: time.sleep(0.3))
    with pytest.raises(OutOfMemory):
        paired.edit(make_plan(model=MODEL.id, control_images=(), seed=7))
    slow.remove()
    assert np.array_equal(pixels(paired.edit(plan)), pixels(always.edit(plan)))


def test_compiled_blocks_are_skipped_too_and_compiled_once_for_all_thresholds(plan, always, bench):
    engine = TorchEngine(miniature.make(MODEL), MODEL, ModelConfig(id=MODEL.id, threads=THREADS))
    transformer = engine._pipeline.transformer
    called = []

    def counted(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., object]:
        return lambda *arguments: called.append(graph) or graph(*arguments)

    compile_blocks(transformer, counted)
    engine._denoiser.accelerate()
    try:
        made = [engine.edit(replace(plan, feature_cache=each), []) for each in (None, ALWAYS, None, ALWAYS)]
    finally:
        torch._dynamo.reset()
    assert [edited.compilations for edited in made] == [GRAPHS, 0, 0, 0]
    plain = always.edit(plan)
    assert len(called) == 2 * sum(always.blocks) + 2 * 2 * STEPS * len(always.blocks)
    assert np.array_equal(pixels(made[3]), pixels(plain))
    assert np.array_equal(pixels(made[2]), pixels(bench(MODEL.id).engine.edit(plan, [])))


def test_feature_cache_is_refused_with_offloading():
    with pytest.raises(ValidationError, match="feature_cache: not with offload"):
        ModelConfig(feature_cache=0.1, offload="stream")


def test_streamed_weights_refuse_a_plan_with_a_feature_cache(plan):
    engine = TorchEngine(miniature.make(MODEL), MODEL, ModelConfig(id=MODEL.id, threads=THREADS, offload="stream"))
    with pytest.raises(QualityUnavailable, match="feature_cache: not with offload"):
        engine.edit(replace(plan, feature_cache=0.1), [])


@pytest.mark.parametrize("share", [0.0, 1.0, 30.0])
def test_threshold_is_a_share(share):
    with pytest.raises(ValidationError, match="feature_cache"):
        ModelConfig(feature_cache=share)
