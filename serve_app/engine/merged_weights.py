"""Merges adapters into the weights: W = W0 + sum_i scale_i * delta_i, rounded once and written in place.

In place, so that compiled code and other references to the parameters stay valid. Always from the original W0, so that
hundreds of swaps leave no rounding errors: without adapters the weights are W0 again, bit for bit.
"""

import logging
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from serve_app.engine.deltas import Adapter, LowRank
from serve_app.engine.host_memory import HostBlocks
from serve_app.engine.merging import (
    NONE_ON_DEVICE,
    USUAL_RANK,
    DeviceDeltas,
    Product,
    ScaledDelta,
    Stack,
    Unrounded,
    batches_with_products,
    linear_weights,
    wanted_stacks,
    write,
    write_rounded,
)
from serve_app.engine.placement import EDIT_BYTES
from serve_app.pipeline.device import free_memory
from serve_app.pipeline.quantization import quantise, should_quantise

logger = logging.getLogger(__name__)

# The block size for copies of the weights in pinned memory (bytes): little of each block is left unused.
WEIGHTS_BLOCK = 2**30
# The state of a parameter while it is written: it equals no state that a plan asks for.
BEING_WRITTEN: Stack = (("", 0.0),)


def place_for_copies(
    transformer: nn.Module, device: torch.device, transformers: int
) -> Literal["device", "host", "hooks"]:
    """Where there is room for a copy of every linear: on the device, otherwise in host memory, otherwise nowhere.

    Host memory needs room for one copy per transformer, each of which has its own device, and for the unused ends of
    blocks.
    """
    needed = sum(p.nbytes for m in transformer.modules() if isinstance(m, nn.Linear) for p in m.parameters())
    room = min(EDIT_BYTES, needed)
    free, free_host = free_memory(device), free_memory(torch.device("cpu"))
    place: Literal["device", "host", "hooks"] = "hooks"
    if free >= needed + room:
        place = "device"
    elif device.type != "cpu" and free_host >= 1.1 * needed * transformers + room:
        place = "host"
    logger.info(
        "adapters: %s (a copy of the linears takes %.1f GiB; free: %.1f GiB on %s, %.1f GiB of the host)",
        place,
        *(size / 2**30 for size in (needed, free)),
        device,
        free_host / 2**30,
    )
    return place


class MergedWeights:
    """The parameters of one transformer and the adapters that are merged into them. One caller at a time.

    The original of each parameter that an adapter has changed is kept on its own device or in (pinned) host memory.
    Other parameters are not copied.
    """

    def __init__(self, transformer: nn.Module, copies: Literal["device", "host"]) -> None:
        self._copies = copies
        # Taken now: a forward reads these tensors, even where accelerate later puts others in their place.
        self._parameters: dict[str, Tensor] = dict(transformer.named_parameters())
        self._transformer = transformer
        # The names of parameters in fp8.
        self._quantised: set[str] = set()
        self._untouched: dict[str, Tensor] = {}
        self._host_blocks = HostBlocks(pinned=True, largest=WEIGHTS_BLOCK)
        self._stacks: dict[str, Stack] = {}
        if copies == "host":
            # Now, because pinning takes most of a minute at the published size and no request should wait for it. Few
            # adapters change a bias or a norm: those are copied when they are first changed.
            for name in linear_weights(transformer):
                self._original(name)

    @torch.no_grad()
    def quantise(self) -> None:
        """Switch to fp8. Adapters are still merged from the unquantised originals, and the sum is rounded to fp8."""
        self.apply({})
        for name, module in self._transformer.named_modules():
            if should_quantise(name, module):
                weight = f"{name}.weight"
                self._untouched.setdefault(weight, self._parameters[weight])
                self._parameters[weight] = quantise(module)
                self._quantised.add(weight)

    def warm_up(self) -> None:
        """Compile the kernels that most adapters need, by merging an adapter that changes nothing."""
        # One weight of each format.
        names = [next(linear_weights(self._transformer)), *sorted(self._quantised)[:1]]
        nothing = {name: self._no_change(name) for name in names}
        self.apply({"": (Adapter(nothing, pinned=False), 1.0)})
        self.apply({})

    def _no_change(self, name: str) -> LowRank:
        (out, into), dtype = self._parameters[name].shape, self._parameters[name].dtype
        return LowRank(torch.zeros(out, USUAL_RANK, dtype=dtype), torch.zeros(USUAL_RANK, into, dtype=dtype), 1.0)

    @torch.no_grad()
    def apply(
        self, uses: Mapping[str, tuple[Adapter, float]], on_device: Mapping[str, DeviceDeltas] = NONE_ON_DEVICE
    ) -> int:
        """Merge these adapters (by id), each at its scale, and no others. Returns how many parameters were rewritten.

        `on_device` has the deltas of adapters that were copied to the device in advance. If this fails midway, the
        next call repairs it: each parameter is then known to be old, new, or undefined.
        """
        wanted = wanted_stacks(uses)
        # First the parameters that no adapter changes any more: restoring them takes no memory.
        names = [*(self._stacks.keys() - wanted.keys()), *wanted]
        stale = [name for name in names if self._stacks.get(name, ()) != wanted.get(name, ())]
        deltas = self._deltas({name: wanted.get(name, ()) for name in stale}, uses, dict(on_device))
        for batch in batches_with_products(deltas, self._parameters):
            self._stacks.update({name: BEING_WRITTEN for name, _ in batch})
            self._write(batch, deltas)
            self._stacks.update({name: wanted.get(name, ()) for name, _ in batch})
        return len(stale)

    def _deltas(
        self,
        wanted: Mapping[str, Stack],
        uses: Mapping[str, tuple[Adapter, float]],
        on_device: dict[str, DeviceDeltas],
    ) -> dict[str, list[ScaledDelta]]:
        """The scaled deltas of each parameter, on its device. Copies adapters that `on_device` lacks."""
        for name, stack in wanted.items():
            for adapter_id, _ in stack:
                if adapter_id not in on_device:
                    on_device[adapter_id] = uses[adapter_id][0].copy_to(self._parameters[name].device)
        return {
            name: [(on_device[adapter_id][name], scale) for adapter_id, scale in stack]
            for name, stack in wanted.items()
        }

    def _write(self, batch: list[tuple[str, Product | None]], deltas: Mapping[str, list[ScaledDelta]]) -> None:
        rounded = []
        for name, product in batch:
            parameter, original = self._parameters[name], self._original(name)
            if name not in self._quantised:
                write(parameter, original, deltas[name], product)
                continue
            rounded.append(Unrounded(parameter, original, deltas[name], product))
            is_sum = bool(deltas[name]) and product is None
            if self._copies == "host" or is_sum:
                # Its original was copied to the device for this, or its sum will be, and there is not much room.
                write_rounded(rounded)
                rounded = []
        write_rounded(rounded)

    def _original(self, name: str) -> Tensor:
        """A parameter's value without adapters, on its device. The first call for a parameter makes the copy."""
        value = self._parameters[name]
        if name not in self._untouched:
            pinned = self._copies == "host" and value.is_cuda
            self._untouched[name] = self._host_blocks.store(value) if pinned else value.clone()
        return self._untouched[name].to(value.device, non_blocking=True)
