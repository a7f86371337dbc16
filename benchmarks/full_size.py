"""The published sizes with random weights on one GPU: parity with diffusers, and an edit through the service.

Images are noise, but shapes, kernels, time and memory are those of the real model.

python -m benchmarks.full_size parity     # every stage compared with diffusers' own __call__, in one process
python -m benchmarks.full_size service    # 1024x1024 edits over HTTP and Ray Serve, without and with LoRAs of rank 32
python -m benchmarks.full_size service --profile    # the same with the settings of cluster/serve_config.gpu.yaml
"""

import argparse
import base64
import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import httpx
import PIL.Image
import torch
import yaml
from diffusers import AutoencoderKLQwenImage, FlowMatchEulerDiscreteScheduler, QwenImageTransformer2DModel
from safetensors.torch import save_file
from transformers import (
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from serve_app.adapters.verified_files import VerifiedFiles
from serve_app.config import AppConfig, ModelConfig
from serve_app.engine.torch_engine import TorchEngine
from serve_app.images.encode import encode
from serve_app.images.output_formats import OUTPUT_FORMATS
from serve_app.models.architecture import PUBLISHED
from serve_app.models.recipe import SCHEDULER_CONFIG
from serve_app.models.registry import MODELS, ModelSpec
from serve_app.pipeline.checkpoint import Pipeline
from serve_app.pipeline.device import more_gpus
from serve_app.pipeline.miniature import TOKEN_IDS, make_text_encoder, make_tokenizer
from serve_app.pipeline.random_lora import trainer_metadata
from serve_app.tasks import EditPlan

ROOT = Path(__file__).parent.parent
PHOTOGRAPH = ROOT / "samples/astronaut.jpg"

# The values of Qwen2.5-VL-7B-Instruct's config.json that decide shapes.
TEXT = {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": TOKEN_IDS["<|endoftext|>"],
}
VISION = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584}


def make_pipeline(spec: ModelSpec, device: torch.device) -> Pipeline:
    """A model at its published size with random bf16 weights on the device: about 58 GB."""
    tokenizer = make_tokenizer()
    parts = {
        "scheduler": FlowMatchEulerDiscreteScheduler.from_config(SCHEDULER_CONFIG),
        "tokenizer": tokenizer,
    }
    if spec.requires_control_image:
        images = Qwen2VLImageProcessor(size={"shortest_edge": 3136, "longest_edge": 12845056})
        parts["processor"] = Qwen2VLProcessor(
            image_processor=images, tokenizer=tokenizer, video_processor=Qwen2VLVideoProcessor()
        )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with device, torch.no_grad():
        parts["text_encoder"] = make_text_encoder(TEXT, VISION)
        parts["transformer"] = QwenImageTransformer2DModel(zero_cond_t=spec.zero_cond_t, **asdict(PUBLISHED))
        parts["vae"] = AutoencoderKLQwenImage()
    torch.set_default_dtype(torch.float32)
    for name in ("text_encoder", "transformer", "vae"):
        parts[name].eval().requires_grad_(False)
    pipeline = getattr(diffusers, spec.pipeline)(**parts)
    pipeline.set_progress_bar_config(disable=True)
    # The miniature's tokenizer makes a token of each byte. So that a prompt has as many tokens as with the published
    # one, all of the template before the prompt is dropped, and not its first 64 tokens (34 without control images).
    head, _, _ = pipeline.prompt_template_encode.partition("{}")
    dropped, _, _ = head.partition("<|vision_start|>")
    pipeline.prompt_template_encode_start_idx = len(tokenizer(dropped)["input_ids"])
    return pipeline


def load_full_size(config: ModelConfig, contents: VerifiedFiles) -> TorchEngine:
    """An editor's engine for `build_application`; it ignores the checkpoint in the config."""
    device = torch.device("cuda")
    spec = MODELS[config.id]
    others = more_gpus(config.gpus_per_replica)
    engine = TorchEngine(make_pipeline(spec, device), spec, config.model_copy(update={"threads": 8}), contents, others)
    engine.make_ready()
    return engine


def gpu_profile() -> dict[str, Any]:
    """The model settings of cluster/serve_config.gpu.yaml, without id and checkpoint."""
    [application] = yaml.safe_load((ROOT / "cluster/serve_config.gpu.yaml").read_text())["applications"]
    [model] = application["args"]["models"]
    return {key: value for key, value in model.items() if key not in ("id", "checkpoint")}


@contextmanager
def serving(folder: Path, port: int, options: Mapping[str, Any]) -> Iterator[str]:
    """Run the service with one editor, its LoRA root and data in `folder`; yields its address."""
    import ray
    from ray import serve

    from serve_app.app import build_application

    gpus = options.get("gpus_per_replica", 1)
    ray.init(address="local", num_gpus=gpus, include_dashboard=False, namespace="serve", log_to_driver=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        # The engine has random weights; an ingress takes the expected dimensions from the checkpoint's name.
        spec = MODELS[options.get("id", PLAN.model)]
        models = [{"id": spec.id, "device": "cuda", "checkpoint": spec.base_model} | dict(options)]
        args = {"models": models, "artifacts_url": "artifacts", "lora_root": ".", "require_lora": False}
        config = AppConfig.model_validate(args).resolved(folder)
        started = time.perf_counter()
        serve.run(build_application(config, load_full_size), name="edits")
        print(f"ready after {time.perf_counter() - started:.1f} s", flush=True)
        yield f"http://127.0.0.1:{port}"
        serve.shutdown()
    finally:
        ray.shutdown()


def measure_parity(steps: int) -> None:
    """Compare an edit by the engine with one by diffusers' `__call__` on the same pipeline, stage by stage."""
    from tests.engine.oracle import edit_by_oracle
    from tests.engine.recorder import differences, record

    device = torch.device("cuda")
    edit = MODELS["qwen_image_edit"]
    pipeline = make_pipeline(edit, device)
    photograph = PIL.Image.open(PHOTOGRAPH).convert("RGB")
    wide = photograph.crop((0, 0, photograph.width, photograph.height * 2 // 3))
    cases = (
        (edit, [wide], steps),
        (MODELS["qwen_image_edit_plus"], [wide, photograph], 4),
        (MODELS["qwen_image"], [], 4),
    )
    for spec, images, count in cases:
        components = dict(pipeline.components.items())
        if not spec.requires_control_image:
            components.pop("processor")
        own = getattr(diffusers, spec.pipeline)(**components)
        own.set_progress_bar_config(disable=True)
        # No caches, so that every stage is computed and recorded.
        engine = TorchEngine(own, spec, ModelConfig(threads=8, prompt_cache_bytes=0, control_cache_bytes=0))
        plan = replace(PLAN, model=spec.id, steps=count, control_images=("",) * len(images))
        torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        with record(own) as ours:
            edited = engine.edit(plan, [encode(image, OUTPUT_FORMATS["png"], {}) for image in images])
        took, memory = time.perf_counter() - started, torch.cuda.max_memory_allocated() / 2**30
        started = time.perf_counter()
        with record(own) as theirs:
            expected = edit_by_oracle(own, plan, images)
        reference_took = time.perf_counter() - started
        latents = [next(value for name, value in events if name == "final_latents") for events in (ours, theirs)]
        report(
            model=spec.id,
            steps=count,
            stages=len(ours),
            stages_that_differ=differences(ours, theirs),
            latents_equal=torch.equal(*latents),
            pixels_equal=edited.image.tobytes() == expected.tobytes(),
            engine_s=round(took, 2),
            diffusers_s=round(reference_took, 2),
            timings={stage: round(seconds, 3) for stage, seconds in edited.timings.items()},
            peak_gib=round(memory, 1),
            runtime=edited.runtime,
        )


PLAN = EditPlan(
    model="qwen_image_edit",
    profile="reference",
    prompt="turn the sky red",
    negative_prompt="",
    width=1024,
    height=1024,
    steps=25,
    guidance_scale=4.0,
    seed=42,
    output_format="png",
    control_images=("",),
)


def write_lora(path: Path, seed: int, rank: int = 32) -> None:
    """Write a random adapter in the trainer's format on all 840 linears of the blocks: 562 MiB."""
    generator = torch.Generator("cuda").manual_seed(seed)
    tensors = {}
    for name, (out, into) in PUBLISHED.linears.items():
        if name.startswith("transformer_blocks."):
            for part, shape in (("A", (rank, into)), ("B", (out, rank))):
                matrix = torch.randn(shape, generator=generator, device="cuda") * 0.01
                tensors[f"diffusion_model.{name}.lora_{part}.weight"] = matrix.to("cpu", torch.bfloat16)
    save_file(tensors, path, metadata=trainer_metadata(path.stem, "sks"))


def measure_service(options: Mapping[str, Any], port: int = 8123) -> None:
    """The documented request over HTTP: twice without LoRAs (the first finds the GPU cold), then with LoRAs."""
    with tempfile.TemporaryDirectory() as folder:
        for seed in (1, 2):
            write_lora(Path(folder, f"{seed}.safetensors"), seed)
        prompt = {"prompt": PLAN.prompt, "ctrl_img": base64.b64encode(PHOTOGRAPH.read_bytes()).decode()}
        body = {"model": PLAN.model, "prompts": [prompt], "output_format": "png"}
        one, two = ({"path": f"{seed}.safetensors"} for seed in (1, 2))
        stacks = ([], [], [one], [two], [one], [one | {"network_multiplier": 0.5}], [one, two], [])
        with serving(Path(folder), port, options) as url, httpx.Client(base_url=url, timeout=60) as client:
            for stack in stacks:
                done = request(client, body | {"loras": stack})
                report(
                    loras=stack,
                    **{key: done.status[key] for key in ("created_at", "started_at", "finished_at")},
                    post_s=round(done.posted, 2),
                    status=done.result["status"],
                    error=done.result["error"],
                    post_to_finished_s=round(done.took, 2),
                    timings=done.result["metadata"]["timings"]["prompts"],
                    runtime=done.result["metadata"]["runtime"],
                )


@dataclass(frozen=True)
class Done:
    """A finished request: seconds from its POST until the answer, and until its end was seen by polling."""

    posted: float
    took: float
    status: dict[str, Any]
    result: dict[str, Any]


def request(client: httpx.Client, body: dict[str, Any]) -> Done:
    """POST a request and poll its status every 10 ms until it has ended."""
    started = time.perf_counter()
    submitted = client.post("/v1/inference", json=body).raise_for_status().json()
    posted = time.perf_counter() - started
    while (status := client.get(submitted["status_url"]).json())["finished_at"] is None:
        time.sleep(0.01)
    took = time.perf_counter() - started
    return Done(posted, took, status, client.get(submitted["result_url"]).json())


def report(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["parity", "service"])
    parser.add_argument("--steps", type=int, default=25, help="steps of the edit in `parity`")
    parser.add_argument(
        "--profile", action="store_true", help="`service` with the settings of cluster/serve_config.gpu.yaml"
    )
    arguments = parser.parse_args()
    if arguments.what == "parity":
        measure_parity(arguments.steps)
    else:
        measure_service(gpu_profile() if arguments.profile else {})


if __name__ == "__main__":
    main()
