"""The gates of steps and of guidance: which steps compute which branch, and what the others follow."""

import numpy as np
import pytest
import torch

from serve_app.config import ModelConfig
from serve_app.engine.canary import similarity_db
from serve_app.engine.torch_engine import TorchEngine
from serve_app.models.recipe import STEPS_AT_ONCE, share_of, spread, steps_of
from serve_app.models.registry import MODELS
from serve_app.pipeline import miniature
from serve_app.pipeline.guidance import Guidance
from tests.conftest import THREADS
from tests.engine.pipelines import watched

MODEL = MODELS["qwen_image"]
STEPS, GUIDED = 5, 2
GATE = 0.4


@pytest.mark.parametrize(
    ("steps", "gate", "guided"), [(25, 0.6, 15), (25, 0.28, 7), (25, 0.29, 8), (4, 0.01, 1), (4, 0.99, 4)]
)
def test_share_of_the_steps_is_rounded_up(steps, gate, guided):
    assert share_of(steps, gate) == guided


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
def test_steps_follow_the_definition(rest, rescaled):
    torch.manual_seed(0)
    scale, levels = 4.0, [1.0, 0.9, 0.7, 0.5, 0.2, 0.1, 0.05]
    computed, guided = (0, 1, 3, 5, 6), (0, 1, 3)
    guidance = Guidance(scale, rescaled, len(levels), computed, guided, rest)
    values = torch.randn(len(levels), 2, 1, 3, 64, dtype=torch.float64)

    def line(of: torch.Tensor, a: int, b: int, step: int) -> torch.Tensor:
        return of[a] + (of[b] - of[a]) * (levels[step] - levels[a]) / (levels[b] - levels[a])

    c, d = values[:, 0].clone(), values[:, 0] - values[:, 1]
    # Steps 2 and 4 run nothing: 2 lies between steps with both branches, 4 behind the last one of them.
    c[2], d[2], c[4] = line(c, 0, 1, 2), line(d, 0, 1, 2), line(c, 1, 3, 4)
    d[4:] = d[3] if rest == "reuse" else 0
    for step, level in enumerate(levels):
        wanted = guidance.prompts_of(step, [torch.ones(1), torch.zeros(1)])
        assert len(wanted) == (step in computed) + (step in guided)
        found = guidance.follow(step, level, list(values[step, : len(wanted)]))
        expected = c[step] + (scale - 1) * d[step]
        if rescaled:
            expected = expected * c[step].norm(dim=-1, keepdim=True) / expected.norm(dim=-1, keepdim=True)
        assert torch.allclose(found, expected)


def test_step_gate_spreads_the_steps_that_run_the_transformer(make_plan):
    assert spread(25, 12) == (0, 1, 2, 4, 7, 9, 12, 14, 17, 19, 22, 24)
    assert [spread(5, count) for count in (1, 2, 3, 4, 5)] == [
        (0,),
        (0, 1),
        (0, 1, 2),
        (0, 1, 2, 4),
        (0, 1, 2, 3, 4),
    ]
    computed, guided = steps_of(make_plan(steps=2 * STEPS_AT_ONCE + 2, step_gate=0.1))
    # Modulations of fused blocks are computed at these.
    assert {0, STEPS_AT_ONCE, 2 * STEPS_AT_ONCE} <= set(computed)
    assert guided == computed


@pytest.mark.parametrize("scale", [4.0, 1.0])
def test_steps_behind_the_step_gate_run_nothing(plan, bench, forwards, scale):
    edited = bench(MODEL.id).engine.edit(plan(step_gate=0.7, guidance_scale=scale), [])
    branches = 2 if scale > 1 else 1
    assert edited.effective["forwards"] == len(forwards) == 4 * branches
    assert "1 of 5 steps run no forward" in edited.effective["guidance"]["meaning"]
    exact = bench(MODEL.id).engine.edit(plan(guidance_scale=scale), [])
    assert edited.image.tobytes() != exact.image.tobytes()
    assert similarity_db(exact.image, edited.image) > 12


def test_streamed_weights_give_the_pixels_of_resident_ones(plan, bench):
    config = ModelConfig(id=MODEL.id, threads=THREADS, offload="stream")
    streamed = TorchEngine(miniature.make(MODEL), MODEL, config)
    gated = plan(guidance_gate=0.8, guidance_gate_rest="reuse", step_gate=0.7)
    assert streamed.edit(gated, []).image.tobytes() == bench(MODEL.id).engine.edit(gated, []).image.tobytes()


def test_previews_follow_each_step(plan, bench):
    gated = plan(guidance_gate=GATE, guidance_gate_rest="reuse")
    edited, previews = watched(bench(MODEL.id).engine, gated, [])
    assert list(previews) == list(range(1, STEPS + 1))
    assert edited.image.tobytes() == bench(MODEL.id).engine.edit(gated, []).image.tobytes()
