"""Loading a checkpoint: a miniature, a directory in diffusers' layout, or a hub id, all in the same way."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from diffusers.utils import logging as diffusers_logging
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import Qwen2VLProcessor
from transformers.utils import logging as transformers_logging

from serve_app.config import MINIATURE, MINIATURE_RANDOM, CheckpointConfig, ModelConfig
from serve_app.errors import CheckpointRefused
from serve_app.models.checkpoint_configs import read_config
from serve_app.models.recipe import SCHEDULER_CONFIG
from serve_app.models.registry import ModelSpec
from serve_app.pipeline import loading, miniature, trained_miniature
from serve_app.pipeline.remote_checkpoints import RemoteCheckpoints
from serve_app.pipeline.weight_files import NEEDED, PARTS, SCALED, has_scales, stored_tensors, weight_files

Pipeline: TypeAlias = QwenImagePipeline | QwenImageEditPipeline | QwenImageEditPlusPipeline

logger = logging.getLogger(__name__)

# As published with every edit checkpoint of the family (processor/preprocessor_config.json). The sizes are in pixels;
# with the class's default, an image of 1 MP would be shrunk.
PROCESSOR_CONFIG: dict[str, Any] = {
    "do_resize": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": {"shortest_edge": 3136, "longest_edge": 12845056},
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
}


@dataclass(frozen=True)
class Constant:
    """One value of a checkpoint's configs that decides pixels, and the value that the recipe needs."""

    part: str
    key: str
    found: Any
    needed: Any

    def __str__(self) -> str:
        return f"{self.part} has {self.key} = {self.found!r}, the recipe needs {self.needed!r}"


def load(config: ModelConfig, spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> Pipeline:
    """The pipeline of a configured checkpoint, checked against the recipe.

    Raises CheckpointRefused if it cannot be found, or with every value that differs from the recipe.
    """
    return load_folder(find(config, spec), config, spec, device, dtype)


def load_folder(
    folder: Path, config: ModelConfig, spec: ModelSpec, device: torch.device, dtype: torch.dtype
) -> Pipeline:
    """The pipeline in `folder`, on `device`, or in host memory if the config streams the weights. Raises as `load`."""
    logger.info("loading %s from %s (%s) on %s", config.checkpoint, folder, dtype, device)
    # Checked before the weights are read, which may take minutes.
    refuse_if_different(config.checkpoint, spec, constants(folder, spec))
    if config.offload == "stream":
        return read(folder, dtype)
    with loading.WeightReader(folder, device, dtype) as reader:
        pipeline = read(folder, reader.dtypes)
        reader.place((pipeline.text_encoder, pipeline.transformer, pipeline.vae))
    return pipeline


def weight_bytes(folder: Path, dtype: torch.dtype) -> dict[str, int]:
    """The bytes of each part's weights in `dtype`, from the headers of its safetensors files."""
    found = {}
    for part in PARTS:
        tensors = [stored for file in weight_files(folder / part) for stored in stored_tensors(file)]
        found[part] = sum(stored.elements for stored in tensors) * dtype.itemsize
    return found


def read(folder: Path, dtype: torch.dtype | Mapping[str, torch.dtype]) -> Pipeline:
    """The pipeline in `folder`, in host memory and for inference only. Raises CheckpointRefused.

    `dtype` is that of all parts, or of each by its name. Values that have it in their file are read when they are used.
    """
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    with refused(f"diffusers cannot read the checkpoint in {folder}", folder):
        pipeline = DiffusionPipeline.from_pretrained(folder, dtype=dtype)
    for part in pipeline.components.keys() & {"tokenizer", "processor"}:
        component = getattr(pipeline, part)
        if not getattr(component, "tokenizer", component)("a").input_ids:
            # If its files are missing, transformers makes a tokenizer with an empty vocabulary.
            raise CheckpointRefused(f"the tokenizer in {folder / part} knows no words; its files are missing")
    pipeline.set_progress_bar_config(disable=True)
    for module in (pipeline.text_encoder, pipeline.transformer, pipeline.vae):
        module.eval().requires_grad_(False)
    return pipeline


def find(config: CheckpointConfig, spec: ModelSpec) -> Path:
    """The local folder of a configured checkpoint, made or downloaded if necessary. Raises CheckpointRefused."""
    if config.checkpoint == MINIATURE:
        return trained_miniature.checkpoint_folder(spec)
    if config.checkpoint == MINIATURE_RANDOM:
        return miniature.checkpoint_folder(spec)
    if "://" in config.checkpoint:
        return RemoteCheckpoints(Path(config.checkpoint_disk_folder), config.checkpoint_disk_bytes).fetch(
            config.checkpoint
        )
    if Path(config.checkpoint).is_file():
        refuse_file(Path(config.checkpoint))
    if Path(config.checkpoint).is_dir():
        if config.revision is not None:
            raise CheckpointRefused(f"revision: {config.checkpoint!r} is a directory, which has no revisions")
        return Path(config.checkpoint)
    try:
        folder = DiffusionPipeline.download(
            config.checkpoint, revision=config.revision, local_files_only=config.local_files_only
        )
    except (OSError, ValueError) as error:
        # The hub's client raises a dozen kinds of OSError and ValueError for what it cannot find or download.
        revision = f" at revision {config.revision}" if config.revision else ""
        where = "in the hub's local cache (local_files_only is set)" if config.local_files_only else "on the hub"
        raise CheckpointRefused(
            f"{config.checkpoint!r}{revision} is neither a directory here nor available {where}: {error}"
        ) from error
    return Path(folder)


def refuse_file(file: Path) -> NoReturn:
    """Raise CheckpointRefused for a single file, with what is needed instead."""
    scaled = False
    with refused(f"{file} is not a folder in diffusers' layout, and cannot be read", file.parent):
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as tensors:
                names = tensors.keys()
                scaled = has_scales(names)
    if scaled:
        raise CheckpointRefused(f"{file} is a single file with {SCALED}")
    raise CheckpointRefused(f"{file} is a single file: {NEEDED}")


def constants(folder: Path, spec: ModelSpec) -> list[Constant]:
    """Every constant of a checkpoint's configs that decides pixels; no weights are read.

    Widths, depths and latent statistics may differ. Raises CheckpointRefused if `folder` holds no checkpoint.
    """
    try:
        found = read_config(folder / "model_index.json")["_class_name"]
    except (CheckpointRefused, KeyError) as error:
        raise CheckpointRefused(f"{folder} has no model_index.json in diffusers' layout") from error
    kind = Constant("model_index.json", "_class_name", found, spec.pipeline)
    if found != spec.pipeline:
        # A pipeline of another class has other parts.
        return [kind]
    with refused(f"the configs of the checkpoint in {folder} cannot be read", folder):
        return [kind, *_constants_of_parts(folder, spec)]


@contextmanager
def refused(what: str, folder: Path) -> Iterator[None]:
    """Turns every error into CheckpointRefused, whose text is for the operator's log.

    Causes are, for example, a missing part, a truncated file or a config of another class. The libraries raise nearly
    every kind of error for a broken file, and tokenizers raises Exception itself.
    """
    try:
        yield
    except Exception as error:
        raise CheckpointRefused(f"{what}: {broken_file(folder) or error}") from error


def broken_file(folder: Path) -> str | None:
    """The first file of a checkpoint that cannot be read, and why. The libraries' own errors seldom name it."""
    for file in sorted(folder.rglob("*.*")):
        try:
            if file.suffix == ".json":
                read_config(file)
            if file.name == "tokenizer.json":
                Tokenizer.from_file(str(file))
            if file.suffix == ".safetensors":
                with safe_open(file, "numpy"):
                    pass
        except CheckpointRefused as error:
            return error.message
        # tokenizers raises Exception itself.
        except Exception as error:
            return f"{file} cannot be read: {error}"
    return None


def _constants_of_parts(folder: Path, spec: ModelSpec) -> Iterator[Constant]:
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder, subfolder="scheduler").config
    for key, needed in SCHEDULER_CONFIG.items():
        yield Constant("scheduler", key, scheduler.get(key), needed)
    if spec.requires_control_image:
        processor = Qwen2VLProcessor.from_pretrained(folder / "processor").image_processor
        for key, needed in PROCESSOR_CONFIG.items():
            value = getattr(processor, key)
            found = [*value] if isinstance(value, tuple) else value
            if key == "size":
                found = {edge: value[edge] for edge in PROCESSOR_CONFIG["size"]}
            yield Constant("processor", key, found, needed)
    # The meta device allocates no weights. `from_config` adds the defaults of values that a config leaves out.
    with torch.device("meta"):
        transformer, vae = (
            kind.from_config(kind.load_config(folder / part)).config
            for kind, part in ((QwenImageTransformer2DModel, "transformer"), (AutoencoderKLQwenImage, "vae"))
        )
    yield Constant("transformer", "patch_size", transformer.patch_size, 2)
    yield Constant("transformer", "in_channels", transformer.in_channels, 64)
    yield Constant("transformer", "guidance_embeds", transformer.guidance_embeds, False)
    yield Constant("transformer", "zero_cond_t", transformer.zero_cond_t, spec.zero_cond_t)
    yield Constant("vae", "z_dim", vae.z_dim, 16)
    yield Constant("vae", "downscaling", 2 ** len(vae.temperal_downsample), 8)


def refuse_if_different(name: str, spec: ModelSpec, found: Iterable[Constant]) -> None:
    """Raise CheckpointRefused, which names every constant that differs."""
    if faults := [str(constant) for constant in found if constant.found != constant.needed]:
        raise CheckpointRefused(f"{name} does not fit {spec.id}: {'; '.join(faults)}")
