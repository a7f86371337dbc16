"""Losses of candidates compared with the exact edits, and the blocks that they computed, on the trained miniature."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import PIL.Image
import torch
from torch import Tensor

from benchmarks.tiers.caches import Cache, Ratios, cached, calibration, mean_ratios, measured_ratios
from benchmarks.tiers.candidates import EXACT, Candidate
from benchmarks.tiers.cases import Case
from serve_app.commands.compare import difference
from serve_app.config import ModelConfig
from serve_app.engine.torch_engine import TorchEngine
from serve_app.images.similarity import ssim
from serve_app.models.architecture import TRAINED_MINIATURE
from serve_app.models.registry import MODELS
from serve_app.pipeline import checkpoint
from serve_app.tasks import AdapterUse, EditPlan

# For each step and each of its forwards, how many blocks it computed: half for an attention or an MLP alone.
Work = list[list[float]]


@dataclass(frozen=True)
class Made:
    image: PIL.Image.Image
    latents: Tensor
    work: Work
    seconds: float


@dataclass(frozen=True)
class Loss:
    """One candidate's image compared with the exact one. `computed` is the share of the exact edit's blocks."""

    case: str
    psnr: float
    ssim: float
    latents: float
    computed: float
    work: Work


class Miniature:
    """An engine of the trained miniature that reports what its edits computed."""

    def __init__(self, device: torch.device, dtype: torch.dtype, quantization: str, threads: int) -> None:
        spec = MODELS["qwen_image_edit"]
        pipeline = checkpoint.read(TRAINED_MINIATURE, dtype).to(device)
        config = ModelConfig(
            device=device.type,
            threads=threads,
            adapter_weights="device",
            quantization=quantization,
            prepare_ahead=False,
        )
        self.engine = TorchEngine(pipeline, spec, config)
        self.engine._denoiser.accelerate()
        self._transformer, self._vae = pipeline.transformer, pipeline.vae
        # MagCache's, of `calibrate`.
        self.ratios: Ratios = ()

    def edit(self, plan: EditPlan, photograph: bytes, cache: Cache | None = None) -> Made:
        config = None if cache is None else cache.config(self._transformer, plan, self.ratios)
        work: Work = []
        with self._with_cache(config, plan, work):
            return self._edit(plan, photograph, work)

    def calibrate(self, cases: Sequence[Case]) -> None:
        """Measure MagCache's ratios: the mean of both branches of the exact edits of the cases."""
        measured: list[list[float]] = []
        for case in cases:
            work: Work = []
            with self._with_cache(calibration(case.plan.steps), case.plan, work):
                self._edit(case.plan, case.photograph, work)
                measured += measured_ratios(self._transformer)
        self.ratios = mean_ratios(measured)

    def _with_cache(self, config: object, plan: EditPlan, work: Work) -> AbstractContextManager[None]:
        if config is None:
            return nullcontext()
        return cached(self._transformer, config, plan, lambda: len(work) - 1)

    def _edit(self, plan: EditPlan, photograph: bytes, work: Work) -> Made:
        latents: list[Tensor] = []

        def on_step(step: int, preview: object) -> None:
            if step < plan.steps:
                work.append([])

        with self._watched(work, latents):
            started = time.perf_counter()
            edited = self.engine.edit(plan, [photograph], on_step)
        return Made(edited.image, latents[0], work, time.perf_counter() - started)

    @contextmanager
    def _watched(self, work: Work, latents: list[Tensor]) -> Iterator[None]:
        def count(*_: object) -> None:
            work[-1][-1] += 0.5

        # A cache may replace the forward of a block or of its attention, but not what they call.
        computed = [part for block in self._transformer.transformer_blocks for part in (block.attn.to_q, block.img_mlp)]
        hooks = [
            self._transformer.register_forward_pre_hook(lambda *_: work[-1].append(0)),
            *(part.register_forward_pre_hook(count) for part in computed),
            self._vae.post_quant_conv.register_forward_pre_hook(
                lambda _, given: latents.append(given[0].float().cpu())
            ),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def losses(
    engine: Miniature, cases: Sequence[Case], exact: Sequence[Made], candidate: Candidate, few_steps: AdapterUse | None
) -> list[Loss]:
    """The candidate's loss in each case."""
    found = []
    for case, whole in zip(cases, exact, strict=True):
        made = engine.edit(candidate.plan(case.plan, few_steps), case.photograph, candidate.cache)
        found.append(
            Loss(
                case.name,
                difference(whole.image, made.image).psnr,
                ssim(whole.image, made.image),
                float((made.latents - whole.latents).norm() / whole.latents.norm()),
                blocks(made.work) / blocks(whole.work),
                made.work,
            )
        )
    return found


def exact_edits(engine: Miniature, cases: Sequence[Case]) -> list[Made]:
    return [engine.edit(EXACT.plan(case.plan, None), case.photograph) for case in cases]


def blocks(work: Work) -> float:
    return sum(map(sum, work))


def summary(candidate: Candidate, found: Sequence[Loss]) -> dict[str, Any]:
    """The worst and median loss, and what the case that computed most computed."""
    worst, slowest = min(found, key=lambda loss: loss.psnr), max(found, key=lambda loss: loss.computed)
    return {
        "candidate": candidate.name,
        "psnr_db": spread(min, [loss.psnr for loss in found]),
        "worst_case": worst.case,
        "ssim": spread(min, [loss.ssim for loss in found]),
        "latents": spread(max, [loss.latents for loss in found]),
        "computed": spread(max, [loss.computed for loss in found]),
        "forwards": sum(map(len, slowest.work)),
        "slowest_case": slowest.case,
        "work": slowest.work,
    }


def spread(worst: Callable[[Sequence[float]], float], values: Sequence[float]) -> dict[str, float]:
    return {"worst": round(worst(values), 4), "median": round(statistics.median(values), 4)}


HEADER = (
    "| setting | PSNR worst, dB | median | worst case | SSIM worst | error of latents worst | median | forwards "
    "| blocks computed, most |\n|---|---|---|---|---|---|---|---|---|"
)


def row(found: dict[str, Any]) -> str:
    psnr, likeness, latents, computed = (found[key] for key in ("psnr_db", "ssim", "latents", "computed"))
    return (
        f"| {found['candidate']} | {psnr['worst']:.1f} | {psnr['median']:.1f} | {found['worst_case']} "
        f"| {likeness['worst']:.3f} | {latents['worst']:.3f} | {latents['median']:.3f} | {found['forwards']} "
        f"| {computed['worst']:.0%} |"
    )
