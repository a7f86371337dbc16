"""What the levers of tiers lose, on the trained miniature, and what they gain, at the published size.

    python -m benchmarks.tiers                               # losses of all candidates, on a GPU or a CPU
    python -m benchmarks.tiers --only shipped --side 256     # of the documented tiers, small, on a CPU
    python -m benchmarks.tiers --full-size frontier.json     # seconds at the published size, on a GPU

Losses compare with the exact edit (25 steps, guidance 4) of eleven instructions and three LoRAs. The first form writes
`--out`: for each candidate also which blocks its slowest case computed in each step. The last form makes the published
size compute the same share: random weights would leave out other blocks than trained ones.
"""

import argparse
import json
import time
from pathlib import Path

import torch

from benchmarks.tiers.candidates import (
    ALL,
    CACHES,
    FEW,
    FEWER_STEPS,
    GATES,
    IN_FP8,
    MAGCACHE,
    SEACACHE,
    SHIPPED,
    TAYLORSEER,
    Candidate,
)
from benchmarks.tiers.cases import make_cases, use_of
from benchmarks.tiers.frontier import HEADER, Miniature, exact_edits, losses, row, summary
from serve_app.config.attention import ATTENTION_KERNELS
from serve_app.pipeline.device import dtype_for

SETS = {
    "all": ALL,
    "shipped": SHIPPED,
    "gates": GATES,
    "caches": CACHES,
    "taylorseer": TAYLORSEER,
    "magcache": MAGCACHE,
    "seacache": SEACACHE,
    "steps": FEWER_STEPS,
    "fp8": IN_FP8,
    "few": FEW,
}

# The first so many cases give MagCache's ratios.
CALIBRATED = 3


def measure_losses(options: argparse.Namespace, candidates: list[Candidate]) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype_for(device)
    # On a CPU only weights are rounded to fp8, from bf16; other candidates compute in fp32 there.
    few_steps = use_of(options.few_steps) if options.few_steps else None
    cases = make_cases(options.side, options.steps, options.guidance)[: options.cases]
    plain = Miniature(device, dtype, "none", options.threads)
    started = time.perf_counter()
    exact = exact_edits(plain, cases)
    took = time.perf_counter() - started
    about = {"device": str(device), "dtype": str(dtype), "side": options.side, "steps": options.steps}
    print(json.dumps(about | {"cases": len(cases), "exact_s": round(took, 1)}), flush=True)
    if any(c.cache is not None and c.cache.kind == "magcache" for c in candidates):
        plain.calibrate(cases[:CALIBRATED])
        about |= {"magcache_ratios": [round(ratio, 4) for ratio in plain.ratios]}
        print(json.dumps(about), flush=True)
    print(HEADER, flush=True)
    rounded = Miniature(device, dtype, "fp8", options.threads) if any(c.fp8 for c in candidates) else None
    found = []
    for candidate in candidates:
        if candidate.few_steps and few_steps is None:
            continue
        engine = rounded if candidate.fp8 and rounded is not None else plain
        found.append(summary(candidate, losses(engine, cases, exact, candidate, few_steps)))
        print(row(found[-1]), flush=True)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"about": about, "candidates": found}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SETS, default=["all"])
    parser.add_argument("--side", type=int, default=1024, help="of the images (pixels)")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--cases", type=int, help="only the first so many")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--few-steps", type=Path, help="the adapter that was distilled to few steps")
    parser.add_argument("--out", type=Path, default=Path("out/tiers.json"))
    parser.add_argument("--full-size", type=Path, metavar="FRONTIER", help="what the first form wrote")
    parser.add_argument("--tiny", action="store_true", help="with --full-size: only see that it runs, on a CPU")
    parser.add_argument("--kernel", default="native", choices=ATTENTION_KERNELS, help="with --full-size")
    options = parser.parse_args()
    candidates = list({c.name: c for name in options.only for c in SETS[name]}.values())
    if options.full_size:
        from benchmarks.tiers.full_size import measure_speed

        measure_speed(options, candidates)
        return
    measure_losses(options, candidates)


if __name__ == "__main__":
    main()
