"""The change that an adapter makes to one linear, by its definition.

LoRA (Hu et al. 2021, arXiv:2106.09685): up @ down * alpha / rank. LoKr (LyCORIS, arXiv:2309.14859): the Kronecker
product of two matrices, each whole or a product of low rank, * alpha / rank; beside two whole matrices alpha is
ignored, as LyCORIS does (files in fp16 hold inf there). Without an alpha the factor is 1: ostris/ai-toolkit
writes none, so that the scale is the request's multiplier alone.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from serve_app.adapters.formats import Layout, Module
from serve_app.adapters.pieces import Pieces

Move = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LowRank:
    """`factor` * up @ down; `up` is (out, rank), `down` (rank, in), in the file's dtype."""

    up: Tensor
    down: Tensor
    factor: float

    def weight(self, dtype: torch.dtype) -> Tensor:
        return self.factor * (self.up.to(dtype) @ self.down.to(dtype))

    def moved(self, move: Move) -> "LowRank":
        return LowRank(move(self.up), move(self.down), self.factor)


@dataclass(frozen=True)
class Kronecker:
    """`factor` * left (x) right; each side is a whole matrix or the two factors of one."""

    left: tuple[Tensor, ...]
    right: tuple[Tensor, ...]
    factor: float

    def weight(self, dtype: torch.dtype) -> Tensor:
        left, right = (_product(side, dtype) for side in (self.left, self.right))
        return self.factor * torch.kron(left, right)

    def moved(self, move: Move) -> "Kronecker":
        return Kronecker(tuple(map(move, self.left)), tuple(map(move, self.right)), self.factor)


@dataclass(frozen=True)
class Full:
    """A whole difference of the weight, of the bias, or of both."""

    difference: Tensor | None
    bias: Tensor | None

    def weight(self, dtype: torch.dtype) -> Tensor | None:
        return None if self.difference is None else self.difference.to(dtype)

    def moved(self, move: Move) -> "Full":
        return Full(*(None if tensor is None else move(tensor) for tensor in (self.difference, self.bias)))


Change = LowRank | Kronecker | Full


class Adapter:
    """An adapter in host memory: its changes by module, in the dtype of its file.

    `pinned` memory is copied to a GPU at full speed and without waiting. `sha256` is its file's, None if it has none.
    """

    def __init__(self, changes: Mapping[str, Change], *, pinned: bool, sha256: str | None = None) -> None:
        self.sha256 = sha256
        self._pieces = Pieces(pinned=pinned)
        self.changes = {name: change.moved(self._pieces.take) for name, change in changes.items()}

    @property
    def size_bytes(self) -> int:
        return self._pieces.size_bytes

    def on(self, device: torch.device) -> Mapping[str, Change]:
        """The changes on `device`, by a copy that this thread's stream waits for, in one allocation."""
        if device.type == "cpu":
            return self.changes
        there = self._pieces.on(device)
        return {name: change.moved(there) for name, change in self.changes.items()}


def read_changes(layout: Layout, tensors: Mapping[str, Tensor]) -> dict[str, Change]:
    """The change of each module of a file without faults. Raises ValueError for an alpha that is not finite."""
    return {name: _change(module, tensors) for name, module in layout.modules.items()}


def _change(module: Module, tensors: Mapping[str, Tensor]) -> Change:
    parts = {part: tensors[key] for part, key in module.parts.items()}
    if module.kind == "lora":
        return LowRank(parts["up"], parts["down"], _factor(module, parts, len(parts["down"])))
    if module.kind == "lokr":
        ranks = [len(parts[part]) for part in ("w1_b", "w2_b") if part in parts]
        left, right = (_side(parts, whole) for whole in ("w1", "w2"))
        return Kronecker(left, right, _factor(module, parts, ranks[-1]) if ranks else 1.0)
    return Full(parts.get("diff"), parts.get("diff_b"))


def _factor(module: Module, parts: Mapping[str, Tensor], rank: int) -> float:
    alpha = float(parts["alpha"].double().item()) if "alpha" in parts else float(rank)
    if not isfinite(alpha):
        raise ValueError(f"{module.parts['alpha']} is {alpha}")
    return alpha / rank


def _side(parts: Mapping[str, Tensor], whole: str) -> tuple[Tensor, ...]:
    return (parts[whole],) if whole in parts else (parts[f"{whole}_a"], parts[f"{whole}_b"])


def _product(side: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
    matrices = [matrix.to(dtype) for matrix in side]
    return matrices[0] if len(matrices) == 1 else matrices[0] @ matrices[1]
