"""Conditioning: prompts to embeddings, control images to packed latents, exactly as trainer and reference do it.

The vision encoder's image is a float tensor in [0, 1], which the processor scales by 1/255 once more, so that the
encoder sees an almost black image. This is deliberate: the LoRAs were trained on it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torch.nn import functional as F

from serve_app.errors import UnusableResult
from serve_app.images.blank import is_blank
from serve_app.images.sizes import Size
from serve_app.models.recipe import Recipe, Resize
from serve_app.pipeline.checkpoint import Pipeline

RESAMPLE = {"lanczos": PIL.Image.Resampling.LANCZOS, "bilinear": PIL.Image.Resampling.BILINEAR}


def encoder_image(image: PIL.Image.Image, sizes: Sequence[Size], device: torch.device, dtype: torch.dtype) -> Tensor:
    """The input of the vision encoder's processor: (1, 3, H, W) in [0, 1], resized to each of `sizes` in turn."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).unsqueeze(0)
    pixels = pixels.to(device=device, dtype=torch.float32).div(255).to(dtype)
    for width, height in sizes:
        pixels = F.interpolate(pixels, size=(height, width), mode="bilinear")
    return pixels


def encode_prompt(
    pipeline: Pipeline, text: str, images: Sequence[Tensor], recipe: Recipe, device: torch.device
) -> Tensor:
    """The prompt's embeddings, (1, L, hidden), on `device`: the text encoder's last hidden state after the template.

    Every token is valid, so there is no mask. `images` come from `encoder_image`.
    """
    encoder = pipeline.text_encoder
    prompt = pipeline.prompt_template_encode.format(recipe.prompt_prefix + text)
    dropped = pipeline.prompt_template_encode_start_idx
    if images:
        inputs = pipeline.processor(text=[prompt], images=list(images), padding=True, return_tensors="pt")
    else:
        limit = pipeline.tokenizer_max_length + dropped
        inputs = pipeline.tokenizer([prompt], max_length=limit, truncation=True, padding=True, return_tensors="pt")
    inputs = inputs.to(device)
    # The inner model, without the head, whose logits are not needed.
    hidden = encoder.model(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        pixel_values=inputs.get("pixel_values"),
        image_grid_thw=inputs.get("image_grid_thw"),
        # Passed explicitly, since the default depends on transformers' version.
        position_ids=positions(inputs["input_ids"], inputs.get("image_grid_thw"), encoder.config, recipe),
    ).last_hidden_state
    return hidden[:, dropped:].to(encoder.dtype)[:, : recipe.max_prompt_tokens]


def positions(ids: Tensor, grids: Tensor | None, config: Any, recipe: Recipe) -> Tensor:
    """Position ids of a prompt for the three axes of the text encoder's rotary embedding: (3, 1, L).

    1-D: all three count the tokens. M-RoPE, as transformers up to 5.2 computed it for still images: text
    advances all three together; an image that begins at position p has (p, p + row, p + column) over its
    merged grid, and text goes on at p + the longer side of it. `grids` are the images' (time, rows, columns)
    of patches before they are merged.
    """
    length = ids.shape[1]
    if recipe.position_ids == "1-D" or grids is None:
        return torch.arange(length, device=ids.device).expand(3, 1, -1)
    merge = config.vision_config.spatial_merge_size
    is_image = (ids[0] == config.image_token_id).tolist()
    sides = iter((grids[:, 1:] // merge).tolist())
    parts: list[Tensor] = []
    index = position = 0
    while index < length:
        if is_image[index]:
            rows, columns = next(sides)
            row = torch.arange(rows).repeat_interleave(columns)
            column = torch.arange(columns).repeat(rows)
            parts.append(position + torch.stack([torch.zeros_like(row), row, column]))
            index, position = index + rows * columns, position + max(rows, columns)
        else:
            parts.append(torch.full((3, 1), position))
            index, position = index + 1, position + 1
    return torch.cat(parts, dim=1).unsqueeze(1).to(ids.device)


def control_pixels(pipeline: Pipeline, image: PIL.Image.Image, resizes: Sequence[Resize]) -> Tensor:
    """A control image for the VAE, (1, 3, 1, H, W) in [-1, 1], after each of `resizes` in turn."""
    for resize in resizes:
        image = image.resize(resize.size, RESAMPLE[resize.kernel])
    return pipeline.image_processor.preprocess(image, image.height, image.width).unsqueeze(2)


def encode_control(pipeline: Pipeline, pixels: Tensor, device: torch.device) -> Tensor:
    """The mode of the VAE's latents for `control_pixels`, normalised and packed, on `device`: (1, H/16 * W/16, 64)."""
    vae = pipeline.vae
    latents = vae.encode(pixels.to(device=device, dtype=vae.dtype)).latent_dist.mode()
    mean, std = (per_channel(torch.tensor(v), latents) for v in (vae.config.latents_mean, vae.config.latents_std))
    return pack((latents - mean) / std)


def decode_latents(pipeline: Pipeline, latents: Tensor, width: int, height: int) -> PIL.Image.Image:
    """The image of packed `latents`, whose size in pixels is `width` x `height`.

    Raises UnusableResult if the result is not finite or has a single colour.
    """
    vae = pipeline.vae
    latents = unpack(latents, width, height).to(vae.dtype)
    mean = per_channel(torch.tensor(vae.config.latents_mean), latents)
    # Divided by the reciprocal of the value in the VAE's dtype, as the pipeline does it: other roundings change pixels.
    inverse_std = 1.0 / per_channel(torch.tensor(vae.config.latents_std), latents)
    decoded = vae.decode(latents / inverse_std + mean, return_dict=False)[0][:, :, 0]
    if not decoded.isfinite().all():
        raise UnusableResult(
            "the result is not finite (NaN or infinity); a LoRA's multiplier or the guidance scale may be too high"
        )
    image: PIL.Image.Image = pipeline.image_processor.postprocess(decoded, output_type="pil")[0]
    if is_blank(image):
        raise UnusableResult(
            "the result is all of one colour; a LoRA's multiplier or the guidance scale may be too high"
        )
    return image


def per_channel(values: Tensor, like: Tensor) -> Tensor:
    """One value per latent channel, (1, 16, 1, 1, 1), on `like`'s device and in its dtype."""
    return values.view(1, -1, 1, 1, 1).to(like.device, like.dtype)


def pack(latents: Tensor) -> Tensor:
    """(1, 16, 1, H, W) or (1, 1, 16, H, W) latents as 2x2 patches: (1, H/2 * W/2, 64)."""
    height, width = latents.shape[-2:]
    patches = latents.view(16, height // 2, 2, width // 2, 2).permute(1, 3, 0, 2, 4)
    return patches.reshape(1, height // 2 * width // 2, 64)


def unpack(latents: Tensor, width: int, height: int) -> Tensor:
    """Packed latents of an image of `width` x `height` pixels as (1, 16, 1, height/8, width/8)."""
    patches = latents.view(height // 16, width // 16, 16, 2, 2).permute(2, 0, 3, 1, 4)
    return patches.reshape(1, 16, 1, height // 8, width // 8)
