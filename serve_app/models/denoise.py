"""The denoising loop over the transformer: noise, sigmas, guidance, steps."""

from collections.abc import Callable

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, QwenImageTransformer2DModel
from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit import calculate_shift
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from serve_app.models.conditioning import pack

# As published with every checkpoint of the family (scheduler/scheduler_config.json).
SCHEDULER_CONFIG = {
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


def noise(seed: int, width: int, height: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Packed noise for a picture of `width` x `height` pixels, drawn on the CPU so that a seed is a picture."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return pack(randn_tensor((1, 1, 16, height // 8, width // 8), generator=generator, device=device, dtype=dtype))


def schedule(steps: int, target_tokens: int, device: torch.device) -> FlowMatchEulerDiscreteScheduler:
    """A scheduler that is set to `steps` steps; its shift depends on the tokens of the target picture alone.

    A single step has no terminal stretch: with it, diffusers divides zero by zero.
    """
    config = SCHEDULER_CONFIG | ({"shift_terminal": None} if steps == 1 else {})
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
    mu = calculate_shift(
        target_tokens,
        SCHEDULER_CONFIG["base_image_seq_len"],
        SCHEDULER_CONFIG["max_image_seq_len"],
        SCHEDULER_CONFIG["base_shift"],
        SCHEDULER_CONFIG["max_shift"],
    )
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu, device=device)
    scheduler.set_begin_index(0)
    return scheduler


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance, rescaled token by token to the norm of the conditional prediction."""
    combined = unconditional + scale * (conditional - unconditional)
    return combined * (conditional.norm(dim=-1, keepdim=True) / combined.norm(dim=-1, keepdim=True))


def denoise(
    transformer: QwenImageTransformer2DModel,
    latents: Tensor,
    control: Tensor,
    shapes: list[tuple[int, int, int]],
    positive: Tensor,
    negative: Tensor | None,
    guidance_scale: float,
    steps: int,
    on_step: Callable[[int], None],
) -> Tensor:
    """Packed latents after `steps` steps, from noise.

    `latents` and `control` are packed, (1, tokens, 64); `shapes` are (1, height/16, width/16) of the target
    and of each control image, in pixels; `positive` and `negative` are prompt embeddings. Without `negative`
    there is one forward a step. `on_step` is told the number of each finished step (1-based) and may raise
    to stop.
    """
    scheduler = schedule(steps, latents.shape[1], latents.device)

    def predict(embeddings: Tensor, timestep: Tensor) -> Tensor:
        predicted = transformer(
            hidden_states=torch.cat([latents, control], dim=1),
            timestep=timestep.expand(1).to(latents.dtype) / 1000,
            encoder_hidden_states=embeddings,
            encoder_hidden_states_mask=None,
            img_shapes=[shapes],
            return_dict=False,
        )[0]
        return predicted[:, : latents.shape[1]]

    for step, timestep in enumerate(scheduler.timesteps, start=1):
        prediction = predict(positive, timestep)
        if negative is not None:
            prediction = guide(prediction, predict(negative, timestep), guidance_scale)
        latents = scheduler.step(prediction, timestep, latents, return_dict=False)[0]
        on_step(step)
    return latents
