"""`edits-server verify`: checks a checkpoint against the recipe of its model, then makes one fixed edit twice."""

import hashlib
import json
import time
from pathlib import Path

import numpy as np
from rich.console import Console

from serve_app.config import ModelConfig
from serve_app.engine.canary import fixed_control_images, fixed_plan
from serve_app.engine.torch_engine import TorchEngine
from serve_app.models.registry import MODELS, ModelSpec
from serve_app.pipeline import checkpoint
from serve_app.tasks import EditPlan

console = Console(soft_wrap=True, highlight=False, markup=False)


def verify_checkpoint(config: ModelConfig, model: str | None, size: int, steps: int) -> bool:
    """Print every check of a configured checkpoint. Returns whether all of them pass.

    The checkpoint is checked as `model`, or, without one, as the model that its configs name. `size` is in pixels.
    Raises CheckpointRefused if there is no checkpoint to check.
    """
    folder = checkpoint.find(config, MODELS[config.id])
    fitting = [MODELS[model]] if model else models_of(folder, config.checkpoint)
    spec = fitting[0]
    others = f" (or {', '.join(other.id for other in fitting[1:])}: --model says which)" if fitting[1:] else ""
    console.print(f"     {config.checkpoint} in {folder}, as {spec.id}{others}")
    console.print(f"     revision: {revision_of(folder) or 'none: not from a hub cache'}")
    if not show(checkpoint.constants(folder, spec)):
        return False
    return edits_equally(
        TorchEngine.read(folder, spec, config), fixed_plan(spec, size, size, steps, config.quantization)
    )


def edits_equally(engine: TorchEngine, plan: EditPlan) -> bool:
    """Make the fixed edit of `plan` twice and print both results. Returns whether they are equal.

    Raises UnusableResult if a result is not finite or all of one colour.
    """
    control_images = fixed_control_images(plan)
    images = []
    for number in (1, 2):
        started = time.perf_counter()
        edited = engine.edit(plan, control_images)
        images.append(edited.image)
        pixels = np.asarray(edited.image)
        console.print(
            f"ok   edit {number}: finite, not of one colour; {time.perf_counter() - started:.2f} s; pixels' mean "
            f"{pixels.mean():.2f}, sha256 {hashlib.sha256(pixels.tobytes()).hexdigest()[:16]}"
        )
    equal = images[0].tobytes() == images[1].tobytes()
    console.print("ok   both edits are equal" if equal else "BAD  the two edits differ")
    console.print("     " + json.dumps(edited.runtime))
    return equal


def show(found: list[checkpoint.Constant]) -> bool:
    """Print each constant of a checkpoint. Returns whether all of them are as the recipe needs."""
    for constant in found:
        good = constant.found == constant.needed
        console.print(f"ok   {constant.part}: {constant.key} = {constant.found!r}" if good else f"BAD  {constant}")
    return all(constant.found == constant.needed for constant in found)


def models_of(folder: Path, checkpoint_name: str) -> list[ModelSpec]:
    """The models that fit a checkpoint's name, its pipeline and `zero_cond_t`, the most likely one first."""
    try:
        pipeline = json.loads((folder / "model_index.json").read_text())["_class_name"]
        zero_cond_t = json.loads((folder / "transformer/config.json").read_text()).get("zero_cond_t", False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pipeline, zero_cond_t = None, False
    fitting = [spec for spec in MODELS.values() if (spec.pipeline, spec.zero_cond_t) == (pipeline, zero_cond_t)]
    named = [spec for spec in fitting if spec.base_model == checkpoint_name]
    return named or fitting or [MODELS["qwen_image_edit"]]


def revision_of(folder: Path) -> str | None:
    """The commit of a checkpoint in the hub's cache, whose folders are named `snapshots/<commit>`."""
    resolved = folder.resolve()
    return resolved.name if resolved.parent.name == "snapshots" else None
