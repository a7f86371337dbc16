"""The guidance gate: which steps compute the negative branch, and what the others follow."""

import numpy as np
import pytest
import torch

from serve_app.config import ModelConfig
from serve_app.engine.torch_engine import TorchEngine
from serve_app.models.recipe import steps_with_both_branches
from serve_app.models.registry import MODELS
from serve_app.pipeline import miniature
from serve_app.pipeline.guidance import Guidance
from tests.conftest import THREADS
from tests.engine.pipelines import watched

MODEL = MODELS["qwen_image"]
STEPS, GUIDED = 5, 2
GATE = 0.4


@pytest.mark.parametrize(
    ("steps", "gate", "guided"), [(25, 0.6, 15), (25, 0.28, 7), (25, 0.29, 8), (4, 0.01, 1), (4, 0.99, 4), (4, None, 4)]
)
def test_share_of_the_steps_is_rounded_up(steps, gate, guided):
    assert steps_with_both_branches(steps, gate) == guided


@pytest.fixture
def plan(make_plan):
    def made(**changes: object):
        return make_plan(model=MODEL.id, control_images=(), steps=STEPS, **changes)

    return made


@pytest.fixture
def forwards(bench):
    """The text embeddings of each forward of the shared engine."""
    seen: list[torch.Tensor] = []
    transformer = bench(MODEL.id).pipeline.transformer
    hook = transformer.register_forward_pre_hook(
        lambda _, arguments, inputs: seen.append(inputs["encoder_hidden_states"]), with_kwargs=True
    )
    yield seen
    hook.remove()


@pytest.mark.parametrize("rest", ["drop", "reuse"])
def test_only_the_first_steps_compute_the_negative_branch(plan, bench, forwards, rest):
    made = bench(MODEL.id).engine.edit(plan(guidance_gate=GATE, guidance_gate_rest=rest), [])
    positive, negative = forwards[:2]
    assert [each is negative for each in forwards] == [False, True] * GUIDED + [False] * (STEPS - GUIDED)
    assert all(each is positive for each in forwards if each is not negative)
    assert made.effective["forwards"] == len(forwards)
    assert made.effective["guidance"]["guided_steps"] == GUIDED


def test_gate_behind_the_last_step_changes_no_bit_and_another_does(plan, bench):
    engine = bench(MODEL.id).engine
    exact, whole, dropped, reused = (
        np.asarray(engine.edit(plan(**changes), []).image)
        for changes in (
            {},
            {"guidance_gate": 0.99, "guidance_gate_rest": "reuse"},
            {"guidance_gate": GATE},
            {"guidance_gate": GATE, "guidance_gate_rest": "reuse"},
        )
    )
    assert np.array_equal(whole, exact)
    assert not np.array_equal(dropped, exact)
    assert not np.array_equal(reused, dropped)
    assert not np.array_equal(reused, exact)


def test_gate_has_no_effect_without_guidance(plan, bench):
    engine = bench(MODEL.id).engine
    made = [engine.edit(plan(guidance_scale=1.0, **changes), []) for changes in ({}, {"guidance_gate": GATE})]
    assert made[0].image.tobytes() == made[1].image.tobytes()
    assert made[1].effective["guidance"]["guided_steps"] == 0
    assert made[1].effective["forwards"] == STEPS


@pytest.mark.parametrize("rescaled", [True, False])
@pytest.mark.parametrize("rest", ["drop", "reuse"])
def test_later_steps_follow_the_definition(rest, rescaled):
    torch.manual_seed(0)
    scale = 4.0
    guidance = Guidance(scale, rescaled, GUIDED, rest)
    steps = [torch.randn(2, 1, 3, 64, dtype=torch.float64) for _ in range(STEPS)]
    for number, (conditional, unconditional) in enumerate(steps):
        prompts = guidance.prompts_of(number, [torch.ones(1), torch.zeros(1)])
        assert len(prompts) == (2 if number < GUIDED else 1)
        found = guidance.combine(number, [conditional, unconditional][: len(prompts)])
        last = steps[number if number < GUIDED else GUIDED - 1]
        expected = conditional + (scale - 1) * (last[0] - last[1])
        if number >= GUIDED and rest == "drop":
            expected = conditional
        if rescaled:
            expected = expected * conditional.norm(dim=-1, keepdim=True) / expected.norm(dim=-1, keepdim=True)
        assert torch.allclose(found, expected)


def test_streamed_weights_give_the_pixels_of_resident_ones(plan, bench):
    config = ModelConfig(id=MODEL.id, threads=THREADS, offload="stream")
    streamed = TorchEngine(miniature.make(MODEL), MODEL, config)
    gated = plan(guidance_gate=GATE, guidance_gate_rest="reuse")
    assert streamed.edit(gated, []).image.tobytes() == bench(MODEL.id).engine.edit(gated, []).image.tobytes()


def test_previews_follow_each_step(plan, bench):
    gated = plan(guidance_gate=GATE, guidance_gate_rest="reuse")
    edited, previews = watched(bench(MODEL.id).engine, gated, [])
    assert list(previews) == list(range(1, STEPS + 1))
    assert edited.image.tobytes() == bench(MODEL.id).engine.edit(gated, []).image.tobytes()
