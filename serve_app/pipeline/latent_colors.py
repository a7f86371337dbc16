"""The colors of latents: a linear map from the 16 channels of a VAE's normalised latents to RGB, for step previews.

The decoder would take a good part of an edit's time; this map takes microseconds. `latent_colors.json` has the maps of
known VAEs with their sources; `tools/fit_latent_colors.py` makes entries of it. For another VAE a map is fitted to it
when its engine starts.
"""

import json
import logging
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import PIL.Image
import torch
from diffusers import AutoencoderKLQwenImage
from torch import Tensor
from torch.nn import functional as F

from serve_app.pipeline.conditioning import per_channel, unpack

logger = logging.getLogger(__name__)

KNOWN = Path(__file__).with_suffix(".json")
# How far two values of latent statistics may differ in the same VAE: those of the miniature of random weights are
# computed on the machine that makes it.
STATISTICS_TOLERANCE = 1e-3
# The images that a map is fitted to: their number, and their sides in pixels.
IMAGES, SIDE = 16, 64
# Added to the variances of the latents, which are about 1: channels that say nothing about colors get no weight.
RIDGE = 1e-4


@dataclass(frozen=True)
class LatentColors:
    """RGB in [-1, 1] is `weights` (3, 16) times the normalised latents, plus `bias` (3, 1). Both are fp32."""

    weights: Tensor
    bias: Tensor

    def to(self, device: torch.device) -> "LatentColors":
        return LatentColors(self.weights.to(device), self.bias.to(device))

    def of(self, latents: Tensor) -> Tensor:
        """RGB in [-1, 1], (3, n), of latents (16, n)."""
        return (self.weights @ latents.float() + self.bias).clamp(-1, 1)

    def image(self, latents: Tensor, width: int, height: int) -> PIL.Image.Image:
        """The colors of packed latents of an image of `width` x `height` pixels, as an image of 1/8 of that size."""
        colors = self.of(unpack(latents, width, height).reshape(16, -1))
        levels = ((colors + 1) * 127.5).round().to(torch.uint8)
        pixels = levels.T.reshape(height // 8, width // 8, 3).contiguous()
        return PIL.Image.fromarray(pixels.cpu().numpy())


def known_colors(vae: AutoencoderKLQwenImage) -> LatentColors | None:
    """The colors in `latent_colors.json` of VAEs with the same latent statistics, None if there are none.

    The statistics identify the latents: fine-tuned decoders of one encoder have the same latents and similar colors.
    """
    config = vae.config
    for entry in json.loads(KNOWN.read_text()):
        if _are_close(entry["latents_mean"], config.latents_mean) and _are_close(
            entry["latents_std"], config.latents_std
        ):
            return LatentColors(torch.tensor(entry["weights"]).T.contiguous(), torch.tensor(entry["bias"]).view(3, 1))
    return None


def fitted_colors(vae: AutoencoderKLQwenImage, device: torch.device) -> LatentColors:
    """Colors that fit what a VAE, which works on `device`, decodes from synthetic images, by least squares."""
    started = time.perf_counter()
    colors = fit(samples(vae, image, device) for image in synthetic_images())
    logger.info("fitted the colors of step previews to this VAE in %.1f s", time.perf_counter() - started)
    return colors


def fit(pairs: Iterable[tuple[Tensor, Tensor]]) -> LatentColors:
    """The colors that fit pairs of latents (16, n) and RGB (3, n) best."""
    latents, colors = (torch.cat(each, dim=1).double() for each in zip(*pairs, strict=True))
    mean, target = latents.mean(dim=1, keepdim=True), colors.mean(dim=1, keepdim=True)
    centred = latents - mean
    covariance = centred @ centred.T / latents.shape[1] + RIDGE * torch.eye(16, dtype=torch.float64)
    weights = torch.linalg.solve(covariance, centred @ (colors - target).T / latents.shape[1]).T
    return LatentColors(weights.float(), (target - weights @ mean).float())


@torch.no_grad()
def samples(vae: AutoencoderKLQwenImage, image: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """The normalised latents of an image (3, H, W), (16, n), and the mean RGB of the 8x8 pixels decoded from each."""
    latents = vae.encode(image[None, :, None].to(device, vae.dtype)).latent_dist.mode()
    decoded = vae.decode(latents, return_dict=False)[0][0, :, 0].float().clamp(-1, 1)
    mean, std = (per_channel(torch.tensor(v), latents) for v in (vae.config.latents_mean, vae.config.latents_std))
    normalised = ((latents - mean) / std)[0].float()
    return normalised.flatten(1).cpu(), F.avg_pool2d(decoded, 8).flatten(1).cpu()


def synthetic_images(count: int = IMAGES, side: int = SIDE) -> list[Tensor]:
    """Seeded images (3, side, side) in [-1, 1] with the spectrum of photographs, 1/f, and strongly correlated channels.

    Colors fitted to white latents would be wrong: those of images lie elsewhere.
    """
    generator = torch.Generator().manual_seed(0)
    frequencies = torch.fft.fftfreq(side)
    distance = torch.sqrt(frequencies[:, None] ** 2 + frequencies**2).clamp(min=1 / side)
    white = torch.randn(count, 3, side, side, generator=generator)
    textures = torch.fft.ifft2(torch.fft.fft2(white) / distance).real
    textures = textures / textures.std(dim=(2, 3), keepdim=True)
    grey = textures.mean(dim=1, keepdim=True)
    grey = grey / grey.std(dim=(2, 3), keepdim=True)
    tints = torch.randn(count, 3, 1, 1, generator=generator)
    return list((0.24 * grey + 0.16 * textures + 0.5 * tints).clamp(-1, 1))


def _are_close(first: Sequence[float], second: Sequence[float]) -> bool:
    return all(math.isclose(a, b, rel_tol=STATISTICS_TOLERANCE) for a, b in zip(first, second, strict=True))
