"""Which of our models a training job is for, from what its config says about the model."""

import re

from serve_app.models.registry import MODELS


def model_of(arch: str | None, name_or_path: str | None) -> str | None:
    """The id of our model; None if the config names none of the family.

    The trainer has one arch for several checkpoints, such as `qwen_image_edit_plus` for 2509 and 2511. Then the rest of
    the arch, after a colon, or the checkpoint's name decides.
    """
    name = name_or_path or ""
    base, _, tag = (arch or "").partition(":")
    if not base:
        return next((spec.id for spec in MODELS.values() if spec.base_model == name), None)
    numbers = set(re.findall(r"\d+", f"{tag} {name.rpartition('/')[2] or name}"))
    of_version = (f"{base}_{number}" for number in sorted(numbers))
    return next((model for model in (*of_version, base) if model in MODELS), None)
