"""Is this checkpoint what the recipe assumes, and does it edit here? `python -m serve_app.commands.verify CHECKPOINT`.

Checks the checkpoint's configs against the recipe, then makes one fixed edit twice. Exit status 0 if all is
well, 1 if not.
"""

import argparse
import hashlib
import json
import sys
import time
from pathlib import Path

import numpy as np
from rich.console import Console

from serve_app.config import ModelConfig
from serve_app.engine.canary import fixed_files, fixed_plan
from serve_app.engine.torch_engine import TorchEngine
from serve_app.errors import ServiceError
from serve_app.models.registry import MODELS, ModelSpec
from serve_app.pipeline import checkpoint
from serve_app.pipeline import device as devices

console = Console(soft_wrap=True, highlight=False, markup=False)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m serve_app.commands.verify", description=__doc__)
    parser.add_argument("checkpoint", help="a directory in diffusers' layout, a hub id, or `miniature`")
    parser.add_argument("--model", choices=list(MODELS), help="default: what the checkpoint's configs say")
    parser.add_argument("--revision", help="of a hub id: a branch, a tag or a commit")
    parser.add_argument("--local-files-only", action="store_true", help="never ask the hub")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--threads", type=positive, help="CPU threads; default: all cores")
    parser.add_argument("--size", type=positive, default=512, help="width and height of the edit, from 64 pixels")
    parser.add_argument("--steps", type=positive, default=4)
    options = parser.parse_args(arguments)
    try:
        config = ModelConfig(
            id=options.model or "qwen_image_edit",
            checkpoint=options.checkpoint,
            device=options.device,
            threads=options.threads,
            revision=options.revision,
            local_files_only=options.local_files_only,
        )
        return 0 if verify(config, options.model, options.size, options.steps) else 1
    except (ServiceError, ValueError, RuntimeError) as error:
        # RuntimeError: no such device, or not enough memory on it.
        console.print(f"BAD  {error}")
        return 1


def verify(config: ModelConfig, model: str | None, size: int, steps: int) -> bool:
    """Print every check. Raises CheckpointRefused if there is nothing to check."""
    folder = checkpoint.find(config, MODELS[config.id])
    fitting = [MODELS[model]] if model else models_of(folder, config.checkpoint)
    spec = fitting[0]
    others = f" (or {', '.join(other.id for other in fitting[1:])}: --model says which)" if fitting[1:] else ""
    console.print(f"     {config.checkpoint} in {folder}, as {spec.id}{others}")
    console.print(f"     revision: {revision_of(folder) or 'none: not from a hub cache'}")
    device = devices.choose(config.device)
    if not show(checkpoint.constants(folder, spec)):
        return False
    pipeline = checkpoint.read(folder, devices.dtype_for(device))
    engine = TorchEngine(pipeline.to(device), spec, config)
    plan = fixed_plan(spec, size, size, steps)
    control_images = fixed_files(plan)
    images = []
    for number in (1, 2):
        started = time.perf_counter()
        # A result that is not finite or all of one colour raises.
        edited = engine.edit(plan, control_images)
        images.append(edited.image)
        pixels = np.asarray(edited.image)
        console.print(
            f"ok   edit {number}: finite, not of one colour; {time.perf_counter() - started:.2f} s; pixels' mean "
            f"{pixels.mean():.2f}, sha256 {hashlib.sha256(pixels.tobytes()).hexdigest()[:16]}"
        )
    same = images[0].tobytes() == images[1].tobytes()
    console.print("ok   both edits are equal" if same else "BAD  the two edits differ")
    console.print("     " + json.dumps(edited.runtime))
    return same


def show(found: list[checkpoint.Constant]) -> bool:
    """Print each constant; whether all are as needed."""
    for constant in found:
        good = constant.found == constant.needed
        console.print(f"ok   {constant.part}: {constant.key} = {constant.found!r}" if good else f"BAD  {constant}")
    return all(constant.found == constant.needed for constant in found)


def models_of(folder: Path, checkpoint_name: str) -> list[ModelSpec]:
    """The models that a checkpoint may be, the likeliest first: by its name, its pipeline and `zero_cond_t`."""
    try:
        pipeline = json.loads((folder / "model_index.json").read_text())["_class_name"]
        zero_cond_t = json.loads((folder / "transformer/config.json").read_text()).get("zero_cond_t", False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pipeline, zero_cond_t = None, False
    fitting = [spec for spec in MODELS.values() if (spec.pipeline, spec.zero_cond_t) == (pipeline, zero_cond_t)]
    named = [spec for spec in fitting if spec.base_model == checkpoint_name]
    return named or fitting or [MODELS["qwen_image_edit"]]


def positive(text: str) -> int:
    """A command line's positive whole number. Raises ValueError."""
    if (number := int(text)) < 1:
        raise ValueError
    return number


def revision_of(folder: Path) -> str | None:
    """The commit of a checkpoint in the hub's cache, whose folders are named `snapshots/<commit>`."""
    resolved = folder.resolve()
    return resolved.name if resolved.parent.name == "snapshots" else None


if __name__ == "__main__":
    sys.exit(main())
