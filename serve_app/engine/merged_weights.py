"""Adapters in the weights: W = W0 + sum_i s_i * change_i, always from an untouched W0, rounded once, in place.

In place, so that compiled code and whoever holds the parameters notice nothing. From W0, so that scales,
stacks and hundreds of swaps leave no trace: without adapters the weights are W0 again, bit for bit.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from typing import Literal

import torch
from torch import Tensor, nn

from serve_app.engine.deltas import Adapter, Change, LowRank
from serve_app.engine.host_memory import Pieces
from serve_app.pipeline.device import free_memory
from serve_app.pipeline.quantization import quantise, quantised, should_quantise

logger = logging.getLogger(__name__)

# What an edit takes beside the weights of the published size, at 2048x2048 (bytes).
ROOM_TO_WORK = 6 * 2**30
# What makes two states of one parameter the same: which adapters change it, and how much.
Stack = tuple[tuple[str, float], ...]
ScaledChange = tuple[Change, float]
# An adapter's changes on the device, by parameter.
Near = Mapping[str, Change]
NOTHING_NEAR: Mapping[str, Near] = {}
# (out, k) and (k, in) in 16 bits, and what their product is multiplied by.
Product = tuple[Tensor, Tensor, float]
# Linears whose changes are prepared at once: so many that launching is nothing beside their work, and so few
# that the memory for it is.
AT_ONCE = 64
# The rank that most adapters have.
USUAL_RANK = 32
# What copies of the weights in pinned memory lie in (bytes): little of it is left unused.
LARGEST_PIECE = 2**30
# A parameter that is being written is in no state that anybody asks for.
BEING_WRITTEN: Stack = (("", 0.0),)


def place_for_copies(
    transformer: nn.Module, device: torch.device, transformers: int
) -> Literal["device", "host", "hooks"]:
    """Where there is room for a copy of every linear: on the device, else in host memory, else nowhere.

    In host memory there has to be room for as many as there are transformers, which each have a device, and for what
    pieces leave unused.
    """
    needed = sum(p.nbytes for m in transformer.modules() if isinstance(m, nn.Linear) for p in m.parameters())
    room = min(ROOM_TO_WORK, needed)
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


class Weights:
    """The parameters of one transformer. One caller at a time.

    A parameter that some adapter has changed keeps a copy of what it was, on its own device or in (pinned) host
    memory. Nothing else is copied.
    """

    def __init__(self, transformer: nn.Module, copies: Literal["device", "host"]) -> None:
        self._copies = copies
        # The parameters of now: they are what a forward reads even where accelerate has put others in their place.
        self._parameters: dict[str, Tensor] = dict(transformer.named_parameters())
        self._transformer = transformer
        # The parameters that are in eight bits.
        self._quantised: set[str] = set()
        self._untouched: dict[str, Tensor] = {}
        self._pinned = Pieces(pinned=True, largest=LARGEST_PIECE)
        self._stacks: dict[str, Stack] = {}
        if copies == "host":
            # Pinning takes most of a minute at the published size: no request waits for it. Few files change a bias
            # or a norm: those are copied when they are first changed.
            for name in linear_weights(transformer):
                self._original(name)

    @torch.no_grad()
    def quantise(self) -> None:
        """Go on in fp8; adapters are merged as before, from the weights as they are without any, and then rounded."""
        self.apply({})
        for name, module in self._transformer.named_modules():
            if should_quantise(name, module):
                weight = f"{name}.weight"
                self._untouched.setdefault(weight, self._parameters[weight])
                self._parameters[weight] = quantise(module)
                self._quantised.add(weight)

    def warm_up(self) -> None:
        """Have the kernel compiled that the usual file needs, by one adapter that changes nothing."""
        name = next(linear_weights(self._transformer))
        (out, into), dtype = self._parameters[name].shape, self._parameters[name].dtype
        nothing = LowRank(torch.zeros(out, USUAL_RANK, dtype=dtype), torch.zeros(USUAL_RANK, into, dtype=dtype), 1.0)
        self.apply({"": (Adapter({name: nothing}, pinned=False), 1.0)})
        self.apply({})

    @torch.no_grad()
    def apply(self, uses: Mapping[str, tuple[Adapter, float]], near: Mapping[str, Near] = NOTHING_NEAR) -> int:
        """Have these adapters (by id), each at its scale, and no others; the number of parameters rewritten.

        `near` are the changes of those whose copy on the device was made beforehand. If it fails midway, the next
        call sets all right: each parameter is as it was, as it should be, or known to be neither.
        """
        wanted: dict[str, Stack] = {}
        for adapter_id, (adapter, scale) in uses.items():
            if scale != 0.0:
                for name in adapter.changes:
                    wanted[name] = (*wanted.get(name, ()), (adapter_id, scale))
        # Those that nobody changes any more come first: that needs no memory.
        names = [*(self._stacks.keys() - wanted.keys()), *wanted]
        stale = [name for name in names if self._stacks.get(name, ()) != wanted.get(name, ())]
        changes = self._changes({name: wanted.get(name, ()) for name in stale}, uses, dict(near))
        for names in alike(changes):
            for name, product in zip(names, self._products(names, changes), strict=True):
                self._stacks[name] = BEING_WRITTEN
                self._write(name, changes[name], product)
                self._stacks[name] = wanted.get(name, ())
        return len(stale)

    def _changes(
        self, wanted: Mapping[str, Stack], uses: Mapping[str, tuple[Adapter, float]], near: dict[str, Near]
    ) -> dict[str, list[ScaledChange]]:
        """The changes of each parameter, on its device, each with its scale."""
        for name, stack in wanted.items():
            for adapter_id, _ in stack:
                if adapter_id not in near:
                    near[adapter_id] = uses[adapter_id][0].on(self._parameters[name].device)
        return {
            name: [(near[adapter_id][name], scale) for adapter_id, scale in stack] for name, stack in wanted.items()
        }

    def _products(self, names: Sequence[str], changes: Mapping[str, list[ScaledChange]]) -> Iterable[Product | None]:
        """For each of these parameters, which are alike, all of its changes as one product; None where that is none."""
        low_rank = [[(c, scale) for c, scale in changes[name] if isinstance(c, LowRank)] for name in names]
        in_bf16 = self._parameters[names[0]].dtype == torch.bfloat16
        if not in_bf16 or not 0 < len(low_rank[0]) == len(changes[names[0]]):
            return [None] * len(names)
        return as_products(low_rank)

    def _write(self, name: str, changes: list[ScaledChange], product: Product | None) -> None:
        parameter = self._parameters[name]
        original = self._original(name)
        target = torch.empty_like(original) if name in self._quantised else parameter
        if product is None:
            write_sum(target, original, changes)
        else:
            write_product(target, original, product)
        if target is not parameter:
            parameter.copy_(quantised(target))

    def _original(self, name: str) -> Tensor:
        """What a parameter was before any adapter, on its device; copied at the first touch."""
        value = self._parameters[name]
        if name not in self._untouched:
            pinned = self._copies == "host" and value.is_cuda
            self._untouched[name] = self._pinned.take(value) if pinned else value.clone()
        return self._untouched[name].to(value.device, non_blocking=True)


def linear_weights(transformer: nn.Module) -> Iterator[str]:
    """The names of the weights that adapters of low rank change."""
    return (f"{name}.weight" for name, module in transformer.named_modules() if isinstance(module, nn.Linear))


def alike(changes: Mapping[str, list[ScaledChange]]) -> list[list[str]]:
    """The parameters in groups whose changes differ in their values alone. Those without changes come first."""
    groups: dict[object, list[list[str]]] = {(): [[]]}
    for name, of_one in changes.items():
        key = tuple(_shape(change) or name for change, _ in of_one)
        some = groups.setdefault(key, [[]])
        if len(some[-1]) == AT_ONCE:
            some.append([])
        some[-1].append(name)
    return [names for some in groups.values() for names in some if names]


def _shape(change: Change) -> object:
    """What low-rank changes that can be computed together have in common; None for the other kinds."""
    if not isinstance(change, LowRank):
        return None
    return change.up.shape, change.down.shape, change.up.dtype, change.down.dtype


def write_sum(target: Tensor, original: Tensor, changes: Sequence[ScaledChange]) -> None:
    """`target` becomes `original` plus the scaled changes, summed in fp32 and rounded once to its dtype."""
    if not changes:
        target.copy_(original)
        return
    total = original.to(torch.float32, copy=True)
    for change, scale in changes:
        if isinstance(change, LowRank):
            total.addmm_(change.up.float(), change.down.float(), alpha=change.factor * scale)
        else:
            total.add_(change.weight(torch.float32), alpha=scale)
    target.copy_(total)


def write_product(target: Tensor, original: Tensor, product: Product) -> None:
    """`target` becomes `original` plus the product, multiplied and added in fp32 and rounded once."""
    left, right, factor = product
    if target.is_cuda:
        # Triton is there where CUDA is.
        from serve_app.engine.low_rank_kernel import add_product

        add_product(target, original, left, right, factor)
    else:
        torch.add(original, left.float() @ right.float(), alpha=factor, out=target)


def as_products(linears: Sequence[Sequence[tuple[LowRank, float]]]) -> Iterable[Product]:
    """The scaled changes of each linear, which are alike, as one product of 16-bit matrices.

    One file as it is, if it is in 16 bits. Else what bf16 does not hold is given in two parts, the nearest bf16 and
    the rest: so a product is exact to within 2^-16 of |scale * factor * up| @ |down|, and takes one pass over the
    weight however many adapters there are. Many linears at once: launching small kernels takes longer than their work.
    """
    first, _ = linears[0][0]
    if len(linears[0]) == 1 and first.up.dtype == first.down.dtype in (torch.bfloat16, torch.float16):
        return [(change.up, change.down, change.factor * scale) for [(change, scale)] in linears]
    left, right = [], []
    for same in zip(*linears, strict=True):
        factors = torch.tensor([change.factor * scale for change, scale in same])
        ups, downs = torch.stack([change.up for change, _ in same]), torch.stack([change.down for change, _ in same])
        up, rest_of_up = _parts(ups.float() * factors.to(ups.device, non_blocking=True).view(-1, 1, 1))
        if downs.dtype == torch.bfloat16:
            left += [up, rest_of_up]
            right += [downs, downs]
        else:
            down, rest_of_down = _parts(downs.float())
            left += [up, rest_of_up, up]
            right += [down, down, rest_of_down]
    return zip(torch.cat(left, 2), torch.cat(right, 1), repeat(1.0))


def _parts(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """fp32 matrices as the sum of two bf16 ones."""
    nearest = matrices.bfloat16()
    return nearest, (matrices - nearest).bfloat16()
