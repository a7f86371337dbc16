"""What was done, or would be: one record for `/v1/explain`, for a result's metadata and for a PNG's text.

Pure, and the same code in the ingress and next to the engine. Its `request` is a body that makes the image again.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from serve_app.images.decode import ImageFacts
from serve_app.images.sizes import Size
from serve_app.models.architecture import Architecture
from serve_app.models.prompt_tokens import image_tokens
from serve_app.models.recipe import Recipe, scheduler_config, shift_of, sigmas_of, tokens
from serve_app.models.registry import ModelSpec
from serve_app.tasks import EditPlan, Receipt

# A rough figure for byte-pair tokens of English; only the estimate of the work rests on it.
CHARACTERS_A_TOKEN = 4
# What a stored control image's name in a request starts with; its digest follows.
STORED_IMAGE = "sha256:"
# Tokens of the template behind the dropped system prompt.
TEMPLATE_TOKENS = 10


def effective(
    plan: EditPlan, spec: ModelSpec, recipe: Recipe, architecture: Architecture, images: Sequence[ImageFacts]
) -> dict[str, Any]:
    """The record. Sizes are (width, height) in pixels."""
    text_tokens = _text_tokens(plan.prompt, recipe.encoder_sizes, recipe)
    positive = architecture.forward_flops(recipe.image_tokens, text_tokens)
    negative = architecture.forward_flops(
        recipe.image_tokens, _text_tokens(plan.negative_prompt, recipe.negative_encoder_sizes, recipe)
    )
    return {
        "model": plan.model,
        "base_model": spec.base_model,
        "profile": plan.profile,
        "prompt": plan.prompt,
        "neg": plan.negative_prompt,
        "width": plan.width,
        "height": plan.height,
        "sample_steps": plan.steps,
        "guidance_scale": plan.guidance_scale,
        "seed": plan.seed,
        "sampler": plan.sampler,
        "output_format": plan.output_format,
        "exif": plan.exif,
        "vae_tiling": plan.vae_tiling,
        "quantization": plan.quantization,
        "feature_cache": plan.feature_cache,
        "why": plan.why,
        "request": request_of(plan),
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
        "loras": [
            {
                "path": without_secrets(use.path),
                "network_multiplier": use.scale,
                "id": use.id,
                "receipt": _plain(use.receipt),
                "modules_of_a_whole_one": architecture.adapted_modules,
            }
            for use in plan.adapters
        ],
        "loras_applied": "W0 + the sum of network_multiplier * change, from an untouched W0 for each request",
        "tokens": {
            "target": recipe.target_tokens,
            "control": recipe.image_tokens - recipe.target_tokens,
            "text_estimated": text_tokens,
        },
        "transformer_flops_estimated": plan.steps * (positive + (negative if recipe.guided else 0)),
    }


def request_of(plan: EditPlan) -> dict[str, Any]:
    """A request for this one image: every value that decides its pixels, under the request's own names.

    A control image stands there by its digest, which the service takes while it keeps the image. The parts of a LoRA's
    URL that may be secret are left out: its sender has to add them. What only the config says (quantization,
    feature_cache) is not part of a request.
    """
    names = ["ctrl_img"] if len(plan.control_images) == 1 else ["ctrl_img_1", "ctrl_img_2", "ctrl_img_3"]
    prompt = {
        "prompt": plan.prompt,
        "neg": plan.negative_prompt,
        "width": plan.width,
        "height": plan.height,
        "sample_steps": plan.steps,
        "guidance_scale": plan.guidance_scale,
        "seed": plan.seed,
        "sampler": plan.sampler,
    }
    images = {name: f"{STORED_IMAGE}{sha256}" for name, sha256 in zip(names, plan.control_images, strict=False)}
    return {
        "model": plan.model,
        "loras": [{"path": without_secrets(use.path), "network_multiplier": use.scale} for use in plan.adapters],
        "prompts": [prompt | images],
        "profile": plan.profile,
        "output_format": plan.output_format,
        "exif": plan.exif,
        "vae_tiling": plan.vae_tiling,
    }


def without_secrets(path: str) -> str:
    """A LoRA's path as it may travel in an image: a URL without its user, query and fragment."""
    if "://" not in path:
        return path
    parts = urlsplit(path)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _plain(receipt: Receipt | None) -> dict[str, Any] | None:
    """As JSON has it: lists for tuples."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(receipt).items()} if receipt else None


def _guidance(plan: EditPlan, recipe: Recipe) -> dict[str, Any]:
    if not recipe.guided:
        meaning = "off, since guidance_scale is not above 1: one forward a step, and neg is not used"
    else:
        rescaled = ", rescaled token by token to the conditional norm" if recipe.guidance_rescaled else ""
        meaning = f"classifier-free: neg + {plan.guidance_scale:g} * (prompt - neg){rescaled}"
    return {
        "true_cfg_scale": plan.guidance_scale,
        "guided": recipe.guided,
        "rescaled_to_conditional_norm": recipe.guided and recipe.guidance_rescaled,
        "forwards_a_step": recipe.forwards // plan.steps,
        "meaning": meaning,
    }


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


def _text_tokens(text: str, encoder_sizes: Sequence[Sequence[Size]], recipe: Recipe) -> int:
    """About how many tokens the text stream has: the images', the prompt's and the template's."""
    total = image_tokens(encoder_sizes) + len(recipe.prompt_prefix + text) // CHARACTERS_A_TOKEN + TEMPLATE_TOKENS
    return min(total, recipe.max_prompt_tokens or total)
