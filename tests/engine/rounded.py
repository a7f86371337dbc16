"""Rounds weights to fp8 by the CUDA kernels, for test_rounded_kernel.py: TRITON_INTERPRET=1 must be set.

Writes for each shape how far scales are from torchao's at most (relative), and the share of values that are equal.
"""

import json
import sys

import torch

from serve_app.engine.rounded_kernel import round_merged
from serve_app.pipeline.quantization import quantised

SHAPES = ((100, 200, 32), (64, 128, 0), (33, 260, 80))


def compared(rows: int, columns: int, rank: int) -> dict[str, float]:
    original = torch.randn(rows, columns)
    original[0] *= 100
    merged, product = original, None
    if rank:
        left, right = (torch.randn(rows, rank) * 0.1).half(), (torch.randn(columns, rank) * 0.1).half().t()
        product = (left, right, 0.7)
        merged = original + 0.7 * (left.float() @ right.float())
    rounded, scale = torch.zeros(rows, columns, dtype=torch.float8_e4m3fn), torch.zeros(rows, 1)
    round_merged(rounded, scale, original, product)
    expected = quantised(merged)
    return {
        "scales": float(((scale - expected.scale) / expected.scale).abs().max()),
        "equal": float((rounded.float() == expected.qdata.float()).float().mean()),
    }


if __name__ == "__main__":
    torch.manual_seed(0)
    sys.stdout.write(json.dumps([compared(*shape) for shape in SHAPES]))
