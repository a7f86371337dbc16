"""The option that sets a field: the service's faults name the places of fields in a body."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import Any

from edits_client.errors import ApiError, ValidationFailed

OPTIONS = {
    "ctrl_img": "IMAGE",
    "ctrl_img_1": "IMAGE",
    "ctrl_img_2": "the first --image",
    "ctrl_img_3": "the second --image",
    "prompt": "PROMPT",
    "prompts": "PROMPT",
    "loras": "--lora",
    "network_multiplier": "the strength of --lora",
    "size": "--size",
    "width": "--size",
    "height": "--size",
    "seed": "--seed",
    "sample_steps": "--steps",
    "guidance_scale": "--guidance",
    "neg": "--negative",
    "trigger_word": "--trigger",
    "output_format": "--format",
    "model": "--model",
    "preset": "--preset",
    "profile": "--profile",
    "quality": "--quality",
    "max_loss": "--min-psnr and --min-ssim",
    "psnr_db": "--min-psnr",
    "ssim": "--min-ssim",
    "priority": "--priority",
    "axes.checkpoints": "--checkpoint",
    "axes.multipliers": "--multiplier",
    "axes.prompts": "--prompt",
    "axes.seeds": "--seed",
    "axes.control_images": "IMAGE",
    "axes.profiles": "--profile",
    "axes.qualities": "--quality",
    "training_job": "--job",
    "from_step": "--from-step",
    "to_step": "--to-step",
    "max_cells": "--max-cells",
}
# What the service names for callers of its API, and `edits` has a command for.
ROUTE = re.compile(r"GET /v1/(loras|presets|training-jobs)(?:/(.+?)(?= lists))?")


def error_text(error: ApiError) -> str:
    """What an error says, with options in place of a body's fields, and commands in place of routes."""
    faults = error.details.get("faults", []) if isinstance(error, ValidationFailed) else []
    texts = [_fault_text(fault["loc"], fault["msg"]) for fault in faults]
    if texts:
        return f"{'; '.join(texts)} ({error.code})"
    return ROUTE.sub(lambda found: f"`edits {shlex.join(filter(None, found.groups()))}`", str(error))


def option_at(place: Sequence[Any]) -> str | None:
    """The option that sets the field at a place in a body; None if no option does."""
    names = [part for part in place if isinstance(part, str)]
    if "axes" in names[:-1]:
        names = [f"axes.{names[names.index('axes') + 1]}"]
    return next((OPTIONS[name] for name in reversed(names) if name in OPTIONS), None)


def _fault_text(place: Sequence[Any], message: str) -> str:
    name = option_at(place) or ".".join(str(part) for part in place if part != "body")
    return f"{name}: {message}" if name else message
