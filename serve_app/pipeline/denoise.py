"""The denoising loop over the transformer: noise, sigmas, guidance, steps."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from serve_app.config import SamplerName
from serve_app.errors import InvalidParameter
from serve_app.models.prompt_tokens import max_tokens_with_images
from serve_app.models.recipe import scheduler_config, shift_of
from serve_app.pipeline.branches import Branches
from serve_app.pipeline.conditioning import pack
from serve_app.pipeline.forwards import Shapes
from serve_app.pipeline.guidance import Guidance
from serve_app.pipeline.lockstep import BranchesInLockstep

# The latents that a step predicts for the end of the edit: packed, (1, tokens, 64), in fp32. Computed when called.
PredictClean = Callable[[], Tensor]


def refuse_too_long(tokens: int, shapes: Shapes) -> None:
    """Raise InvalidParameter if a prompt has more tokens than the model has positions for with these images."""
    room = max_tokens_with_images((rows, columns) for _, rows, columns in shapes)
    if tokens > room:
        raise InvalidParameter(
            f"the prompt with its control images is of {tokens} tokens, and with images of this size the model takes "
            f"{room}: shorten the prompt or the negative prompt",
            {"parameter": "prompt", "tokens": tokens, "most": room},
        )


def noise(seed: int, width: int, height: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Packed noise for an image of `width` x `height` pixels, drawn on the CPU so that a seed means the same noise."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return pack(randn_tensor((1, 1, 16, height // 8, width // 8), generator=generator, device=device, dtype=dtype))


def schedule(
    steps: int, target_tokens: int, device: torch.device, sampler: SamplerName = "flowmatch"
) -> FlowMatchEulerDiscreteScheduler:
    """A scheduler set to `steps` steps, for a target image of `target_tokens` tokens."""
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(scheduler_config(steps, sampler))
    shift = shift_of(target_tokens, sampler)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=shift, device=device)
    scheduler.set_begin_index(0)
    return scheduler


def clean_latents(latents: Tensor, prediction: Tensor, sigma: Tensor) -> Tensor:
    """The latents without noise that flow matching predicts, in fp32.

    At noise level `sigma` latents are (1 - sigma) * clean + sigma * noise, and the prediction is noise - clean.
    """
    return latents.float() - sigma * prediction.float()


def denoise(
    branches: Branches | BranchesInLockstep,
    latents: Tensor,
    control: Tensor | None,
    shapes: Shapes,
    positive: Tensor,
    negative: Tensor | None,
    guidance: Guidance,
    steps: int,
    on_step: Callable[[int, PredictClean], None],
    sampler: SamplerName = "flowmatch",
) -> Tensor:
    """Packed latents after `steps` steps, from noise.

    `latents` and `control` (of all control images, in order) are packed, (1, tokens, 64); `shapes` are
    (1, height/16, width/16) of the target and of each control image, in pixels; `positive` and `negative` are
    prompt embeddings. Without `negative` there is one forward per step; with it, the steps that `guidance` says have
    two. `on_step` gets the number of each finished step (1-based) and what its clean latents are computed with, and may
    raise to stop. Raises InvalidParameter for a prompt that is too long.
    """
    prompts = [positive] if negative is None else [positive, negative]
    for prompt in prompts:
        refuse_too_long(prompt.shape[1], shapes)
    scheduler = schedule(steps, latents.shape[1], latents.device, sampler)
    target_tokens = latents.shape[1]
    times = scheduler.timesteps.to(latents.dtype) / 1000
    for step, timestep in enumerate(scheduler.timesteps):
        hidden = latents if control is None else torch.cat([latents, control], dim=1)
        predictions = branches.predict(hidden, times, step, shapes, guidance.prompts_of(step, prompts))
        prediction = guidance.combine(step, [each[:, :target_tokens] for each in predictions])
        predict_clean = partial(clean_latents, latents, prediction, scheduler.sigmas[step])
        latents = scheduler.step(prediction, timestep, latents, return_dict=False)[0]
        on_step(step + 1, predict_clean)
    return latents
