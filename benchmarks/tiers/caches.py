"""The other caches of diffusers that skip blocks by step: TaylorSeer, MagCache and SeaCache.

Only this benchmark uses them: the engine has FirstBlockCache alone. docs/performance.md has what they lose.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean
from typing import Any, Literal

import torch
from diffusers import MagCacheConfig, QwenImageTransformer2DModel, SeaCacheConfig, TaylorSeerCacheConfig
from torch import Tensor

from serve_app.pipeline.branches import BRANCHES
from serve_app.pipeline.conditioning import unpack
from serve_app.pipeline.denoise import schedule
from serve_app.tasks import EditPlan

CacheKind = Literal["taylorseer", "magcache", "seacache"]
Where = Literal["attention", "last block", "output"]
# For each step, how much larger the change by all blocks is than in the step before: a token's norm, mean of tokens.
Ratios = Sequence[float]


def last_block(blocks: int) -> dict[str, Any]:
    """Extrapolate what the last of so many blocks returns. The others return zeros, which nobody reads."""
    return {
        "cache_identifiers": [rf"transformer_blocks\.{blocks - 1}"],
        "skip_predict_identifiers": [rf"transformer_blocks\.{index}" for index in range(blocks - 1)],
    }


@dataclass(frozen=True)
class Cache:
    """A cache with its settings, which are fields of diffusers' config.

    TaylorSeer extrapolates `where`: what each attention module returns (the MLPs are computed), what the last block
    returns, or the transformer's output. MagCache and SeaCache reuse the change by all blocks.
    """

    kind: CacheKind
    settings: Mapping[str, Any] = field(default_factory=dict)
    where: Where = "output"

    def config(self, transformer: QwenImageTransformer2DModel, plan: EditPlan, ratios: Ratios) -> Any:
        """diffusers' config for an edit. Only MagCache reads the ratios, which are of 25 steps or of the plan's."""
        if self.kind == "magcache":
            return MagCacheConfig(num_inference_steps=plan.steps, mag_ratios=list(ratios), **self.settings)
        if self.kind == "seacache":
            return SeaCacheConfig(raw_vision_callback=partial(noisy_latents, plan), **self.settings)
        where: dict[str, Any] = {}
        if self.where == "output":
            where = {"use_lite_mode": True}
        elif self.where == "last block":
            where = last_block(len(transformer.transformer_blocks))
        return TaylorSeerCacheConfig(taylor_factors_dtype=torch.float32, **where, **self.settings)


def noisy_latents(
    plan: EditPlan, transformer: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[Tensor]:
    """The latents that become the image, (16, 1, height/8, width/8), of a forward's packed ones."""
    packed = kwargs["hidden_states"][:, : plan.width * plan.height // 256]
    return [unpack(packed, plan.width, plan.height)[0]]


@contextmanager
def cached(
    transformer: QwenImageTransformer2DModel, config: Any, plan: EditPlan, step: Callable[[], int]
) -> Iterator[None]:
    """Within, the edit's forwards use the cache, each guidance branch with its own state. Nothing is left afterwards.

    `step` says which step (0-based) is being computed: SeaCache filters by the step's noise level.
    """
    sigmas = schedule(plan.steps, plan.width * plan.height // 256, torch.device("cpu"), plan.sampler).sigmas.tolist()
    plain = transformer.cache_context

    def cache_context(name: str) -> Any:
        return plain(name, step_index=step(), num_inference_steps=plan.steps, sigma=sigmas[step()])

    transformer.enable_cache(config)
    transformer.cache_context = cache_context
    try:
        yield
    finally:
        del transformer.cache_context
        transformer.disable_cache()


def calibration(steps: int) -> MagCacheConfig:
    """MagCache's calibration. It prints and forgets the ratios after its last step, so it gets one step too many."""
    return MagCacheConfig(num_inference_steps=steps + 1, calibrate=True)


def measured_ratios(transformer: QwenImageTransformer2DModel) -> list[list[float]]:
    """The ratios of each branch, of the edit that the cache with `calibration` is still on for."""
    last = transformer.transformer_blocks[-1]
    hook = last._diffusers_hook.get_hook("mag_cache_block_hook")
    return [hook.state_manager._state_cache[name].calibration_ratios for name in BRANCHES]


def mean_ratios(measured: Sequence[Sequence[float]]) -> list[float]:
    """The mean of each step."""
    return [fmean(values) for values in zip(*measured, strict=True)]
