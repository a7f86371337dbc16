"""One edit by stock diffusers with a PEFT adapter, compared with this engine, in one process and on the same weights.

    python -m benchmarks.beside_stock                        # one GPU, the published sizes, random weights in bf16
    python -m benchmarks.beside_stock --tiny                 # a quick check on a CPU, with the miniature
    python -m benchmarks.beside_stock --modes stock stock/cudnn eager compiled compiled/flash_4
    python -m benchmarks.beside_stock --modes stock gpus_2 service_gpus_2   # two GPUs for one edit
    python -m benchmarks.beside_stock --modes compiled gpus_2 --guidance 1    # and one branch shared by both
    python -m benchmarks.beside_stock --model qwen_image_edit_plus_2511 --modes stock compiled gpus_2 gpus_4
    python -m benchmarks.beside_stock --modes stock eager fp8      # compiled, with the blocks' linears in fp8
    python -m benchmarks.beside_stock --sizes 1024x1024 768x1344 --steps 8 25 --adapters 0 1 2
    python -m benchmarks.beside_stock --modes stock service service_fp8    # from POST to the image's bytes
    python -m benchmarks.beside_stock --modes compiled --kernels   # prints GPU time by kernel

An edit is timed from encoded control image to encoded JPEG, warm. `stock` is diffusers' own `__call__` in eager mode
with the adapters as PEFT's layers; `/NAME` selects the attention kernel; `gpus_N` is `compiled` on N GPUs. Time ratios
compare with `stock`; PSNR and the relative error of the final latents compare with `eager` of the same size and steps,
or with `compiled` where that was not run. MFU is relative to the best matrix product of the same run. A series of edits
of at most 8 steps shows the effect of preparing the next edit during the current one. Two edits of a size that was not
warmed up show the cost of a new size. `service` runs the model of cluster/serve_config.gpu.yaml through Ray, in its own
processes and after the other modes have released their memory; it has no MFU. A mode that fails is reported and
skipped.
"""

import argparse
import gc
import itertools
import json
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import diffusers
import torch

from benchmarks.device_speed import device_time, matmul_flops
from benchmarks.edits import Bench, Made, make_bench, own_edit, served_edits, stock_edit
from benchmarks.full_size import PHOTOGRAPH, PLAN
from serve_app.commands.compare import difference
from serve_app.config import ModelConfig
from serve_app.config.attention import ATTENTION_KERNELS
from serve_app.engine.torch_engine import TorchEngine
from serve_app.errors import UnusableResult
from serve_app.images.sizes import Size
from serve_app.models.registry import MODELS
from serve_app.pipeline.acceleration import choose_attention
from serve_app.pipeline.device import free_cached_memory, more_gpus
from serve_app.tasks import EditPlan

# The service's modes, and the keys that each adds to the GPU profile.
SERVED: dict[str, dict[str, object]] = {
    "service": {},
    "service_fp8": {"quantization": "fp8"},
    **{f"service_gpus_{count}": {"gpus_per_replica": count} for count in (2, 4, 8)},
}
# The GPUs of the engine's modes that use several.
SHARED = {f"gpus_{count}": count for count in (2, 4, 8)}
# An instruction with which an edit of one image has about 280 tokens of text, 1450 with `qwen_image_edit`.
PROMPT = "turn the sky red, and keep the suit as it is"


def measure_stock(bench: Bench, kernel: str, plans: list[EditPlan]) -> list[Made]:
    choose_attention(bench.pipeline.transformer, kernel)
    made = []
    for plan in plans:
        try:
            names = [f"adapter_{i}" for i, _ in enumerate(plan.adapters)]
            for name, use in zip(names, plan.adapters, strict=True):
                bench.pipeline.load_lora_weights(use.url, adapter_name=name)
            if names:
                bench.pipeline.set_adapters(names, [use.scale for use in plan.adapters])
            stock_edit(bench, replace(plan, steps=2))  # warm
            made.append(stock_edit(bench, plan))
        finally:
            bench.pipeline.unload_lora_weights()
    return made


@contextmanager
def own_engine(bench: Bench, mode: str, kernel: str, sizes: Iterable[Size], copies: str) -> Iterator[TorchEngine]:
    """A ready engine on the pipeline's own weights. The pipeline is restored afterwards, for the next mode."""
    config = ModelConfig(
        device=bench.device.type,
        threads=bench.threads,
        attention=kernel,
        compile="none" if mode == "eager" else "regional",
        quantization="fp8" if mode == "fp8" else "none",
        warm_up=tuple(sizes),
        adapter_weights=copies,
        # No caches: every edit is timed as if its prompt and image were new.
        prompt_cache_bytes=0,
        control_cache_bytes=0,
    )
    transformer = bench.pipeline.transformer
    choose_attention(transformer, "native")
    linears = {m: m.weight for m in transformer.modules() if isinstance(m, torch.nn.Linear)}
    blocks = [
        (b, b.attn.processor, b.img_mlp.net[0], b.txt_mlp.net[0], b.img_mod, b.txt_mod)
        for b in transformer.transformer_blocks
    ]
    others = more_gpus(SHARED.get(mode, 1))
    if bench.device.type != "cuda":
        others = [bench.device] * len(others)
    engine = TorchEngine(bench.pipeline, MODELS[bench.template.model], config, more_devices=others)
    try:
        make_ready(engine, f"{mode}/{kernel}")
        yield engine
    finally:
        engine._denoiser.apply({}, {})
        for block, processor, image_mlp, text_mlp, *modulations in blocks:
            vars(block).pop("forward", None)
            block.attn.set_processor(processor)
            block.img_mlp.net[0], block.txt_mlp.net[0] = image_mlp, text_mlp
            block.img_mod, block.txt_mod = modulations
        for module, weight in linears.items():
            module.weight = weight


def make_ready(engine: TorchEngine, mode: str) -> None:
    started = time.perf_counter()
    try:
        engine.make_ready()
    except UnusableResult as error:
        # An engine that refuses to serve is measured anyway.
        print(f"{mode}: {error}", flush=True)
    print(json.dumps({"mode": mode, "ready_s": round(time.perf_counter() - started, 1)}), flush=True)


def measure_own(
    bench: Bench, mode: str, kernel: str, plans: list[EditPlan], copies: str, *, kernels: bool, only_edits: bool
) -> list[Made]:
    sizes = dict.fromkeys((plan.width, plan.height) for plan in plans)
    if mode == "fp8":
        plans = [replace(plan, quantization="fp8") for plan in plans]
    made = []
    with own_engine(bench, mode, kernel, sizes, copies) as engine:
        for plan in plans:
            own_edit(bench, engine, replace(plan, steps=2))  # warm, with these adapters in host memory
            engine.edit(
                replace(plan, steps=1, adapters=()), [PHOTOGRAPH.read_bytes()]
            )  # so that the timed edit includes its swap
            made.append(own_edit(bench, engine, plan))
        if mode != "eager" and not only_edits:
            short = replace(plans[0], steps=min(8, plans[0].steps))
            series(bench, engine, f"{mode}/{kernel}", short)
            new_size(bench, engine, f"{mode}/{kernel}", short)
        if kernels:
            print(device_time(partial(own_edit, bench, engine, replace(plans[0], steps=2))), flush=True)
        print(json.dumps({"mode": f"{mode}/{kernel}", "recompilations": engine.recompilations}), flush=True)
    return made


def series(bench: Bench, engine: TorchEngine, mode: str, plan: EditPlan, count: int = 4) -> None:
    """A series of edits, each prepared during the one before or after it; prints seconds per edit for both."""
    photograph = PHOTOGRAPH.read_bytes()
    plans = [replace(plan, prompt=f"{plan.prompt} {i}", adapters=plan.adapters[i % 2 :]) for i in range(count)]
    shown = {}
    with ThreadPoolExecutor(1) as preparation:
        for name, ahead in (("after the edit before", False), ("during the edit before", True)):
            denoised, prepared = [], engine.prepare(plans[0], [photograph])
            started = time.perf_counter()
            for index in range(count):
                following = None
                if ahead and index + 1 < count:
                    following = preparation.submit(engine.prepare, plans[index + 1], [photograph])
                edited = engine.run(prepared)
                denoised.append(edited.timings["denoise"] + edited.timings["decode"])
                if following is not None:
                    prepared = following.result()
                elif index + 1 < count:
                    prepared = engine.prepare(plans[index + 1], [photograph])
            whole = time.perf_counter() - started
            shown[name] = {
                "edit_s": round(whole / count, 4),
                "denoise_and_decode_s": round(sum(denoised) / count, 4),
                "gap_s": round((whole - sum(denoised)) / count, 4),
            }
    print(json.dumps({"mode": mode, "next edit prepared": shown}), flush=True)


def new_size(bench: Bench, engine: TorchEngine, mode: str, plan: EditPlan) -> None:
    """Two edits of a size that was not warmed up; prints the time of the first compared with the second."""
    plan = replace(plan, width=plan.width * 7 // 8 // 16 * 16, height=plan.height * 9 // 8 // 16 * 16)
    compiled = engine.recompilations
    first, again = (own_edit(bench, engine, plan).seconds for _ in range(2))
    seen = {"size": (plan.width, plan.height), "first_s": round(first, 3), "again_s": round(again, 3)}
    seen |= {"first / again": round(first / again, 3), "recompilations": engine.recompilations - compiled}
    print(json.dumps({"mode": mode, "new size": seen}), flush=True)


def table(plans: list[EditPlan], results: dict[str, list[Made]], peak_flops: float) -> None:
    print(f"\nmatrix product: {peak_flops / 1e12:.3f} TFLOP/s\n")
    print("| size | steps | adapters | mode | edit, s | stock / it | denoising, s | a step, s | rest of the edit | MFU "
          "| peak, GiB | PSNR, dB | error of latents | stages, s |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|---|---|---|---|")
    for index, plan in enumerate(plans):
        stock = next((made[index] for mode, made in results.items() if mode.startswith("stock")), None)
        eager = next((results[mode][index] for mode in ("eager", "compiled") if mode in results), None)
        for mode, made in results.items():
            it = made[index]
            forwards = it.forwards
            ratio = f"{stock.seconds / it.seconds:.2f}" if stock else ""
            counted = forwards.flops and mode.partition("/")[0] not in SHARED
            mfu = f"{forwards.flops / forwards.seconds / peak_flops:.3f}" if counted else ""
            psnr = f"{difference(eager.image, it.image).psnr:.1f}" if eager and it.image else ""
            error = f"{relative_error(forwards.latents, eager.forwards.latents):.4f}" if eager and it.image else ""
            stages = ", ".join(f"{name} {seconds:.3f}" for name, seconds in it.stages.items() if name != "generate")
            print(
                f"| {plan.width}x{plan.height} | {plan.steps} | {len(plan.adapters)} | {mode} | {it.seconds:.2f} "
                f"| {ratio} | {forwards.seconds:.2f} | {forwards.seconds / plan.steps:.4f} "
                f"| {1 - forwards.seconds / it.seconds:.1%} | {mfu} | {it.peak_bytes / 2**30:.1f} "
                f"| {psnr} | {error} | {stages} |"
            )


def relative_error(latents: torch.Tensor, expected: torch.Tensor) -> float:
    """|latents - expected| / |expected|."""
    return float((latents - expected).norm() / expected.norm())


def is_served(mode: str) -> bool:
    return mode.partition("/")[0] in SERVED


def size_of(text: str) -> Size:
    width, height = map(int, text.split("x"))
    return width, height


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--sizes", nargs="+", type=size_of)
    parser.add_argument("--steps", nargs="+", type=int)
    parser.add_argument("--adapters", nargs="+", type=int, default=[1], help="number of adapters per edit")
    modes = ", ".join(("stock", "eager", "compiled", "fp8", *SHARED, *SERVED))
    modes = f"{modes}; each with /KERNEL of {', '.join(ATTENTION_KERNELS)}"
    parser.add_argument(
        "--model", default=PLAN.model, choices=[spec.id for spec in MODELS.values() if spec.requires_control_image]
    )
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--guidance", type=float, default=PLAN.guidance_scale, help="1: one branch")
    parser.add_argument("--modes", nargs="+", default=["stock", "eager", "compiled"], help=modes)
    parser.add_argument("--kernels", action="store_true", help="print the device's time by kernel")
    parser.add_argument("--only-edits", action="store_true", help="measure neither a series of edits nor a new size")
    parser.add_argument(
        "--copies", default="auto", choices=["auto", "device", "host"], help="where the untouched weights are kept"
    )
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if options.tiny and any(map(is_served, options.modes)):
        parser.error("the service runs at the published size only, so not with --tiny")
    return options


def main() -> None:
    options = arguments()
    sizes = options.sizes or ([(64, 64)] if options.tiny else [(1024, 1024)])
    steps = options.steps or ([2] if options.tiny else [25])
    versions = {module.__name__: module.__version__ for module in (torch, diffusers)}
    with tempfile.TemporaryDirectory() as folder:
        template = replace(PLAN, model=options.model, prompt=options.prompt, guidance_scale=options.guidance)
        bench = make_bench(template, options.tiny, Path(folder), max(options.adapters), options.threads)
        device = bench.device
        name = "cpu" if options.tiny else torch.cuda.get_device_name()
        print(json.dumps({"device": name, **versions, "date": time.strftime("%Y-%m-%d")}), flush=True)
        plans = [bench.plan(*each) for each in itertools.product(sizes, steps, options.adapters)]
        results: dict[str, list[Made]] = {}
        peak_flops = matmul_flops(device)
        lasting = matmul_flops(device, lasting_s=0.1 if options.tiny else 5)
        print(json.dumps({"matrix product, TFLOP/s": peak_flops / 1e12, "for seconds": lasting / 1e12}), flush=True)
        # Last, because the service's editor needs the device's memory.
        for mode in sorted(options.modes, key=is_served):
            way, _, kernel = mode.partition("/")
            if is_served(mode):
                bench = None
            # Free the memory of the previous mode.
            gc.collect()
            free_cached_memory(device)
            try:
                if is_served(mode):
                    levers = SERVED[way] | ({"attention": kernel} if kernel else {})
                    results[mode] = served_edits(Path(folder), plans, levers)
                elif way == "stock":
                    results[mode] = measure_stock(bench, kernel or "native", plans)
                else:
                    extras = {"kernels": options.kernels, "only_edits": options.only_edits}
                    results[mode] = measure_own(bench, way, kernel or "native", plans, options.copies, **extras)
            except Exception:
                print(f"{mode} failed:\n{traceback.format_exc()}", flush=True)
                continue
            print(json.dumps({"mode": mode, "tokens": results[mode][0].forwards.tokens}), flush=True)
            if bench is not None:
                peak_flops = max(peak_flops, matmul_flops(device))
            table(plans, results, peak_flops)


if __name__ == "__main__":
    main()
