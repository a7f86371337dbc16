"""Caches that only the benchmark of tiers uses: the steps they leave out of each branch, and no trace afterwards."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from benchmarks.tiers.caches import Cache, cached, calibration, mean_ratios, measured_ratios
from serve_app.config import ModelConfig
from serve_app.engine.torch_engine import TorchEngine
from serve_app.models.registry import MODELS
from serve_app.pipeline import miniature
from serve_app.tasks import EditPlan
from tests.conftest import THREADS

MODEL = MODELS["qwen_image"]
STEPS = 5


class Watched:
    """An engine that says which steps computed attention, for both branches in turn."""

    def __init__(self) -> None:
        self.engine = TorchEngine(miniature.make(MODEL), MODEL, ModelConfig(id=MODEL.id, threads=THREADS))
        [self.transformer] = self.engine._denoiser.transformers
        self._step = -1
        self.computed: list[int] = []
        last = self.transformer.transformer_blocks[-1]
        last.attn.to_q.register_forward_pre_hook(lambda *_: self.computed.append(self._step))

    def edit(self, plan: EditPlan, config: object = None, then: Callable[[], object] = lambda: None) -> np.ndarray:
        self.computed = []

        def on_step(step: int, _: object) -> None:
            self._step = step

        if config is None:
            return np.asarray(self.engine.edit(plan, [], on_step).image)
        with cached(self.transformer, config, plan, lambda: self._step):
            image = self.engine.edit(plan, [], on_step).image
            then()
        return np.asarray(image)


@pytest.fixture(scope="module")
def watched() -> Watched:
    return Watched()


@pytest.fixture
def plan(make_plan):
    return make_plan(model=MODEL.id, control_images=(), steps=STEPS)


def both(steps: list[int]) -> list[int]:
    """Each step twice: for the positive and the negative branch."""
    return [step for step in steps for _ in range(2)]


ALL = both([0, 1, 2, 3, 4])
CASES = {
    "TaylorSeer of the output": (Cache("taylorseer", {"cache_interval": 2, "disable_cache_before_step": 1}), [0, 2, 4]),
    "TaylorSeer of the last block": (
        Cache("taylorseer", {"cache_interval": 2, "disable_cache_before_step": 1}, "last block"),
        [0, 2, 4],
    ),
    "MagCache": (Cache("magcache", {"threshold": 1e6, "max_skip_steps": 1, "retention_ratio": 0.4}), [0, 1, 3]),
    # The first and the last step are always computed.
    "SeaCache": (Cache("seacache", {"threshold": 1e6, "max_consecutive_cached": 2}), [0, 3, 4]),
}


@pytest.mark.parametrize("name", CASES)
def test_a_cache_leaves_out_the_same_steps_of_both_branches_and_no_trace(name, watched, plan):
    cache, whole = CASES[name]
    exact = watched.edit(plan)
    assert watched.computed == ALL
    skipped = watched.edit(plan, cache.config(watched.transformer, plan, [1.0] * STEPS))
    assert watched.computed == both(whole)
    assert not np.array_equal(skipped, exact)
    again = watched.edit(plan, cache.config(watched.transformer, plan, [1.0] * STEPS))
    assert np.array_equal(again, skipped)
    assert np.array_equal(watched.edit(plan), exact)
    assert watched.computed == ALL


def test_calibration_of_magcache_changes_no_pixel_and_gives_a_ratio_per_step_and_branch(watched, plan):
    exact = watched.edit(plan)
    measured: list[list[float]] = []
    made = watched.edit(plan, calibration(STEPS), lambda: measured.extend(measured_ratios(watched.transformer)))
    assert np.array_equal(made, exact)
    assert [len(ratios) for ratios in measured] == [STEPS, STEPS]
    assert [ratios[0] for ratios in measured] == [1.0, 1.0]
    positive, negative = (torch.tensor(ratios[1:]) for ratios in measured)
    assert not torch.equal(positive, negative)
    assert mean_ratios(measured)[1:] == pytest.approx(((positive + negative) / 2).tolist())
