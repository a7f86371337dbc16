"""Adapters beside the weights, as PEFT's layers: for a machine without room for a copy of the weights."""

from collections.abc import Mapping

import torch

from serve_app.engine.deltas import Adapter, Full, Hadamard, Kronecker, LowRank
from serve_app.engine.merged_weights import NOTHING_NEAR, Near
from serve_app.errors import LoraIncompatible
from serve_app.pipeline.checkpoint import Pipeline

# What an error calls the changes that cannot hang beside the weights.
KINDS = {Kronecker: "LoKr", Hadamard: "LoHa", Full: "full difference"}


class Hooks:
    """The adapters that hang on one pipeline's transformer; as `Weights`, but LoRA alone. One caller at a time."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._transformer = pipeline.transformer
        self._hanging: set[str] = set()

    def quantise(self) -> None:
        """Raises ValueError: PEFT's layers add to what a linear computes, and no config asks for both."""
        raise ValueError("adapters beside the weights and quantised weights do not go together")

    def warm_up(self) -> None:
        """Nothing: PEFT has no kernels of its own."""

    @torch.no_grad()
    def apply(self, uses: Mapping[str, tuple[Adapter, float]], near: Mapping[str, Near] = NOTHING_NEAR) -> int:
        """Have these adapters (by id), each at its scale, and no others; the number of adapters newly hung.

        `near` is of no use here: PEFT wants the files.

        Raises LoraIncompatible for any other change than a LoRA's pair: PEFT's layers do not know it.
        """
        wanted = {adapter_id: use for adapter_id, use in uses.items() if use[1] != 0.0}
        pairs = {adapter_id: self._pairs(wanted[adapter_id][0]) for adapter_id in wanted.keys() - self._hanging}
        for adapter_id in self._hanging - wanted.keys():
            self._transformer.delete_adapters(adapter_id)
            self._hanging.remove(adapter_id)
        for adapter_id, tensors in pairs.items():
            self._pipeline.load_lora_weights(tensors, adapter_name=adapter_id)
            self._hanging.add(adapter_id)
        if wanted:
            self._transformer.set_adapters(list(wanted), [scale for _, scale in wanted.values()])
        return len(pairs)

    def _pairs(self, adapter: Adapter) -> dict[str, torch.Tensor]:
        """The file as diffusers' loader wants it, each pair's factor multiplied in."""
        pairs = {}
        for name, change in adapter.changes.items():
            if not isinstance(change, LowRank):
                raise LoraIncompatible(
                    "only LoRA files can be applied without a copy of the weights in memory, and this one changes "
                    f"{name} by a {KINDS[type(change)]}"
                )
            module = name.removesuffix(".weight")
            pairs[f"transformer.{module}.lora_A.weight"] = change.down.to(self._transformer.dtype)
            pairs[f"transformer.{module}.lora_B.weight"] = (change.factor * change.up).to(self._transformer.dtype)
        return pairs
