"""Image sizes: the arithmetic on which ingress and editor must agree."""

import math
import re

Size = tuple[int, int]  # (width, height) in pixels

MEGAPIXEL = 1024 * 1024

# The sides that a request may ask for, in pixels.
MIN_SIDE, MAX_SIDE = 64, 4096
# The `size` that means: the aspect of the prompt's first control image.
INPUT_SIZE = "input"
SIDES = re.compile(r"([0-9]{1,4})x([0-9]{1,4})")

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


def size_like(image: Size) -> Size:
    """The size of about 1 MP with the aspect of `image`, by `size_for_area`, for results with `size: input`.

    Aspects beyond 16:1 would need a side of more than MAX_SIDE: they get fewer pixels, and those beyond 64:1 the
    aspect 64:1.
    """
    ratio = image[0] / image[1]
    size = size_for_area(ratio)
    if max(size) <= MAX_SIDE:
        return size
    shorter = max(round(MAX_SIDE * min(ratio, 1 / ratio) / 32) * 32, MIN_SIDE)
    return (MAX_SIDE, shorter) if ratio > 1 else (shorter, MAX_SIDE)


def read_size(text: str) -> Size:
    """The sides in pixels that `WxH` means. Raises ValueError if it has another form, or a side out of range."""
    sides = SIDES.fullmatch(text)
    if sides is None:
        raise ValueError("a size is WIDTHxHEIGHT in pixels")
    width, height = int(sides[1]), int(sides[2])
    if min(width, height) < MIN_SIDE or max(width, height) > MAX_SIDE:
        raise ValueError(f"each side has {MIN_SIDE} to {MAX_SIDE} pixels")
    return width, height


def fits_encoder(width: int, height: int) -> bool:
    """Whether the vision encoder can take a control image of this size at all, whatever the model and profile."""
    sizes = [size_for_area(width / height, area) for area in (MEGAPIXEL, EDIT_PLUS_ENCODER_AREA)]
    return all(min(size) > 0 and max(size) / min(size) <= MAX_ENCODER_ASPECT for size in sizes)
