"""Which attention kernel this machine is fastest with, at the published sizes; proposes a line for the config.

Prompts differ in length: the last column is what the first call of a length costs beside the second.

python -m benchmarks.attention            # 1024x1024 with one control image and about 1400 tokens of text
python -m benchmarks.attention --tiny     # on a CPU, to see that it runs
"""

import argparse
import statistics
from functools import partial

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn

from benchmarks.chip import seconds
from serve_app.models.registry import MODELS
from serve_app.pipeline import miniature
from serve_app.pipeline.acceleration import BACKENDS, choose_attention

TOKENS, HEADS, WIDTH = 4096 + 4096 + 1400, 24, 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--runs", type=int, default=20)
    options = parser.parse_args()
    device, dtype = (torch.device("cpu"), torch.float32) if options.tiny else (torch.device("cuda"), torch.bfloat16)
    tokens, heads = (256, 2) if options.tiny else (TOKENS, HEADS)
    inputs = [torch.randn(1, tokens, heads, WIDTH, device=device, dtype=dtype) for _ in range(3)]
    # It sets the kernels up; the transformer itself is of no matter.
    with torch.no_grad():
        transformer = miniature.make_transformer(zero_cond_t=False)
    expected = dispatch_attention_fn(*inputs, backend=AttentionBackendName.NATIVE)
    print("| kernel | ms | TFLOP/s | error beside native (rms) | a new length, ms more |\n|---|---|---|---|---|")
    found: dict[str, float] = {}
    for name in BACKENDS:
        try:
            choose_attention(transformer, name)
            backend = AttentionBackendName(BACKENDS[name])
            call = partial(dispatch_attention_fn, *inputs, backend=backend)
            error = (call() - expected).float().square().mean().sqrt().item()
            times = [seconds(call, device) for _ in range(options.runs + 3)]
            shorter = partial(dispatch_attention_fn, *(each[:, 1:].contiguous() for each in inputs), backend=backend)
            first, again = seconds(shorter, device), seconds(shorter, device)
            found[name] = statistics.median(times[3:])
        except (ImportError, RuntimeError, ValueError, TypeError, AssertionError) as failure:
            print(f"| {name} | not here: {str(failure).splitlines()[0][:80]} | | | |")
            continue
        flops = 4 * tokens**2 * heads * WIDTH / found[name]
        row = f"| {name} | {found[name] * 1e3:.3f} | {flops / 1e12:.2f} | {error:.2e} | {(first - again) * 1e3:.1f} |"
        print(row)
    print(f"\nmodels: - {{id: {MODELS['qwen_image_edit'].id}, attention: {min(found, key=found.__getitem__)}}}")


if __name__ == "__main__":
    main()
