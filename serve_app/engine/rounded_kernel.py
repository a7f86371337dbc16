"""The CUDA kernels that merge a low-rank product into a weight and round the sum to fp8, row by row.

torchao's own quantisation takes about ten kernels per weight, most of them over fp32 copies of it. These two read the
original twice and write nothing but the result. Both compute a tile of the sum as `low_rank_kernel` does, rounded to
the original's dtype: the first finds each row's largest absolute value, the second rounds by it. The result has the
bits of torchao's `Float8Tensor.from_hp` of the merged weight, with one scale per row and e4m3.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from serve_app.engine.low_rank_kernel import COLUMNS, RANKS, ROWS

# torchao divides the largest absolute value by this, in the weight's dtype.
LARGEST: tl.constexpr = tl.constexpr(448.0)


def round_merged(
    rounded: Tensor, scale: Tensor, original: Tensor, product: tuple[Tensor, Tensor, float] | None
) -> None:
    """Write `original` (out, in), plus `product`, into `rounded` (out, in; e4m3) and `scale` (out, 1; fp32).

    `product` is (left (out, k), right (k, in), factor), the matrices in one 16-bit dtype; None adds nothing. All
    tensors are contiguous or, for the product's, strided, and on one device.
    """
    rows, columns = original.shape
    left, right, factor = product if product is not None else (original, original, 0.0)
    ranks = left.shape[1] if product is not None else 0
    shape = (rows, columns, ranks, *left.stride(), *right.stride())
    grid = (triton.cdiv(rows, ROWS), triton.cdiv(columns, COLUMNS))
    tile = {"BM": ROWS, "BN": COLUMNS, "BK": RANKS}
    largest = torch.zeros(rows, dtype=torch.int32, device=original.device)
    with current(original.device):
        _largest[grid](largest, original, left, right, factor, *shape, **tile)
        _round[grid](rounded, scale, largest, original, left, right, factor, *shape, **tile)


def current(device: torch.device) -> AbstractContextManager[None]:
    """Triton launches on the current device, not on the device of the tensors."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


# Without type hints: Triton resolves every name in a signature in its own language.
@triton.jit  # type: ignore[untyped-decorator]
def _merged(  # type: ignore[no-untyped-def]
    original,
    left,
    right,
    factor,
    rows,
    columns,
    M,
    N,
    K,
    left_m,
    left_k,
    right_k,
    right_n,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """A tile of the sum, as `_add_product` computes and rounds it, in fp32; 0 beyond the weight's edges."""
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


@triton.jit  # type: ignore[untyped-decorator]
def _largest(  # type: ignore[no-untyped-def]
    largest,
    original,
    left,
    right,
    factor,
    M,
    N,
    K,
    left_m,
    left_k,
    right_k,
    right_n,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """Each row's largest absolute value, as the bits of an fp32: of numbers that are not negative, they order alike."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    columns = tl.program_id(1) * BN + tl.arange(0, BN)
    tile = _merged(original, left, right, factor, rows, columns, M, N, K, left_m, left_k, right_k, right_n, BM, BN, BK)
    found = tl.max(tl.abs(tile).to(tl.int32, bitcast=True), axis=1)
    tl.atomic_max(largest + rows, found, mask=rows < M)


@triton.jit  # type: ignore[untyped-decorator]
def _round(  # type: ignore[no-untyped-def]
    rounded,
    scale,
    largest,
    original,
    left,
    right,
    factor,
    M,
    N,
    K,
    left_m,
    left_k,
    right_k,
    right_n,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    columns = tl.program_id(1) * BN + tl.arange(0, BN)
    tile = _merged(original, left, right, factor, rows, columns, M, N, K, left_m, left_k, right_k, right_n, BM, BN, BK)
    bits = tl.load(largest + rows, mask=rows < M, other=0)
    # In the weight's dtype, as torchao's.
    by = tl.div_rn(bits.to(tl.float32, bitcast=True), LARGEST).to(original.dtype.element_ty).to(tl.float32)
    if tl.program_id(1) == 0:
        tl.store(scale + rows, by, mask=rows < M)
    scaled = tl.div_rn(tile, by[:, None].broadcast_to((BM, BN)))
    # A row of zeros is 0 / 0, as torchao's.
    limited = tl.clamp(scaled, -LARGEST, LARGEST, propagate_nan=tl.PropagateNan.ALL)
    offsets = rows[:, None].to(tl.int64) * N + columns[None, :]
    mask = (rows[:, None] < M) & (columns[None, :] < N)
    tl.store(rounded + offsets, limited.to(rounded.dtype.element_ty), mask=mask)
