"""The delta that an adapter adds to one parameter of the model, as its format defines it.

LoRA (Hu et al. 2021, arXiv:2106.09685): up @ down. LoKr (LyCORIS, arXiv:2309.14859): the Kronecker product of two
matrices, each stored whole or as a low-rank product. LoHa (same paper): the elementwise product of two low-rank
products. Each is multiplied by a factor, which `adapters/factors.py` reads. A full difference is added unchanged.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from serve_app.adapters.formats import Layout, Module
from serve_app.engine.host_memory import HostBlocks
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
    """`factor` times the difference of a whole weight or bias."""

    difference: Tensor
    factor: float = 1.0

    def weight(self, dtype: torch.dtype) -> Tensor:
        difference = self.difference.to(dtype)
        return difference if self.factor == 1.0 else self.factor * difference

    def moved(self, move: Move) -> "Full":
        return Full(move(self.difference), self.factor)


Delta = LowRank | Kronecker | Hadamard | Full


class Adapter:
    """An adapter in host memory: its deltas by the parameter's name, in the dtype of its file.

    A GPU copies `pinned` memory at full speed and asynchronously. `sha256` and `factor` are those of the adapter's
    file; None for an adapter without a file.
    """

    def __init__(
        self,
        deltas: Mapping[str, Delta],
        *,
        pinned: bool,
        sha256: str | None = None,
        factor: Factor | None = None,
    ) -> None:
        self.sha256 = sha256
        self.factor = factor
        self._blocks = HostBlocks(pinned=pinned)
        self.deltas = {name: delta.moved(self._blocks.store) for name, delta in deltas.items()}

    @property
    def size_bytes(self) -> int:
        return self._blocks.size_bytes

    def copy_to(self, device: torch.device) -> Mapping[str, Delta]:
        """The deltas on `device`, in one allocation. This thread's stream waits for the copy."""
        if device.type == "cpu":
            return self.deltas
        on_device = self._blocks.copy_to(device)
        return {name: delta.moved(on_device) for name, delta in self.deltas.items()}


def read_deltas(layout: Layout, tensors: Mapping[str, Tensor], factors: Mapping[str, float]) -> dict[str, Delta]:
    """The deltas of a valid file, by the parameter's name; `factors` are by the module's name."""
    deltas: dict[str, Delta] = {}
    for name, module in layout.modules.items():
        parts = {part: tensors[key] for part, key in module.parts.items()}
        if module.kind is not None:
            deltas[f"{name}.weight"] = _weight_delta(module, parts, factors[name])
        if "bias" in parts:
            # PEFT adds the bias of its second matrix to the product of both, before it applies the factor.
            deltas[f"{name}.bias"] = Full(parts["bias"], factors[name])
        if "diff_b" in parts:
            deltas[f"{name}.bias"] = Full(parts["diff_b"])
    return deltas


def _weight_delta(module: Module, parts: Mapping[str, Tensor], factor: float) -> Delta:
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
