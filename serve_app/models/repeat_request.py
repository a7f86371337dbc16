"""A request that makes one image again: part of every effective record."""

from typing import Any
from urllib.parse import urlsplit, urlunsplit

from serve_app.tasks import LOSSY, EditPlan

# The name of a stored control image in a request starts with this; its digest follows.
STORED_IMAGE = "sha256:"


def repeat_request(plan: EditPlan) -> dict[str, Any]:
    """The body of a request for this one image, with every value that decides its pixels.

    Control images are named by their digest, which the service accepts as long as it stores the image. The parts of a
    LoRA's URL that may be secret are left out: the sender has to add them. What only the config says (quantization,
    feature_cache, the LoRA of a tier) is not part of a request. No request can ask for the quality `lossy`.
    """
    quality = {} if plan.quality == LOSSY else {"quality": plan.quality}
    loras = [use for use in plan.adapters if not use.of_tier]
    names = ["ctrl_img"] if len(plan.control_images) == 1 else ["ctrl_img_1", "ctrl_img_2", "ctrl_img_3"]
    images = {name: f"{STORED_IMAGE}{sha256}" for name, sha256 in zip(names, plan.control_images, strict=False)}
    return {
        **request_fields(plan),
        **quality,
        "loras": [{"path": without_url_secrets(use.path), "network_multiplier": use.scale} for use in loras],
        "prompts": [prompt_fields(plan) | images],
    }


def request_fields(plan: EditPlan) -> dict[str, Any]:
    """The plan's values of the fields that are the same for all images of a request."""
    return {
        "model": plan.model,
        "profile": plan.profile,
        "output_format": plan.output_format,
        "exif": plan.exif,
        "vae_tiling": plan.vae_tiling,
    }


def prompt_fields(plan: EditPlan) -> dict[str, Any]:
    """The plan's values of the fields of a prompt, without control images."""
    return {
        "prompt": plan.prompt,
        "neg": plan.negative_prompt,
        "width": plan.width,
        "height": plan.height,
        "sample_steps": plan.steps,
        "guidance_scale": plan.guidance_scale,
        "seed": plan.seed,
        "sampler": plan.sampler,
    }


def without_url_secrets(path: str) -> str:
    """A LoRA's path as it may be stored and shown: a URL without its user, query and fragment, any other as it is.

    Of a URL that cannot be read only the scheme is left, since nobody knows where its secrets are.
    """
    scheme, separator, _ = path.partition("://")
    if not separator:
        return path
    try:
        parts = urlsplit(path)
    except ValueError:
        # A bracket, or what is between two of them, that is no part of an IPv6 address.
        return scheme + separator
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
