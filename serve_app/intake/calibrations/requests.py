"""The requests of a calibration: the same cases in exact and in each tier, for each set of LoRAs."""

from collections.abc import Sequence
from typing import Any

from serve_app.config import AUTO, ModelConfig, TierConfig, TierName
from serve_app.errors import InvalidParameter
from serve_app.intake.admission.notes import listed
from serve_app.intake.admission.quality import EXACT, fixed_fields
from serve_app.intake.calibrations.cases import PROFILE, Cases
from serve_app.models.checkpoint_content import checkpoint_name
from serve_app.models.repeat_request import without_url_secrets
from serve_app.schemas.requests import InferenceRequest, Lora, Prompt
from serve_app.tasks import AdapterUse, EditPlan, Priority

# How a loss was measured.
BY_COMMAND, BY_QUEUE = "edits-server calibrate", "POST /v1/calibrations"
DRAWN_SEED = -1


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
    body |= {"prompts": [_comparable(prompt, settings) for prompt in cases.prompts]}
    return InferenceRequest.model_validate(body | {"output_format": "png", "priority": Priority.BULK})


def _comparable(prompt: Prompt, tier: TierConfig | None) -> dict[str, Any]:
    """The prompt as it was sent, without what the tier decides, and with a seed that is the same in every quality.

    A seed that the service would draw is left out: the default depends on the prompt's index alone.
    """
    left_out = set(fixed_fields(tier)) if tier is not None else set()
    if prompt.seed == DRAWN_SEED:
        left_out.add("seed")
    return prompt.model_dump(exclude_unset=True, exclude=left_out)


def own_adapters(plan: EditPlan) -> list[AdapterUse]:
    """The adapters of the request, without that of the tier."""
    return [use for use in plan.adapters if not use.of_tier]


def tier_adapter_id(plan: EditPlan) -> str | None:
    """The id of the tier's own adapter; None if it has none."""
    return next((use.id for use in plan.adapters if use.of_tier), None)


def measured_on(cases: Cases, plans: Sequence[EditPlan]) -> str:
    """What a loss was measured on, in words. Every tenant may read it: it names no training job.

    `plans` are the exact ones.
    """
    adapters = own_adapters(plans[0])
    names = " and ".join(f"{use.path} at {use.scale:g}" for use in adapters)
    what = "prompt" if cases.training_job is None else "sample"
    if len(cases.prompts) != 1:
        what += "s"
    loras = f"with {names}" if names else "without LoRAs"
    return f"{len(cases.prompts)} {what} of {cases.name}, {loras}, exact with {exact_text(plans)}"


def exact_text(plans: Sequence[EditPlan]) -> str:
    """The steps and the guidance of exact images, in words."""
    steps, scales = listed(_steps(plans)), listed(_guidance_scales(plans))
    return f"{steps} step{'' if steps == '1' else 's'} at guidance {scales}"


def _steps(plans: Sequence[EditPlan]) -> list[int]:
    return sorted({plan.steps for plan in plans})


def _guidance_scales(plans: Sequence[EditPlan]) -> list[float]:
    return sorted({plan.guidance_scale for plan in plans})


def details_of(
    model: ModelConfig, tier: TierConfig, plans: Sequence[EditPlan], cases: Cases, how: str
) -> dict[str, Any]:
    """What a measurement holds for, for people. `plans` are the exact ones. URLs are without their secret parts."""
    adapters = own_adapters(plans[0])
    return {
        "adapters": [{"path": use.path, "id": use.id, "network_multiplier": use.scale} for use in adapters],
        "checkpoint": without_url_secrets(checkpoint_name(model)),
        "tier": {name: _shown(value) for name, value in tier.settings().items() if value is not None},
        "set": cases.name,
        "training_job": cases.training_job,
        "sizes": sorted({f"{plan.width}x{plan.height}" for plan in plans}),
        "steps": _steps(plans),
        "guidance_scales": _guidance_scales(plans),
        "how": how,
    }


def _shown(value: Any) -> Any:
    """A setting of a tier, as it may be stored."""
    return without_url_secrets(value) if isinstance(value, str) else value
