"""The one CUDA kernel of our own: a low-rank product added to a weight in one pass.

`torch.addmm` in bf16 rounds the product before it adds it; a product in fp32 that is added afterwards reads and
writes four more bytes a weight. Here product and sum stay in registers, in fp32, and are rounded once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# Rows and columns of the weight that one program writes, and how much of the rank it multiplies at a time.
ROWS, COLUMNS, RANKS = 64, 128, 32


def add_product(target: Tensor, original: Tensor, left: Tensor, right: Tensor, factor: float) -> None:
    """`target` (out, in) becomes `original` + `factor` * `left` (out, k) @ `right` (k, in), rounded once.

    `target` and `original` are contiguous and of one dtype; `left` and `right` of one 16-bit dtype; all on one card.
    """
    (rows, ranks), columns = left.shape, right.shape[1]
    grid = (triton.cdiv(rows, ROWS), triton.cdiv(columns, COLUMNS))
    strides = (*left.stride(), *right.stride())
    # Triton launches on the current device, wherever the tensors lie.
    with torch.cuda.device(target.device):
        _add_product[grid](
            target, original, left, right, factor, rows, columns, ranks, *strides, BM=ROWS, BN=COLUMNS, BK=RANKS
        )


# Without types: Triton looks up every name of a signature in its own language.
@triton.jit  # type: ignore[untyped-decorator]
def _add_product(  # type: ignore[no-untyped-def]
    target,
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
    product = tl.zeros((BM, BN), tl.float32)
    for k in range(0, K, BK):
        ranks = k + tl.arange(0, BK)
        a_mask = (rows[:, None] < M) & (ranks[None, :] < K)
        b_mask = (ranks[:, None] < K) & (columns[None, :] < N)
        a = tl.load(left + rows[:, None] * left_m + ranks[None, :] * left_k, mask=a_mask, other=0.0)
        b = tl.load(right + ranks[:, None] * right_k + columns[None, :] * right_n, mask=b_mask, other=0.0)
        product = tl.dot(a, b, product)
    # In 64 bits: a weight may have more elements than 32 bits count.
    place = rows[:, None].to(tl.int64) * N + columns[None, :]
    mask = (rows[:, None] < M) & (columns[None, :] < N)
    weight = tl.load(original + place, mask=mask, other=0.0).to(tl.float32)
    tl.store(target + place, (weight + factor * product).to(target.dtype.element_ty), mask=mask)
