"""Adapters in the weights: W = W0 + sum_i s_i * change_i, always from an untouched W0, rounded once, in place.

In place, so that compiled code and whoever holds the parameters notice nothing. From W0, so that scales,
stacks and hundreds of swaps leave no trace: without adapters the weights are W0 again, bit for bit.
"""

import logging
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from serve_app.adapters.changes import Adapter, Change, Full, LowRank
from serve_app.device import free_memory

logger = logging.getLogger(__name__)

# What an edit takes beside the weights, at 2048x2048 (bytes).
ROOM_TO_WORK = 6 * 2**30
# What makes two states of one linear the same: who changes it, and how much.
Stack = tuple[tuple[str, float], ...]
# A linear that is being written is in no state that anybody asks for.
BEING_WRITTEN: Stack = (("", 0.0),)


def place_for_copies(transformer: nn.Module, device: torch.device) -> Literal["device", "host", "hooks"]:
    """Where there is room for a copy of every linear: on the device, else in host memory, else nowhere."""
    needed = sum(p.nbytes for m in transformer.modules() if isinstance(m, nn.Linear) for p in m.parameters())
    free, free_host = free_memory(device), free_memory(torch.device("cpu"))
    place: Literal["device", "host", "hooks"] = "hooks"
    if free >= needed + ROOM_TO_WORK:
        place = "device"
    elif device.type != "cpu" and free_host >= needed + ROOM_TO_WORK:
        place = "host"
    logger.info(
        "adapters: %s (a copy of the linears takes %.1f GiB; free: %.1f GiB on %s, %.1f GiB of the host)",
        place,
        *(size / 2**30 for size in (needed, free)),
        device,
        free_host / 2**30,
    )
    return place


class Weights:
    """The linears of one transformer. One caller at a time.

    A linear that some adapter has changed keeps a copy of what it was, on its own device or in (pinned) host
    memory. Nothing else is copied.
    """

    def __init__(self, transformer: nn.Module, copies: Literal["device", "host"]) -> None:
        self._copies = copies
        self._linears = {name: module for name, module in transformer.named_modules() if isinstance(module, nn.Linear)}
        self._untouched: dict[tuple[str, str], Tensor] = {}
        self._stacks: dict[str, Stack] = {}

    @torch.no_grad()
    def apply(self, uses: Mapping[str, tuple[Adapter, float]]) -> int:
        """Have these adapters (by id), each at its scale, and no others; the number of linears rewritten.

        If it fails midway, the next call sets all right: each linear is as it was, as it should be, or known
        to be neither.
        """
        wanted: dict[str, Stack] = {}
        for adapter_id, (adapter, scale) in uses.items():
            if scale != 0.0:
                for name in adapter.changes:
                    wanted[name] = (*wanted.get(name, ()), (adapter_id, scale))
        # Those that nobody changes any more come first: that needs no memory.
        names = [*(self._stacks.keys() - wanted.keys()), *wanted]
        stale = [name for name in names if self._stacks.get(name, ()) != wanted.get(name, ())]
        near: dict[str, Mapping[str, Change]] = {}
        for name in stale:
            changes = []
            for adapter_id, scale in wanted.get(name, ()):
                if adapter_id not in near:
                    near[adapter_id] = uses[adapter_id][0].on(self._linears[name].weight.device)
                changes.append((near[adapter_id][name], scale))
            self._stacks[name] = BEING_WRITTEN
            self._write(name, changes)
            self._stacks[name] = wanted.get(name, ())
        return len(stale)

    def _write(self, name: str, changes: list[tuple[Change, float]]) -> None:
        linear = self._linears[name]
        write_weight(linear.weight, self._original(name, "weight", linear.weight), changes)
        # Few files change a bias: one that never was changed is not copied.
        with_bias = any(isinstance(change, Full) and change.bias is not None for change, _ in changes)
        if linear.bias is not None and (with_bias or (name, "bias") in self._untouched):
            write_bias(linear.bias, self._original(name, "bias", linear.bias), changes)

    def _original(self, name: str, parameter: str, value: Tensor) -> Tensor:
        """What a parameter was before any adapter, on its device; copied at the first touch."""
        key = (name, parameter)
        if key not in self._untouched:
            pinned = self._copies == "host" and value.is_cuda
            self._untouched[key] = (
                torch.empty(value.shape, dtype=value.dtype, pin_memory=True).copy_(value) if pinned else value.clone()
            )
        return self._untouched[key].to(value.device, non_blocking=True)


def write_weight(target: Tensor, original: Tensor, changes: list[tuple[Change, float]]) -> None:
    """`target` becomes `original` plus the scaled changes, summed in fp32 and rounded once to its dtype."""
    if not changes:
        target.copy_(original)
        return
    change, scale = changes[0]
    if len(changes) == 1 and isinstance(change, LowRank) and change.up.dtype == target.dtype:
        # One product in the weight's own dtype: the matrix unit adds it to the original in fp32.
        torch.addmm(original, change.up, change.down, alpha=change.factor * scale, out=target)
        return
    total = original.to(torch.float32, copy=True)
    for change, scale in changes:
        if isinstance(change, LowRank):
            total.addmm_(change.up.float(), change.down.float(), alpha=change.factor * scale)
        elif (weight := change.weight(torch.float32)) is not None:
            total.add_(weight, alpha=scale)
    target.copy_(total)


def write_bias(target: Tensor, original: Tensor, changes: list[tuple[Change, float]]) -> None:
    """The same for a bias, which only full differences change."""
    total = original.to(torch.float32, copy=True)
    for change, scale in changes:
        if isinstance(change, Full) and change.bias is not None:
            total.add_(change.bias.float(), alpha=scale)
    target.copy_(total)
