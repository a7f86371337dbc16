"""The requests of a calibration: the same cases in exact and in each tier, for each set of LoRAs."""

from collections.abc import Sequence
from typing import Any

from serve_app.config import AUTO, ModelConfig, TierConfig, TierName
from serve_app.errors import InvalidParameter
from serve_app.intake.calibrations.cases import PROFILE, Cases
from serve_app.models.checkpoint_content import checkpoint_name
from serve_app.schemas.requests import InferenceRequest, Lora, Prompt
from serve_app.tasks import AdapterUse, EditPlan, Priority

EXACT = "exact"
# The fields of a prompt that a tier may fix, by the tier's name for them.
FIXED_BY_TIERS = {"steps": "sample_steps", "guidance_scale": "guidance_scale", "sampler": "sampler"}


def chosen_tiers(model: ModelConfig, wanted: Sequence[str]) -> list[TierName]:
    """The tiers to measure: those that are wanted, or all of the model. Raises InvalidParameter if there is none."""
    if not model.tiers:
        raise InvalidParameter(
            f"{model.id} has no tiers; describe some in models[].tiers of the config", {"parameter": "tiers"}
        )
    if unknown := [name for name in wanted if name not in model.tiers]:
        raise InvalidParameter(
            f"{model.id} has no tier {unknown[0]!r}; it has {', '.join(model.tiers)}", {"parameter": "tiers"}
        )
    return [name for name in model.tiers if not wanted or name in wanted]


def request_of(model: ModelConfig, tier: TierName | None, loras: Sequence[Lora], cases: Cases) -> InferenceRequest:
    """The request that makes all cases with the LoRAs of one set, in a tier or, for None, in exact."""
    settings = model.tiers[tier] if tier else None
    body: dict[str, Any] = {"model": model.id, "profile": PROFILE, "quality": tier or EXACT, "trigger_word": AUTO}
    body |= {"loras": [lora.model_dump(exclude_unset=True) for lora in loras]}
    body |= {"prompts": [_without_fixed(prompt, settings) for prompt in cases.prompts]}
    return InferenceRequest.model_validate(body | {"output_format": "png", "priority": Priority.BULK})


def _without_fixed(prompt: Prompt, tier: TierConfig | None) -> dict[str, Any]:
    """The prompt as it was sent, without what the tier decides."""
    fixed = {field for key, field in FIXED_BY_TIERS.items() if tier is not None and getattr(tier, key) is not None}
    return prompt.model_dump(exclude_unset=True, exclude=fixed)


def own_adapters(plan: EditPlan) -> list[AdapterUse]:
    """The adapters of the request, without that of the tier."""
    return [use for use in plan.adapters if not use.of_tier]


def tier_adapter_id(plan: EditPlan) -> str | None:
    """The id of the tier's own adapter; None if it has none."""
    return next((use.id for use in plan.adapters if use.of_tier), None)


def measured_on(cases: Cases, adapters: Sequence[AdapterUse]) -> str:
    """What a loss was measured on, in words."""
    names = " and ".join(f"{use.path} at {use.scale:g}" for use in adapters)
    return f"{len(cases.prompts)} prompts of {cases.name}, {f'with {names}' if names else 'without LoRAs'}"


def details_of(
    model: ModelConfig, tier: TierConfig, plans: Sequence[EditPlan], cases: Cases, how: str
) -> dict[str, Any]:
    """What a measurement holds for, for people. `plans` are the exact ones."""
    adapters = own_adapters(plans[0])
    return {
        "adapters": [{"path": use.path, "id": use.id, "network_multiplier": use.scale} for use in adapters],
        "checkpoint": checkpoint_name(model),
        "tier": {name: value for name, value in tier.settings().items() if value is not None},
        "set": cases.name,
        "sizes": sorted({f"{plan.width}x{plan.height}" for plan in plans}),
        "steps": sorted({plan.steps for plan in plans}),
        "how": how,
    }
