"""What each card needs and how long its edits take, on one GPU that is limited to the card's memory.

    python -m benchmarks.cards                     # 8, 12, 16, 24, 32 and 48 GiB streamed, 80 and 141 GiB resident
    python -m benchmarks.cards --cards 24 8 --bus 25 --model qwen_image_edit_plus_2511
    python -m benchmarks.cards --tiny              # a quick check on a CPU, with the miniature

1024x1024, one adapter of rank 32, compiled blocks. A step is the difference of two edits. `edit_25_steps_s` is the time
of a whole edit of few steps, from the control image's bytes to the decoded image, and 25 steps in place of the few.
`--bus` simulates slower connections, in GB per second, by copying the same bytes several times.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.streaming import Bench, attempt, bus, limit, measure_bus, report, stages
from serve_app.engine.torch_engine import TorchEngine
from serve_app.pipeline import streaming

STREAMED, RESIDENT = (8.0, 12.0, 16.0, 24.0, 32.0, 48.0), {80.0: "host", 141.0: "device"}
# The steps of a whole edit, and of the two edits whose difference is a step.
STEPS, FEW, MANY = 25, 2, 6


def times(bench: Bench, engine: TorchEngine, guidance: float, few: int = FEW, many: int = MANY) -> dict[str, float]:
    """Seconds of a step and of a whole edit."""
    whole, denoising = [], []
    for steps in (few, many):
        started = time.perf_counter()
        stages = bench.edit(engine, bench.plan(steps, bench.one, guidance=guidance))
        whole.append(time.perf_counter() - started)
        denoising.append(stages["denoise"])
    step = (denoising[1] - denoising[0]) / (many - few)
    return {"step_s": round(step, 3), "edit_25_steps_s": round(whole[1] + (STEPS - many) * step, 2)}


def most_used_gib(bench: Bench, engine: TorchEngine) -> float:
    """The most that the driver reports as used after any part of a streamed edit, in GiB."""
    if bench.tiny:
        return 0.0
    found: list[dict[str, Any]] = []
    engine._denoiser.placement._close()
    with stages(found):
        bench.edit(engine, bench.plan(1, bench.one))
        engine._denoiser.placement._close()
    return max(part["driver_used"] for part in found)


def resident(bench: Bench, card: float) -> None:
    """Edits with all weights on the card, and their copy where the card has room for it."""
    if not bench.tiny:
        torch.cuda.reset_peak_memory_stats()
        streaming.limit_memory(bench.device, int(card * 2**30) - streaming.CONTEXT_BYTES)
    before = psutil.Process().memory_info().rss
    engine = bench.engine(adapter_weights="auto" if bench.tiny else RESIDENT[card])
    engine.make_ready()
    grown = (psutil.Process().memory_info().rss - before) / 2**30
    for guidance in (4.0, 1.0):
        shown = times(bench, engine, guidance)
        report(card=card, guidance=guidance, copy=RESIDENT[card], **shown)
    most = 0.0 if bench.tiny else torch.cuda.max_memory_reserved() / 2**30
    report(card=card, reserved_gib=round(most, 2), host_memory_grew_gib=round(grown, 1))


def streamed(bench: Bench, cards: list[float], speeds: list[float], measured: float) -> None:
    """Edits with weights in host memory, on one card after the other."""
    before = psutil.Process().memory_info().rss
    engine = bench.engine(offload="stream", device_memory_gib=max(cards))
    engine.make_ready()
    report(host_memory_grew_gib=round((psutil.Process().memory_info().rss - before) / 2**30, 1))
    for card in cards:
        attempt(streamed_card, bench, engine, card, speeds, measured)
    report(recompilations=engine.recompilations)


def streamed_card(bench: Bench, engine: TorchEngine, card: float, speeds: list[float], measured: float) -> None:
    limit(engine, card)
    part = engine._denoiser.placement._parts[engine._pipeline.transformer]
    for guidance in (4.0, 1.0):
        shown = times(bench, engine, guidance)
        report(card=card, guidance=guidance, stay=part.stay, **shown)
    report(card=card, most_used_gib=most_used_gib(bench, engine))
    for speed in speeds:
        with bus(speed, measured):
            for guidance in (4.0, 1.0):
                report(card=card, guidance=guidance, bus=speed, **times(bench, engine, guidance, 1, 3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--model", default="qwen_image_edit")
    parser.add_argument("--cards", nargs="+", type=float, default=[*STREAMED, *RESIDENT], help="GiB")
    parser.add_argument("--bus", nargs="*", type=float, default=[25.0], help="GB per second")
    options = parser.parse_args()
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(tempfile.gettempdir(), "compiled")))
    name = "cpu" if options.tiny else torch.cuda.get_device_name()
    report(device=name, torch=torch.__version__, model=options.model, date=time.strftime("%Y-%m-%d"))
    with tempfile.TemporaryDirectory() as folder:
        speed = 25.0 if options.tiny else measure_bus()
        bench = Bench(options, Path(folder))
        smaller = [card for card in options.cards if card not in RESIDENT]
        # Streamed first: what a resident engine leaves in the driver's caches would count as used.
        if smaller:
            attempt(streamed, bench, smaller, options.bus, speed)
        for card in options.cards:
            if card in RESIDENT:
                attempt(resident, bench, card)


if __name__ == "__main__":
    main()
