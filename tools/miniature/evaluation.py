"""What the trained miniature can do, measured on photographs that it has never seen, through the service's engine."""

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from torch import Tensor

from serve_app.engine.torch_engine import TorchEngine
from serve_app.pipeline import conditioning
from serve_app.storage.identity import fingerprint
from serve_app.tasks import AdapterUse, EditPlan
from tools.miniature.edits import INSTRUCTIONS, STYLES, Instruction, Style
from tools.miniature.photographs import as_tensor

SIDE = 1024
STEPS = 8
MULTIPLIERS = (0.0, 0.5, 1.0)
# The instruction that the LoRAs are measured with.
STYLED = "keep"


def decibels(made: Tensor, true: Tensor) -> float:
    """Peak signal-to-noise ratio of images in [0, 1]; 99 for equal ones."""
    return round(min(99.0, float(-10 * ((made - true) ** 2).mean().log10())), 2)


def plan_of(prompt: str, adapters: tuple[AdapterUse, ...] = (), **changes: Any) -> EditPlan:
    values: dict[str, Any] = {
        "model": "qwen_image_edit",
        "profile": "reference",
        "prompt": prompt,
        "negative_prompt": "",
        "width": SIDE,
        "height": SIDE,
        "steps": STEPS,
        "guidance_scale": 1.0,
        "seed": 42,
        "output_format": "png",
        "control_images": ("0" * 64,),
        "adapters": adapters,
    }
    return EditPlan(**values | changes)


def use_of(file: Path, scale: float) -> AdapterUse:
    return AdapterUse(fingerprint(str(file)), file.name, str(file), scale)


def as_png(picture: PIL.Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def made_by(engine: TorchEngine, picture: PIL.Image.Image, plan: EditPlan) -> Tensor:
    """The engine's edit, (1, 3, H, W) in [0, 1]."""
    return as_tensor(engine.edit(plan, [as_png(picture)]).image)[None]


def at_size(picture: PIL.Image.Image, side: int = SIDE) -> PIL.Image.Image:
    return picture.resize((side, side), PIL.Image.Resampling.LANCZOS)


@torch.no_grad()
def vae_quality(engine: TorchEngine, picture: PIL.Image.Image) -> float:
    """Decibels of a photograph that is encoded and decoded again, through the service's own code."""
    pipeline = engine._pipeline
    pixels = conditioning.control_pixels(pipeline, picture, [])
    latents = conditioning.encode_control(pipeline, pixels, engine.device)
    made = conditioning.decode_latents(pipeline, latents, *picture.size)
    return decibels(as_tensor(made), as_tensor(picture))


Show = Callable[[str, Tensor], None]


def show_nothing(what: str, made: Tensor) -> None:
    """For who wants the figures alone."""


def follow(
    engine: TorchEngine,
    picture: PIL.Image.Image,
    instruction: Instruction,
    show: Show = show_nothing,
    steps: int = STEPS,
) -> dict[str, float]:
    """How near an edit is to its true edit, and to its input; and how near those are to each other."""
    given = as_tensor(picture)[None]
    true = instruction.apply(given)
    made = made_by(engine, picture, plan_of(instruction.wordings[0], steps=steps))
    show(instruction.name, made)
    return {
        "to_edit_db": decibels(made, true),
        "to_input_db": decibels(made, given),
        "edit_to_input_db": decibels(true, given),
    }


def walk(engine: TorchEngine, picture: PIL.Image.Image, style: Style, file: Path, show: Show) -> dict[str, Any]:
    """How near the images of each multiplier are to the style, and to the base model's own."""
    instruction = next(i for i in INSTRUCTIONS if i.name == STYLED)
    prompt = f"{style.trigger} {instruction.wordings[0]}"
    base = made_by(engine, picture, plan_of(prompt))
    true = style.apply(instruction.apply(as_tensor(picture)[None]))
    made = [made_by(engine, picture, plan_of(prompt, (use_of(file, scale),))) for scale in MULTIPLIERS]
    for scale, each in zip(MULTIPLIERS, made, strict=True):
        show(f"{style.name} {scale}", each)
    return {
        "multipliers": list(MULTIPLIERS),
        "to_style_db": [decibels(each, true) for each in made],
        "to_base_db": [decibels(each, base) for each in made],
        "style_to_base_db": decibels(true, base),
    }


def figures(
    engine: TorchEngine,
    photographs: Mapping[str, PIL.Image.Image],
    loras: Path,
    show: Callable[[str, str, Tensor], None],
) -> dict[str, Any]:
    """Everything at 1024x1024, 8 steps, guidance 1.0. `show` is given each image, by photograph and name."""
    found: dict[str, Any] = {"vae_db": {}, "instructions": {}, "loras": {}}
    for name, photograph in photographs.items():
        picture = at_size(photograph, SIDE)

        def here(what: str, made: Tensor, name: str = name) -> None:
            show(name, what, made)

        found["vae_db"][name] = vae_quality(engine, picture)
        for instruction in INSTRUCTIONS:
            row = found["instructions"].setdefault(instruction.name, {})
            row[name] = follow(engine, picture, instruction, here)
        for style in STYLES:
            if (file := loras / style.file).is_file():
                row = found["loras"].setdefault(style.name, {})
                row[name] = walk(engine, picture, style, file, here)
    return found
