"""Training the VAE: images to latents of a sixty-fourth of the area and back."""

from collections.abc import Sequence

import torch
from diffusers import AutoencoderKLQwenImage
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import QwenImageCausalConv3d, QwenImageRMS_norm
from torch import Tensor
from torch.nn import functional as F

from tools.miniature.clock import Average, Clock, Log
from tools.miniature.crops import batch_of, sometimes_edited
from tools.miniature.edits import INSTRUCTIONS, STYLES

KL_WEIGHT = 1e-6
# Noise on the latents, at most, for one of their own standard deviations: the transformer's are not exact either.
LATENT_NOISE = 0.2
RATE = 1.5e-3


def single_frame(module: AutoencoderKLQwenImage) -> None:
    """Compute convolutions over time as those of one image, which sees only each kernel's last slice.

    The frames before the first are zeros, so the other slices, and the convolutions between frames, are never
    used: they are set to zero, and the class's own forward then gives the same.
    """

    def convolve(self: QwenImageCausalConv3d, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
        padding = (self._padding[2], self._padding[0])
        made = F.conv2d(x[:, :, 0], self.weight[:, :, -1], self.bias, padding=padding)
        return made.unsqueeze(2)

    def normalise(self: QwenImageRMS_norm, x: Tensor) -> Tensor:
        # The class's own goes over the whole tensor in fp32 five times more often.
        size = x.square().mean(dim=1, keepdim=True, dtype=torch.float32)
        return x * (size + 1e-12).rsqrt().to(x.dtype) * self.gamma.to(x.dtype)

    for part in module.modules():
        if isinstance(part, QwenImageCausalConv3d):
            with torch.no_grad():
                part.weight[:, :, :-1] = 0
            part.forward = convolve.__get__(part)
        elif isinstance(part, QwenImageRMS_norm):
            part.forward = normalise.__get__(part)


def several_frames(module: AutoencoderKLQwenImage) -> None:
    """Undo `single_frame`: the classes' own forward again."""
    for part in module.modules():
        if isinstance(part, QwenImageCausalConv3d | QwenImageRMS_norm):
            del part.forward


def moments(vae: AutoencoderKLQwenImage, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Mode and log variance (B, 16, h, w) of images (B, 3, H, W) in [0, 1], as `vae.encode` computes them."""
    pictures = (pictures * 2 - 1).contiguous(memory_format=torch.channels_last)
    made = vae.quant_conv(vae.encoder(pictures.unsqueeze(2)))[:, :, 0]
    mode, variance = made.chunk(2, dim=1)
    return mode, variance.clamp(-30, 20)


def decoded(vae: AutoencoderKLQwenImage, latents: Tensor) -> Tensor:
    """Images (B, 3, H, W), about [0, 1], not clamped."""
    return (vae.decoder(vae.post_quant_conv(latents.unsqueeze(2)))[:, :, 0] + 1) / 2


def loss_of(vae: AutoencoderKLQwenImage, pictures: Tensor) -> Tensor:
    mode, variance = moments(vae, pictures)
    spread = mode.detach().std(dim=(0, 2, 3), keepdim=True)
    count = len(mode)
    extra = LATENT_NOISE * torch.rand(count, 1, 1, 1, device=mode.device) * spread
    # Half of the images as the encoder is sure of them, half with noise on top.
    extra = torch.where(torch.arange(count, device=mode.device).view(-1, 1, 1, 1) % 2 == 0, 0.0, extra)
    made = decoded(vae, mode + torch.randn_like(mode) * (variance.exp() + extra**2).sqrt()).float()
    loss = picture_loss(made, pictures)
    kl = 0.5 * (mode.float() ** 2 + variance.float().exp() - 1 - variance.float()).mean()
    return loss + KL_WEIGHT * kl


def picture_loss(made: Tensor, true: Tensor) -> Tensor:
    """Mean absolute and squared error, at three scales, and that of the differences between neighbours."""
    error = made - true
    loss = error.abs().mean() + 5 * (error**2).mean()
    loss = loss + 0.5 * (error[..., 1:] - error[..., :-1]).abs().mean()
    loss = loss + 0.5 * (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    for size in (4, 16):
        loss = loss + 0.5 * F.avg_pool2d(error, size).abs().mean()
    return loss


def train(
    vae: AutoencoderKLQwenImage,
    bank: Tensor,
    held_out: Sequence[Tensor],
    seconds: float,
    batch: int,
    log: Log,
    size: int = 256,
) -> None:
    """Train in place, average the weights, measure the latents' statistics and write them to the config."""
    device = bank.device
    edits = [*(i.apply for i in INSTRUCTIONS[1:]), *(s.apply for s in STYLES)]
    single_frame(vae.train().requires_grad_(True))
    optimizer = torch.optim.AdamW(vae.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=1e-4, fused=True)
    average, clock = Average(vae), Clock(seconds)
    half = device.type == "cuda"
    while clock.tick():
        for group in optimizer.param_groups:
            group["lr"] = clock.rate(RATE)
        with torch.no_grad():
            pictures = sometimes_edited(batch_of(bank, batch, size), edits)
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            loss = loss_of(vae, pictures)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update(clock.steps)
        if clock.steps % 250 == 0:
            average.swap()
            log("vae", step=clock.steps, share=clock.share, loss=loss.item(), held_out_db=quality(vae, held_out))
            average.swap()
    average.settle()
    finish(vae, bank, size)
    log("vae", step=clock.steps, held_out_db=quality(vae, held_out), std=vae.config.latents_std)


@torch.no_grad()
def finish(vae: AutoencoderKLQwenImage, bank: Tensor, size: int) -> None:
    """Round the weights as they will be kept, and write the latents' statistics to the config."""
    vae.eval().requires_grad_(False)
    for parameter in vae.parameters():
        parameter.copy_(parameter.half())
    latents = torch.cat([moments(vae, batch_of(bank, 16, size))[0] for _ in range(16)])
    mean, std = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    vae.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())


@torch.no_grad()
def quality(vae: AutoencoderKLQwenImage, pictures: Sequence[Tensor]) -> list[float]:
    """Decibels for each image (3, H, W) that is encoded and decoded again."""
    found = []
    for picture in pictures:
        made = decoded(vae, moments(vae, picture[None])[0]).clamp(0, 1)
        found.append(round(float(-10 * ((made - picture) ** 2).mean().log10()), 2))
    return found
