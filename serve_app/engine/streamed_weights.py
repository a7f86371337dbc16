"""Adapters in weights that are copied to the device before each use: merged as they arrive, so nothing is restored."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from serve_app.engine.deltas import Adapter, LowRank
from serve_app.engine.merging import (
    NONE_ON_DEVICE,
    USUAL_RANK,
    DeviceDeltas,
    ScaledDelta,
    Stack,
    linear_weights,
    wanted_stacks,
    with_products,
    write,
)


class StreamedWeights:
    """The interface of `MergedWeights`, and the `Changes` of one transformer's weights. One caller at a time.

    The adapters' tensors stay in host memory and come with the weights that they change.
    """

    def __init__(self, transformer: nn.Module, device: torch.device) -> None:
        self._device = device
        name = next(linear_weights(transformer))
        weight = transformer.get_parameter(name)
        self._shape, self._dtype = weight.shape, weight.dtype
        self._adapters: dict[str, Adapter] = {}
        self._stacks: dict[str, Stack] = {}
        self._versions: dict[tuple[str, ...], tuple[Stack, ...]] = {}

    def quantise(self) -> None:
        """Raises ValueError. No valid config asks for both."""
        raise ValueError("streamed and quantised weights cannot be combined")

    def warm_up(self) -> None:
        """Compile the kernel that most adapters need, by merging an adapter that changes nothing."""
        out, into = self._shape
        weight = torch.zeros(out, into, dtype=self._dtype, device=self._device)
        up, down = (weight.new_zeros(shape) for shape in ((out, USUAL_RANK), (USUAL_RANK, into)))
        self.merge({"": weight}, {"": [(LowRank(up, down, 1.0), 1.0)]})

    def apply(
        self, uses: Mapping[str, tuple[Adapter, float]], on_device: Mapping[str, DeviceDeltas] = NONE_ON_DEVICE
    ) -> int:
        """Merge these adapters (by id), each at its scale, and no others, from the next pass over the weights on.

        Returns how many parameters get other values. `on_device` is ignored.
        """
        wanted = wanted_stacks(uses)
        changed = [name for name in {**self._stacks, **wanted} if self._stacks.get(name, ()) != wanted.get(name, ())]
        self._adapters = {adapter_id: adapter for adapter_id, (adapter, _) in uses.items()}
        self._stacks = wanted
        self._versions.clear()
        return len(changed)

    def version(self, names: Sequence[str]) -> tuple[Stack, ...]:
        """As `Changes.version`: the adapters of each parameter and their scales."""
        key = tuple(names)
        if key not in self._versions:
            self._versions[key] = tuple(self._stacks.get(name, ()) for name in key)
        return self._versions[key]

    def fetch(self, names: Sequence[str], device: torch.device) -> dict[str, list[ScaledDelta]]:
        """As `Changes.fetch`: the scaled deltas of those parameters that have any."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        return {
            name: [(self._adapters[each].deltas[name].moved(move), scale) for each, scale in self._stacks[name]]
            for name in names
            if self._stacks.get(name)
        }

    @torch.no_grad()
    def merge(self, weights: Mapping[str, Tensor], fetched: Mapping[str, list[ScaledDelta]]) -> None:
        """As `Changes.merge`: in place, with the arithmetic of `MergedWeights`."""
        for name, product in with_products(fetched, weights):
            write(weights[name], weights[name], fetched[name], product)
