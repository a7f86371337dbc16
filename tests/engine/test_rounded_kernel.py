"""The kernels that round merged weights to fp8, in Triton's interpreter: every tile and every edge, without a GPU.

The interpreter rounds to bf16 and to e4m3 in another way than a GPU (it loses a carry), so the weights are fp32 here,
and a few values may differ. `python -m benchmarks.adapter_swap --fp8` checks on a GPU that all bits are torchao's.
"""

import json
import os
import subprocess
import sys

from tests.conftest import ROOT


def test_weights_are_rounded_as_torchao_rounds_the_sum():
    # In a process of its own: Triton decides at its import whether it interprets.
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "tests.engine.rounded"]
    made = subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    for shape in json.loads(made.stdout.splitlines()[-1]):
        assert shape["scales"] < 1e-6
        assert shape["equal"] > 0.95
        assert shape["zeros"]
