"""The CUDA kernels that merge low-rank products into weights and round the sums to fp8, row by row.

torchao's own quantisation takes about ten kernels per weight, most of them over fp32 copies of it. These two read the
originals twice and write nothing but the result. Both compute a tile of the sum as `low_rank_kernel` does, rounded to
the original's dtype: the first finds each row's largest absolute value, the second rounds by it. The result has the
bits of `quantised`, which is torchao's `Float8Tensor.from_hp`, of the merged weight. Each launch does many
weights of one shape, since launching 1,500 kernels takes longer than running them.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from serve_app.engine.low_rank_kernel import COLUMNS, RANKS, ROWS
from serve_app.pipeline.device import current
from serve_app.pipeline.quantization import LEAST_LARGEST

# torchao divides the largest absolute value by this, in the weight's dtype.
LARGEST: tl.constexpr = tl.constexpr(448.0)
# The bits of LEAST_LARGEST, a power of two, as an fp32.
LEAST_BITS: tl.constexpr = tl.constexpr((127 + int(math.log2(LEAST_LARGEST))) << 23)
# Elements: vector instructions need addresses that are multiples of so many.
ALIGNMENT = 16


class Rounding(NamedTuple):
    """One weight: `original` (out, in) plus `factor` * `left` (out, k) @ `right` (k, in) is rounded into `rounded`.

    `rounded` is (out, in) in e4m3, `scale` (out, 1) in fp32. Without a product, `left` and `right` are `original`.
    """

    rounded: Tensor
    scale: Tensor
    original: Tensor
    left: Tensor
    right: Tensor
    factor: float


def round_merged(weights: Sequence[Rounding], ranks: int) -> None:
    """Round each weight. `ranks` is k, 0 without products.

    All weights share a device, their shape and dtype; their products share a 16-bit dtype and strides.
    """
    first = weights[0]
    device, (rows, columns) = first.original.device, first.original.shape
    tensors = list(zip(*weights, strict=True))[:5]
    offsets = [[elements_apart(tensor, same[0]) for tensor in same] for same in tensors]
    aligned = all(offset % ALIGNMENT == 0 for same in offsets for offset in same)
    where = torch.tensor(offsets, dtype=torch.int64).to(device, non_blocking=True)
    factors = torch.tensor([weight.factor for weight in weights], dtype=torch.float32).to(device, non_blocking=True)
    largest = torch.zeros(len(weights), rows, dtype=torch.int32, device=device)
    shape = (len(weights), rows, columns, ranks, *first.left.stride(), *first.right.stride())
    grid = (triton.cdiv(rows, ROWS), triton.cdiv(columns, COLUMNS), len(weights))
    tile = {"ALIGNED": aligned, "BM": ROWS, "BN": COLUMNS, "BK": RANKS}
    with current(device):
        _largest[grid](largest, *first[2:5], where, factors, *shape, **tile)
        _round[grid](*first[:2], largest, *first[2:5], where, factors, *shape, **tile)


def elements_apart(tensor: Tensor, first: Tensor) -> int:
    return (tensor.data_ptr() - first.data_ptr()) // tensor.element_size()


# Without type hints: Triton resolves every name in a signature in its own language.
@triton.jit  # type: ignore[untyped-decorator]
def _at(base, where, number, ALIGNED: tl.constexpr):  # type: ignore[no-untyped-def]
    """The address of a weight's tensor: so many elements behind that of the first weight."""
    offset = tl.load(where + number)
    if ALIGNED:
        offset = tl.multiple_of(offset, 16)
    return base + offset


@triton.jit  # type: ignore[untyped-decorator]
def _merged(  # type: ignore[no-untyped-def]
    original,
    left,
    right,
    where,
    factors,
    rows,
    columns,
    COUNT,
    M,
    N,
    K,
    left_m,
    left_k,
    right_k,
    right_n,
    ALIGNED: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """A tile of the sum, as `_add_product` computes and rounds it, in fp32; 0 beyond the weight's edges."""
    weight_number = tl.program_id(2)
    original = _at(original, where + 2 * COUNT, weight_number, ALIGNED)
    left = _at(left, where + 3 * COUNT, weight_number, ALIGNED)
    right = _at(right, where + 4 * COUNT, weight_number, ALIGNED)
    factor = tl.load(factors + weight_number)
    product = tl.zeros((BM, BN), tl.float32)
    for k in range(0, K, BK):
        ranks = k + tl.arange(0, BK)
        a_mask = (rows[:, None] < M) & (ranks[None, :] < K)
        b_mask = (ranks[:, None] < K) & (columns[None, :] < N)
        a = tl.load(left + rows[:, None] * left_m + ranks[None, :] * left_k, mask=a_mask, other=0.0)
        b = tl.load(right + ranks[:, None] * right_k + columns[None, :] * right_n, mask=b_mask, other=0.0)
        product = tl.dot(a, b, product)
    offsets = rows[:, None].to(tl.int64) * N + columns[None, :]
    mask = (rows[:, None] < M) & (columns[None, :] < N)
    weight = tl.load(original + offsets, mask=mask, other=0.0)
    return (weight.to(tl.float32) + factor * product).to(weight.dtype).to(tl.float32)


# Not compiled anew for each number of weights.
@triton.jit(do_not_specialize=["COUNT"])  # type: ignore[untyped-decorator]
def _largest(  # type: ignore[no-untyped-def]
    largest,
    original,
    left,
    right,
    where,
    factors,
    COUNT,
    M,
    N,
    K,
    left_m,
    left_k,
    right_k,
    right_n,
    ALIGNED: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """Each row's largest absolute value, as the bits of an fp32: of numbers that are not negative, they order alike."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    columns = tl.program_id(1) * BN + tl.arange(0, BN)
    tile = _merged(
        original, left, right, where, factors, rows, columns, COUNT, M, N, K, left_m, left_k, right_k, right_n,
        ALIGNED, BM, BN, BK,
    )  # fmt: skip
    found = tl.max(tl.abs(tile).to(tl.int32, bitcast=True), axis=1)
    tl.atomic_max(largest + tl.program_id(2) * M + rows, found, mask=rows < M)


# Not compiled anew for each number of weights.
@triton.jit(do_not_specialize=["COUNT"])  # type: ignore[untyped-decorator]
def _round(  # type: ignore[no-untyped-def]
    rounded,
    scale,
    largest,
    original,
    left,
    right,
    where,
    factors,
    COUNT,
    M,
    N,
    K,
    left_m,
    left_k,
    right_k,
    right_n,
    ALIGNED: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    columns = tl.program_id(1) * BN + tl.arange(0, BN)
    tile = _merged(
        original, left, right, where, factors, rows, columns, COUNT, M, N, K, left_m, left_k, right_k, right_n,
        ALIGNED, BM, BN, BK,
    )  # fmt: skip
    bits = tl.maximum(tl.load(largest + tl.program_id(2) * M + rows, mask=rows < M, other=0), LEAST_BITS)
    # In the weight's dtype, as torchao's.
    by = tl.div_rn(bits.to(tl.float32, bitcast=True), LARGEST).to(original.dtype.element_ty).to(tl.float32)
    if tl.program_id(1) == 0:
        tl.store(_at(scale, where + COUNT, tl.program_id(2), False) + rows, by, mask=rows < M)
    scaled = tl.div_rn(tile, by[:, None].broadcast_to((BM, BN)))
    limited = tl.clamp(scaled, -LARGEST, LARGEST, propagate_nan=tl.PropagateNan.ALL)
    offsets = rows[:, None].to(tl.int64) * N + columns[None, :]
    mask = (rows[:, None] < M) & (columns[None, :] < N)
    target = _at(rounded, where, tl.program_id(2), ALIGNED)
    tl.store(target + offsets, limited.to(rounded.dtype.element_ty), mask=mask)
