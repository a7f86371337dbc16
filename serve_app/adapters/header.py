"""Reading the header of a safetensors file, without torch.

Format: 8 bytes with the header's length (little-endian), then that many bytes of JSON that map each
tensor's name to its dtype, shape and place, and `__metadata__` to a dict of strings.
https://huggingface.co/docs/safetensors/index#format

The header comes from an unknown author. Its size, the number of its tensors, their dimensions and the length
of their names are limited, so that reading one takes a bounded time; `docs/adapters.md` says how long the worst takes.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from serve_app.adapters.scalar_tensors import SIZES, read_scalars
from serve_app.errors import LoraCutOff, LoraInvalidFile
from serve_app.schemas.text import is_text

# An adapter of all 846 linears with six tensors each has 5,076 tensors and a header of 1 MB. Trainers' metadata,
# such as the counts of all caption tags, adds up to a few MB.
MAX_HEADER_BYTES = 4 * 2**20
# The safetensors library refuses longer headers. A file that seems to have one is of another format.
LIBRARY_LIMIT = 100_000_000
MAX_TENSORS = 16_384
# Opening brackets in the header: three for each tensor, the rest for JSON that trainers keep as strings in the
# metadata. Each may become an object of 64 bytes or more in memory.
MAX_BRACKETS = 2**18
# Longest name of a tensor; the longest that a trainer writes has about 100 characters.
MAX_NAME = 500
# A convolution has four dimensions, its Tucker core no more.
MAX_DIMENSIONS = 8
# The largest dimension, and the largest offset in a file.
MAX_NUMBER = 2**63 - 1

# Bits of a value, by safetensors' names of its dtypes.
FLOAT_BITS = {name: 8 * size for name, size in SIZES.items() if "F" in name}
INTEGER_BITS = {name: 8 * size for name, size in SIZES.items() if "F" not in name}
OTHER_BITS = {"BOOL": 8, "C64": 64, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8}
OTHER_BITS |= {"F6_E2M3": 6, "F6_E3M2": 6, "F4": 4}
DTYPE_BITS = FLOAT_BITS | INTEGER_BITS | OTHER_BITS

# The end of the names of scalars that scale a change.
ALPHA = ".alpha"


@dataclass(frozen=True)
class Header:
    """`tensors` maps names to shapes, `dtypes` to safetensors' dtypes; `metadata` is what the trainer wrote.

    `alphas` holds the values of the `.alpha` tensors of one number. It is empty if they could not be read without
    reading the rest of the file as well.
    """

    tensors: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    metadata: dict[str, str]
    alphas: dict[str, float] = field(default_factory=dict)


class BrokenHeader(ValueError):
    """A header that contradicts itself or the format. Its message ends the sentence "the file has a header that"."""


def read_header(file: BinaryIO, size: int, name: str) -> Header:
    """The header of an open safetensors file of `size` bytes, of which `file` may hold only the beginning.

    Raises LoraInvalidFile with a sentence of its own for an empty, truncated or foreign file. `name` is
    the client's word for the file.
    """
    details = {"lora_path": name}
    prefix = file.read(8)
    length = int.from_bytes(prefix, "little")
    if size == 0:
        raise LoraCutOff(f"the LoRA file {name!r} is empty", details)
    zipped = prefix.startswith(b"PK\x03\x04")
    if zipped or len(prefix) < 8 or not 2 <= length <= LIBRARY_LIMIT:
        raise LoraInvalidFile(f"the LoRA file {name!r} is {_guess(prefix)}, not a safetensors file", details)
    if 8 + length > size:
        raise LoraCutOff(f"the LoRA file {name!r} is truncated within its header", details)
    if length > MAX_HEADER_BYTES:
        message = f"the LoRA file {name!r} has a header of {length} bytes; at most {MAX_HEADER_BYTES} are read"
        raise LoraInvalidFile(message, details)
    try:
        entries = _parse(file.read(length))
        metadata = _metadata(entries.pop("__metadata__", None))
        if len(entries) > MAX_TENSORS:
            raise BrokenHeader(f"names more than {MAX_TENSORS} tensors")
        places = {key: _place(key, entry) for key, entry in entries.items()}
        end = _end(places)
    except BrokenHeader as error:
        message = f"the LoRA file {name!r} has a broken safetensors header, which {error}"
        raise LoraInvalidFile(message, details) from error
    described = 8 + length + end
    if described != size:
        kind = LoraCutOff if size < described else LoraInvalidFile
        raise kind(f"the LoRA file {name!r} has {size} bytes, but its header describes {described}", details)
    shapes = {key: tuple(entry["shape"]) for key, entry in entries.items()}
    dtypes = {key: str(entry["dtype"]) for key, entry in entries.items()}
    alphas = {
        key: (dtypes[key], 8 + length + start)
        for key, (start, _) in places.items()
        if key.endswith(ALPHA) and math.prod(shapes[key]) == 1
    }
    return Header(shapes, dtypes, metadata, read_scalars(file, alphas))


def header_end(beginning: bytes) -> int:
    """The end of the header of a file with this beginning, in bytes; 8 if it can have no header."""
    length = int.from_bytes(beginning[:8], "little")
    return 8 + length if length <= MAX_HEADER_BYTES else 8


def _parse(text: bytes) -> dict[str, Any]:
    """The JSON object of a header. Raises BrokenHeader."""
    if text.count(b"{") + text.count(b"[") > MAX_BRACKETS:
        raise BrokenHeader(f"holds more than {MAX_BRACKETS} objects and lists")
    try:
        entries = json.loads(text.decode(), object_pairs_hook=_without_duplicates)
    except BrokenHeader:
        raise
    except (ValueError, RecursionError) as error:
        raise BrokenHeader("cannot be parsed as JSON in UTF-8") from error
    if not isinstance(entries, dict):
        raise BrokenHeader("is not a JSON object")
    return entries


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise BrokenHeader("has the same key twice")
    return found


def _metadata(found: object) -> dict[str, str]:
    """The metadata, which may hold only strings. Raises BrokenHeader."""
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise BrokenHeader("has metadata that is not a JSON object")
    for key, value in found.items():
        if not isinstance(value, str):
            raise BrokenHeader("has a metadata value that is not a string")
        if not (is_text(key) and is_text(value)):
            raise BrokenHeader("has metadata that UTF-8 cannot encode")
    return found


def _place(name: str, entry: object) -> tuple[int, int]:
    """Start and end of a tensor after the header, in bytes. Raises BrokenHeader unless they fit shape and dtype."""
    if len(name) > MAX_NAME or not is_text(name):
        raise BrokenHeader(f"names a tensor with more than {MAX_NAME} characters, or some that UTF-8 cannot encode")
    if not isinstance(entry, Mapping):
        raise BrokenHeader("describes a tensor by something else than a JSON object")
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise BrokenHeader("gives a tensor a dtype that safetensors does not know")
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS:
        raise BrokenHeader(f"gives a tensor no shape, or one of more than {MAX_DIMENSIONS} dimensions")
    if not isinstance(offsets, list) or len(offsets) != 2:
        raise BrokenHeader("gives a tensor no place")
    if not all(type(number) is int and 0 <= number <= MAX_NUMBER for number in (*shape, *offsets)):
        raise BrokenHeader("gives a tensor a shape or place of other than whole numbers")
    start, end = offsets
    if (end - start) * 8 != math.prod(shape) * DTYPE_BITS[dtype]:
        raise BrokenHeader("gives a tensor a shape and dtype of another size than its place")
    return start, end


def _end(places: Mapping[str, tuple[int, int]]) -> int:
    """Where the last tensor ends. Raises BrokenHeader unless each begins where the one before it ends."""
    last = 0
    for start, end in sorted(places.values()):
        if start != last:
            raise BrokenHeader("leaves gaps between its tensors, or makes them overlap")
        last = end
    return last


def _guess(prefix: bytes) -> str:
    """The probable format of a file that is not a safetensors file, from its first bytes."""
    if prefix.lstrip().startswith(b"<"):
        return "an HTML page"
    # torch.save writes a zip; older versions, a bare pickle.
    if prefix.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x04", b"\x80\x05")):
        return "a pickle (.pt, .ckpt)"
    return "something else"
