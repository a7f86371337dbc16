"""The models: the rows behind `/v1/models` and behind every default of a request.

Free of torch, so that an ingress may import it.
"""

from collections.abc import Set
from dataclasses import dataclass
from typing import Literal

# What a model is conditioned on besides the prompt: one control image, several, or none.
Family = Literal["edit", "edit_plus", "text_to_image"]


@dataclass(frozen=True)
class ModelSpec:
    """One model of the family.

    `base_model` is the checkpoint on the hub, `pipeline` the diffusers class that its `model_index.json`
    names. `resolution_divisor` is in pixels: width and height are floored to a multiple of it.
    `max_control_images` is what one prompt may carry; 0 means a text-to-image model, which ignores them.
    `zero_cond_t`: the transformer modulates control tokens as if they were at time 0 (only 2511).
    `metadata_words`: sets of words. A base model's name in a LoRA's metadata that contains one of the sets means this
    model; of several models, the one with the largest set.
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
    metadata_words: tuple[frozenset[str], ...] = ()

    @property
    def requires_control_image(self) -> bool:
        return self.max_control_images > 0


def _edit(id: str, base_model: str, *metadata: str) -> ModelSpec:
    words = _words(metadata)
    return ModelSpec(id, base_model, "edit", "QwenImageEditPipeline", 32, 1, metadata_words=words)


def _edit_plus(id: str, base_model: str, *metadata: str, zero_cond_t: bool = False) -> ModelSpec:
    words = _words(metadata)
    return ModelSpec(id, base_model, "edit_plus", "QwenImageEditPlusPipeline", 32, 3, zero_cond_t, metadata_words=words)


def _text_to_image(id: str, base_model: str, *metadata: str) -> ModelSpec:
    words = _words(metadata)
    return ModelSpec(id, base_model, "text_to_image", "QwenImagePipeline", 16, 0, metadata_words=words)


def _words(metadata: tuple[str, ...]) -> tuple[frozenset[str], ...]:
    return tuple(frozenset(words.split()) for words in metadata)


# To add a model of a known family, add its row, and its id to the description of `ModelConfig.id`. `qwen_image` has no
# words of its own: the trainer writes its name for each model of the family.
MODELS = {
    spec.id: spec
    for spec in (
        _edit("qwen_image_edit", "Qwen/Qwen-Image-Edit", "edit"),
        _edit_plus("qwen_image_edit_plus", "Qwen/Qwen-Image-Edit-2509", "edit 2509", "edit plus"),
        _edit_plus(
            "qwen_image_edit_plus_2511", "Qwen/Qwen-Image-Edit-2511", "edit 2511", "edit plus 2511", zero_cond_t=True
        ),
        _text_to_image("qwen_image", "Qwen/Qwen-Image"),
        _text_to_image("qwen_image_2512", "Qwen/Qwen-Image-2512", "2512"),
    )
}


def model_of_metadata(words: Set[str]) -> str | None:
    """The id of the model that a base model's name means, given the words of that name; None if it says none."""
    named = [(len(needed), spec.id) for spec in MODELS.values() for needed in spec.metadata_words if needed <= words]
    # Of equally large sets, the model whose id is the last in alphabetical order.
    return max(named)[1] if named else None
