"""Rounds weights to fp8 by the CUDA kernels, for test_rounded_kernel.py: TRITON_INTERPRET=1 must be set.

Writes for each shape how far scales are from torchao's at most (relative), the share of values that are equal, and
whether the rows of zeros are zeros.
"""

import json
import sys

import torch

from serve_app.engine.rounded_kernel import Rounding, round_merged
from serve_app.pipeline.quantization import quantised

SHAPES = ((100, 200, 32), (64, 128, 0), (33, 260, 80))


# A row of the originals and of the products that is zero.
ZEROS = 1


def compared(rows: int, columns: int, rank: int) -> dict[str, float | bool]:
    """Two weights of a shape, in one launch."""
    weights, merged = [], []
    for _ in range(2):
        original = torch.randn(rows, columns)
        original[0] *= 100
        left, right = (torch.randn(rows, rank) * 0.1).half(), (torch.randn(columns, rank) * 0.1).half().t()
        original[ZEROS], left[ZEROS] = 0, 0
        factor = float(torch.rand(()))
        merged.append(original + factor * (left.float() @ right.float()))
        product = (left, right, factor) if rank else (original, original, 0.0)
        rounded, scale = torch.zeros(rows, columns, dtype=torch.float8_e4m3fn), torch.zeros(rows, 1)
        weights.append(Rounding(rounded, scale, original, *product))
    round_merged(weights, rank)
    expected = [quantised(each) for each in merged]
    return {
        "scales": max(float((w.scale / e.scale - 1).abs().max()) for w, e in zip(weights, expected, strict=True)),
        "equal": min(
            float((w.rounded.float() == e.qdata.float()).float().mean()) for w, e in zip(weights, expected, strict=True)
        ),
        "zeros": all(bool((w.rounded.float()[ZEROS] == 0).all() and w.scale[ZEROS] > 0) for w in weights),
    }


if __name__ == "__main__":
    torch.manual_seed(0)
    sys.stdout.write(json.dumps([compared(*shape) for shape in SHAPES]))
