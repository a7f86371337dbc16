"""Seconds of candidates and of exact at the published size, each with the forwards and blocks of its slowest case."""

import argparse
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers.hooks.first_block_cache import FBCHeadBlockHook

from benchmarks.beside_stock import own_engine, relative_error
from benchmarks.edits import Bench, Made, make_bench, own_edit
from benchmarks.full_size import PHOTOGRAPH, PLAN
from benchmarks.tiers.candidates import EXACT, Candidate
from benchmarks.tiers.frontier import Work
from serve_app.commands.compare import difference
from serve_app.tasks import AdapterUse, EditPlan


@contextmanager
def forced(work: Work) -> Iterator[None]:
    """Within, a feature cache computes all blocks in those forwards in which `work` has more than one.

    `work` has the number of blocks of each forward of each step. Edits must be made one after the other.
    """
    whole = [blocks > 1 for step in work for blocks in step]
    done = 0

    def decide(hook: FBCHeadBlockHook, residual: torch.Tensor) -> bool:
        nonlocal done
        # The measurement itself waits for the device, as the real one does.
        FBC_DECISION(hook, residual)
        done += 1
        return whole[(done - 1) % len(whole)]

    FBCHeadBlockHook._should_compute_remaining_blocks = decide
    try:
        yield
    finally:
        FBCHeadBlockHook._should_compute_remaining_blocks = FBC_DECISION


FBC_DECISION = FBCHeadBlockHook._should_compute_remaining_blocks


def measure_speed(options: argparse.Namespace, candidates: list[Candidate]) -> None:
    frontier = {each["candidate"]: each for each in json.loads(options.full_size.read_text())["candidates"]}
    with tempfile.TemporaryDirectory() as folder:
        bench = make_bench(PLAN, options.tiny, Path(folder), 2, options.threads)
        size = (64, 64) if options.tiny else (1024, 1024)
        one, two = bench.plan(size, options.steps, 1), bench.plan(size, options.steps, 2)
        print(json.dumps({"device": "cpu" if options.tiny else torch.cuda.get_device_name()}), flush=True)
        print("| setting | edit, s | exact / it | denoising, s | exact / it | forwards | whole forwards | swap, s "
              "| PSNR, dB | error of latents |\n|---|---|---|---|---|---|---|---|---|---|", flush=True)  # fmt: skip
        exact: Made | None = None
        for mode in ("compiled", "fp8"):
            chosen = [each for each in candidates if each.fp8 == (mode == "fp8") and each.name in frontier]
            if not chosen and exact is not None:
                continue
            with own_engine(bench, mode, options.kernel, [size], "device") as engine:
                if exact is None:
                    exact = timed(bench, engine, EXACT, one, two.adapters[1])
                    show("exact", exact, exact, 2 * one.steps, 2 * one.steps)
                for candidate in chosen:
                    work = frontier[candidate.name]["work"]
                    with forced(work):
                        made = timed(bench, engine, candidate, one, two.adapters[1])
                    whole = sum(blocks > 1 for step in work for blocks in step)
                    show(candidate.name, made, exact, sum(map(len, work)), whole)
                again = timed(bench, engine, EXACT if mode == "compiled" else Candidate("fp8", {"quantization": "fp8"}),
                              one, two.adapters[1])  # fmt: skip
                show(
                    f"{'exact' if mode == 'compiled' else 'fp8'}, once more", again, exact, 2 * one.steps, 2 * one.steps
                )
                print(json.dumps({"mode": mode, "recompilations": engine.recompilations}), flush=True)


def timed(bench: Bench, engine: Any, candidate: Candidate, exact: EditPlan, few_steps: AdapterUse) -> Made:
    """One edit, with its adapters in host memory and another state of the weights before it."""
    plan = candidate.plan(exact, few_steps)
    without = replace(plan, steps=1, adapters=(), feature_cache=None)
    engine.hold(plan.adapters)
    engine.edit(without, [PHOTOGRAPH.read_bytes()])
    return own_edit(bench, engine, plan)


def show(name: str, made: Made, exact: Made, forwards: int, whole: int) -> None:
    denoising, before = made.stages["denoise"], exact.stages["denoise"]
    psnr = difference(exact.image, made.image).psnr
    error = relative_error(made.forwards.latents, exact.forwards.latents)
    print(
        f"| {name} | {made.seconds:.2f} | {exact.seconds / made.seconds:.2f} | {denoising:.2f} "
        f"| {before / denoising:.2f} "
        f"| {forwards} | {whole} | {made.stages['apply_adapters']:.3f} | {psnr:.1f} | {error:.4f} |",
        flush=True,
    )
