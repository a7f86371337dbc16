"""The tiers of a model: what their config may say, and which editors make their images."""

from dataclasses import asdict

import pytest
from pydantic import TypeAdapter, ValidationError

from serve_app.config import AppConfig, ModelConfig, TierConfig
from serve_app.tasks import EditPlan, Loss, LossRange

FP8 = {"balanced": {"feature_cache": 0.1}, "fast": {"quantization": "fp8", "guidance_gate": 0.5}}
PLAN = EditPlan("qwen_image_edit", "reference", "p", "", 64, 64, 8, 4.0, 42, "jpeg", ("ab",))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"tiers": {"fast": {}}}, "the tier changes nothing"),
        ({"tiers": {"fast": {"uncalibrated": "allow"}}}, "the tier changes nothing"),
        ({"tiers": {"swift": {"steps": 8}}}, "balanced"),
        ({"tiers": {"fast": {"guidance_gate": 1.0}}}, "less than 1"),
        ({"tiers": {"fast": {"steps": 8, "guidance_gate_rest": "reuse"}}}, "only with guidance_gate"),
        ({"tiers": {"fast": {"steps": 8, "adapter_scale": 0.5}}}, "only with adapter"),
        ({"tiers": {"fast": {"guidance_gate": 0.5, "guidance_scale": 1}}}, "one branch only"),
        ({"tiers": {"fast": {"steps": 8}}, "feature_cache": 0.1}, "not with feature_cache: 0.1"),
        ({"tiers": {"fast": {"steps": 8}}, "quantization": "fp8"}, "not with quantization: fp8"),
        ({"tiers": FP8, "offload": "stream"}, "tiers.balanced.feature_cache: not with offload: stream"),
        ({"tiers": {"fast": FP8["fast"]}, "offload": "stream"}, "tiers.fast.quantization: not with offload: stream"),
        ({"tiers": FP8, "adapter_weights": "hooks"}, "tiers.fast.quantization: not with adapter_weights: hooks"),
    ],
)
def test_tier_that_cannot_be_made_is_refused(model, message):
    with pytest.raises(ValidationError, match=message):
        AppConfig.model_validate({"models": [model]})


def test_tier_in_fp8_has_editors_of_its_own():
    model = ModelConfig.model_validate({"tiers": FP8})
    groups = model.editor_groups
    assert list(groups) == ["qwen_image_edit", "qwen_image_edit-fast"]
    assert groups["qwen_image_edit"] is model
    own = groups["qwen_image_edit-fast"]
    assert (own.id, own.quantization, own.feature_cache) == ("qwen_image_edit", "fp8", None)


@pytest.mark.parametrize(
    ("quality", "quantization", "group"),
    [
        ("exact", "none", "qwen_image_edit"),
        ("balanced", "none", "qwen_image_edit"),
        ("fast", "fp8", "qwen_image_edit-fast"),
        # The model's own option: all its editors have it.
        ("lossy", "fp8", "qwen_image_edit"),
        ("exact", "fp8", "qwen_image_edit"),
    ],
)
def test_plan_names_the_editors_that_can_make_it(quality, quantization, group):
    plan = EditPlan(**asdict(PLAN) | {"quality": quality, "quantization": quantization})
    assert plan.editor_group == group


def test_digest_changes_with_the_pixels_alone():
    tier = TierConfig(steps=8, adapter="a.safetensors")
    assert tier.digest("id") == TierConfig(steps=8, adapter="b.safetensors", uncalibrated="allow").digest("id")
    assert (
        len({tier.digest("id"), tier.digest("other"), TierConfig(steps=9, adapter="a.safetensors").digest("id")}) == 3
    )


def test_plan_with_a_loss_is_read_back_and_so_is_one_of_an_earlier_version():
    plans = TypeAdapter(EditPlan)
    loss = Loss(LossRange(38.2, 44.0), LossRange(0.97, 0.99), 10.0, 6.0, 44, 1.7e9, "base", latents=0.04)
    plan = EditPlan(**asdict(PLAN) | {"quality": "fast", "guidance_gate": 0.5, "loss": loss})
    assert plans.validate_python(asdict(plan)) == plan
    new = {"quality", "guidance_gate", "guidance_gate_rest", "loss"}
    earlier = {name: value for name, value in asdict(PLAN).items() if name not in new}
    assert plans.validate_python(earlier) == PLAN
