"""Damaged files: what a decoder reports is never swallowed, and what a checksum covers is never edited."""

import io
import random

import PIL.Image
import pytest

from serve_app.errors import ControlImageInvalid
from serve_app.images.decode import INPUT_FORMATS, decode
from tests.conftest import noise_image
from tests.unit.heavy_images import saved

PLACES = 200
IMAGE = noise_image(96, 64)
FILES = {
    "png": saved(IMAGE, "PNG"),
    "png-palette": saved(IMAGE.convert("P"), "PNG", dpi=(72, 72)),
    "jpeg": saved(IMAGE, "JPEG"),
    "jpeg-progressive": saved(IMAGE, "JPEG", progressive=True),
    "webp": saved(IMAGE, "WEBP"),
    "webp-lossless": saved(IMAGE, "WEBP", lossless=True),
    "gif": saved(IMAGE, "GIF"),
    "bmp": saved(IMAGE, "BMP"),
    "tiff": saved(IMAGE, "TIFF"),
    "tiff-lzw": saved(IMAGE, "TIFF", compression="tiff_lzw"),
    "tiff-deflate": saved(IMAGE, "TIFF", compression="tiff_adobe_deflate"),
    "avif": saved(IMAGE, "AVIF"),
}
# docs/images.md says of every other format that damage to its pixels may go unnoticed.
WITH_CHECKSUMS = ("png", "png-palette")


def damaged(data: bytes) -> list[bytes]:
    """One byte of it changed, at each of the places; all those of a seed are the same in every run."""
    draw = random.Random(16)
    copies = []
    for _ in range(PLACES):
        copy = bytearray(data)
        copy[draw.randrange(len(data))] ^= draw.randrange(1, 256)
        copies.append(bytes(copy))
    return copies


def truncated(data: bytes) -> list[bytes]:
    draw = random.Random(16)
    return [data[: draw.randrange(1, len(data))] for _ in range(PLACES)]


def read(data: bytes) -> bytes | None:
    """The pixels; None if it is refused. Anything else that is raised fails the test."""
    try:
        return decode(data, "ignore", max_pixels=40_000_000).image.tobytes()
    except ControlImageInvalid:
        return None


def decoder_fails(data: bytes) -> bool:
    """Whether Pillow reports an error the first time that it is asked for the pixels."""
    try:
        with PIL.Image.open(io.BytesIO(data), formats=INPUT_FORMATS) as image:
            image.load()
    except Exception:
        return True
    return False


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [damaged, truncated])
def test_what_a_decoder_reports_is_refused(name, damage):
    reported = [data for data in damage(FILES[name]) if decoder_fails(data)]
    assert reported
    assert [read(data) for data in reported] == [None] * len(reported)


@pytest.mark.parametrize("name", WITH_CHECKSUMS)
@pytest.mark.parametrize("damage", [damaged, truncated])
def test_what_checksums_cover_is_refused_or_unharmed(name, damage):
    sound = read(FILES[name])
    assert {read(data) for data in damage(FILES[name])} <= {None, sound}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", FILES)
def test_truncated_image_is_refused_or_unharmed(name):
    sound = read(FILES[name])
    assert {read(data) for data in truncated(FILES[name])} <= {None, sound}
