"""Profiles: every point in which the trainer's preview and the reference server differ, as data.

Free of torch, so that an ingress may import it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from packaging.version import Version

Kernel = Literal["lanczos", "bilinear"]


@dataclass(frozen=True)
class Profile:
    """One way to prepare and to guide an edit.

    `encoder_sides_swapped`: the vision encoder's image has the reciprocal of the control image's aspect
    ratio. `encoder_position_ids`: the text encoder counts tokens in one dimension, or image tokens by row
    and column (Qwen2-VL's M-RoPE). `edit_control_kernel`: the PIL kernel that brings the control image of
    the edit model to the output size before the pipeline's own LANCZOS to about 1 MP.
    `edit_plus_negative_resized_twice`: the negative prompt of edit plus sees the image that the positive
    one has already resized, resized once more. `edit_plus_guidance_rescaled`: the guided prediction of edit
    plus is rescaled to the conditional one's norm; the other models' always is.
    `text_to_image_divisor`: pixels to whose multiple text-to-image sizes are floored.
    """

    name: str
    encoder_sides_swapped: bool
    encoder_position_ids: Literal["1-D", "M-RoPE"]
    edit_control_kernel: Kernel
    edit_plus_negative_resized_twice: bool
    edit_plus_guidance_rescaled: bool
    text_to_image_divisor: int


# The single-machine reference server: it computes the encoder's ratio upside down for non-square images.
REFERENCE = Profile("reference", True, "1-D", "lanczos", False, True, 16)
# ostris/ai-toolkit's own preview at its newest version, 0.9.1 and later.
TRAINER = Profile("trainer", False, "1-D", "bilinear", True, False, 32)
# The trainer as it was, each profile named by the last version that it holds for, the oldest first. The fix
# of the swapped sides came within 0.7.33, so that one version is ambiguous; it counts as fixed.
TRAINER_HISTORY = (
    replace(
        TRAINER,
        name="trainer-0.6.0",
        encoder_sides_swapped=True,
        encoder_position_ids="M-RoPE",
        edit_plus_guidance_rescaled=True,
    ),
    replace(TRAINER, name="trainer-0.7.32", encoder_sides_swapped=True, encoder_position_ids="M-RoPE"),
    replace(TRAINER, name="trainer-0.9.0", encoder_position_ids="M-RoPE"),
)
PROFILES = {profile.name: profile for profile in (REFERENCE, TRAINER, *TRAINER_HISTORY)}


def profile_of_trainer(versions: Sequence[str | None]) -> tuple[Profile, str]:
    """What `auto` picks for adapters that these trainer versions wrote, and why, in a sentence.

    The first version that can be read decides; without any, the newest profile is taken. A version says
    which libraries the trainer pinned, not which were installed.
    """
    for found in versions:
        try:
            version = Version(found or "")
        except ValueError:
            # `InvalidVersion`, and what int() raises for a number of thousands of digits.
            continue
        past = (profile for profile in TRAINER_HISTORY if version <= Version(profile.name.removeprefix("trainer-")))
        profile = next(past, TRAINER)
        others = {v for v in versions if v} - {found}
        mixed = f"; the request's other adapters say {', '.join(sorted(others))}" if others else ""
        return profile, (
            f"auto: the adapter was written by ai-toolkit {found}, which says what that version pinned, "
            f"not what was installed{mixed}"
        )
    return TRAINER, "auto: no adapter names its trainer's version, so the newest is assumed"
