"""The safetensors files of a checkpoint: where each tensor lies in them, and which of them a tensor in memory is."""

import json
import math
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from serve_app.errors import CheckpointRefused
from serve_app.models.checkpoint_configs import read_config

# The parts of a checkpoint that have weights, in the order in which they are read.
PARTS = ("text_encoder", "transformer", "vae")
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
SCALE_NAMES = ("scaled_fp8", ".scale_weight", ".weight_scale")
# What operators have to name instead of files that cannot be used.
NEEDED = (
    "name a folder in diffusers' layout with bf16 weights, as its makers publish it (`quantization: fp8` rounds them "
    "when they are loaded)"
)
# What a file with scales has. The libraries would ignore the scales.
SCALED = f"scaled fp8 weights, whose bf16 weights cannot be had back: {NEEDED}"
# The files that the system has mapped into this process's memory, in Linux.
MAPS = Path("/proc/self/maps")


def has_scales(names: Iterable[str]) -> bool:
    """Whether some tensors, by their names, are the scales of fp8 weights, as ComfyUI's files have them."""
    return any(name.endswith(SCALE_NAMES) for name in names)


class Place(NamedTuple):
    """A file, without symbolic links, and a position in it (bytes)."""

    file: str
    begin: int


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: where its first byte is, its dtype and shape."""

    place: Place
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return self.elements * self.dtype.itemsize


def weight_files(part: Path) -> list[Path]:
    """The safetensors files of one part: those that its index names, without an index all. Raises CheckpointRefused."""
    for index in sorted(part.glob("*.safetensors.index.json")):
        named = read_config(index).get("weight_map")
        if not isinstance(named, dict) or not named:
            raise CheckpointRefused(f"{index} has no weight_map")
        files = [part / str(name) for name in sorted(set(named.values()))]
        for file in files:
            if not file.is_file():
                raise CheckpointRefused(f"{index} names {file.name}, which is missing")
        return files
    return sorted(part.glob("*.safetensors"))


def stored_tensors(file: Path) -> list[Stored]:
    """The tensors of a file in the order of their bytes. Raises CheckpointRefused for a file that is not complete."""
    try:
        # Checks the header, and that the file has the bytes that the header names.
        with safe_open(file, "pt"):
            pass
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(length))
        header.pop("__metadata__", None)
        name = os.path.realpath(file)
        found = [
            Stored(Place(name, 8 + length + each["data_offsets"][0]), DTYPES[each["dtype"]], tuple(each["shape"]))
            for each in header.values()
        ]
    # safetensors has an exception of its own, which is no OSError.
    except Exception as error:
        raise CheckpointRefused(f"{file} cannot be read: {error}") from error
    if has_scales(header):
        raise CheckpointRefused(f"{file} has {SCALED}")
    return sorted(found, key=lambda stored: stored.place.begin)


def common_dtype(tensors: list[Stored], default: torch.dtype) -> torch.dtype:
    """The dtype of all floating-point tensors of a part, if it is one that models compute in; otherwise `default`."""
    found = {stored.dtype for stored in tensors if stored.dtype.is_floating_point}
    if len(found) == 1 and found <= {torch.float32, torch.float16, torch.bfloat16}:
        return found.pop()
    return default


class MappedFiles:
    """The files that are mapped into this process's memory now: finds the place of a tensor's values in a file.

    Only Linux tells. Elsewhere no tensor has a place.
    """

    def __init__(self) -> None:
        self._mapped = sorted(_mapped_files())
        self._begins = [begin for begin, _, _, _ in self._mapped]

    def place(self, tensor: Tensor) -> Place | None:
        """None for a tensor whose values are in no file as they are in memory."""
        if tensor.device.type != "cpu" or not tensor.is_contiguous() or tensor.nbytes == 0:
            return None
        address = tensor.data_ptr()
        index = bisect_right(self._begins, address) - 1
        if index < 0:
            return None
        begin, end, offset, file = self._mapped[index]
        return Place(file, offset + address - begin) if address + tensor.nbytes <= end else None


def _mapped_files() -> Iterator[tuple[int, int, int, str]]:
    """Begin and end in memory, position in the file, and file."""
    try:
        lines = MAPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        addresses, _, offset, _, _, *name = line.split(None, 5)
        # Memory that processes may share counts as a deleted file in /dev. A deleted file cannot be opened again.
        if name and name[0].startswith("/") and not name[0].endswith(" (deleted)"):
            begin, end = addresses.split("-")
            yield int(begin, 16), int(end, 16), int(offset, 16), name[0]
