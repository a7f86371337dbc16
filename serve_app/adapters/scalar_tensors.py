"""Single numbers of a safetensors file, read at their places without torch and without the tensors between them."""

import struct
from collections.abc import Mapping
from typing import BinaryIO

from fsspec.spec import AbstractBufferedFile

# Of a store that sends a block for each place, no more than one stretch of this many bytes is read.
MAX_STRETCH = 512 * 2**10

# How `struct` calls safetensors' dtypes, little-endian.
FORMATS = {
    "F64": "<d",
    "F32": "<f",
    "F16": "<e",
    "I64": "<q",
    "I32": "<i",
    "I16": "<h",
    "I8": "<b",
    "U64": "<Q",
    "U32": "<I",
    "U16": "<H",
    "U8": "<B",
}
# The bytes of a number, of every dtype that holds ordinary numbers.
SIZES = {name: struct.calcsize(code) for name, code in FORMATS.items()} | {"BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}


def read_scalars(file: BinaryIO, places: Mapping[str, tuple[str, int]]) -> dict[str, float]:
    """The numbers at these places, by name; a place is a dtype and a byte of the file.

    All of them or none: none if one is of another dtype than numbers have, lies behind what there is of the file, or
    if a remote store would have to send the file for them.
    """
    if not places or any(dtype not in SIZES for dtype, _ in places.values()):
        return {}
    ends = [start + SIZES[dtype] for dtype, start in places.values()]
    if isinstance(file, AbstractBufferedFile) and max(ends) - min(start for _, start in places.values()) > MAX_STRETCH:
        return {}
    found = {}
    # In the order of the file, so that what is read for one serves the next.
    for name, (dtype, start) in sorted(places.items(), key=lambda item: item[1][1]):
        file.seek(start)
        data = file.read(SIZES[dtype])
        if len(data) < SIZES[dtype]:
            return {}
        found[name] = scalar(dtype, data)
    return found


def scalar(dtype: str, data: bytes) -> float:
    """The number that these bytes are, which may be infinite or NaN."""
    if dtype == "BF16":
        # The upper half of an fp32.
        return float(struct.unpack("<f", b"\0\0" + data)[0])
    if dtype == "F8_E5M2":
        # The upper half of an fp16.
        return float(struct.unpack("<e", b"\0" + data)[0])
    if dtype == "F8_E4M3":
        return _e4m3(data[0])
    return float(struct.unpack(FORMATS[dtype], data)[0])


def _e4m3(bits: int) -> float:
    """Four bits of exponent with bias 7, three of mantissa, no infinities (arXiv:2209.05433)."""
    sign, exponent, mantissa = -1.0 if bits & 0x80 else 1.0, bits >> 3 & 0xF, bits & 0x7
    if (exponent, mantissa) == (0xF, 0x7):
        return float("nan")
    if exponent == 0:
        return float(sign * mantissa * 2.0**-9)
    return float(sign * (1 + mantissa / 8) * 2.0 ** (exponent - 7))
