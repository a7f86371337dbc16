"""Comparing an image with one that the trainer saved: ours is saved the same way first."""

import io
import math
from dataclasses import dataclass

import PIL.Image
import PIL.ImageChops
import PIL.ImageStat

# What the trainer saves with, by the suffix of the file: Pillow's defaults. For JPEG these are quality 75 and 4:2:0.
SAVED_AS = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "webp": "WEBP"}
MAX_LEVEL = 255
# The side of a thumbnail (pixels), as the trainer's own.
THUMBNAIL_SIDE = 300


@dataclass(frozen=True)
class Comparison:
    """How far two images of one size are apart.

    `psnr_db` is the peak signal-to-noise ratio over all RGB values, None if they are equal. `equal_share` is the share
    of pixels (0 to 1) that are equal in all three.
    """

    psnr_db: float | None
    equal_share: float


def compare(one: PIL.Image.Image, other: PIL.Image.Image) -> Comparison:
    """Compare two RGB images. Raises ValueError if their sizes differ."""
    difference = _difference(one, other)
    red, green, blue = difference.split()
    largest = PIL.ImageChops.lighter(PIL.ImageChops.lighter(red, green), blue)
    return Comparison(_ratio(difference), largest.histogram()[0] / (one.width * one.height))


def psnr(one: PIL.Image.Image, other: PIL.Image.Image) -> float | None:
    """The peak signal-to-noise ratio (dB) of two RGB images; None if they are equal. Raises ValueError as `compare`."""
    return _ratio(_difference(one, other))


def _ratio(difference: PIL.Image.Image) -> float | None:
    squares = sum(PIL.ImageStat.Stat(difference).sum2)
    if squares == 0:
        return None
    return 10 * math.log10(MAX_LEVEL**2 * 3 * difference.width * difference.height / squares)


def _difference(one: PIL.Image.Image, other: PIL.Image.Image) -> PIL.Image.Image:
    if one.size != other.size:
        raise ValueError("the images have different sizes")
    return PIL.ImageChops.difference(one, other)


def saved_as(image: PIL.Image.Image, suffix: str) -> PIL.Image.Image:
    """The RGB image as it is after the trainer would have saved it in a file with this suffix."""
    buffer = io.BytesIO()
    image.save(buffer, format=SAVED_AS[suffix])
    with PIL.Image.open(buffer, formats=[SAVED_AS[suffix]]) as saved:
        return saved.convert("RGB")


def is_whole(data: bytes, suffix: str) -> bool:
    """Whether an image's file has its end. The trainer may still be writing it."""
    if SAVED_AS[suffix] == "JPEG":
        return data.startswith(b"\xff\xd8") and data.rstrip(b"\0").endswith(b"\xff\xd9")
    if SAVED_AS[suffix] == "PNG":
        return data.startswith(b"\x89PNG") and data[-8:-4] == b"IEND"
    # A RIFF file: the size of what follows is in its head.
    return data.startswith(b"RIFF") and len(data) >= 8 + int.from_bytes(data[4:8], "little")


def thumbnail(image: PIL.Image.Image) -> bytes:
    """The image as a JPEG of at most 300x300 pixels."""
    small = image.copy()
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG")
    return buffer.getvalue()
