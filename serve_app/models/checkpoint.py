"""Loading a checkpoint: one path for the miniatures, for a directory in diffusers' layout and for a hub id."""

import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from diffusers import (
    DiffusionPipeline,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
    QwenImagePipeline,
)
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from serve_app.config import MINIATURE, ModelConfig
from serve_app.errors import CheckpointRefused
from serve_app.models import miniature
from serve_app.models.recipe import SCHEDULER_CONFIG
from serve_app.models.registry import ModelSpec

Pipeline: TypeAlias = QwenImagePipeline | QwenImageEditPipeline | QwenImageEditPlusPipeline

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Constant:
    """One value of a checkpoint's configs that decides pixels, beside the one that the recipe rests on."""

    part: str
    key: str
    found: Any
    needed: Any

    def __str__(self) -> str:
        return f"{self.part} has {self.key} = {self.found!r}, the recipe needs {self.needed!r}"


def load(config: ModelConfig, spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> Pipeline:
    """The pipeline of a configured checkpoint on `device`, its parts checked against what the recipe assumes.

    Raises CheckpointRefused if it cannot be found, or with every key that differs and both values.
    """
    folder = find(config, spec)
    logger.info("loading %s from %s (%s) on %s", config.checkpoint, folder, dtype, device)
    # Before the weights are read, which may take minutes.
    refuse_if_different(config.checkpoint, spec, [pipeline_class(folder, spec)])
    pipeline = read(folder, dtype)
    refuse_if_different(config.checkpoint, spec, constants(pipeline, spec))
    return pipeline.to(device)


def read(folder: Path, dtype: torch.dtype) -> Pipeline:
    """The pipeline in `folder`, in host memory and for inference alone. Raises CheckpointRefused."""
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    try:
        pipeline = DiffusionPipeline.from_pretrained(folder, dtype=dtype)
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        # The cause is for the operator's log: a missing part, a truncated file, a config of another class.
        raise CheckpointRefused(f"diffusers cannot read the checkpoint in {folder}: {error}") from error
    pipeline.set_progress_bar_config(disable=True)
    for module in (pipeline.text_encoder, pipeline.transformer, pipeline.vae):
        module.eval().requires_grad_(False)
    return pipeline


def find(config: ModelConfig, spec: ModelSpec) -> Path:
    """The local folder of a configured checkpoint, made or downloaded first if need be. Raises CheckpointRefused."""
    if config.checkpoint == MINIATURE:
        return miniature.ensure(spec)
    if Path(config.checkpoint).is_dir():
        return Path(config.checkpoint)
    try:
        folder = DiffusionPipeline.download(
            config.checkpoint, revision=config.revision, local_files_only=config.local_files_only
        )
    except (OSError, ValueError) as error:
        # The hub's client has a dozen ways to say that something is not there or not to be had.
        revision = f" at revision {config.revision}" if config.revision else ""
        where = "in the hub's local cache (local_files_only is set)" if config.local_files_only else "on the hub"
        raise CheckpointRefused(
            f"{config.checkpoint!r}{revision} is neither a directory here nor a checkpoint {where}"
        ) from error
    return Path(folder)


def pipeline_class(folder: Path, spec: ModelSpec) -> Constant:
    """The pipeline that the checkpoint says it is for. Raises CheckpointRefused if it does not say."""
    try:
        found = json.loads((folder / "model_index.json").read_text())["_class_name"]
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointRefused(f"{folder} has no model_index.json in diffusers' layout") from error
    return Constant("model_index.json", "_class_name", found, spec.pipeline)


def constants(pipeline: Pipeline, spec: ModelSpec) -> Iterator[Constant]:
    """Every constant that decides pixels. Widths, depths and latent statistics are the checkpoint's own."""
    for key, needed in SCHEDULER_CONFIG.items():
        yield Constant("scheduler", key, pipeline.scheduler.config.get(key), needed)
    if spec.requires_control_image:
        images = pipeline.processor.image_processor
        yield Constant("processor", "do_rescale", images.do_rescale, True)
        yield Constant("processor", "rescale_factor", images.rescale_factor, 1 / 255)
    transformer = pipeline.transformer.config
    yield Constant("transformer", "patch_size", transformer.patch_size, 2)
    yield Constant("transformer", "in_channels", transformer.in_channels, 64)
    yield Constant("transformer", "guidance_embeds", transformer.guidance_embeds, False)
    yield Constant("transformer", "zero_cond_t", transformer.zero_cond_t, spec.zero_cond_t)
    yield Constant("vae", "z_dim", pipeline.vae.config.z_dim, 16)
    yield Constant("vae", "downscaling", 2 ** len(pipeline.vae.config.temperal_downsample), 8)


def refuse_if_different(name: str, spec: ModelSpec, found: Iterable[Constant]) -> None:
    """Raise CheckpointRefused that names every constant which is not as needed."""
    if faults := [str(constant) for constant in found if constant.found != constant.needed]:
        raise CheckpointRefused(f"{name} does not fit {spec.id}: {'; '.join(faults)}")
