"""One edit in each way: by stock diffusers with PEFT, by this engine, and through the service."""

import base64
import io
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import PIL.Image
import torch

from benchmarks.full_size import PHOTOGRAPH, gpu_profile, make_pipeline, serving, write_lora
from serve_app.api.routes.inference import MAX_WAIT_S
from serve_app.commands.ports import free_port
from serve_app.engine.torch_engine import TorchEngine
from serve_app.images.encode import encode
from serve_app.images.output_formats import OUTPUT_FORMATS
from serve_app.images.sizes import Size
from serve_app.models import architecture
from serve_app.models.registry import MODELS
from serve_app.pipeline import miniature
from serve_app.pipeline.checkpoint import Pipeline, read
from serve_app.pipeline.device import dtype_for, synchronise_stream
from serve_app.pipeline.random_lora import make_lora
from serve_app.storage.identity import fingerprint
from serve_app.tasks import AdapterUse, EditPlan
from tests.engine.oracle import edit_by_oracle


@dataclass
class Forwards:
    """The transformer's work in one edit: floating-point operations, seconds, and the final packed latents.

    `tokens` are those of images and text in the first forward.
    """

    flops: int = 0
    tokens: tuple[int, int] = (0, 0)
    seconds: float = 0.0
    latents: torch.Tensor | None = None


@dataclass(frozen=True)
class Made:
    """One edit: seconds from file to file, seconds by stage, the image, and the device's peak memory in bytes."""

    seconds: float
    forwards: Forwards
    image: PIL.Image.Image | None
    peak_bytes: int
    stages: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Bench:
    """`template` is the edit that all measured edits are variants of."""

    template: EditPlan
    pipeline: Pipeline
    device: torch.device
    loras: tuple[Path, ...]
    threads: int

    @contextmanager
    def forwards(self) -> Iterator[Forwards]:
        """Counts operations by the shapes of the inputs, and times from the start of the first forward to the last end.

        Of several devices, the first one's. Work that is done once for many forwards, before the first one, is left
        out: modulations of compiled blocks.
        """
        transformer, seen, started, images = self.pipeline.transformer, Forwards(), [], [0]
        dimensions = architecture.from_config(transformer.config)

        def of_images(module: object, arguments: tuple) -> None:
            if not started:
                synchronise_stream(self.device)
                started.append(time.perf_counter())
            images[0] = arguments[0].shape[1]

        def of_text(module: object, arguments: tuple) -> None:
            tokens = (images[0], arguments[0].shape[1])
            if not seen.flops:
                seen.tokens = tokens
            seen.flops += dimensions.forward_flops(*tokens)

        # The decoder is the first to see that the last forward has ended.
        def decoding(module: object, arguments: tuple) -> None:
            synchronise_stream(self.device)
            seen.seconds = time.perf_counter() - started[0]
            seen.latents = arguments[0].float().cpu()

        hooks = (
            # A forward that several devices share does not call the transformer as a whole.
            transformer.img_in.register_forward_pre_hook(of_images),
            transformer.txt_in.register_forward_pre_hook(of_text),
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
        return replace(self.template, width=size[0], height=size[1], steps=steps, adapters=uses)


def stock_edit(bench: Bench, plan: EditPlan) -> Made:
    started = time.perf_counter()
    with bench.peak() as peak, bench.forwards() as forwards:
        image = edit_by_oracle(bench.pipeline, plan, [PIL.Image.open(PHOTOGRAPH)])
        image.save(io.BytesIO(), "JPEG", quality=95)
    return Made(time.perf_counter() - started, forwards, image, peak[0])


def own_edit(bench: Bench, engine: TorchEngine, plan: EditPlan) -> Made:
    started = time.perf_counter()
    with bench.peak() as peak, bench.forwards() as forwards:
        edited = engine.edit(plan, [PHOTOGRAPH.read_bytes()])
        encode(edited.image, OUTPUT_FORMATS["jpeg"], {})
    return Made(time.perf_counter() - started, forwards, edited.image, peak[0], edited.timings)


def make_bench(template: EditPlan, tiny: bool, folder: Path, adapters: int, threads: int) -> Bench:
    spec = MODELS[template.model]
    device = torch.device("cpu" if tiny else "cuda")
    torch.set_num_threads(threads)
    pipeline = read(miniature.checkpoint_folder(spec), dtype_for(device)) if tiny else make_pipeline(spec, device)
    loras = tuple(folder / f"{seed}.safetensors" for seed in range(adapters))
    for seed, path in enumerate(loras):
        if tiny:
            make_lora(pipeline.transformer, path, seed=seed)
        else:
            write_lora(path, seed)
    return Bench(template, pipeline, device, loras, threads)


def served_edits(folder: Path, plans: list[EditPlan], options: Mapping[str, Any]) -> list[Made]:
    """The same edits from POST to the image's bytes, by the service with the GPU profile and `options`."""
    made = []
    # No caches, as in the other modes.
    profile = gpu_profile() | {"prompt_cache_bytes": 0, "control_cache_bytes": 0} | dict(options)
    photograph = PHOTOGRAPH.read_bytes()
    with (
        serving(folder, free_port(), {"id": plans[0].model} | profile) as url,
        httpx.Client(base_url=url, timeout=MAX_WAIT_S + 60) as client,
    ):
        for plan in plans:
            # Warm up as for stock, so often that each ingress has most likely had a turn; then an edit without
            # adapters, so that the timed edit includes its swap.
            for first in (*[replace(plan, steps=2)] * 5, replace(plan, steps=1, adapters=())):
                result_of(client, first, photograph)
            started = time.perf_counter()
            result = result_of(client, plan, photograph)
            [image] = result["outputs"]["images"]
            data = client.get(image["url"]).raise_for_status().content
            took = time.perf_counter() - started
            [stages] = result["metadata"]["timings"]["prompts"]
            [runtime] = result["metadata"]["runtime"]
            peak = int((runtime["peak_memory_gib"] or 0) * 2**30)
            PIL.Image.open(io.BytesIO(data)).load()
            # Its image has been compressed as JPEG, so it is not compared.
            made.append(Made(took, Forwards(seconds=stages["denoise"]), None, peak, stages))
    return made


def result_of(client: httpx.Client, plan: EditPlan, control_image: bytes) -> dict[str, Any]:
    """The result of a plan's request, whose POST waits for it. Raises RuntimeError if it has not succeeded by then."""
    query, body = {"wait": MAX_WAIT_S}, request_for(plan, control_image)
    result = client.post("/v1/inference", params=query, json=body).raise_for_status().json()
    if result["status"] != "succeeded":
        raise RuntimeError(result)
    return result


def request_for(plan: EditPlan, control_image: bytes) -> dict[str, Any]:
    prompt = {
        "prompt": plan.prompt,
        "neg": plan.negative_prompt,
        "ctrl_img": base64.b64encode(control_image).decode(),
        "width": plan.width,
        "height": plan.height,
        "sample_steps": plan.steps,
        "guidance_scale": plan.guidance_scale,
        "seed": plan.seed,
    }
    loras = [{"path": Path(use.url).name, "network_multiplier": use.scale} for use in plan.adapters]
    return {"model": plan.model, "prompts": [prompt], "loras": loras}
