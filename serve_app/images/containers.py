"""Image files before decoding: whether decoding one would take too long, and whether the file is damaged.

A small file can take hours to decode, since decoders repeat work for each scan, directory, frame or chunk. Each reader
here stops at its limit. Each follows the file as Pillow and its libraries do, so that it counts what they would decode.
"""

import re
import struct
import zlib
from collections.abc import Iterable, Iterator

from serve_app.errors import ControlImageInvalid

# A restart for each block of 64 pixels is the most that an image of 40 megapixels has: 625,000.
MAX_RESTARTS = 1_000_000
# Sub-blocks of a GIF hold up to 255 bytes, and nearly all of them are full.
MAX_SUB_BLOCKS = 1_000_000
# Encoders write about ten scans for a progressive JPEG. At 40 megapixels a scan takes 34 ms.
MAX_SCANS = 50
# Metadata segments hold 64 KB each.
MAX_SEGMENTS = 2_000
# Most encoders write 8 KB or more into a chunk.
MAX_CHUNKS = 20_000
MAX_FRAMES = 10_000
MAX_DIRECTORIES = 1_000
MAX_ENTRIES = 4_000
# A strip for each row of an image, or small tiles.
MAX_VALUES = 500_000

# The next marker of a JPEG: stuffed zeros (FF 00) are data, and FF may be repeated before a marker. The pattern has one
# FF: with a repetition of it, a long run of FF that ends with 00 would be searched again from each of its places.
JPEG_MARKER = re.compile(rb"\xff([^\x00\xff])", re.DOTALL)
JPEG_SOS, JPEG_EOI = 0xDA, 0xD9
# The markers that a length and a segment follow: all from C0 on but the restarts, SOI and EOI.
JPEG_SEGMENTS = frozenset(range(0xC0, 0xFF)) - frozenset(range(0xD0, 0xDA))

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_CHUNK = struct.Struct(">I4s")

GIF_BLOCK = re.compile(rb"[!,;]")

# Those that Pillow takes for a TIFF: of both byte orders, of classic files and of BigTIFF.
TIFF_PREFIXES = (b"MM\0*", b"II*\0", b"MM*\0", b"II\0*", b"MM\0+", b"II+\0")
# Bytes of each type of value in a TIFF.
TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
TIFF_BYTES = (1, 2, 6, 7)
# The tags of TIFF 6.0, which say how pixels are stored, end with ReferenceBlackWhite; others are metadata.
TIFF_LAST_TAG = 532


def check_container(data: bytes) -> int | None:
    """Raise ControlImageInvalid, with only the reason, for a file that is damaged or takes too much work.

    Returns the number of frames of a GIF or of directories of a TIFF; None for other formats, whose header has it.
    """
    try:
        if data.startswith(b"\xff\xd8\xff"):
            _check_jpeg(data)
        elif data.startswith(PNG_SIGNATURE):
            _check_png(data)
        elif data.startswith((b"GIF87a", b"GIF89a")):
            return _count("frames", _gif_frames(data), MAX_FRAMES)
        elif data.startswith(TIFF_PREFIXES):
            return _count("directories", _tiff_directories(data), MAX_DIRECTORIES)
    except (IndexError, OverflowError, struct.error) as error:
        raise ControlImageInvalid("it is broken or truncated") from error
    return None


def check_frames(count: int) -> None:
    """Raise ControlImageInvalid if an animation has too many frames."""
    if count > MAX_FRAMES:
        raise ControlImageInvalid(f"it has {count} frames, and at most {MAX_FRAMES} are accepted")


def _count(what: str, items: Iterator[int], most: int) -> int:
    count = 0
    for _ in items:
        count += 1
        if count > most:
            raise ControlImageInvalid(f"it has more than {most} {what}, and no more are accepted")
    return count


def _check_jpeg(data: bytes) -> None:
    """Count scans up to the end of the first image: others may follow, as in a camera's MPO."""
    scans = segments = restarts = 0
    position = 2
    while (found := JPEG_MARKER.search(data, position)) is not None:
        marker, position = found[1][0], found.end()
        if marker == JPEG_EOI:
            return
        if marker not in JPEG_SEGMENTS:
            restarts += 1
            if restarts > MAX_RESTARTS:
                raise ControlImageInvalid(f"it is a JPEG of more than {MAX_RESTARTS} restarts")
            continue
        scans += marker == JPEG_SOS
        segments += 1
        if scans > MAX_SCANS:
            raise ControlImageInvalid(f"it is a progressive JPEG of more than {MAX_SCANS} scans")
        if segments > MAX_SEGMENTS:
            raise ControlImageInvalid(f"it is a JPEG of more than {MAX_SEGMENTS} segments")
        position += int.from_bytes(data[position : position + 2], "big")


def _check_png(data: bytes) -> None:
    """Check each chunk's checksum. Pillow does not look at those of the pixels."""
    position, view = len(PNG_SIGNATURE), memoryview(data)
    for _ in range(MAX_CHUNKS):
        if position == len(data):
            # Without its last chunk, as some writers leave it; the decoder says whether all rows are there.
            return
        length, kind = PNG_CHUNK.unpack_from(data, position)
        end = position + 8 + length
        if struct.unpack_from(">I", data, end)[0] != zlib.crc32(view[position + 4 : end]):
            raise ControlImageInvalid("it is broken: a checksum in it is wrong")
        if kind == b"IEND":
            return
        position = end + 4
    raise ControlImageInvalid(f"it is a PNG of more than {MAX_CHUNKS} chunks")


def _gif_frames(data: bytes) -> Iterator[int]:
    """The place of each frame's pixels."""
    position = 13 + _gif_palette(data[10])
    steps = iter(range(MAX_SUB_BLOCKS))
    while (found := GIF_BLOCK.search(data, position)) is not None and found[0] != b";":
        position = found.end()
        if found[0] == b"!":
            position += 1
        else:
            position += 9 + _gif_palette(data[position + 8]) + 1
            yield position
        position = _after_sub_blocks(data, position, steps)


def _gif_palette(flags: int) -> int:
    """The length of the palette that these flags announce, in bytes."""
    return 3 << (flags & 7) + 1 if flags & 128 else 0


def _after_sub_blocks(data: bytes, position: int, steps: Iterator[int]) -> int:
    """The place behind these sub-blocks, each of which takes one of the file's `steps`."""
    while position < len(data) and (length := data[position]):
        if next(steps, None) is None:
            raise ControlImageInvalid(f"it is a GIF of more than {MAX_SUB_BLOCKS} sub-blocks")
        position += length + 1
    return position + 1


def _tiff_directories(data: bytes) -> Iterator[int]:
    """The offset of each directory, every one checked to lie inside the file."""
    order = "<" if data.startswith(b"II") else ">"
    is_big = data[2] == 43
    # The number of entries, an entry (tag, type, number of values, value or offset), and the next directory's offset.
    count, entry, offset = (
        struct.Struct(order + layout) for layout in (("Q", "HHQQ", "Q") if is_big else ("H", "HHLL", "L"))
    )
    seen: set[int] = set()
    (position,) = offset.unpack_from(data, 8 if is_big else 4)
    while position and position not in seen:
        seen.add(position)
        (entries,) = count.unpack_from(data, position)
        if entries > MAX_ENTRIES:
            raise ControlImageInvalid(f"it is a TIFF with a directory of more than {MAX_ENTRIES} entries")
        table = position + count.size
        if len(seen) == 1:
            rows = entry.iter_unpack(data[table : table + entries * entry.size])
            _check_entries(rows, len(data), offset.size)
        yield position
        (position,) = offset.unpack_from(data, table + entries * entry.size)


def _check_entries(rows: Iterable[tuple[int, int, int, int]], file_size: int, inline: int) -> None:
    """Check the entries of the image's own directory. Values of at most `inline` bytes stand in the entry itself."""
    for tag, kind, values, place in rows:
        size = values * TIFF_SIZES.get(kind, 0)
        # Pillow leaves out an entry that reaches beyond the file, and decodes with a default in its place.
        if tag <= TIFF_LAST_TAG and size > inline and place + size > file_size:
            raise ControlImageInvalid("it is broken or truncated")
        if kind not in TIFF_BYTES and values > MAX_VALUES:
            raise ControlImageInvalid(f"it is a TIFF with an entry of more than {MAX_VALUES} values")
