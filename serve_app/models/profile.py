"""Preview profiles: every point in which the trainer's preview and the reference server differ, as data."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Profile:
    """One way to prepare an edit.

    `encoder_sides_swapped`: the vision encoder's picture has the reciprocal of the control image's aspect
    ratio. `control_resample`: the PIL kernel that brings the control image to the output size before the
    pipeline's own LANCZOS to about 1 MP.
    """

    name: str
    encoder_sides_swapped: bool
    control_resample: Literal["lanczos", "bilinear"]


PROFILES = {
    profile.name: profile
    for profile in (
        # The single-machine reference server: it computes the ratio upside down for non-square images.
        Profile("reference", encoder_sides_swapped=True, control_resample="lanczos"),
        # ostris/ai-toolkit's own preview, as of 0.9.1 and later.
        Profile("trainer", encoder_sides_swapped=False, control_resample="bilinear"),
    )
}
