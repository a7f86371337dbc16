"""Image sizes: the arithmetic on which ingress and editor must agree."""

import math

Size = tuple[int, int]  # (width, height) in pixels

MEGAPIXEL = 1024 * 1024

# `QwenImageEditPlusPipeline`'s CONDITION_IMAGE_SIZE, in pixels.
EDIT_PLUS_ENCODER_AREA = 384 * 384

# Qwen2-VL's processor refuses an image whose longer side is more than 200 times the shorter one
# (`smart_resize` in transformers).
MAX_ENCODER_ASPECT = 200


def snap(length: int, divisor: int) -> int:
    """`length` in pixels, floored to a multiple of `divisor`."""
    return length // divisor * divisor


def size_for_area(ratio: float, area: int = MEGAPIXEL) -> Size:
    """The size of about `area` pixels with `ratio` = width / height, both multiples of 32.

    The arithmetic of diffusers' `calculate_dimensions` and of the trainer, rounding included.
    """
    width = math.sqrt(area * ratio)
    height = width / ratio
    return round(width / 32) * 32, round(height / 32) * 32


def fits_encoder(width: int, height: int) -> bool:
    """Whether the vision encoder can take a control image of this size at all, whatever the model and profile."""
    sizes = [size_for_area(width / height, area) for area in (MEGAPIXEL, EDIT_PLUS_ENCODER_AREA)]
    return all(min(size) > 0 and max(size) / min(size) <= MAX_ENCODER_ASPECT for size in sizes)
