"""Adapters as PEFT layers next to the weights: for a machine without memory for a copy of the weights."""

from collections.abc import Mapping

import torch

from serve_app.engine.deltas import Adapter, Full, Hadamard, Kronecker, LowRank
from serve_app.engine.merging import NONE_ON_DEVICE, DeviceDeltas
from serve_app.errors import LoraIncompatible
from serve_app.pipeline.checkpoint import Pipeline

# The names that errors give to deltas which PEFT layers cannot apply.
KINDS = {Kronecker: "LoKr", Hadamard: "LoHa", Full: "full difference"}


class PeftLayers:
    """The interface of `MergedWeights`, with PEFT's layers on one pipeline's transformer. LoRA only.

    One caller at a time.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._transformer = pipeline.transformer
        self._loaded: set[str] = set()

    def quantise(self) -> None:
        """Raises ValueError: PEFT layers do not support quantised weights. No valid config asks for both."""
        raise ValueError("adapters as PEFT layers and quantised weights cannot be combined")

    def warm_up(self) -> None:
        """Does nothing: PEFT has no kernels to compile."""

    @torch.no_grad()
    def apply(
        self, uses: Mapping[str, tuple[Adapter, float]], on_device: Mapping[str, DeviceDeltas] = NONE_ON_DEVICE
    ) -> int:
        """Apply these adapters (by id), each at its scale, and no others. Returns how many were newly loaded.

        `on_device` is ignored: PEFT copies the tensors itself. Raises LoraIncompatible for other adapters than LoRA.
        """
        wanted = {adapter_id: use for adapter_id, use in uses.items() if use[1] != 0.0}
        pairs = {adapter_id: self._pairs(wanted[adapter_id][0]) for adapter_id in wanted.keys() - self._loaded}
        for adapter_id in self._loaded - wanted.keys():
            self._transformer.delete_adapters(adapter_id)
            self._loaded.remove(adapter_id)
        for adapter_id, tensors in pairs.items():
            self._pipeline.load_lora_weights(tensors, adapter_name=adapter_id)
            self._loaded.add(adapter_id)
        if wanted:
            self._transformer.set_adapters(list(wanted), [scale for _, scale in wanted.values()])
        return len(pairs)

    def _pairs(self, adapter: Adapter) -> dict[str, torch.Tensor]:
        """The adapter's tensors as diffusers' loader expects them, with each pair's factor multiplied in."""
        pairs = {}
        for name, delta in adapter.deltas.items():
            if not isinstance(delta, LowRank):
                raise LoraIncompatible(
                    "only LoRA files can be applied without a copy of the weights in memory, and this one changes "
                    f"{name} by a {KINDS[type(delta)]}"
                )
            module = name.removesuffix(".weight")
            pairs[f"transformer.{module}.lora_A.weight"] = delta.down.to(self._transformer.dtype)
            pairs[f"transformer.{module}.lora_B.weight"] = (delta.factor * delta.up).to(self._transformer.dtype)
        return pairs
