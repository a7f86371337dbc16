"""The images of `edits-server calibrate`. The module imports torch, so it is imported when all else is checked."""

import gc
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch

from serve_app.commands.calibrate import Made
from serve_app.engine.torch_engine import TorchEngine
from serve_app.images.tier_loss import edit_seconds
from serve_app.tasks import EditPlan


def make(
    engine: TorchEngine, plans: Sequence[EditPlan], files: Mapping[str, bytes], begin: Callable[[], None]
) -> list[Made]:
    """The images of all plans, whose control images are in `files` by sha256.

    The first edit is made twice: what is loaded or compiled for it is not measured. `begin` is called before each
    image; what it raises stops the others.
    """
    edit = partial(_edit, engine, files)
    made = []
    for number, plan in enumerate(plans):
        begin()
        if number == 0:
            edit(plan)
        made.append(edit(plan))
    return made


def _edit(engine: TorchEngine, files: Mapping[str, bytes], plan: EditPlan) -> Made:
    edited = engine.edit(plan, [files[sha256] for sha256 in plan.control_images])
    return Made(edited.image, edited.latents.float().cpu().numpy(), edit_seconds(edited.timings))


def free_memory() -> None:
    """Free the memory of an engine that nothing refers to any more."""
    gc.collect()
    torch.compiler.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
