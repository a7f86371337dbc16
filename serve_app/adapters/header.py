"""Reading the header of a safetensors file: all that can be known of an adapter without torch or a GPU.

Format: 8 bytes with the header's length (little-endian), then that many bytes of JSON that map each
tensor's name to its dtype, shape and place, and `__metadata__` to a dict of strings.
https://huggingface.co/docs/safetensors/index#format
"""

import json
import math
from dataclasses import dataclass
from typing import Any, BinaryIO

from serve_app.errors import LoraInvalidFile

# The limit of the safetensors library itself.
MAX_HEADER_BYTES = 100_000_000

# Bytes of a value, by safetensors' names; those that are no floating-point numbers are in no adapter.
FLOAT_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
DTYPE_BYTES = FLOAT_BYTES | {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1}


@dataclass(frozen=True)
class Header:
    """`tensors` maps names to shapes, `dtypes` to safetensors' dtypes; `metadata` is what the trainer wrote."""

    tensors: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    metadata: dict[str, str]


def read_header(file: BinaryIO, size: int, name: str) -> Header:
    """The header of an open safetensors file of `size` bytes.

    Raises LoraInvalidFile with a sentence of its own for an empty, truncated or foreign file. `name` is
    the client's word for the file.
    """
    details = {"lora_path": name}
    prefix = file.read(8)
    length = int.from_bytes(prefix, "little")
    if size == 0:
        raise LoraInvalidFile(f"the LoRA file {name!r} is empty", details)
    zipped = prefix.startswith(b"PK\x03\x04")
    if zipped or len(prefix) < 8 or not 2 <= length <= MAX_HEADER_BYTES:
        raise LoraInvalidFile(f"the LoRA file {name!r} is {_guess(prefix)}, not a safetensors file", details)
    if 8 + length > size:
        raise LoraInvalidFile(f"the LoRA file {name!r} is truncated within its header", details)
    try:
        entries = json.loads(file.read(length))
        metadata = entries.pop("__metadata__", {})
        tensors = {key: _shape(entry) for key, entry in entries.items()}
        dtypes = {key: str(entry["dtype"]) for key, entry in entries.items()}
        described = 8 + length + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError, OverflowError) as error:
        raise LoraInvalidFile(f"the LoRA file {name!r} has a broken safetensors header", details) from error
    if described != size:
        raise LoraInvalidFile(f"the LoRA file {name!r} has {size} bytes, but its header describes {described}", details)
    return Header(tensors, dtypes, metadata if isinstance(metadata, dict) else {})


def header_end(beginning: bytes) -> int:
    """Where the header of a file that begins so ends, in bytes; 8 if no header can be there."""
    length = int.from_bytes(beginning[:8], "little")
    return 8 + length if length <= MAX_HEADER_BYTES else 8


def _shape(entry: dict[str, Any]) -> tuple[int, ...]:
    """The shape of a tensor. Raises ValueError unless its place in the file has just that size."""
    shape, (start, end) = tuple(entry["shape"]), entry["data_offsets"]
    whole = all(type(number) is int and number >= 0 for number in (*shape, start, end))
    if not whole or end - start != math.prod(shape) * DTYPE_BYTES[entry["dtype"]]:
        raise ValueError("a tensor's shape, dtype and place contradict each other")
    return shape


def _guess(prefix: bytes) -> str:
    """What a file that is no safetensors file probably is, from its first bytes."""
    if prefix.lstrip().startswith(b"<"):
        return "an HTML page"
    # torch.save writes a zip; older versions, a bare pickle.
    if prefix.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x04", b"\x80\x05")):
        return "a pickle (.pt, .ckpt)"
    return "something else"
