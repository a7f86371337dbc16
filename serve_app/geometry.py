"""Picture sizes: the arithmetic that ingress and editor must agree on. Pure integers, no pictures."""

import math

MEGAPIXEL = 1024 * 1024

# Qwen2-VL's processor refuses a picture whose longer side is more than 200 times the shorter one
# (`smart_resize` in transformers).
MAX_ENCODER_ASPECT = 200


def snap(length: int, divisor: int) -> int:
    """`length` in pixels, floored to a multiple of `divisor`."""
    return length // divisor * divisor


def near_area(ratio: float, area: int = MEGAPIXEL) -> tuple[int, int]:
    """(width, height) of about `area` pixels with `ratio` = width / height, both multiples of 32.

    The arithmetic of diffusers' `calculate_dimensions` and of the trainer, rounding included.
    """
    width = math.sqrt(area * ratio)
    height = width / ratio
    return round(width / 32) * 32, round(height / 32) * 32


def encoder_size(width: int, height: int, *, sides_swapped: bool) -> tuple[int, int]:
    """(width, height) at which the vision encoder sees a control image of `width` x `height` pixels.

    The trainer up to 0.7.32 and the reference server took height / width for the ratio (`sides_swapped`).
    """
    return near_area(height / width if sides_swapped else width / height)


def fits_encoder(width: int, height: int) -> bool:
    """Whether the vision encoder can take a control image of this size at all, whatever the profile."""
    sides = encoder_size(width, height, sides_swapped=False)
    return min(sides) > 0 and max(sides) / min(sides) <= MAX_ENCODER_ASPECT
