"""Pipelines, engines and adapters that the engine's tests share."""

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch

from serve_app.config import MINIATURE_RANDOM, ModelConfig
from serve_app.engine.protocol import Edited, MakePreview
from serve_app.engine.torch_engine import TorchEngine
from serve_app.models.registry import MODELS, ModelSpec
from serve_app.pipeline import checkpoint, miniature
from serve_app.pipeline.random_lora import make_lora
from serve_app.storage.identity import fingerprint
from serve_app.tasks import AdapterUse, EditPlan
from tests.conftest import ROOT, THREADS
from tests.engine.once import Once, encode_once

torch.set_num_threads(THREADS)

# Computes everything every time: what goes through a pipeline's parts is recorded and compared.
FORGETFUL = ModelConfig(threads=THREADS, prompt_cache_bytes=0, control_cache_bytes=0)

CPU = torch.device("cpu")
EDIT = MODELS["qwen_image_edit"]
# That compiled blocks are: torch 2.11 makes one of its own for the first block, whose input is a view; 2.15 does not.
GRAPHS = 1 if torch.__version__ >= "2.15" else 2
GOLDENS = Path(os.environ.get("GOLDENS", ROOT.parent / "shared/goldens"))


@dataclass(frozen=True)
class Bench:
    """One pipeline, and an engine over it: what is measured on either is of the same weights."""

    pipeline: Any
    engine: TorchEngine
    encoder: Once


def own_pipeline(spec: ModelSpec) -> Any:
    """The miniature of random weights of a model, for an engine that changes it."""
    pipeline = miniature.make(spec)
    encode_once(pipeline.vae)
    return pipeline


def run_out_of_memory_once(module: torch.nn.Module) -> None:
    """At its next forward."""

    def fail(*_: object) -> None:
        hook.remove()
        raise torch.OutOfMemoryError("CUDA out of memory")

    hook = module.register_forward_pre_hook(fail)


@cache
def bench_of(model: str, dtype: torch.dtype = torch.float32) -> Bench:
    """The miniature of random weights of a model, loaded as an editor does."""
    pipeline = checkpoint.load(ModelConfig(id=model, checkpoint=MINIATURE_RANDOM), MODELS[model], CPU, dtype)
    encoder = encode_once(pipeline.vae)
    return Bench(pipeline, TorchEngine(pipeline, MODELS[model], FORGETFUL), encoder)


def write_loras(folder: Path) -> list[Path]:
    """Four different adapters in the trainer's format."""
    transformer = miniature.make(EDIT).transformer
    paths = [folder / f"{seed}.safetensors" for seed in range(4)]
    for seed, path in enumerate(paths):
        make_lora(transformer, path, seed=seed)
    return paths


def pixels(file: bytes) -> np.ndarray:
    """Of an image's file, (H, W, 3), as integers whose difference may be negative."""
    return np.asarray(PIL.Image.open(io.BytesIO(file)).convert("RGB")).astype(int)


def use(path: Path, scale: float = 1.0) -> AdapterUse:
    return AdapterUse(fingerprint(str(path)), path.name, str(path), scale)


def watched(engine: TorchEngine, plan: EditPlan, images: Sequence[bytes]) -> tuple[Edited, dict[int, PIL.Image.Image]]:
    """An edit, and the preview after each of its steps."""
    previews: dict[int, PIL.Image.Image] = {}

    def on_step(step: int, make_preview: MakePreview | None) -> None:
        assert (make_preview is None) == (step == 0)
        if make_preview is not None:
            previews[step] = make_preview()

    return engine.edit(plan, images, on_step), previews
