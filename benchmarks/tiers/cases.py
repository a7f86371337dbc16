"""The edits that losses are measured on: every instruction that the trained miniature promises, and its three LoRAs."""

import io
from dataclasses import dataclass
from pathlib import Path

import PIL.Image

from serve_app.storage.identity import fingerprint
from serve_app.tasks import AdapterUse, EditPlan
from tools.miniature.edits import INSTRUCTIONS, STYLES

ROOT = Path(__file__).parent.parent.parent
# None of them was in the miniature's training data.
PHOTOGRAPHS = ("samples/astronaut.jpg", "tests/photographs/chelsea.jpg", "tests/photographs/coffee.jpg")
# The instruction that the LoRAs are measured with.
STYLED = "keep"


@dataclass(frozen=True)
class Case:
    """The exact edit of one photograph, with the defaults of requests."""

    name: str
    plan: EditPlan
    photograph: bytes


def make_cases(side: int, steps: int, guidance: float) -> list[Case]:
    """Eleven instructions, then three LoRAs, on three photographs in turn."""
    wanted = [(each.name, each.wordings[0], ()) for each in INSTRUCTIONS if each.promised]
    keep = next(each.wordings[0] for each in INSTRUCTIONS if each.name == STYLED)
    for style in STYLES:
        file = ROOT / "samples/loras" / style.file
        wanted.append((style.name, f"{style.trigger} {keep}", (use_of(file),)))
    return [
        Case(name, plan_of(prompt, uses, side, steps, guidance), photograph(number, side))
        for number, (name, prompt, uses) in enumerate(wanted)
    ]


def use_of(file: Path) -> AdapterUse:
    return AdapterUse(fingerprint(str(file)), file.name, str(file), 1.0)


def photograph(number: int, side: int) -> bytes:
    """A square photograph, as PNG."""
    picture = PIL.Image.open(ROOT / PHOTOGRAPHS[number % len(PHOTOGRAPHS)]).convert("RGB")
    buffer = io.BytesIO()
    picture.resize((side, side), PIL.Image.Resampling.LANCZOS).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def plan_of(prompt: str, uses: tuple[AdapterUse, ...], side: int, steps: int, guidance: float) -> EditPlan:
    return EditPlan(
        model="qwen_image_edit",
        profile="reference",
        prompt=prompt,
        negative_prompt="",
        width=side,
        height=side,
        steps=steps,
        guidance_scale=guidance,
        seed=42,
        output_format="png",
        control_images=("",),
        adapters=uses,
    )
