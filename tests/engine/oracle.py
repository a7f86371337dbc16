"""The reference server's and the trainer's edits, written a second time in straight-line code of their own.

Both are written from the parity facts. `reference_edit` ends in diffusers' own `__call__`, which nobody here
wrote; `trainer_edit` cannot, since `__call__` rescales every guided prediction.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from packaging.version import Version
from safetensors.torch import load_file

from serve_app.tasks import EditPlan

T2I = ("qwen_image", "qwen_image_2512")


def as_tensor(image: PIL.Image.Image) -> torch.Tensor:
    """(1, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None] / 255.0


def for_encoder(pipeline, image: PIL.Image.Image) -> torch.Tensor:
    return as_tensor(image).to(pipeline.text_encoder.device, pipeline.text_encoder.dtype)


def resized_for_encoder(pixels: torch.Tensor, area: int, *, upside_down: bool) -> torch.Tensor:
    """A (1, 3, H, W) tensor at the size that the vision encoder's processor receives."""
    high, wide = pixels.shape[-2:]
    ratio = high / wide if upside_down else wide / high
    width = math.sqrt(area * ratio)
    height = width / ratio
    size = (round(height / 32) * 32, round(width / 32) * 32)
    return torch.nn.functional.interpolate(pixels, size=size, mode="bilinear")


def encode_prompt(pipeline, text: str, **images) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The pipeline's own `encode_prompt`, with the vision encoder's attention as transformers ships it.

    An engine over the same pipeline may have replaced that attention.
    """
    config = pipeline.text_encoder.model.visual.config
    found = config._attn_implementation
    config._attn_implementation = "sdpa"
    try:
        return pipeline.encode_prompt(text, **images)
    finally:
        config._attn_implementation = found


@contextmanager
def counting_by_row_and_column(pipeline) -> Iterator[None]:
    """Within, the text encoder counts positions as transformers up to 5.2 did: image tokens by row and column."""

    def add_positions(module, args, kwargs):
        ids = kwargs["input_ids"]
        kinds = (ids == module.config.image_token_id).int()
        grids = kwargs.get("image_grid_thw")
        kwargs["position_ids"], _ = module.model.get_rope_index(ids, kinds, image_grid_thw=grids)
        return args, kwargs

    hook = pipeline.text_encoder.register_forward_pre_hook(add_positions, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def reference_prompt(pipeline, model: str, images: Sequence[PIL.Image.Image], text: str) -> torch.Tensor:
    if model in T2I:
        embeddings, mask = encode_prompt(pipeline, text)
    elif model == "qwen_image_edit":
        pixels = resized_for_encoder(for_encoder(pipeline, images[0]), 1024 * 1024, upside_down=True)
        embeddings, mask = encode_prompt(pipeline, text, image=pixels)
    else:
        tensors = [resized_for_encoder(for_encoder(pipeline, image), 384 * 384, upside_down=True) for image in images]
        embeddings, mask = encode_prompt(pipeline, text, image=tensors)
    assert mask is None
    return embeddings


@torch.no_grad()
def reference_edit(
    pipeline,
    model: str,
    images: Sequence[PIL.Image.Image],
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
    """The image, or with `output_type="latent"` the packed latents."""
    images = [image.convert("RGB") for image in images]
    inputs = {"prompt_embeds": reference_prompt(pipeline, model, images, prompt)}
    if guidance > 1:
        # The reference encodes it always; without guidance nothing reads it.
        inputs["negative_prompt_embeds"] = reference_prompt(pipeline, model, images, negative)
    if model == "qwen_image_edit":
        inputs["image"] = images[0].resize((width, height), PIL.Image.Resampling.LANCZOS)
    elif model not in T2I:
        inputs["image"] = images
    return pipeline(
        **inputs,
        true_cfg_scale=guidance,
        width=width,
        height=height,
        num_inference_steps=steps,
        generator=torch.Generator("cpu").manual_seed(seed),
        output_type=output_type,
    ).images[0]


@torch.no_grad()
def trainer_edit(
    pipeline,
    model: str,
    images: Sequence[PIL.Image.Image],
    *,
    prompt: str,
    negative: str,
    width: int,
    height: int,
    steps: int,
    guidance: float,
    seed: int,
    version: str = "0.12.26",
) -> PIL.Image.Image:
    """The trainer's preview at this version of it, from the parsed sample on."""
    images = [image.convert("RGB") for image in images]
    edit, t2i = model == "qwen_image_edit", model in T2I
    swapped = Version(version) <= Version("0.7.32")
    m_rope = Version(version) <= Version("0.9.0") and not t2i
    rescaled = edit or t2i or Version(version) <= Version("0.6.0")

    # The list is changed in place, so what one prompt has resized is what the next one starts from. For
    # the edit model each prompt starts from the original.
    tensors = [for_encoder(pipeline, image) for image in images]

    def encode(text: str) -> torch.Tensor:
        if t2i:
            return encode_prompt(pipeline, text)[0][:, :512]
        if edit:
            pixels = resized_for_encoder(tensors[0], 1024 * 1024, upside_down=swapped)
            return encode_prompt(pipeline, text, image=pixels)[0]
        for i, tensor in enumerate(tensors):
            tensors[i] = resized_for_encoder(tensor, 384 * 384, upside_down=swapped)
        return encode_prompt(pipeline, text, image=tensors)[0]

    with counting_by_row_and_column(pipeline) if m_rope else nullcontext():
        positive = encode(prompt)
        unconditional = encode(negative) if guidance > 1 else None

    # Control latents: the VAE's mode, normalised and packed.
    controls, shapes = [], [(1, height // 16, width // 16)]
    mean = torch.tensor(pipeline.vae.config.latents_mean).view(1, 16, 1, 1, 1).to(positive)
    std = torch.tensor(pipeline.vae.config.latents_std).view(1, 16, 1, 1, 1).to(positive)
    for image in images:
        if edit:
            image = image.resize((width, height), PIL.Image.Resampling.BILINEAR)
        ratio = image.width / image.height
        wide = math.sqrt(1024 * 1024 * ratio)
        size = (round(wide / 32) * 32, round(wide / ratio / 32) * 32)
        image = image.resize(size, PIL.Image.Resampling.LANCZOS)
        pixels = (as_tensor(image) * 2.0 - 1.0).to(positive)
        latents = (pipeline.vae.encode(pixels[:, :, None]).latent_dist.mode() - mean) / std
        controls.append(pipeline._pack_latents(latents, 1, 16, size[1] // 8, size[0] // 8))
        shapes.append((1, size[1] // 16, size[0] // 16))

    generator = torch.Generator("cpu").manual_seed(seed)
    noise = torch.randn((1, 1, 16, height // 8, width // 8), generator=generator, dtype=positive.dtype)
    latents = pipeline._pack_latents(noise, 1, 16, height // 8, width // 8)

    scheduler = FlowMatchEulerDiscreteScheduler(
        base_image_seq_len=256,
        max_image_seq_len=8192,
        base_shift=0.5,
        max_shift=0.9,
        shift=1.0,
        shift_terminal=0.02,
        use_dynamic_shifting=True,
        time_shift_type="exponential",
        num_train_timesteps=1000,
    )
    slope = (0.9 - 0.5) / (8192 - 256)
    mu = latents.shape[1] * slope + (0.5 - slope * 256)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)

    def predict(embeddings: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return pipeline.transformer(
            hidden_states=torch.cat([latents, *controls], dim=1),
            timestep=t.expand(1).to(positive.dtype) / 1000,
            encoder_hidden_states=embeddings,
            encoder_hidden_states_mask=None,
            img_shapes=[shapes],
            return_dict=False,
        )[0][:, : latents.shape[1]]

    for t in scheduler.timesteps:
        prediction = predict(positive, t)
        if unconditional is not None:
            other = predict(unconditional, t)
            guided = other + guidance * (prediction - other)
            if rescaled:
                guided = guided * (prediction.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))
            prediction = guided
        latents = scheduler.step(prediction, t, latents, return_dict=False)[0]

    latents = pipeline._unpack_latents(latents, height, width, 8)
    decoded = pipeline.vae.decode(latents / (1.0 / std) + mean).sample[:, :, 0]
    pixels = ((decoded[0] * 0.5 + 0.5).clamp(0, 1).permute(1, 2, 0).float().numpy() * 255).round().astype("uint8")
    return PIL.Image.fromarray(pixels)


@torch.no_grad()
def merge_lora(pipeline, path: Path, scale: float) -> None:
    """W += scale * up @ down for each pair of a file as the trainer writes it, without alpha."""
    tensors = load_file(path)
    for key in tensors:
        if key.endswith(".lora_A.weight"):
            name = key.removeprefix("diffusion_model.").removesuffix(".lora_A.weight")
            weight = pipeline.transformer.get_submodule(name).weight
            down, up = tensors[key].float(), tensors[key.replace("lora_A", "lora_B")].float()
            weight.copy_(torch.addmm(weight, up, down, alpha=scale))


ORACLES = {"reference": reference_edit, "trainer": trainer_edit}


def edit_by_oracle(pipeline, plan: EditPlan, images: Sequence[PIL.Image.Image]) -> PIL.Image.Image:
    """The image that the oracle of the plan's profile makes."""
    return ORACLES[plan.profile](
        pipeline,
        plan.model,
        images,
        prompt=plan.prompt,
        negative=plan.negative_prompt,
        width=plan.width,
        height=plan.height,
        steps=plan.steps,
        guidance=plan.guidance_scale,
        seed=plan.seed,
    )
