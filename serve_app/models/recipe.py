"""The recipe of one edit: every size, kernel and number that follows from its plan.

Pure arithmetic, so that an ingress can explain exactly what the engine will do.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from serve_app.config import SamplerName
from serve_app.images.sizes import EDIT_PLUS_ENCODER_AREA, MEGAPIXEL, Size, size_for_area
from serve_app.models.profile import Kernel, Profile
from serve_app.models.registry import Family, ModelSpec
from serve_app.tasks import EditPlan

# Area in pixels of the vision encoder's image. Text-to-image models have none.
ENCODER_AREA: dict[Family, int] = {"edit": MEGAPIXEL, "edit_plus": EDIT_PLUS_ENCODER_AREA}

# Edit plus numbers its images in the prompt (`QwenImageEditPlusPipeline._get_qwen_prompt_embeds`).
IMAGE_PROMPT = "Picture {}: <|vision_start|><|image_pad|><|vision_end|>"

# `QwenImagePipeline.__call__` cuts prompt embeddings that it is given to `max_sequence_length`; the edit
# pipelines do not.
TEXT_TO_IMAGE_MAX_TOKENS = 512

# As published with every checkpoint of the family (scheduler/scheduler_config.json).
SCHEDULER_CONFIG: dict[str, Any] = {
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "invert_sigmas": False,
    "max_image_seq_len": 8192,
    "max_shift": 0.9,
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "shift_terminal": 0.02,
    "stochastic_sampling": False,
    "time_shift_type": "exponential",
    "use_beta_sigmas": False,
    "use_dynamic_shifting": True,
    "use_exponential_sigmas": False,
    "use_karras_sigmas": False,
}

# What a sampler changes in SCHEDULER_CONFIG. Adapters distilled to few steps (Qwen-Image-Lightning) were trained with a
# constant shift of 3, whatever the size, and no terminal stretch (`scheduler_config` in its
# generate_with_diffusers.py).
SAMPLERS: dict[SamplerName, dict[str, Any]] = {
    "flowmatch": {},
    "lightning": {"base_shift": math.log(3), "max_shift": math.log(3), "shift_terminal": None},
}


@dataclass(frozen=True)
class Resize:
    """One PIL resize, to `size`."""

    size: Size
    kernel: Kernel


@dataclass(frozen=True)
class Recipe:
    """How one edit is made.

    For each control image, in order: `encoder_sizes` and `negative_encoder_sizes` are what the vision
    encoder's copy is resized to, one after the other, for the prompt and for the negative prompt;
    `control_resizes` are what the VAE's copy goes through. `prompt_prefix` comes before either prompt.
    `max_prompt_tokens` cuts the embeddings. Without `guided` there is one forward per step and no negative prompt.
    The first `guided_steps` steps have a forward for each of the two prompts.
    """

    encoder_sizes: tuple[tuple[Size, ...], ...]
    negative_encoder_sizes: tuple[tuple[Size, ...], ...]
    control_resizes: tuple[tuple[Resize, ...], ...]
    position_ids: Literal["1-D", "M-RoPE"]
    prompt_prefix: str
    max_prompt_tokens: int | None
    guided: bool
    guided_steps: int
    guidance_rescaled: bool
    forwards: int
    target_tokens: int

    @property
    def control_sizes(self) -> tuple[Size, ...]:
        """The size at which the VAE encodes each control image."""
        return tuple(resizes[-1].size for resizes in self.control_resizes)

    @property
    def image_tokens(self) -> int:
        """Tokens of the transformer's image stream: the target's and the control images'."""
        return self.target_tokens + sum(tokens(size) for size in self.control_sizes)


def make_recipe(spec: ModelSpec, profile: Profile, plan: EditPlan, image_sizes: Sequence[Size]) -> Recipe:
    """The recipe for a plan whose control images have these sizes (none for a text-to-image model)."""
    edit_plus = spec.family == "edit_plus"
    encoder_sizes = tuple(encoder_size(size, spec.family, profile) for size in image_sizes)
    negative_sizes: tuple[tuple[Size, ...], ...] = tuple((size,) for size in encoder_sizes)
    if edit_plus and profile.edit_plus_negative_resized_twice:
        negative_sizes = tuple((size, encoder_size(size, spec.family, profile)) for size in encoder_sizes)
    guided = plan.guidance_scale > 1
    both = steps_with_both_branches(plan.steps, plan.guidance_gate) if guided else 0
    return Recipe(
        encoder_sizes=tuple((size,) for size in encoder_sizes),
        negative_encoder_sizes=negative_sizes,
        control_resizes=tuple(CONTROL_RESIZES[spec.family](size, plan, profile) for size in image_sizes),
        position_ids=profile.encoder_position_ids,
        prompt_prefix="".join(IMAGE_PROMPT.format(i + 1) for i in range(len(image_sizes))) if edit_plus else "",
        max_prompt_tokens=TEXT_TO_IMAGE_MAX_TOKENS if spec.family == "text_to_image" else None,
        guided=guided,
        guided_steps=both,
        guidance_rescaled=profile.edit_plus_guidance_rescaled if edit_plus else True,
        forwards=plan.steps + both,
        target_tokens=tokens((plan.width, plan.height)),
    )


def steps_with_both_branches(steps: int, gate: float | None) -> int:
    """How many of a guided edit's steps compute both branches: the share `gate` of them, rounded up; None: all."""
    if gate is None:
        return steps
    # Products such as 0.28 * 25 lie a rounding above the whole number that is meant.
    return min(steps, math.ceil(gate * steps - 1e-9))


def encoder_size(size: Size, family: Family, profile: Profile) -> Size:
    """The size of the vision encoder's copy of an image of `size`.

    The trainer up to 0.7.32 and the reference server use height / width as the ratio.
    """
    width, height = size
    ratio = height / width if profile.encoder_sides_swapped else width / height
    return size_for_area(ratio, ENCODER_AREA[family])


def _edit_control(size: Size, plan: EditPlan, profile: Profile) -> tuple[Resize, ...]:
    """To the output size, then to about 1 MP with the output's aspect ratio."""
    output = (plan.width, plan.height)
    return Resize(output, profile.edit_control_kernel), Resize(size_for_area(plan.width / plan.height), "lanczos")


def _edit_plus_control(size: Size, plan: EditPlan, profile: Profile) -> tuple[Resize, ...]:
    """To about 1 MP with its own aspect ratio, whatever the output size."""
    return (Resize(size_for_area(size[0] / size[1]), "lanczos"),)


CONTROL_RESIZES: dict[Family, Callable[[Size, EditPlan, Profile], tuple[Resize, ...]]] = {
    "edit": _edit_control,
    "edit_plus": _edit_plus_control,
}


def tokens(size: Size) -> int:
    """Tokens of an image in the transformer: one for 16x16 pixels (8x in the VAE, then 2x2 patches)."""
    return size[0] // 16 * (size[1] // 16)


def scheduler_config(steps: int, sampler: SamplerName = "flowmatch") -> dict[str, Any]:
    """The scheduler's constants. A single step has no terminal stretch: diffusers would divide zero by zero."""
    return SCHEDULER_CONFIG | SAMPLERS[sampler] | ({"shift_terminal": None} if steps == 1 else {})


def shift_of(target_tokens: int, sampler: SamplerName = "flowmatch") -> float:
    """The scheduler's `mu`: linear in the number of the target image's tokens (diffusers' `calculate_shift`)."""
    constants = SCHEDULER_CONFIG | SAMPLERS[sampler]
    low, high = constants["base_image_seq_len"], constants["max_image_seq_len"]
    least, most = constants["base_shift"], constants["max_shift"]
    slope = (most - least) / (high - low)
    return float(target_tokens * slope + (least - slope * low))


def sigmas_of(steps: int, target_tokens: int, sampler: SamplerName = "flowmatch") -> list[float]:
    """The noise levels of the steps and the final 0, as `FlowMatchEulerDiscreteScheduler` computes them.

    Exponential time shift by `shift_of`, then a stretch so that the last step's level is `shift_terminal`.
    """
    levels: np.ndarray[Any, Any] = np.linspace(1.0, 1 / steps, steps).astype(np.float32)
    power = math.exp(shift_of(target_tokens, sampler))
    levels = power / (power + (1 / levels - 1))
    if terminal := scheduler_config(steps, sampler)["shift_terminal"]:
        distance = 1 - levels
        levels = 1 - distance / (distance[-1] / (1 - terminal))
    return [*levels.astype(np.float32).tolist(), 0.0]
