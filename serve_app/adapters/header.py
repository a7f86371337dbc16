"""Reading the header of a safetensors file: all that can be known of an adapter without torch or a GPU.

Format: 8 bytes with the header's length (little-endian), then that many bytes of JSON that map each
tensor's name to its dtype, shape and place, and `__metadata__` to a dict of strings.
https://huggingface.co/docs/safetensors/index#format
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import BinaryIO

from serve_app.errors import LoraInvalidFile

# The limit of the safetensors library itself.
MAX_HEADER_BYTES = 100_000_000

# The first matrix of a LoRA pair, by every name that diffusers' loader knows for it.
FIRST_MATRICES = (".lora_A.weight", ".lora_down.weight", ".lora_A.default.weight")


@dataclass(frozen=True)
class Header:
    """`tensors` maps names to shapes; `metadata` is what the trainer wrote beside them."""

    tensors: dict[str, tuple[int, ...]]
    metadata: dict[str, str]

    @property
    def modules(self) -> int:
        """How many linears the file's LoRA pairs change."""
        return count_modules(self.tensors)

    @property
    def trainer_version(self) -> str | None:
        """The version of the ai-toolkit that wrote the file, if its metadata says so."""
        try:
            software = json.loads(self.metadata["software"])
            return str(software["version"]) if software["name"] == "ai-toolkit" else None
        except (KeyError, ValueError, TypeError):
            return None


def count_modules(keys: Iterable[str]) -> int:
    """How many LoRA pairs there are among tensors of these names."""
    return sum(key.endswith(FIRST_MATRICES) for key in keys)


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
        end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        tensors = {key: tuple(entry["shape"]) for key, entry in entries.items()}
        described = 8 + length + int(end)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise LoraInvalidFile(f"the LoRA file {name!r} has a broken safetensors header", details) from error
    if described != size:
        raise LoraInvalidFile(f"the LoRA file {name!r} has {size} bytes, but its header describes {described}", details)
    return Header(tensors, metadata)


def _guess(prefix: bytes) -> str:
    """What a file that is no safetensors file probably is, from its first bytes."""
    if prefix.lstrip().startswith(b"<"):
        return "an HTML page"
    # torch.save writes a zip; older versions, a bare pickle.
    if prefix.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x04", b"\x80\x05")):
        return "a pickle (.pt, .ckpt)"
    return "something else"
