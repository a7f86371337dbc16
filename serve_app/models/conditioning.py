"""From a prompt and a control image to what the transformer sees, exactly as trainer and reference do it.

Facts, not taste: the encoder's picture is a float tensor in [0, 1] that the processor scales by 1/255 once
more, so the encoder sees an almost black image. The LoRAs were trained on that.
"""

import numpy as np
import PIL.Image
import torch
from diffusers import QwenImageEditPipeline
from torch import Tensor
from torch.nn import functional as F

from serve_app.geometry import encoder_size, near_area
from serve_app.models.profile import Profile

RESAMPLE = {"lanczos": PIL.Image.Resampling.LANCZOS, "bilinear": PIL.Image.Resampling.BILINEAR}


def encoder_image(image: PIL.Image.Image, profile: Profile, device: torch.device, dtype: torch.dtype) -> Tensor:
    """What goes to the vision encoder's processor: (1, 3, H, W) in [0, 1], about 1 MP, sides multiples of 32."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).unsqueeze(0)
    pixels = pixels.to(device=device, dtype=torch.float32).div(255).to(dtype)
    width, height = encoder_size(image.width, image.height, sides_swapped=profile.encoder_sides_swapped)
    return F.interpolate(pixels, size=(height, width), mode="bilinear")


def encode_prompt(pipeline: QwenImageEditPipeline, prompt: str, image: Tensor) -> Tensor:
    """The prompt's embeddings, (1, L, hidden): the text encoder's last hidden state behind the template.

    Every token is valid, so no mask goes with them. `image` comes from `encoder_image`.
    """
    encoder = pipeline.text_encoder
    inputs = pipeline.processor(
        text=[pipeline.prompt_template_encode.format(prompt)], images=image, padding=True, return_tensors="pt"
    ).to(encoder.device)
    length = inputs["input_ids"].shape[1]
    # Passed explicitly, since the default depends on the version of transformers: plain 1-D positions,
    # the same for all three axes of its rotary embedding.
    positions = torch.arange(length, device=encoder.device).expand(3, 1, -1)
    # The inner model: the head over the vocabulary would compute logits that nobody reads.
    hidden = encoder.model(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        pixel_values=inputs["pixel_values"],
        image_grid_thw=inputs["image_grid_thw"],
        position_ids=positions,
    ).last_hidden_state
    return hidden[:, pipeline.prompt_template_encode_start_idx :].to(encoder.dtype)


def control_pixels(
    pipeline: QwenImageEditPipeline, image: PIL.Image.Image, width: int, height: int, profile: Profile
) -> Tensor:
    """The control image for the VAE, (1, 3, 1, H, W) in [-1, 1].

    First to the output size with the profile's kernel, then, as the pipeline itself does, to about 1 MP of
    that aspect with LANCZOS.
    """
    image = image.resize((width, height), RESAMPLE[profile.control_resample])
    vae_width, vae_height = near_area(width / height)
    processor = pipeline.image_processor
    image = processor.resize(image, vae_height, vae_width)
    return processor.preprocess(image, vae_height, vae_width).unsqueeze(2)


def encode_control(pipeline: QwenImageEditPipeline, pixels: Tensor) -> Tensor:
    """The VAE's mode for `control_pixels`, normalised and packed: (1, H/16 * W/16, 64)."""
    vae = pipeline.vae
    latents = vae.encode(pixels.to(device=vae.device, dtype=vae.dtype)).latent_dist.mode()
    mean, std = (per_channel(torch.tensor(v), latents) for v in (vae.config.latents_mean, vae.config.latents_std))
    return pack((latents - mean) / std)


def decode_latents(pipeline: QwenImageEditPipeline, latents: Tensor, width: int, height: int) -> PIL.Image.Image:
    """The picture of packed `latents`, whose size in pixels is `width` x `height`."""
    vae = pipeline.vae
    latents = unpack(latents, width, height).to(vae.dtype)
    mean = per_channel(torch.tensor(vae.config.latents_mean), latents)
    # Divided by the reciprocal, as the pipeline does it: a product would round differently.
    inverse_std = per_channel(1.0 / torch.tensor(vae.config.latents_std), latents)
    decoded = vae.decode(latents / inverse_std + mean, return_dict=False)[0][:, :, 0]
    return pipeline.image_processor.postprocess(decoded, output_type="pil")[0]


def per_channel(values: Tensor, like: Tensor) -> Tensor:
    """One value a latent channel, (1, 16, 1, 1, 1), on `like`'s device and in its dtype."""
    return values.view(1, -1, 1, 1, 1).to(like.device, like.dtype)


def pack(latents: Tensor) -> Tensor:
    """(1, 16, 1, H, W) or (1, 1, 16, H, W) latents as 2x2 patches: (1, H/2 * W/2, 64)."""
    height, width = latents.shape[-2:]
    patches = latents.view(16, height // 2, 2, width // 2, 2).permute(1, 3, 0, 2, 4)
    return patches.reshape(1, height // 2 * width // 2, 64)


def unpack(latents: Tensor, width: int, height: int) -> Tensor:
    """Packed latents of a picture of `width` x `height` pixels as (1, 16, 1, height/8, width/8)."""
    patches = latents.view(height // 16, width // 16, 16, 2, 2).permute(2, 0, 3, 1, 4)
    return patches.reshape(1, 16, 1, height // 8, width // 8)
