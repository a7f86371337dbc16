"""The reference server's edit, said once more in a straight line over diffusers' own `__call__`.

Written from the parity facts, apart from the product's code: what is equal to it is equal to a pipeline
that nobody here wrote.
"""

import math

import numpy as np
import PIL.Image
import torch
from diffusers import QwenImageEditPipeline


def reference_inputs(pipeline: QwenImageEditPipeline, picture: PIL.Image.Image, prompt: str) -> tuple:
    """The prompt's embeddings by the pipeline's own `encode_prompt`, with the picture that it is shown."""
    pixels = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)[None] / 255.0
    upside_down = pixels.shape[2] / pixels.shape[3]
    width = math.sqrt(1024 * 1024 * upside_down)
    size = (round(width / upside_down / 32) * 32, round(width / 32) * 32)
    pixels = torch.nn.functional.interpolate(pixels, size=size, mode="bilinear")
    return pipeline.encode_prompt(prompt, image=pixels)


@torch.no_grad()
def reference_edit(
    pipeline: QwenImageEditPipeline,
    picture: PIL.Image.Image,
    *,
    prompt: str,
    negative: str,
    width: int,
    height: int,
    steps: int,
    guidance: float,
    seed: int,
    output_type: str = "pil",
) -> PIL.Image.Image | torch.Tensor:
    """The picture, or with `output_type="latent"` the packed latents."""
    picture = picture.convert("RGB")
    positive, positive_mask = reference_inputs(pipeline, picture, prompt)
    unwanted, unwanted_mask = reference_inputs(pipeline, picture, negative)
    return pipeline(
        image=picture.resize((width, height), PIL.Image.Resampling.LANCZOS),
        prompt_embeds=positive,
        prompt_embeds_mask=positive_mask,
        negative_prompt_embeds=unwanted,
        negative_prompt_embeds_mask=unwanted_mask,
        true_cfg_scale=guidance,
        width=width,
        height=height,
        num_inference_steps=steps,
        generator=torch.Generator("cpu").manual_seed(seed),
        output_type=output_type,
    ).images[0]
