"""Files that are far more work to read than to send. Each takes well under a second to make."""

import io
import json
import struct

import numpy as np
import PIL.Image

MB = 1_000_000
# Side of the largest image that the service accepts by default: 40 million pixels, about 64 bytes per scan.
SIDE = 6304
SOS, EOI = b"\xff\xda", b"\xff\xd9"


def small_png() -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (64, 64), (90, 120, 200)).save(buffer, "PNG")
    return buffer.getvalue()


def large_png(size_bytes: int, seed: int) -> bytes:
    """A PNG of noise, which does not compress, of about `size_bytes`."""
    side = int((size_bytes / 3) ** 0.5)
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()


def jpeg_of_scans(size_bytes: int) -> bytes:
    """A progressive JPEG of 40 million pixels that repeats its last scan until it has `size_bytes`.

    A decoder goes over all coefficients once per scan.
    """
    buffer = io.BytesIO()
    PIL.Image.new("L", (SIDE, SIDE), 128).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    scan = data[data.rindex(SOS) : data.rindex(EOI)]
    return data[: data.rindex(EOI)] + scan * ((size_bytes - len(data)) // len(scan)) + EOI


def tiff_of_directories(directories: int) -> bytes:
    """A grey TIFF of 64x64 pixels with `directories` image directories, each of which describes the same pixels."""
    pixels, side, long, short = bytes(64 * 64), 64, 4, 3
    entries = [
        (256, long, side),
        (257, long, side),
        (258, short, 8),
        (259, short, 1),
        (262, short, 1),
        (273, long, 8),
        (278, long, side),
        (279, long, len(pixels)),
    ]
    body = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    size = 2 + len(body) + 4
    start = 8 + len(pixels)
    found = [b"II*\0" + struct.pack("<I", start) + pixels]
    for index in range(directories):
        following = start + (index + 1) * size if index + 1 < directories else 0
        found.append(struct.pack("<H", len(entries)) + body + struct.pack("<I", following))
    return b"".join(found)


def safetensors_of_one_shape(numbers: int) -> bytes:
    """A safetensors file whose header has one tensor of `numbers` dimensions: 19 digits each, 2.5 MB for 131,000."""
    name = "diffusion_model.transformer_blocks.0.attn.to_q.lora_A.weight"
    shape = [10**18 + 1] * numbers
    header = json.dumps({name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(4)
