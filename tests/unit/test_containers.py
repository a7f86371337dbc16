"""Files that ask for more work than an image needs are refused, by how they are made, before they are decoded."""

import struct
import time

import PIL.Image
import pytest

from serve_app.errors import ControlImageInvalid
from serve_app.images.containers import (
    MAX_CHUNKS,
    MAX_DIRECTORIES,
    MAX_FRAMES,
    MAX_RESTARTS,
    MAX_SCANS,
    MAX_SEGMENTS,
    MAX_SUB_BLOCKS,
)
from serve_app.images.decode import decode
from tests.unit.heavy_images import (
    chunk,
    gif_of_frames,
    gif_of_sub_blocks,
    jpeg_of_scans,
    jpeg_of_segments,
    jpeg_with,
    png_of_chunks,
    png_of_profile,
    png_of_text,
    saved,
    tiff_of_directories,
)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: jpeg_of_scans(20_000, (2000, 2000)), f"more than {MAX_SCANS} scans"),
        (lambda: jpeg_of_segments(MAX_SEGMENTS), f"more than {MAX_SEGMENTS} segments"),
        (lambda: gif_of_frames(100_000), f"more than {MAX_FRAMES} frames"),
        (lambda: tiff_of_directories(40_000), f"more than {MAX_DIRECTORIES} directories"),
        (lambda: jpeg_with(b"\xff\xd0" * (MAX_RESTARTS + 1)), f"more than {MAX_RESTARTS} restarts"),
        (lambda: gif_of_sub_blocks(MAX_SUB_BLOCKS), f"more than {MAX_SUB_BLOCKS} sub-blocks"),
        (lambda: png_of_chunks(100_000), f"more than {MAX_CHUNKS} chunks"),
        (lambda: png_of_chunks(1, b"acTL", struct.pack(">II", MAX_FRAMES, 0)), "10001 frames"),
        (lambda: png_of_text(100, 900_000), "broken"),
        (lambda: png_of_profile(100_000_000), "broken"),
    ],
    ids=["scans", "segments", "gif", "directories", "restarts", "blocks", "chunks", "apng", "texts", "profile"],
)
def test_heavy_file_is_refused_at_once(make, reason):
    data = make()
    started = time.process_time()
    with pytest.raises(ControlImageInvalid, match=reason):
        decode(data, "ignore")
    assert time.process_time() - started < 1


def test_fill_bytes_of_a_jpeg_are_looked_at_once():
    """FF may be repeated before a marker and before a stuffed zero."""
    filled = jpeg_with(b"\xff" * 40_000 + b"\0")
    started = time.process_time()
    assert decode(filled, "ignore").facts.size == (64, 64)
    assert time.process_time() - started < 0.5


def big_tiff() -> bytes:
    return saved(PIL.Image.new("RGB", (60, 40), "red"), "TIFF", big_tiff=True)


@pytest.mark.parametrize(
    ("make", "conversions"),
    [
        (lambda: jpeg_of_scans(20, (60, 40)), ()),
        (lambda: jpeg_of_segments(1_000), ()),
        (lambda: gif_of_frames(5_000), ("first of 5000 frames", "palette to RGB")),
        (lambda: tiff_of_directories(900), ("first of 900 frames",)),
        (big_tiff, ()),
        (lambda: png_of_chunks(10_000), ()),
    ],
    ids=["scans", "segments", "gif", "directories", "bigtiff", "chunks"],
)
def test_file_of_many_parts_is_read(make, conversions):
    assert decode(make(), "ignore").facts.conversions == conversions


@pytest.mark.parametrize("file_format", ["GIF", "TIFF"])
def test_frames_are_counted_as_pillow_does(file_format):
    pages = [PIL.Image.new("L", (60, 40), level) for level in range(7)]
    data = saved(pages[0], file_format, save_all=True, append_images=pages[1:])
    assert decode(data, "ignore").facts.conversions[0] == "first of 7 frames"


def test_directories_in_a_circle_are_counted_once():
    data = bytearray(tiff_of_directories(3))
    data[-4:] = data[4:8]
    assert decode(bytes(data), "ignore").facts.conversions == ("first of 3 frames",)


def test_image_behind_the_image_is_not_counted():
    """A camera's file may hold a film behind its JPEG."""
    sound = saved(PIL.Image.new("RGB", (60, 40), "red"), "JPEG")
    assert decode(sound + b"\xff\xda\0\2" * 1_000, "ignore").facts.size == (60, 40)


def test_entry_beyond_the_file_is_no_default():
    """Pillow leaves out BitsPerSample that it cannot find, and reads the image as one of a bit per sample."""
    data = bytearray(saved(PIL.Image.new("RGB", (60, 40), "red"), "TIFF"))
    (first,) = struct.unpack_from("<I", data, 4)
    entries = range(first + 2, first + 2 + 12 * struct.unpack_from("<H", data, first)[0], 12)
    place = next(place for place in entries if struct.unpack_from("<H", data, place)[0] == 258)
    struct.pack_into("<I", data, place + 8, len(data))
    with pytest.raises(ControlImageInvalid, match="broken or truncated"):
        decode(bytes(data), "ignore")


def test_entry_of_too_many_values():
    data = bytearray(saved(PIL.Image.new("RGB", (2000, 2000), "red"), "TIFF"))
    (first,) = struct.unpack_from("<I", data, 4)
    # The type and the number of values of the first entry.
    struct.pack_into("<HI", data, first + 2 + 2, 4, 1_000_000)
    struct.pack_into("<I", data, first + 2 + 8, 8)
    with pytest.raises(ControlImageInvalid, match="more than 500000 values"):
        decode(bytes(data), "ignore")


def test_checksum_of_any_chunk_is_checked():
    sound = png_of_chunks(1, b"prVt", b"abc")
    for kind in (b"IHDR", b"prVt", b"IDAT", b"IEND"):
        place = sound.index(kind)
        length = int.from_bytes(sound[place - 4 : place], "big")
        damaged = bytearray(sound)
        damaged[place + 4 + length] ^= 1
        with pytest.raises(ControlImageInvalid, match="broken"):
            decode(bytes(damaged), "ignore")


def test_png_without_its_last_chunk_is_whole():
    sound = png_of_chunks(0)
    assert decode(sound.removesuffix(chunk(b"IEND", b"")), "ignore").facts.size == (64, 64)
