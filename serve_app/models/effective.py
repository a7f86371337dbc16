"""The effective record of an edit: every value that decides the image, and what follows from it.

`/v1/explain` returns it before an edit; a result's metadata and a PNG's text carry it afterwards. Ingress and engine
compute it with this code, which is pure.
"""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from serve_app.images.decode import ImageFacts
from serve_app.images.sizes import Size
from serve_app.models.architecture import Architecture
from serve_app.models.prompt_tokens import image_tokens
from serve_app.models.recipe import Recipe, scheduler_config, shift_of, sigmas_of, tokens
from serve_app.models.registry import ModelSpec
from serve_app.models.repeat_request import prompt_fields, repeat_request, request_fields, without_url_secrets
from serve_app.tasks import AdapterUse, EditPlan, Loss

# A rough figure for byte-pair tokens of English. Only the estimate of the work uses it.
CHARACTERS_PER_TOKEN = 4
# Tokens of the prompt's template after the system prompt, whose embeddings are dropped.
TEMPLATE_TOKENS = 10


def effective_record(
    plan: EditPlan, spec: ModelSpec, recipe: Recipe, architecture: Architecture, images: Sequence[ImageFacts]
) -> dict[str, Any]:
    """The effective record of one edit, ready for JSON. Sizes are (width, height) in pixels.

    `images` describes the plan's control images, in order.
    """
    return {
        **_parameters(plan, spec),
        "why": plan.why,
        "request": repeat_request(plan),
        "guidance": _guidance(plan, recipe),
        "forwards": recipe.forwards,
        "scheduler": _scheduler(plan, recipe),
        "noise": {"generator": "cpu", "seed": plan.seed, "shape": [1, 1, 16, plan.height // 8, plan.width // 8]},
        "text_encoder": {
            "position_ids": recipe.position_ids,
            "prompt_prefix": recipe.prompt_prefix,
            "max_prompt_tokens": recipe.max_prompt_tokens,
        },
        "control_images": [_control_image(plan, recipe, index, image) for index, image in enumerate(images)],
        "loras": [_lora(use, architecture) for use in plan.adapters],
        "loras_applied": "W0 + the sum of network_multiplier * change, from an untouched W0 for each request",
        "tokens": {
            "target": recipe.target_tokens,
            "control": recipe.image_tokens - recipe.target_tokens,
            "text_estimated": _prompt_tokens(plan, recipe),
        },
        "transformer_flops_estimated": transformer_flops(plan, recipe, architecture),
    }


def transformer_flops(plan: EditPlan, recipe: Recipe, architecture: Architecture) -> int:
    """The estimated floating-point operations of all forwards of an edit."""
    flops = plan.steps * architecture.forward_flops(recipe.image_tokens, _prompt_tokens(plan, recipe))
    if recipe.guided:
        negative_tokens = _text_tokens(plan.negative_prompt, recipe.negative_encoder_sizes, recipe)
        flops += recipe.guided_steps * architecture.forward_flops(recipe.image_tokens, negative_tokens)
    return flops


def _parameters(plan: EditPlan, spec: ModelSpec) -> dict[str, Any]:
    return {
        "preset": plan.preset,
        **request_fields(plan),
        "base_model": spec.base_model,
        **prompt_fields(plan),
        "quantization": plan.quantization,
        "feature_cache": plan.feature_cache,
        "quality": plan.quality,
        "loss": None if plan.loss is None else _loss(plan.loss),
    }


def _loss(loss: Loss) -> dict[str, Any]:
    measured_at = datetime.fromtimestamp(loss.measured_at, UTC).isoformat(timespec="seconds")
    return asdict(loss) | {"measured_at": measured_at.replace("+00:00", "Z")}


def _lora(use: AdapterUse, architecture: Architecture) -> dict[str, Any]:
    return {
        "path": without_url_secrets(use.path),
        "network_multiplier": use.scale,
        "of_tier": use.of_tier,
        "id": use.id,
        "receipt": None if use.receipt is None else _with_lists(asdict(use.receipt)),
        "modules_of_a_whole_one": architecture.adapted_modules,
    }


def _with_lists(values: dict[str, Any]) -> dict[str, Any]:
    """`values` with lists in place of tuples, as JSON has them."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def _guidance(plan: EditPlan, recipe: Recipe) -> dict[str, Any]:
    if not recipe.guided:
        meaning = "off, since guidance_scale is not above 1: one forward a step, and neg is not used"
    else:
        rescaled = ", rescaled token by token to the conditional norm" if recipe.guidance_rescaled else ""
        meaning = f"classifier-free: neg + {plan.guidance_scale:g} * (prompt - neg){rescaled}{_gate(plan, recipe)}"
    return {
        "true_cfg_scale": plan.guidance_scale,
        "guided": recipe.guided,
        "rescaled_to_conditional_norm": recipe.guided and recipe.guidance_rescaled,
        "forwards_a_step": 2 if recipe.guided else 1,
        "guided_steps": recipe.guided_steps,
        "meaning": meaning,
    }


def _gate(plan: EditPlan, recipe: Recipe) -> str:
    """What the steps beyond the guidance gate do, in words; "" if all steps compute both branches."""
    if recipe.guided_steps == plan.steps:
        return ""
    rest = "with the last difference of both" if plan.guidance_gate_rest == "reuse" else "alone"
    return f"; from step {recipe.guided_steps + 1} on the prompt's prediction {rest}"


def _scheduler(plan: EditPlan, recipe: Recipe) -> dict[str, Any]:
    names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift", "shift_terminal")
    constants = {name: value for name, value in scheduler_config(plan.steps, plan.sampler).items() if name in names}
    return {
        "sampler": plan.sampler,
        "class": "FlowMatchEulerDiscreteScheduler",
        **constants,
        "mu": shift_of(recipe.target_tokens, plan.sampler),
        "sigmas": sigmas_of(plan.steps, recipe.target_tokens, plan.sampler),
    }


def _control_image(plan: EditPlan, recipe: Recipe, index: int, image: ImageFacts) -> dict[str, Any]:
    encoder = "tensor in [0, 1], bilinear, no antialias; the processor then scales by 1/255 once more"
    return {
        "sha256": plan.control_images[index],
        "size": list(image.size),
        "exif_orientation": image.exif_orientation,
        "conversions": list(image.conversions),
        "vision_encoder": {
            "sizes": [list(size) for size in recipe.encoder_sizes[index]],
            "sizes_for_neg": [list(size) for size in recipe.negative_encoder_sizes[index]],
            "kernel": encoder,
        },
        "vae": [{"size": list(resize.size), "kernel": resize.kernel} for resize in recipe.control_resizes[index]],
        "tokens": tokens(recipe.control_sizes[index]),
    }


def _prompt_tokens(plan: EditPlan, recipe: Recipe) -> int:
    """An estimate of the text stream's tokens for the prompt."""
    return _text_tokens(plan.prompt, recipe.encoder_sizes, recipe)


def _text_tokens(text: str, encoder_sizes: Sequence[Sequence[Size]], recipe: Recipe) -> int:
    """An estimate of the text stream's tokens: those of the images, the prompt and the template."""
    total = image_tokens(encoder_sizes) + len(recipe.prompt_prefix + text) // CHARACTERS_PER_TOKEN + TEMPLATE_TOKENS
    return min(total, recipe.max_prompt_tokens or total)
