"""The transformer: its placement, its acceleration, the adapters in its weights, and the denoising steps."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import repeat
from typing import Literal

import torch
from torch import Tensor

from serve_app.config import ModelConfig
from serve_app.engine.deltas import Adapter
from serve_app.engine.merged_weights import MergedWeights, place_for_copies
from serve_app.engine.merging import NONE_ON_DEVICE, DeviceDeltas
from serve_app.engine.peft_layers import PeftLayers
from serve_app.engine.streamed_weights import StreamedWeights
from serve_app.errors import CheckpointRefused
from serve_app.models.recipe import Recipe
from serve_app.pipeline.acceleration import accelerate, feature_cache
from serve_app.pipeline.branches import Branches, copy_to_device
from serve_app.pipeline.checkpoint import Pipeline
from serve_app.pipeline.denoise import PredictClean, denoise, noise
from serve_app.pipeline.encoders import Conditions
from serve_app.pipeline.fusion import STEPS_AT_ONCE, share_attention
from serve_app.pipeline.guidance import Guidance
from serve_app.pipeline.layer_stream import MOST_AHEAD
from serve_app.pipeline.lockstep import BranchesInLockstep
from serve_app.pipeline.offloading import Placement
from serve_app.pipeline.streaming import StreamedPlacement
from serve_app.tasks import EditPlan

# The values that a forward holds at most at a time, for each token and feature, besides each branch's own states.
VALUES_PER_FEATURE = 24
# What merging an adapter of another kind than LoRA into the largest weight takes (bytes).
MERGE_BYTES = 3 * 2**28


class Denoiser:
    """One pipeline's transformer, or copies of it on several devices. One caller at a time.

    `copies` says where the original weights are kept; `scales` are the scales, by id, of the adapters applied last.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        config: ModelConfig,
        device: torch.device,
        more_devices: Sequence[torch.device],
        threads: int,
    ) -> None:
        """Raises CheckpointRefused if there is not enough memory for what the config asks for."""
        self._config = config
        self._device = device
        self.scales: dict[str, float] = {}
        self.copies: str = config.adapter_weights
        if config.offload == "stream":
            self.copies = "streamed"
        elif self.copies == "auto":
            self.copies = place_for_copies(pipeline.transformer, device, 1 + len(more_devices))
        if self.copies == "hooks" and (more_devices or config.compile != "none" or config.quantization != "none"):
            raise CheckpointRefused(
                "several gpus_per_replica, compile and quantization need a copy of the original weights, on the device "
                "or in host memory: there is no room for it"
            )
        if more_devices:
            share_attention(pipeline.transformer)
        copies_there = (copy_to_device(pipeline.transformer, other) for other in more_devices)
        self.transformers = [pipeline.transformer, *copies_there]
        self._weights: Sequence[MergedWeights | PeftLayers | StreamedWeights]
        self._branches: Branches | BranchesInLockstep
        self.placement: Placement | StreamedPlacement
        if self.copies == "streamed":
            weights = StreamedWeights(pipeline.transformer, device)
            self.placement = StreamedPlacement(pipeline, device, config.device_memory_bytes, weights)
            self._branches = BranchesInLockstep(pipeline.transformer, self.placement.visiting(pipeline.transformer))
            self._weights = [weights]
            return
        self._branches = Branches(self.transformers, threads)
        if self.copies == "hooks":
            self._weights = [PeftLayers(pipeline)]
        else:
            copies: Literal["device", "host"] = "device" if self.copies == "device" else "host"
            self._weights = [MergedWeights(transformer, copies) for transformer in self.transformers]
        self.placement = Placement(device)

    def accelerate(self) -> None:
        """Quantise and compile as the config says. Compiling itself happens during the first edits."""
        if self._config.quantization == "fp8":
            for weights in self._weights:
                weights.quantise()
        for transformer in self.transformers:
            accelerate(transformer, self._config, self._device)
            self.placement.fused(transformer)
        with self.working():
            for weights in self._weights:
                weights.warm_up()

    @contextmanager
    def working(self, activations: int = 0) -> Iterator[None]:
        """Within, the transformer is on the device, and `activations` bytes are left for its tensors."""
        with self.placement.working(self.transformers[0], activations):
            yield

    def activations(self, plan: EditPlan, recipe: Recipe, conditions: Conditions, adapters: Sequence[Adapter]) -> int:
        """The device's memory that a plan's forwards take in addition to the weights (bytes)."""
        transformer = self.transformers[0]
        prompts = [prompt for prompt in (conditions.positive, conditions.negative) if prompt is not None]
        sizes = ((plan.width, plan.height), *recipe.control_sizes)
        tokens = sum(width * height // 256 for width, height in sizes) + max(prompt.shape[1] for prompt in prompts)
        states = (VALUES_PER_FEATURE + 2 * len(prompts)) * tokens
        modulations = 2 * 12 * STEPS_AT_ONCE * len(transformer.transformer_blocks)
        changes = MOST_AHEAD * sum(adapter.size_bytes for adapter in adapters) // len(transformer.transformer_blocks)
        return max((states + modulations) * transformer.inner_dim * prompts[0].element_size(), MERGE_BYTES) + changes

    def apply(self, uses: Mapping[str, tuple[Adapter, float]], on_device: Mapping[str, DeviceDeltas]) -> int:
        """Apply these adapters (by id), each at its scale, and no others; as `MergedWeights.apply`.

        `on_device` lies on the first device.
        """
        on_others = repeat(NONE_ON_DEVICE, len(self._weights) - 1)
        on_each_device = zip(self._weights, (on_device, *on_others), strict=True)
        swapped = [weights.apply(uses, deltas) for weights, deltas in on_each_device]
        self.placement.refresh(self.transformers[0])
        self.scales = {adapter_id: scale for adapter_id, (_, scale) in uses.items()}
        return swapped[0]

    def denoise(
        self,
        plan: EditPlan,
        recipe: Recipe,
        conditions: Conditions,
        on_step: Callable[[int, PredictClean], None],
    ) -> Tensor:
        """Packed latents of the plan's image, (1, tokens, 64). `on_step(n, ...)` follows step n and may raise to stop.

        Raises InvalidParameter for a prompt that is too long.
        """
        sizes = ((plan.width, plan.height), *recipe.control_sizes)
        try:
            with self._feature_cache(plan.feature_cache):
                return denoise(
                    self._branches,
                    noise(plan.seed, plan.width, plan.height, self._device, conditions.positive.dtype),
                    conditions.control,
                    [(1, height // 16, width // 16) for width, height in sizes],
                    conditions.positive,
                    conditions.negative,
                    guidance_of(plan, recipe),
                    plan.steps,
                    on_step,
                    plan.sampler,
                )
        finally:
            self._branches.end()

    @contextmanager
    def _feature_cache(self, threshold: float | None) -> Iterator[None]:
        with ExitStack() as caches:
            for transformer in self.transformers:
                caches.enter_context(feature_cache(transformer, threshold))
            yield


def guidance_of(plan: EditPlan, recipe: Recipe) -> Guidance:
    """The guidance of a plan's edit, at its first step."""
    return Guidance(plan.guidance_scale, recipe.guidance_rescaled, recipe.guided_steps, plan.guidance_gate_rest)
