"""Streamed weights compared with resident ones, on one GPU at the published size: pixels, time, memory.

    python -m benchmarks.streaming                 # the GPU limited to 24 and to 8 GiB
    python -m benchmarks.streaming --model qwen_image_edit_plus_2511 --only-steps
    python -m benchmarks.streaming --tiny          # a quick check on a CPU, with the miniature

Prints a line of JSON for each measurement. `step` is one denoising step at the end of an edit, the difference of two
edits; `bus` simulates a slower connection by copying the same bytes several times.
"""

import argparse
import gc
import json
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.full_size import PHOTOGRAPH, PLAN, make_pipeline, write_lora
from serve_app.config import ModelConfig
from serve_app.engine.torch_engine import TorchEngine
from serve_app.models import architecture
from serve_app.models.registry import MODELS
from serve_app.pipeline import miniature, streaming
from serve_app.pipeline.denoise import denoise
from serve_app.pipeline.device import free_cached_memory
from serve_app.pipeline.host_units import CopyStream, host_block, pin, unpin
from serve_app.pipeline.random_lora import make_lora
from serve_app.storage.identity import fingerprint
from serve_app.tasks import AdapterUse, EditPlan

STARTED = time.perf_counter()


def report(**values: Any) -> None:
    print(json.dumps({"at_s": round(time.perf_counter() - STARTED, 1), **values}), flush=True)


class Bench:
    """Engines of one model on the same weights, and the edits that compare them."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.spec = MODELS[options.model]
        self.tiny = options.tiny
        self.device = torch.device("cpu" if options.tiny else "cuda")
        self.size = (64, 64) if options.tiny else (1024, 1024)
        self.latents: list[Tensor] = []
        one, two, kron = (folder / f"{name}.safetensors" for name in ("one", "two", "kron"))
        pipeline = self.pipeline()
        for seed, path in enumerate((one, two)):
            if self.tiny:
                make_lora(pipeline.transformer, path, seed=seed)
            else:
                write_lora(path, seed)
        write_lokr(kron, architecture.from_config(pipeline.transformer.config).linears)
        self.one, self.two, self.kron = (AdapterUse(fingerprint(str(p)), p.name, str(p), 0.8) for p in (one, two, kron))

    def pipeline(self) -> Any:
        return miniature.make(self.spec) if self.tiny else make_pipeline(self.spec, self.device)

    def engine(self, **options: Any) -> TorchEngine:
        torch._dynamo.reset()
        gc.collect()
        free_cached_memory(self.device)
        config = ModelConfig(
            id=self.spec.id,
            device=self.device.type,
            threads=2 if self.tiny else 8,
            compile="regional",
            warm_up=[self.size],
            prompt_cache_bytes=0,
            control_cache_bytes=0,
            **options,
        )
        started = time.perf_counter()
        engine = TorchEngine(self.pipeline(), self.spec, config)
        report(engine=options, made_s=round(time.perf_counter() - started, 1))
        return engine

    def plan(self, steps: int, *uses: AdapterUse, guidance: float = 4.0) -> EditPlan:
        width, height = self.size
        return replace(
            PLAN, model=self.spec.id, width=width, height=height, steps=steps, adapters=uses, guidance_scale=guidance
        )

    def edit(self, engine: TorchEngine, plan: EditPlan) -> dict[str, float]:
        """An edit's seconds by stage. Its latents are the last of `latents`."""
        return engine.edit(plan, [PHOTOGRAPH.read_bytes()]).timings

    def stacks(self, engine: TorchEngine) -> list[Tensor]:
        """The latents of short edits without, with one and two adapters, and with LoKr."""
        self.latents.clear()
        for uses in ((), (self.one,), (self.one, self.two), (self.kron,)):
            self.edit(engine, self.plan(2, *uses))
        return list(self.latents)

    def step(self, engine: TorchEngine, guidance: float, few: int = 2, many: int = 8) -> float:
        """Seconds of a step with one adapter."""
        times = [self.edit(engine, self.plan(n, self.one, guidance=guidance))["denoise"] for n in (few, many)]
        return (times[1] - times[0]) / (many - few)

    @contextmanager
    def kept_latents(self) -> Iterator[None]:
        """Within, the latents of each edit are kept."""
        from serve_app.engine import denoiser

        def kept(*arguments: Any) -> Tensor:
            made = denoise(*arguments)
            self.latents.append(made.cpu())
            return made

        denoiser.denoise = kept
        try:
            yield
        finally:
            denoiser.denoise = denoise


def write_lokr(path: Path, linears: dict[str, tuple[int, int]]) -> None:
    """Write a random LoKr adapter on all linears of the blocks."""
    generator = torch.Generator().manual_seed(3)
    tensors = {}
    for name, (out, into) in linears.items():
        if name.startswith("transformer_blocks."):
            shapes = ((16, 16), (out // 16, into // 16))
            for part, shape in zip(("w1", "w2"), shapes, strict=True):
                tensors[f"diffusion_model.{name}.lokr_{part}"] = (
                    torch.randn(shape, generator=generator) * 0.03
                ).bfloat16()
    save_file(tensors, path)


def limit(engine: TorchEngine, gib: float) -> None:
    """Limit an engine's memory as `device_memory_gib` does."""
    placement = engine._denoiser.placement
    placement._close()
    placement._limit = int(gib * 2**30) - streaming.CONTEXT_BYTES
    if engine.device.type == "cuda":
        streaming.limit_memory(engine.device, placement._limit)


@contextmanager
def stages(found: list[dict[str, Any]]) -> Iterator[None]:
    """Within, appends the memory of each part of a pipeline that works (GiB): its weights, and the rest at most."""
    opened, closed = streaming.StreamedPart.open, streaming.StreamedPart.close

    def open_part(part: streaming.StreamedPart, room: int) -> None:
        before = torch.cuda.memory_allocated()
        opened(part, room)
        part.weights_bytes = torch.cuda.memory_allocated() - before
        torch.cuda.reset_peak_memory_stats()

    def close_part(part: streaming.StreamedPart) -> None:
        rest = torch.cuda.max_memory_allocated() - part.weights_bytes
        found.append(
            {
                "part_weights": round(part.weights_bytes / 2**30, 2),
                "rest": round(rest / 2**30, 2),
                "reserved": round(torch.cuda.max_memory_reserved() / 2**30, 2),
                "driver_used": round((torch.cuda.mem_get_info()[1] - torch.cuda.mem_get_info()[0]) / 2**30, 2),
                "stay": part.stay,
            }
        )
        closed(part)

    streaming.StreamedPart.open, streaming.StreamedPart.close = open_part, close_part
    try:
        yield
    finally:
        streaming.StreamedPart.open, streaming.StreamedPart.close = opened, closed


@contextmanager
def bus(gb_per_s: float, measured: float) -> Iterator[None]:
    """Within, copies take as long as on a bus of this speed: the same bytes are copied several times."""
    copy = CopyStream.copy
    times = measured / gb_per_s

    def slow(self: CopyStream, block: Tensor, host: Tensor) -> None:
        for _ in range(int(times)):
            copy(self, block, host)
        rest = int((times % 1) * host.nbytes)
        copy(self, block[:rest], host[:rest])

    CopyStream.copy = slow
    try:
        yield
    finally:
        CopyStream.copy = copy


def measure_bus(size: int = 2**30) -> float:
    """GB per second from pinned host memory to the device."""
    host, there = host_block(size).fill_(1), torch.empty(size, dtype=torch.uint8, device="cuda")
    started = time.perf_counter()
    pin(host)
    pinned_s = time.perf_counter() - started
    times = []
    for _ in range(5):
        torch.cuda.synchronize()
        started = time.perf_counter()
        there.copy_(host, non_blocking=True)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    unpin(host)
    speed = size / sorted(times)[2] / 1e9
    report(bus_gb_per_s=round(speed, 1), pin_written_memory_s_per_gib=round(pinned_s * 2**30 / size, 3))
    return speed


def equal(made: list[Tensor], expected: list[Tensor]) -> list[bool]:
    return [torch.equal(one, other) for one, other in zip(made, expected, strict=True)]


def resident(bench: Bench, *, only_steps: bool) -> dict[str, Any]:
    """What the engine makes with weights on the device."""
    engine = bench.engine(adapter_weights="device" if not bench.tiny else "auto")
    expected: dict[str, Any] = {}
    if not only_steps:
        expected["eager"] = bench.stacks(engine)
    started = time.perf_counter()
    engine.make_ready()
    report(resident_ready_s=round(time.perf_counter() - started, 1))
    expected["compiled"] = bench.stacks(engine)
    for guidance in (4.0, 1.0):
        expected[guidance] = bench.step(engine, guidance)
        report(resident_step_s=round(expected[guidance], 4), guidance=guidance)
    return expected


def streamed(bench: Bench, expected: dict[str, Any], limits: list[float], bus_speed: float, options: Any) -> None:
    """The same with streamed weights, in less and less memory."""
    rss = psutil.Process().memory_info().rss
    engine = bench.engine(offload="stream", device_memory_gib=limits[0])
    pipeline = engine._pipeline
    weights = sum(p.nbytes for m in (pipeline.text_encoder, pipeline.transformer, pipeline.vae) for p in m.parameters())
    grown = psutil.Process().memory_info().rss - rss
    report(weights_gib=round(weights / 2**30, 2), host_memory_grew_gib=round(grown / 2**30, 2))
    if not options.only_steps:
        attempt(eager_latents, bench, engine, expected, limits)
    limit(engine, limits[0])
    started = time.perf_counter()
    engine.make_ready()
    report(streamed_ready_s=round(time.perf_counter() - started, 1), recompilations=engine.recompilations)
    for gib in limits:
        attempt(compiled_steps, bench, engine, expected, gib)
    report(recompilations=engine.recompilations)
    if bench.tiny:
        return
    attempt(whole_edits, bench, engine, limits)
    if not options.only_steps:
        attempt(slower_bus, bench, engine, limits, bus_speed)


def eager_latents(bench: Bench, engine: TorchEngine, expected: dict[str, Any], limits: list[float]) -> None:
    """Latents of plain blocks, compared with those of resident weights."""
    for gib in limits:
        limit(engine, gib)
        report(eager_latents_equal=equal(bench.stacks(engine), expected["eager"]), gib=gib)


def compiled_steps(bench: Bench, engine: TorchEngine, expected: dict[str, Any], gib: float) -> None:
    """Latents of compiled blocks, compared with those of resident weights, and the time of a step."""
    limit(engine, gib)
    report(compiled_latents_equal=equal(bench.stacks(engine), expected["compiled"]), gib=gib)
    part = engine._denoiser.placement._parts[engine._pipeline.transformer]
    for guidance in (4.0, 1.0):
        seconds = bench.step(engine, guidance)
        ratio = seconds / expected[guidance]
        shown = {"gib": gib, "guidance": guidance, "over_resident": round(ratio, 3), "stay": part.stay}
        report(streamed_step_s=round(seconds, 4), **shown)


def whole_edits(bench: Bench, engine: TorchEngine, limits: list[float]) -> None:
    """The memory of each part, and what a swap adds to the first step."""
    for gib in limits:
        limit(engine, gib)
        found: list[dict[str, Any]] = []
        with stages(found):
            started = time.perf_counter()
            timings = bench.edit(engine, bench.plan(25 if gib == limits[-1] else 4, bench.one))
            took = time.perf_counter() - started
            engine._denoiser.placement._close()
        shown = {name: round(seconds, 3) for name, seconds in timings.items()}
        report(whole_edit_s=round(took, 2), gib=gib, timings=shown)
        for part in found:
            report(**part)
        times = [
            bench.edit(engine, bench.plan(1, uses))["denoise"]
            for uses in (bench.one, bench.one, bench.two, bench.two, bench.one, bench.one)
        ]
        report(first_steps_s=[round(each, 3) for each in times], swapped=[0, 0, 1, 0, 1, 0], gib=gib)


def slower_bus(bench: Bench, engine: TorchEngine, limits: list[float], bus_speed: float) -> None:
    """A step with one adapter on slower connections."""
    part = engine._denoiser.placement._parts[engine._pipeline.transformer]
    for speed in (25.0, 12.0):
        for gib in limits:
            limit(engine, gib)
            with bus(speed, bus_speed):
                for guidance in (4.0, 1.0):
                    seconds = bench.step(engine, guidance, 1, 4)
                    report(step_s=round(seconds, 3), bus=speed, gib=gib, guidance=guidance, stay=part.stay)


def attempt(measure: Callable[..., None], *arguments: Any) -> None:
    """A measurement; if it fails, that is reported and the next one is made."""
    try:
        measure(*arguments)
    except Exception:
        print(f"{measure.__name__} failed:\n{traceback.format_exc()}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--model", default="qwen_image_edit")
    parser.add_argument("--limits", nargs="+", type=float, default=[24.0, 8.0], help="GiB of the GPU's memory")
    parser.add_argument("--only-steps", action="store_true", help="compare compiled blocks only, on this bus only")
    options = parser.parse_args()
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(tempfile.gettempdir(), "compiled")))
    name = "cpu" if options.tiny else torch.cuda.get_device_name()
    report(device=name, torch=torch.__version__, model=options.model, date=time.strftime("%Y-%m-%d"))
    with tempfile.TemporaryDirectory() as folder:
        speed = 1.0 if options.tiny else measure_bus()
        bench = Bench(options, Path(folder))
        with bench.kept_latents():
            expected = resident(bench, only_steps=options.only_steps)
            streamed(bench, expected, options.limits, speed, options)


if __name__ == "__main__":
    main()
