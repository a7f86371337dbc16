"""Small files that ask a decoder for much work."""

import io
import struct
import zlib

import PIL.Image


def saved(image: PIL.Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def jpeg_of_scans(scans: int, size: tuple[int, int]) -> bytes:
    """A progressive JPEG whose last scan, without data of its own, comes again and again."""
    whole = saved(PIL.Image.new("RGB", size, (90, 120, 30)), "JPEG", progressive=True)
    last = whole.rindex(b"\xff\xda")
    header = whole[last : last + 2 + int.from_bytes(whole[last + 2 : last + 4], "big")]
    return whole[:-2] + (header + b"\0\0") * scans + b"\xff\xd9"


def jpeg_of_segments(segments: int) -> bytes:
    whole = saved(PIL.Image.new("RGB", (64, 64), "red"), "JPEG")
    return whole[:2] + b"\xff\xfe\0\2" * segments + whole[2:]


def jpeg_with(data: bytes) -> bytes:
    """A small JPEG with this in the data of its scan, in place of a stuffed zero."""
    whole = saved(PIL.Image.effect_noise((64, 64), 100), "JPEG", quality=100)
    place = whole.index(b"\xff\0", whole.index(b"\xff\xda"))
    return whole[:place] + data + whole[place + 2 :]


def gif_of_sub_blocks(blocks: int) -> bytes:
    """A GIF with a comment in so many parts of one character."""
    whole = saved(PIL.Image.new("P", (64, 64), 1), "GIF")
    return whole[:-1] + b"!\xfe" + b"\1x" * blocks + b"\0;"


def gif_of_frames(frames: int) -> bytes:
    whole = saved(PIL.Image.new("P", (64, 64), 1), "GIF")
    tiny = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\2\2\x44\1\0"
    return whole[:-1] + tiny * (frames - 1) + b";"


def tiff_of_directories(directories: int) -> bytes:
    """The directories are alike but for their places; each but the last names the next."""
    whole = saved(PIL.Image.new("RGB", (64, 64), "red"), "TIFF")
    (first,) = struct.unpack_from("<I", whole, 4)
    (entries,) = struct.unpack_from("<H", whole, first)
    end = first + 2 + 12 * entries
    table, padded = whole[first:end], whole + bytes(len(whole) % 2)
    body = bytearray(padded)
    struct.pack_into("<I", body, end, len(body))
    for number in range(1, directories):
        last = number == directories - 1
        body += table + struct.pack("<I", 0 if last else len(body) + len(table) + 4)
    return bytes(body)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of_chunks(chunks: int, kind: bytes = b"prVt", data: bytes = b"") -> bytes:
    whole = saved(PIL.Image.new("RGB", (64, 64), "red"), "PNG")
    place = whole.index(b"IDAT") - 4
    return whole[:place] + chunk(kind, data) * chunks + whole[place:]


def png_of_text(texts: int, size: int) -> bytes:
    """Compressed texts, each of so many characters."""
    return png_of_chunks(texts, b"zTXt", b"a\0\0" + zlib.compress(b"a" * size, 9))


def png_of_profile(size: int) -> bytes:
    return png_of_chunks(1, b"iCCP", b"a\0\0" + zlib.compress(bytes(size), 9))


def png_of_pixels(width: int, height: int) -> bytes:
    """As many pixels as wanted, all black, in next to no bytes."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0))
    rows = zlib.compressobj(9)
    data = b"".join(rows.compress(bytes(1 + 4 * width)) for _ in range(height)) + rows.flush()
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", data) + chunk(b"IEND", b"")
