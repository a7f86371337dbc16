"""What each model is, as data: the rows behind `/v1/models` and behind every default of a request.

Free of torch, so that an ingress may read it.
"""

from dataclasses import dataclass
from typing import Literal

# What a model is conditioned on, and how: one control image, several, or the prompt alone.
Family = Literal["edit", "edit_plus", "text_to_image"]


@dataclass(frozen=True)
class ModelSpec:
    """One model of the family.

    `base_model` is the checkpoint on the hub, `pipeline` the diffusers class that its `model_index.json`
    names. `resolution_divisor` is in pixels: width and height are floored to a multiple of it.
    `max_control_images` is what one prompt may carry; 0 means a text-to-image model, which ignores them.
    `zero_cond_t`: the transformer modulates control tokens as if they were at time 0 (2511 alone).
    """

    id: str
    base_model: str
    family: Family
    pipeline: str
    resolution_divisor: int
    max_control_images: int
    zero_cond_t: bool = False
    default_steps: int = 25
    default_guidance_scale: float = 4.0
    default_width: int = 1024
    default_height: int = 1024
    two_transformers: bool = False

    @property
    def requires_control_image(self) -> bool:
        return self.max_control_images > 0


def _edit_plus(id: str, base_model: str, zero_cond_t: bool = False) -> ModelSpec:
    return ModelSpec(id, base_model, "edit_plus", "QwenImageEditPlusPipeline", 32, 3, zero_cond_t)


def _text_to_image(id: str, base_model: str) -> ModelSpec:
    return ModelSpec(id, base_model, "text_to_image", "QwenImagePipeline", 16, 0)


MODELS = {
    spec.id: spec
    for spec in (
        ModelSpec("qwen_image_edit", "Qwen/Qwen-Image-Edit", "edit", "QwenImageEditPipeline", 32, 1),
        _edit_plus("qwen_image_edit_plus", "Qwen/Qwen-Image-Edit-2509"),
        _edit_plus("qwen_image_edit_plus_2511", "Qwen/Qwen-Image-Edit-2511", zero_cond_t=True),
        _text_to_image("qwen_image", "Qwen/Qwen-Image"),
        _text_to_image("qwen_image_2512", "Qwen/Qwen-Image-2512"),
    )
}
