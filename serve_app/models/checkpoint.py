"""Loading a checkpoint: one path for the miniature, for a directory in diffusers' layout and for a hub id."""

import logging
from pathlib import Path
from typing import Any

import torch
from diffusers import QwenImageEditPipeline
from diffusers.utils import logging as diffusers_logging

from serve_app.config import MINIATURE
from serve_app.errors import CheckpointRefused
from serve_app.models import miniature
from serve_app.models.denoise import SCHEDULER_CONFIG

logger = logging.getLogger(__name__)


def load(checkpoint: str, device: torch.device, dtype: torch.dtype) -> QwenImageEditPipeline:
    """The pipeline of `checkpoint` on `device`, its parts checked against what the recipe assumes.

    Raises CheckpointRefused, which names the key and both values.
    """
    diffusers_logging.disable_progress_bar()
    source = str(miniature.ensure()) if checkpoint == MINIATURE else checkpoint
    logger.info("loading %s (%s) on %s", checkpoint, dtype, device)
    pipeline = QwenImageEditPipeline.from_pretrained(source, dtype=dtype)
    check(pipeline, checkpoint)
    for module in (pipeline.text_encoder, pipeline.transformer, pipeline.vae):
        module.eval().requires_grad_(False)
    return pipeline.to(device)


def check(pipeline: QwenImageEditPipeline, name: str | Path) -> None:
    """Raise CheckpointRefused if a constant that decides pixels is not the published one.

    Widths, depths and latent statistics are free: they are the checkpoint's own.
    """

    def same(part: str, key: str, found: Any, expected: Any) -> None:
        if found != expected:
            raise CheckpointRefused(f"{name}: {part} has {key} = {found!r}, the recipe needs {expected!r}")

    for key, expected in SCHEDULER_CONFIG.items():
        same("scheduler", key, pipeline.scheduler.config.get(key), expected)
    images = pipeline.processor.image_processor
    same("processor", "do_rescale", images.do_rescale, True)
    same("processor", "rescale_factor", images.rescale_factor, 1 / 255)
    same("transformer", "patch_size", pipeline.transformer.config.patch_size, 2)
    same("transformer", "in_channels", pipeline.transformer.config.in_channels, 64)
    same("transformer", "guidance_embeds", pipeline.transformer.config.guidance_embeds, False)
    same("vae", "z_dim", pipeline.vae.config.z_dim, 16)
    same("vae", "downscaling", 2 ** len(pipeline.vae.config.temperal_downsample), 8)
