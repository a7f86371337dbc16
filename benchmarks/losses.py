"""What the lossy levers cost in pixels and buy in time, on a checkpoint whose images mean something.

    python -m benchmarks.losses                                   # the trained miniature; on 2 cores half an hour
    python -m benchmarks.losses --levers feature_cache=0.1 quantization=fp8 --compile
    python -m benchmarks.losses --checkpoint PATH --model qwen_image_edit_plus

One edit a prompt and lever, the defaults of the model, beside the same edit without a lever in the same run. The
relative error is that of the latents that are decoded, |with - without| / |without|; the blocks' share is how many of
them were computed (not with --compile).
"""

import argparse
import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import PIL.Image
import torch

from benchmarks.full_size import PHOTOGRAPH, PLAN
from serve_app.commands.compare import difference
from serve_app.config import MINIATURE, ModelConfig
from serve_app.engine.canary import fixed_plan
from serve_app.engine.engine import Engine
from serve_app.models.registry import MODELS
from serve_app.pipeline.device import free_cached_memory
from serve_app.tasks import EditPlan

PROMPTS = ("invert the colours", "make it black and white", "mirror the picture")
LEVERS = ("feature_cache=0.02", "feature_cache=0.05", "feature_cache=0.1", "feature_cache=0.2", "quantization=fp8")


@dataclass(frozen=True)
class Made:
    """One edit: its image, final latents, seconds of denoising, and how many blocks were computed."""

    image: PIL.Image.Image
    latents: torch.Tensor
    seconds: float
    blocks: int


@contextmanager
def watched(engine: Engine, count_blocks: bool) -> Iterator[tuple[list[torch.Tensor], list[int]]]:
    """The latents that are decoded, and an entry a block computed."""
    latents: list[torch.Tensor] = []
    blocks: list[int] = []
    pipeline = engine._pipeline
    hooks = [
        pipeline.vae.post_quant_conv.register_forward_pre_hook(lambda _, given: latents.append(given[0].float().cpu()))
    ]
    if count_blocks:
        hooks += [
            block.attn.register_forward_pre_hook(lambda *_: blocks.append(1))
            for block in pipeline.transformer.transformer_blocks
        ]
    try:
        yield latents, blocks
    finally:
        for hook in hooks:
            hook.remove()


def edits(config: ModelConfig, plans: Sequence[EditPlan]) -> list[Made]:
    engine = Engine.load(config)
    made = []
    photograph = PHOTOGRAPH.read_bytes()
    for plan in plans:
        with watched(engine, config.compile == "none") as (latents, blocks):
            edited = engine.edit(plan, [photograph] * len(plan.control_images))
        made.append(Made(edited.image, latents[-1], edited.timings["denoise"], len(blocks)))
    # There may be no room for two.
    device = engine.device
    del engine
    gc.collect()
    free_cached_memory(device)
    return made


def relative_error(latents: torch.Tensor, expected: torch.Tensor) -> float:
    """|latents - expected| / |expected|."""
    return float((latents - expected).norm() / expected.norm())


def row(lever: str, plan: EditPlan, without: Made, it: Made) -> str:
    error = relative_error(it.latents, without.latents)
    share = f"{it.blocks / without.blocks:.0%}" if without.blocks else ""
    psnr = difference(without.image, it.image).psnr
    return (
        f"| {lever} | {plan.prompt} | {it.seconds:.2f} | {without.seconds / it.seconds:.2f} | {share} "
        f"| {psnr:.1f} | {error:.4f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default=MINIATURE)
    parser.add_argument("--model", default=PLAN.model, choices=MODELS)
    parser.add_argument("--levers", nargs="+", default=LEVERS, metavar="KEY=VALUE", help="keys of models[]")
    parser.add_argument("--prompts", nargs="+", default=PROMPTS)
    parser.add_argument("--steps", type=int, help="default: the model's")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    spec = MODELS[options.model]
    size = (spec.default_width, spec.default_height)
    # All of them warm alike.
    given = {"id": spec.id, "checkpoint": options.checkpoint, "threads": options.threads, "warm_up": [size]}
    if options.compile:
        given |= {"compile": "regional"}
    plan = fixed_plan(spec, *size, options.steps or spec.default_steps)
    plans = [replace(plan, prompt=prompt) for prompt in options.prompts]
    print(f"{options.checkpoint}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}\n")
    plain = edits(ModelConfig.model_validate(given), plans)
    print("| lever | prompt | denoising, s | without / with | blocks computed | PSNR, dB | relative error of latents |")
    print("|---|---|---|---|---|---|---|")
    for lever in options.levers:
        key, _, value = lever.partition("=")
        made = edits(ModelConfig.model_validate(given | {key: value}), plans)
        for each in zip(plans, plain, made, strict=True):
            print(row(lever, *each), flush=True)


if __name__ == "__main__":
    main()
