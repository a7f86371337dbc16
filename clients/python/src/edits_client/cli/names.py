"""What the service calls a field, as the option that sets it: its errors and notes speak of fields."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from edits_client.errors import ApiError, ValidationFailed

# Names that are no words of a sentence, and the phrases for which there is one option.
IN_TEXT = {
    "trigger_word: auto": "--trigger auto",
    "width and height": "--size WxH",
    "ctrl_img": "IMAGE",
    "ctrl_img_1": "IMAGE",
    "ctrl_img_2": "the first --image",
    "ctrl_img_3": "the second --image",
    "loras": "--lora",
    "network_multiplier": "the strength of --lora",
    "sample_steps": "--steps",
    "guidance_scale": "--guidance",
    "neg": "--negative",
    "trigger_word": "--trigger",
    "output_format": "--format",
    "base.loras": "--lora",
    "base.prompts": "PROMPT",
    "axes.checkpoints": "--checkpoint",
    "axes.multipliers": "--multiplier",
    "axes.prompts": "--prompt",
    "axes.seeds": "--seed",
    "axes.profiles": "--profile",
    "training_job": "--job",
    "from_step": "--from-step",
    "to_step": "--to-step",
    "max_cells": "--max-cells",
}
# Further names that are fields only where a place is given.
IN_PLACES = {
    "prompt": "PROMPT",
    "prompts": "PROMPT",
    "size": "--size",
    "width": "--size",
    "height": "--size",
    "seed": "--seed",
    "model": "--model",
    "preset": "--preset",
    "profile": "--profile",
    "quality": "--quality",
    "priority": "--priority",
}
# The longest first; not within a path, a URL, a longer name or quotes.
_NAME = re.compile(
    rf"(?<![\w./'\"-])(?:{'|'.join(map(re.escape, sorted(IN_TEXT, key=len, reverse=True)))})(?![\w/'\"\[-]|\.\w)"
)


def error_text(error: ApiError) -> str:
    """What an error says, with the names of options."""
    if not isinstance(error, ValidationFailed):
        return in_options(str(error))
    texts = [_fault_text(fault["loc"], fault["msg"]) for fault in error.details.get("faults", [])]
    return f"{'; '.join(texts)} ({error.code})" if texts else str(error)


def in_options(text: str) -> str:
    """A sentence of the service, with the names of options in place of fields."""
    return _NAME.sub(lambda found: IN_TEXT[found[0]], text)


def option_at(place: Sequence[Any]) -> str | None:
    """The option that sets the field at a place in a body; None if no option does."""
    names = [part for part in place if isinstance(part, str)]
    if "axes" in names[:-1]:
        names = [f"axes.{names[names.index('axes') + 1]}"]
    known = IN_PLACES | IN_TEXT
    return next((known[name] for name in reversed(names) if name in known), None)


def _fault_text(place: Sequence[Any], message: str) -> str:
    name = option_at(place) or ".".join(str(part) for part in place if part != "body")
    return f"{name}: {message}" if name else message
