"""The transformer with all that concerns it: where it lies, how it computes, the adapters in its weights, its steps."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from serve_app.config import ModelConfig
from serve_app.engine.deltas import Adapter
from serve_app.engine.merged_weights import NOTHING_NEAR, Near, Weights, place_for_copies
from serve_app.engine.peft_layers import Hooks
from serve_app.errors import CheckpointRefused
from serve_app.models.recipe import Recipe
from serve_app.pipeline.acceleration import accelerate, reset_feature_cache
from serve_app.pipeline.branches import Branches, copy_to_device
from serve_app.pipeline.checkpoint import Pipeline
from serve_app.pipeline.denoise import denoise, noise
from serve_app.pipeline.encoders import Conditions
from serve_app.pipeline.fusion import clear_modulations
from serve_app.pipeline.offloading import Placement
from serve_app.tasks import EditPlan


class Denoiser:
    """One pipeline's transformer, or two that are alike, one a device. One caller at a time.

    `copies` is where the untouched weights lie; `scales` are those of the adapters (by id) that were set last.
    """

    def __init__(
        self, pipeline: Pipeline, config: ModelConfig, device: torch.device, second: torch.device | None, threads: int
    ) -> None:
        """Raises CheckpointRefused where there is no room for what the config needs."""
        self._config = config
        self._device = device
        self.scales: dict[str, float] = {}
        self.copies = config.adapter_weights
        if self.copies == "auto":
            # Where the weights themselves have no place on the device, a copy has none either.
            here = config.offload == "none"
            transformers = 1 if second is None else 2
            self.copies = place_for_copies(pipeline.transformer, device, transformers) if here else "host"
        if self.copies == "hooks" and (second or config.compile != "none" or config.quantization != "none"):
            raise CheckpointRefused(
                "gpus_per_replica: 2, compile and quantization need room for untouched copies of the weights, on the "
                "device or in host memory: there is none"
            )
        self.transformers = [pipeline.transformer]
        if second is not None:
            self.transformers.append(copy_to_device(pipeline.transformer, second))
        self._branches = Branches(self.transformers, threads)
        self._weights: Sequence[Weights | Hooks] = (
            [Hooks(pipeline)]
            if self.copies == "hooks"
            else [Weights(transformer, self.copies) for transformer in self.transformers]
        )
        # After the weights: they hold on to the tensors that offloading takes away from the modules.
        self.placement = Placement(pipeline, device, config.offload)

    def accelerate(self) -> None:
        """Have it compute as the config says; what is slow the first time is left to the first edits."""
        if self._config.quantization == "fp8":
            for weights in self._weights:
                weights.quantise()
        for transformer in self.transformers:
            accelerate(transformer, self._config)
        with self.working():
            for weights in self._weights:
                weights.warm_up()

    @contextmanager
    def working(self) -> Iterator[None]:
        """Within, it is where it can compute."""
        with self.placement.working(self.transformers[0]):
            yield

    def apply(self, uses: Mapping[str, tuple[Adapter, float]], near: Mapping[str, Near]) -> int:
        """Have these adapters (by id), each at its scale, and no others; as `Weights.apply`."""
        nearby = zip(self._weights, (near, NOTHING_NEAR), strict=False)
        swapped = [weights.apply(uses, its) for weights, its in nearby]
        self.scales = {adapter_id: scale for adapter_id, (_, scale) in uses.items()}
        return swapped[0]

    def denoise(self, plan: EditPlan, recipe: Recipe, given: Conditions, on_step: Callable[[int], None]) -> Tensor:
        """Packed latents of the plan's image. `on_step` is told each finished step and may raise to stop.

        Raises InvalidParameter for a prompt that is too long.
        """
        sizes = ((plan.width, plan.height), *recipe.control_sizes)
        try:
            return denoise(
                self._branches,
                noise(plan.seed, plan.width, plan.height, self._device, given.positive.dtype),
                given.control,
                [(1, height // 16, width // 16) for width, height in sizes],
                given.positive,
                given.negative,
                plan.guidance_scale,
                recipe.guidance_rescaled,
                plan.steps,
                on_step,
                plan.sampler,
            )
        finally:
            for transformer in self.transformers:
                reset_feature_cache(transformer)
                clear_modulations(transformer)
