"""The change that an adapter makes to one parameter of the model, by its definition.

LoRA (Hu et al. 2021, arXiv:2106.09685): up @ down. LoKr and LoHa (LyCORIS, arXiv:2309.14859): the Kronecker product of
two matrices, each whole or a product of low rank; the elementwise product of two products of low rank. Each times a
factor, which `factors.py` finds. A full difference is added as it is.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from serve_app.adapters.formats import Layout, Module
from serve_app.engine.host_memory import Pieces
from serve_app.tasks import Factor

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
class Hadamard:
    """`factor` times the elementwise product of left and right; each side is the two factors of a matrix."""

    left: tuple[Tensor, ...]
    right: tuple[Tensor, ...]
    factor: float

    def weight(self, dtype: torch.dtype) -> Tensor:
        left, right = (_product(side, dtype) for side in (self.left, self.right))
        return self.factor * (left * right)

    def moved(self, move: Move) -> "Hadamard":
        return Hadamard(tuple(map(move, self.left)), tuple(map(move, self.right)), self.factor)


@dataclass(frozen=True)
class Full:
    """`factor` times a whole difference of a weight or a bias."""

    difference: Tensor
    factor: float = 1.0

    def weight(self, dtype: torch.dtype) -> Tensor:
        difference = self.difference.to(dtype)
        return difference if self.factor == 1.0 else self.factor * difference

    def moved(self, move: Move) -> "Full":
        return Full(move(self.difference), self.factor)


Change = LowRank | Kronecker | Hadamard | Full


class Adapter:
    """An adapter in host memory: its changes by the parameter's name, in the dtype of its file.

    `pinned` memory is copied to a GPU at full speed and without waiting. `sha256` and `factor` are its file's,
    None if it has none.
    """

    def __init__(
        self,
        changes: Mapping[str, Change],
        *,
        pinned: bool,
        sha256: str | None = None,
        factor: Factor | None = None,
    ) -> None:
        self.sha256 = sha256
        self.factor = factor
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


def read_changes(layout: Layout, tensors: Mapping[str, Tensor], factors: Mapping[str, float]) -> dict[str, Change]:
    """The changes of a file without faults, by the parameter's name; `factors` are by the module's."""
    changes: dict[str, Change] = {}
    for name, module in layout.modules.items():
        parts = {part: tensors[key] for part, key in module.parts.items()}
        if module.kind is not None:
            changes[f"{name}.weight"] = _of_weight(module, parts, factors[name])
        if "bias" in parts:
            # PEFT adds the bias of its second matrix to what both give, before the factor.
            changes[f"{name}.bias"] = Full(parts["bias"], factors[name])
        if "diff_b" in parts:
            changes[f"{name}.bias"] = Full(parts["diff_b"])
    return changes


def _of_weight(module: Module, parts: Mapping[str, Tensor], factor: float) -> Change:
    if module.kind == "lora":
        return LowRank(parts["up"], parts["down"], factor)
    if module.kind == "lokr":
        return Kronecker(_side(parts, "w1"), _side(parts, "w2"), factor)
    if module.kind == "loha":
        return Hadamard(_side(parts, "hada_w1"), _side(parts, "hada_w2"), factor)
    return Full(parts["diff"])


def _side(parts: Mapping[str, Tensor], whole: str) -> tuple[Tensor, ...]:
    return (parts[whole],) if whole in parts else (parts[f"{whole}_a"], parts[f"{whole}_b"])


def _product(side: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
    matrices = [matrix.to(dtype) for matrix in side]
    return matrices[0] if len(matrices) == 1 else matrices[0] @ matrices[1]
