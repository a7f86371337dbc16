"""The only CUDA kernel of this package: it adds a low-rank product to a weight in one pass.

`torch.addmm` in bf16 rounds the product before it adds it. A separate product in fp32 reads and writes four more bytes
per weight. This kernel keeps product and sum in registers, in fp32, and rounds once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# The rows and columns of the weight that one program writes, and the slice of the rank that it multiplies at a time.
ROWS, COLUMNS, RANKS = 64, 128, 32


def add_product(target: Tensor, original: Tensor, left: Tensor, right: Tensor, factor: float) -> None:
    """Write `original` + `factor` * `left` (out, k) @ `right` (k, in) into `target` (out, in), rounded once.

    `target` and `original` are contiguous and share a dtype; `left` and `right` share a 16-bit dtype. All four are on
    one GPU.
    """
    (rows, ranks), columns = left.shape, right.shape[1]
    grid = (triton.cdiv(rows, ROWS), triton.cdiv(columns, COLUMNS))
    strides = (*left.stride(), *right.stride())
    # Triton launches on the current device, not on the device of the tensors.
    with torch.cuda.device(target.device):
        _add_product[grid](
            target, original, left, right, factor, rows, columns, ranks, *strides, BM=ROWS, BN=COLUMNS, BK=RANKS
        )


# Without type hints: Triton resolves every name in a signature in its own language.
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
    # 64-bit offsets: a weight may have more than 2**31 elements.
    offsets = rows[:, None].to(tl.int64) * N + columns[None, :]
    mask = (rows[:, None] < M) & (columns[None, :] < N)
    weight = tl.load(original + offsets, mask=mask, other=0.0).to(tl.float32)
    tl.store(target + offsets, (weight + factor * product).to(target.dtype.element_ty), mask=mask)
