"""One edit by stock diffusers with a PEFT adapter and by this engine, side by side in one process, on the same weights.

    python -m benchmarks.beside_stock                        # one GPU, the published sizes, random weights in bf16
    python -m benchmarks.beside_stock --tiny                 # the same on a CPU with the miniature: does it run?
    python -m benchmarks.beside_stock --modes stock stock/cudnn eager compiled compiled/flash_4
    python -m benchmarks.beside_stock --modes stock pair     # two GPUs: compiled, one guidance branch each
    python -m benchmarks.beside_stock --modes stock eager fp8      # compiled, and the blocks' linears in fp8
    python -m benchmarks.beside_stock --sizes 1024x1024 768x1344 --steps 8 25 --adapters 0 1 2
    python -m benchmarks.beside_stock --modes stock service        # from POST to the picture's bytes, through Ray
    python -m benchmarks.beside_stock --modes compiled --kernels   # and what the GPU's time goes to

An edit is timed from encoded control image to encoded JPEG, warm. `stock` is diffusers' own `__call__` in eager mode
with the adapters as PEFT's layers; `/NAME` is the attention kernel. Ratios and PSNR are beside `stock` and `eager` of
the same row, and so is the relative error of the latents that are decoded. MFU is of the first GPU's forwards, against
the best matrix product of the same run. Edits behind each other, of 8 steps at most, show what preparing the next one
beside the current one does, and one of a size that was not warmed up, twice, what a new size costs. `service` is
cluster/serve_config.gpu.yaml's model, in processes of its own, after the others have gone; it has no MFU. A mode that
fails here is said and left out.
"""

import argparse
import base64
import gc
import io
import itertools
import json
import tempfile
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import httpx
import PIL.Image
import torch
from diffusers import QwenImageTransformer2DModel
from diffusers.models.activations import GELU
from diffusers.models.transformers.transformer_qwenimage import QwenDoubleStreamAttnProcessor2_0
from PIL import ImageOps

from benchmarks.chip import device_time, matmul_flops
from benchmarks.full_size import PHOTOGRAPH, PLAN, gpu_profile, make_pipeline, request, serving, write_lora
from serve_app.adapters.maker import make_lora
from serve_app.adapters.sources import fingerprint
from serve_app.compare import difference
from serve_app.config import ModelConfig
from serve_app.demo import free_port
from serve_app.device import dtype_for, finish, free_cached_memory
from serve_app.engine import Engine
from serve_app.errors import UnusableResult
from serve_app.geometry import Size
from serve_app.images import encode
from serve_app.models import architecture, miniature
from serve_app.models.acceleration import BACKENDS, choose_attention
from serve_app.models.checkpoint import Pipeline, read
from serve_app.models.registry import MODELS
from serve_app.tasks import AdapterUse, EditPlan
from tests.engine.oracle import reference_edit

# How a file of that kind begins.
JPEG = b"\xff\xd8\xff"


@dataclass
class Forwards:
    """What the transformer did in one edit."""

    flops: int = 0
    seconds: float = 0.0
    latents: torch.Tensor | None = None


@dataclass(frozen=True)
class Made:
    """One edit: seconds from file to file, seconds by stage, the picture, bytes of the device at the peak."""

    seconds: float
    forwards: Forwards
    image: PIL.Image.Image | None
    peak_bytes: int
    stages: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Bench:
    pipeline: Pipeline
    device: torch.device
    loras: tuple[Path, ...]
    threads: int

    @contextmanager
    def forwards(self) -> Iterator[Forwards]:
        """Operations by the shapes that come, and seconds from the first forward's start to the last one's end."""
        transformer, seen, started = self.pipeline.transformer, Forwards(), []
        dimensions = architecture.from_config(transformer.config)

        def before(module: object, arguments: tuple, inputs: dict) -> None:
            if not started:
                finish(self.device)
                started.append(time.perf_counter())
            tokens = (inputs["hidden_states"].shape[1], inputs["encoder_hidden_states"].shape[1])
            seen.flops += dimensions.forward_flops(*tokens)

        # Where the loop's last forward ends is seen by whoever decodes.
        def decoding(module: object, arguments: tuple) -> None:
            finish(self.device)
            seen.seconds = time.perf_counter() - started[0]
            seen.latents = arguments[0].float().cpu()

        hooks = (
            transformer.register_forward_pre_hook(before, with_kwargs=True),
            self.pipeline.vae.post_quant_conv.register_forward_pre_hook(decoding),
        )
        try:
            yield seen
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def peak(self) -> Iterator[list[int]]:
        bytes_: list[int] = []
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        yield bytes_
        bytes_.append(torch.cuda.max_memory_allocated() if self.device.type == "cuda" else 0)

    def plan(self, size: Size, steps: int, adapters: int) -> EditPlan:
        scale = 1.0 / max(1, adapters)
        uses = tuple(AdapterUse(fingerprint(str(p)), p.name, str(p), scale) for p in self.loras[:adapters])
        return replace(PLAN, width=size[0], height=size[1], steps=steps, adapters=uses)


def stock_edit(bench: Bench, plan: EditPlan) -> Made:
    started = time.perf_counter()
    with bench.peak() as peak, bench.forwards() as forwards:
        picture = PIL.Image.open(PHOTOGRAPH)
        image = reference_edit(
            bench.pipeline,
            plan.model,
            [picture],
            prompt=plan.prompt,
            negative=plan.negative_prompt,
            width=plan.width,
            height=plan.height,
            steps=plan.steps,
            guidance=plan.guidance_scale,
            seed=plan.seed,
        )
        image.save(io.BytesIO(), "JPEG", quality=95)
    return Made(time.perf_counter() - started, forwards, image, peak[0])


def own_edit(bench: Bench, engine: Engine, plan: EditPlan) -> Made:
    started = time.perf_counter()
    with bench.peak() as peak, bench.forwards() as forwards:
        edited = engine.edit(plan, [PHOTOGRAPH.read_bytes()])
        encode(edited.image, "jpeg", {})
    return Made(time.perf_counter() - started, forwards, edited.image, peak[0], edited.timings)


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
def own_engine(
    bench: Bench, mode: str, kernel: str, sizes: tuple[tuple[int, int], ...], copies: str
) -> Iterator[Engine]:
    """An engine that is ready, of the pipeline's own weights; afterwards all is as it was, for the next mode."""
    config = ModelConfig(
        device=bench.device.type,
        threads=bench.threads,
        attention=kernel,
        compile="none" if mode == "eager" else "regional",
        quantization="fp8" if mode == "fp8" else "none",
        warm_up=tuple(sizes),
        adapter_weights=copies,
        # Nothing is remembered: every edit is timed as if its prompt and picture were new.
        prompt_cache_bytes=0,
        control_cache_bytes=0,
    )
    transformer = bench.pipeline.transformer
    choose_attention(transformer, "native")
    linears = {m: m.weight for m in transformer.modules() if isinstance(m, torch.nn.Linear)}
    another = torch.device("cuda", 1) if bench.device.type == "cuda" else bench.device
    engine = Engine(bench.pipeline, MODELS[PLAN.model], config, second=another if mode == "pair" else None)
    started = time.perf_counter()
    try:
        try:
            engine.make_ready()
        except UnusableResult as error:
            print(f"{mode}/{kernel}: {error}", flush=True)
        print(json.dumps({"mode": f"{mode}/{kernel}", "ready_s": round(time.perf_counter() - started, 1)}), flush=True)
        yield engine
    finally:
        engine._denoiser.apply({}, {})
        make_plain(transformer)
        for module, weight in linears.items():
            module.weight = weight


def measure_own(
    bench: Bench, mode: str, kernel: str, plans: list[EditPlan], copies: str, *, kernels: bool, only_edits: bool
) -> list[Made]:
    sizes = list(dict.fromkeys((plan.width, plan.height) for plan in plans))
    made = []
    with own_engine(bench, mode, kernel, sizes, copies) as engine:
        for plan in plans:
            own_edit(bench, engine, replace(plan, steps=2))  # warm, with these adapters in host memory
            engine.edit(replace(plan, steps=1, adapters=()), [PHOTOGRAPH.read_bytes()])  # so that it pays its swap
            made.append(own_edit(bench, engine, plan))
        if mode != "eager" and not only_edits:
            short = replace(plans[0], steps=min(8, plans[0].steps))
            series(bench, engine, f"{mode}/{kernel}", short)
            new_size(bench, engine, f"{mode}/{kernel}", short)
        if kernels:
            print(device_time(partial(own_edit, bench, engine, replace(plans[0], steps=2))), flush=True)
        print(json.dumps({"mode": f"{mode}/{kernel}", "recompilations": engine.recompilations}), flush=True)
    return made


def make_plain(transformer: QwenImageTransformer2DModel) -> None:
    """Undo what `accelerate` did to the blocks."""
    for block in transformer.transformer_blocks:
        vars(block).pop("forward", None)
        block.attn.set_processor(QwenDoubleStreamAttnProcessor2_0())
        for mlp in (block.img_mlp, block.txt_mlp):
            gelu = GELU(1, 1, approximate="tanh")
            gelu.proj, mlp.net[0] = mlp.net[0].proj, gelu


def series(bench: Bench, engine: Engine, mode: str, plan: EditPlan, count: int = 4) -> None:
    """Edits behind each other, as an editor makes them: each prepared beside the one before, or all by itself."""
    photograph = PHOTOGRAPH.read_bytes()
    plans = [replace(plan, prompt=f"{plan.prompt} {i}", adapters=plan.adapters[i % 2 :]) for i in range(count)]
    shown = {}
    with ThreadPoolExecutor(1) as beside:
        for name, ahead in (("in its turn", False), ("beside", True)):
            denoised, prepared = [], engine.prepare(plans[0], [photograph])
            started = time.perf_counter()
            for index in range(count):
                following = None
                if ahead and index + 1 < count:
                    following = beside.submit(engine.prepare, plans[index + 1], [photograph])
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


def new_size(bench: Bench, engine: Engine, mode: str, plan: EditPlan) -> None:
    """Two edits of a size that nothing was warmed up with: what the first one pays beside the second."""
    plan = replace(plan, width=plan.width * 7 // 8 // 16 * 16, height=plan.height * 9 // 8 // 16 * 16)
    compiled = engine.recompilations
    first, again = (own_edit(bench, engine, plan).seconds for _ in range(2))
    seen = {"size": (plan.width, plan.height), "first_s": round(first, 3), "again_s": round(again, 3)}
    seen |= {"first / again": round(first / again, 3), "recompilations": engine.recompilations - compiled}
    print(json.dumps({"mode": mode, "new size": seen}), flush=True)


def served_edits(folder: Path, plans: list[EditPlan]) -> list[Made]:
    """The same edits from POST to the picture's bytes, by the service as the GPU profile runs it."""
    made = []
    with serving(folder, free_port(), gpu_profile()) as url, httpx.Client(base_url=url, timeout=60) as client:
        for plan in plans:
            # The first one reads the adapters, the second makes the one after it pay its swap. Nothing else of what is
            # timed has been seen before.
            mirrored = encode(ImageOps.mirror(PIL.Image.open(PHOTOGRAPH)), "jpeg", {})
            request(client, request_for(replace(plan, prompt="another", negative_prompt="one", steps=2), mirrored))
            request(client, request_for(replace(plan, prompt="a third", steps=1, adapters=()), mirrored))
            started = time.perf_counter()
            done = request(client, request_for(plan, PHOTOGRAPH.read_bytes()))
            if done.result["error"] is not None:
                raise RuntimeError(done.result["error"])
            [image] = done.result["outputs"]["images"]
            data = client.get(image["url"]).raise_for_status().content
            took = time.perf_counter() - started
            [stages] = done.result["metadata"]["timings"]["prompts"]
            [runtime] = done.result["metadata"]["runtime"]
            peak = int((runtime["peak_memory_gib"] or 0) * 2**30)
            if not data.startswith(JPEG):
                raise RuntimeError("the artifact is no JPEG")
            # Its picture has been through JPEG, so it is not compared.
            made.append(Made(took, Forwards(seconds=stages["denoise"]), None, peak, stages))
    return made


def request_for(plan: EditPlan, picture: bytes) -> dict[str, Any]:
    prompt = {
        "prompt": plan.prompt,
        "neg": plan.negative_prompt,
        "ctrl_img": base64.b64encode(picture).decode(),
        "width": plan.width,
        "height": plan.height,
        "sample_steps": plan.steps,
        "guidance_scale": plan.guidance_scale,
        "seed": plan.seed,
    }
    loras = [{"path": Path(use.url).name, "network_multiplier": use.scale} for use in plan.adapters]
    return {"model": plan.model, "prompts": [prompt], "loras": loras}


def table(plans: list[EditPlan], results: dict[str, list[Made]], peak_flops: float) -> None:
    print(f"\nmatrix product: {peak_flops / 1e12:.3f} TFLOP/s\n")
    print("| size | steps | adapters | mode | edit, s | stock / it | denoising, s | rest of the edit | MFU | peak, GiB "
          "| PSNR to eager, dB | error of latents | stages, s |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|---|---|---|")
    for index, plan in enumerate(plans):
        stock = next((made[index] for mode, made in results.items() if mode.startswith("stock")), None)
        eager = results["eager/native"][index] if "eager/native" in results else None
        for mode, made in results.items():
            it = made[index]
            forwards = it.forwards
            ratio = f"{stock.seconds / it.seconds:.2f}" if stock else ""
            mfu = f"{forwards.flops / forwards.seconds / peak_flops:.3f}" if forwards.flops else ""
            psnr = f"{difference(eager.image, it.image).psnr:.1f}" if eager and it.image else ""
            error = f"{relative(forwards, eager.forwards):.4f}" if eager and it.image else ""
            stages = ", ".join(f"{name} {seconds:.3f}" for name, seconds in it.stages.items() if name != "generate")
            print(
                f"| {plan.width}x{plan.height} | {plan.steps} | {len(plan.adapters)} | {mode} | {it.seconds:.2f} "
                f"| {ratio} | {forwards.seconds:.2f} | {1 - forwards.seconds / it.seconds:.1%} | {mfu} "
                f"| {it.peak_bytes / 2**30:.1f} | {psnr} | {error} | {stages} |"
            )


def relative(it: Forwards, expected: Forwards) -> float:
    return float((it.latents - expected.latents).norm() / expected.latents.norm())


def make_bench(tiny: bool, folder: Path, adapters: int, threads: int) -> Bench:
    spec = MODELS[PLAN.model]
    device = torch.device("cpu" if tiny else "cuda")
    torch.set_num_threads(threads)
    pipeline = read(miniature.ensure(spec), dtype_for(device)) if tiny else make_pipeline(spec, device)
    loras = tuple(folder / f"{seed}.safetensors" for seed in range(adapters))
    for seed, path in enumerate(loras):
        if tiny:
            make_lora(pipeline.transformer, path, seed=seed)
        else:
            write_lora(path, seed)
    return Bench(pipeline, device, loras, threads)


def size_of(text: str) -> Size:
    width, height = map(int, text.split("x"))
    return width, height


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--sizes", nargs="+", type=size_of)
    parser.add_argument("--steps", nargs="+", type=int)
    parser.add_argument("--adapters", nargs="+", type=int, default=[1], help="how many an edit has")
    modes = f"stock, eager, compiled, fp8, pair, service; each but the last with /KERNEL of {', '.join(BACKENDS)}"
    parser.add_argument("--modes", nargs="+", default=["stock", "eager", "compiled"], help=modes)
    parser.add_argument("--kernels", action="store_true", help="print what the device's time goes to")
    parser.add_argument("--only-edits", action="store_true", help="neither edits behind each other nor a new size")
    parser.add_argument("--copies", default="auto", choices=["auto", "device", "host"], help="of the untouched weights")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if options.tiny and "service" in options.modes:
        parser.error("the service is of the published size: not with --tiny")
    sizes = options.sizes or ([(64, 64)] if options.tiny else [(1024, 1024)])
    steps = options.steps or ([2] if options.tiny else [25])
    versions = {module.__name__: module.__version__ for module in (torch, diffusers)}
    with tempfile.TemporaryDirectory() as folder:
        bench = make_bench(options.tiny, Path(folder), max(options.adapters), options.threads)
        device = bench.device.type
        name = "cpu" if options.tiny else torch.cuda.get_device_name()
        print(json.dumps({"device": name, **versions, "date": time.strftime("%Y-%m-%d")}), flush=True)
        plans = [bench.plan(*each) for each in itertools.product(sizes, steps, options.adapters)]
        results: dict[str, list[Made]] = {}
        peak_flops = matmul_flops(bench.device)
        lasting = matmul_flops(bench.device, seconds=0.1 if options.tiny else 5)
        print(json.dumps({"matrix product, TFLOP/s": peak_flops / 1e12, "for seconds": lasting / 1e12}), flush=True)
        # The service's editor needs the device's memory.
        for mode in sorted(options.modes, key=lambda mode: mode == "service"):
            way, _, kernel = mode.partition("/")
            kernel = kernel or "native"
            if way == "service":
                bench = None
            # What the mode before left.
            gc.collect()
            free_cached_memory(torch.device(device))
            try:
                if way == "service":
                    results[mode] = served_edits(Path(folder), plans)
                elif way == "stock":
                    results[f"{way}/{kernel}"] = measure_stock(bench, kernel, plans)
                else:
                    extras = {"kernels": options.kernels, "only_edits": options.only_edits}
                    results[f"{way}/{kernel}"] = measure_own(bench, way, kernel, plans, options.copies, **extras)
            except Exception:
                print(f"{mode} failed:\n{traceback.format_exc()}", flush=True)
                continue
            if bench is not None:
                peak_flops = max(peak_flops, matmul_flops(bench.device))
            table(plans, results, peak_flops)


if __name__ == "__main__":
    main()
