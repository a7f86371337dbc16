"""The arithmetic of merging adapters into a weight: W = W0 + sum_i scale_i * delta_i, in fp32, rounded once.

Every way of holding the weights uses these functions, so that an image does not depend on it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from serve_app.engine.deltas import Adapter, Delta, LowRank
from serve_app.pipeline.quantization import quantised

# The state of a parameter: the ids of the adapters that are merged into it, and their scales.
Stack = tuple[tuple[str, float], ...]
ScaledDelta = tuple[Delta, float]
# An adapter's deltas on the device, by parameter.
DeviceDeltas = Mapping[str, Delta]
NONE_ON_DEVICE: Mapping[str, DeviceDeltas] = {}
# Two 16-bit matrices, (out, k) and (k, in), and the factor of their product.
Product = tuple[Tensor, Tensor, float]


class Unrounded(NamedTuple):
    """A weight in fp8, torchao's, and what is to be rounded into it: `original` plus `deltas`.

    `product` is all deltas as one product, or None.
    """

    rounded: Any
    original: Tensor
    deltas: Sequence[ScaledDelta]
    product: Product | None


# Linears whose deltas are prepared in one batch: enough to make the launch time of kernels negligible, few enough to
# make their memory negligible.
LINEARS_PER_BATCH = 64
# The rank that most adapters have.
USUAL_RANK = 32


def wanted_stacks(uses: Mapping[str, tuple[Adapter, float]]) -> dict[str, Stack]:
    """The state that each parameter gets from these adapters (by id), each at its scale."""
    wanted: dict[str, Stack] = {}
    for adapter_id, (adapter, scale) in uses.items():
        if scale != 0.0:
            for name in adapter.deltas:
                wanted[name] = (*wanted.get(name, ()), (adapter_id, scale))
    return wanted


def linear_weights(transformer: nn.Module) -> Iterator[str]:
    """The names of the weights that low-rank adapters change."""
    return (f"{name}.weight" for name, module in transformer.named_modules() if isinstance(module, nn.Linear))


def with_products(
    deltas: Mapping[str, Sequence[ScaledDelta]], weights: Mapping[str, Tensor]
) -> Iterator[tuple[str, Product | None]]:
    """The names of `deltas`, each with all its deltas as one product; None where they cannot be expressed as one."""
    for batch in batches_with_products(deltas, weights):
        yield from batch


def batches_with_products(
    deltas: Mapping[str, Sequence[ScaledDelta]], weights: Mapping[str, Tensor]
) -> Iterator[list[tuple[str, Product | None]]]:
    """The same, in batches of weights whose deltas have the same shapes."""
    for names in batches_by_shape(deltas):
        made = products([deltas[name] for name in names], weights[names[0]].dtype)
        yield list(zip(names, made, strict=True))


def products(deltas: Sequence[Sequence[ScaledDelta]], dtype: torch.dtype) -> Iterable[Product | None]:
    """For each of some weights of `dtype`, whose deltas have the same shapes, all its deltas as one product.

    None where they cannot be expressed as one.
    """
    low_rank = [[(delta, scale) for delta, scale in each if isinstance(delta, LowRank)] for each in deltas]
    all_low_rank = len(low_rank[0]) == len(deltas[0])
    if not (dtype == torch.bfloat16 and low_rank[0] and all_low_rank):
        return [None] * len(deltas)
    return as_products(low_rank)


def write(target: Tensor, original: Tensor, deltas: Sequence[ScaledDelta], product: Product | None) -> None:
    """Write `original` plus its scaled deltas into `target`, which may be `original` itself."""
    if product is None:
        write_sum(target, original, deltas)
    else:
        write_product(target, original, product)


def write_rounded(weights: Sequence[Unrounded]) -> None:
    """Write each weight's original plus its scaled deltas, rounded to the original's dtype, in fp8."""
    groups: dict[object, list[Unrounded]] = {}
    for weight in weights:
        if weight.deltas and weight.product is None:
            merged = torch.empty_like(weight.original)
            write_sum(merged, weight.original, weight.deltas)
            weight = Unrounded(weight.rounded, merged, (), None)
        groups.setdefault(_kernel_of(weight), []).append(weight)
    for group in groups.values():
        if group[0].original.is_cuda:
            _round_on_gpu(group)
            continue
        for rounded, original, _, product in group:
            merged = original
            if product is not None:
                merged = torch.empty_like(original)
                write_product(merged, original, product)
            rounded.copy_(quantised(merged))


def _kernel_of(weight: Unrounded) -> object:
    """What weights have in common that one launch can do."""
    if weight.product is None:
        return weight.original.shape
    left, right, _ = weight.product
    return weight.original.shape, left.dtype, left.shape, left.stride(), right.stride()


def _round_on_gpu(weights: Sequence[Unrounded]) -> None:
    from serve_app.engine.rounded_kernel import Rounding, round_merged

    product = weights[0].product
    each = [
        Rounding(
            weight.rounded.qdata,
            weight.rounded.scale,
            weight.original,
            *(weight.product or (weight.original, weight.original, 0.0)),
        )
        for weight in weights
    ]
    round_merged(each, 0 if product is None else product[0].shape[1])


def batches_by_shape(deltas: Mapping[str, Sequence[ScaledDelta]]) -> list[list[str]]:
    """Group the parameters: those of a group have low-rank deltas of the same shapes and dtypes.

    A parameter with a delta of another kind is a group of its own. Parameters without deltas come first.
    """
    groups: dict[object, list[list[str]]] = {(): [[]]}
    for name, scaled in deltas.items():
        key = tuple(_shape(delta) or name for delta, _ in scaled)
        batches = groups.setdefault(key, [[]])
        if len(batches[-1]) == LINEARS_PER_BATCH:
            batches.append([])
        batches[-1].append(name)
    return [names for batches in groups.values() for names in batches if names]


def _shape(delta: Delta) -> object:
    """The shapes and dtypes of a low-rank delta; None for the other kinds."""
    if not isinstance(delta, LowRank):
        return None
    return delta.up.shape, delta.down.shape, delta.up.dtype, delta.down.dtype


def write_sum(target: Tensor, original: Tensor, deltas: Sequence[ScaledDelta]) -> None:
    """Write `original` plus the scaled deltas into `target`, summed in fp32 and rounded once to its dtype."""
    if not deltas:
        target.copy_(original)
        return
    total = original.to(torch.float32, copy=True)
    for delta, scale in deltas:
        if isinstance(delta, LowRank):
            total.addmm_(delta.up.float(), delta.down.float(), alpha=delta.factor * scale)
        else:
            total.add_(delta.weight(torch.float32), alpha=scale)
    target.copy_(total)


def write_product(target: Tensor, original: Tensor, product: Product) -> None:
    """Write `original` plus the product into `target`, multiplied and added in fp32 and rounded once."""
    left, right, factor = product
    if target.is_cuda:
        # Triton is installed wherever torch has CUDA.
        from serve_app.engine.low_rank_kernel import add_product

        add_product(target, original, left, right, factor)
    else:
        torch.add(original, left.float() @ right.float(), alpha=factor, out=target)


def as_products(linears: Sequence[Sequence[tuple[LowRank, float]]]) -> Iterable[Product]:
    """All scaled deltas of each linear as one product of 16-bit matrices. The linears' deltas have the same shapes.

    A single 16-bit adapter is used as it is. Otherwise each matrix that bf16 cannot represent is split into the nearest
    bf16 matrix and the rest. So a product is exact to within 2^-16 of |scale * factor * up| @ |down|, and one pass over
    the weight is enough for any number of adapters. Many linears are done in one batch because launching a small kernel
    takes longer than running it.
    """
    first, _ = linears[0][0]
    if len(linears[0]) == 1 and first.up.dtype == first.down.dtype in (torch.bfloat16, torch.float16):
        return [(delta.up, delta.down, delta.factor * scale) for [(delta, scale)] in linears]
    left, right = [], []
    for same in zip(*linears, strict=True):
        factors = torch.tensor([delta.factor * scale for delta, scale in same])
        ups, downs = torch.stack([delta.up for delta, _ in same]), torch.stack([delta.down for delta, _ in same])
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
    """Split fp32 matrices into two bf16 matrices that add up to them, nearly."""
    nearest = matrices.bfloat16()
    return nearest, (matrices - nearest).bfloat16()
