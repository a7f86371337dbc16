"""Reading tensors of one number from a safetensors file, without torch and without the tensors between them."""

import struct
from collections.abc import Mapping
from typing import BinaryIO

from fsspec.spec import AbstractBufferedFile

# A remote store sends a block of bytes for each read. Numbers further apart than this are not read there.
MAX_STRETCH = 512 * 2**10

# The formats of `struct` for safetensors' dtypes, little-endian.
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
# Bytes per number, for every dtype that holds ordinary numbers.
SIZES = {name: struct.calcsize(code) for name, code in FORMATS.items()} | {"BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}


def read_scalars(file: BinaryIO, places: Mapping[str, tuple[str, int]]) -> dict[str, float]:
    """The numbers at these places, by name; a place is a dtype and an offset in the file (bytes).

    All numbers or none: none if one has another dtype, lies behind the end of `file`, or if a remote store would have
    to send much of the file.
    """
    if not places or any(dtype not in SIZES for dtype, _ in places.values()):
        return {}
    ends = [start + SIZES[dtype] for dtype, start in places.values()]
    if isinstance(file, AbstractBufferedFile) and max(ends) - min(start for _, start in places.values()) > MAX_STRETCH:
        return {}
    found = {}
    # In file order, so that a block that was read serves the next number too.
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
