"""The engine: a checkpoint, adapters and a plan in, a picture and its timings out. One process, no Ray."""

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import diffusers
import PIL.Image
import torch
import transformers

from serve_app import device as devices
from serve_app import geometry, images
from serve_app.adapters import peft_weights
from serve_app.adapters.registry import AdapterRegistry
from serve_app.config import ModelConfig
from serve_app.errors import DeviceLost, EditCanceled, OutOfMemory
from serve_app.models import checkpoint, conditioning
from serve_app.models.denoise import denoise, noise
from serve_app.models.profile import PROFILES
from serve_app.tasks import AdapterUse, EditPlan

logger = logging.getLogger(__name__)


@dataclass
class Stopwatch:
    """Seconds by stage. On CUDA a stage ends when its kernels have."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[name] = time.perf_counter() - started


@dataclass(frozen=True)
class Prepared:
    """What an edit needs and the device does not: made beside the edit before, consumed by `Engine.run`."""

    plan: EditPlan
    control_images: tuple[PIL.Image.Image, ...]
    adapter_tensors: dict[str, dict[str, torch.Tensor]]
    watch: Stopwatch
    references: ExitStack

    def release(self) -> None:
        """Give back the references to the plan's adapters. To be called once, whatever became of the edit."""
        self.references.close()


@dataclass(frozen=True)
class Edited:
    """A finished picture: RGB, of the plan's size. `timings` are seconds by stage."""

    image: PIL.Image.Image
    timings: dict[str, float]
    effective: dict[str, Any]


class Engine:
    """One checkpoint on one device.

    `prepare` may run in any thread while an edit runs; `run` is for one caller at a time.
    """

    def __init__(self, config: ModelConfig) -> None:
        self.device = devices.choose(config.device)
        # Ray gives a small replica one thread; the number decides the last bits of a picture on a CPU.
        self.threads = config.threads or os.cpu_count() or 1
        torch.set_num_threads(self.threads)
        self._pipeline = checkpoint.load(config.checkpoint, self.device, devices.dtype_for(self.device))
        self._weights = peft_weights.PeftWeights(self._pipeline)
        self.adapters = AdapterRegistry(config.max_loaded_loras)
        self.alive = True

    def edit(
        self,
        plan: EditPlan,
        control_images: Sequence[bytes],
        on_step: Callable[[int], None] = lambda step: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Edited:
        """`prepare` and `run` in one call."""
        prepared = self.prepare(plan, control_images)
        try:
            return self.run(prepared, on_step, should_stop)
        finally:
            prepared.release()

    def prepare(self, plan: EditPlan, control_images: Sequence[bytes]) -> Prepared:
        """Decode the control images and bring the adapters' files into host memory.

        Raises LoraChanged or LoraInvalidFile for a file that is not what was admitted.
        """
        watch = Stopwatch(torch.device("cpu"))
        with ExitStack() as references:
            references.enter_context(self.adapters.using(use.id for use in plan.adapters))
            with watch.stage("load_control_images"):
                pictures = tuple(images.decode(data) for data in control_images)
            with watch.stage("read_adapters"):
                missing = {use.id: use for use in plan.adapters if not self.adapters.is_loaded(use.id)}
                tensors = {adapter_id: peft_weights.read(use) for adapter_id, use in missing.items()}
            return Prepared(plan, pictures, tensors, watch, references.pop_all())

    def run(
        self,
        prepared: Prepared,
        on_step: Callable[[int], None] = lambda step: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Edited:
        """Make the picture. `on_step` is told 0 at the start and then each finished step; `should_stop` is asked then.

        Raises EditCanceled when told to stop, LoraIncompatible, OutOfMemory, and DeviceLost when the
        device's context died; `alive` is False from then on.
        """
        torch.set_num_threads(self.threads)
        try:
            with torch.no_grad():
                return self._run(prepared, on_step, should_stop)
        except torch.OutOfMemoryError as error:
            plan = prepared.plan
            devices.free_cached_memory(self.device)
            raise OutOfMemory(
                f"a picture of {plan.width}x{plan.height} does not fit into this device's memory"
            ) from error
        except RuntimeError as error:
            self.alive = devices.is_alive(self.device)
            if self.alive:
                raise
            raise DeviceLost("the device failed while it edited; its replica is being replaced") from error

    def _run(self, prepared: Prepared, on_step: Callable[[int], None], should_stop: Callable[[], bool]) -> Edited:
        plan, pipeline, profile = prepared.plan, self._pipeline, PROFILES[prepared.plan.profile]
        image = prepared.control_images[0]
        watch = Stopwatch(self.device, prepared.watch.seconds)

        def after_step(step: int) -> None:
            on_step(step)
            if should_stop():
                raise EditCanceled(f"stopped after step {step} of {plan.steps}")

        if should_stop():
            raise EditCanceled("stopped before its first step")
        on_step(0)
        with watch.stage("generate"):
            with watch.stage("apply_adapters"):
                self._apply(plan.adapters, prepared.adapter_tensors)
            with watch.stage("encode_prompt"):
                encoder = pipeline.text_encoder
                seen = conditioning.encoder_image(image, profile, encoder.device, encoder.dtype)
                positive = conditioning.encode_prompt(pipeline, plan.prompt, seen)
                guided = plan.guidance_scale > 1
                negative = conditioning.encode_prompt(pipeline, plan.negative_prompt, seen) if guided else None
            with watch.stage("encode_control"):
                pixels = conditioning.control_pixels(pipeline, image, plan.width, plan.height, profile)
                control = conditioning.encode_control(pipeline, pixels)
            with watch.stage("denoise"):
                target = (1, plan.height // 16, plan.width // 16)
                latents = denoise(
                    pipeline.transformer,
                    noise(plan.seed, plan.width, plan.height, self.device, positive.dtype),
                    control,
                    [target, (1, pixels.shape[-2] // 16, pixels.shape[-1] // 16)],
                    positive,
                    negative,
                    plan.guidance_scale,
                    plan.steps,
                    after_step,
                )
            with watch.stage("decode"):
                picture = conditioning.decode_latents(pipeline, latents, plan.width, plan.height)
        return Edited(picture, dict(watch.seconds), self._effective(plan, image))

    def _apply(self, uses: Sequence[AdapterUse], tensors: dict[str, dict[str, torch.Tensor]]) -> None:
        """Load what is missing, give up what is surplus, and set the scales; the same adapter twice adds up."""
        scales: dict[str, float] = {}
        for use in uses:
            if not self.adapters.is_loaded(use.id):
                self._weights.load(use, tensors[use.id])
            self.adapters.mark_loaded(use.id)
            scales[use.id] = scales.get(use.id, 0.0) + use.scale
        for adapter_id in self.adapters.take_surplus():
            self._weights.unload(adapter_id)
        self._weights.activate({adapter_id: scale for adapter_id, scale in scales.items() if scale != 0.0})

    def _effective(self, plan: EditPlan, image: PIL.Image.Image) -> dict[str, Any]:
        profile = PROFILES[plan.profile]
        guided = plan.guidance_scale > 1
        return {
            "profile": plan.profile,
            "prompt": plan.prompt,
            "width": plan.width,
            "height": plan.height,
            "steps": plan.steps,
            "seed": plan.seed,
            "guidance_scale": plan.guidance_scale,
            "forwards": plan.steps * (2 if guided else 1),
            "encoder_size": geometry.encoder_size(
                image.width, image.height, sides_swapped=profile.encoder_sides_swapped
            ),
            "control_size": geometry.near_area(plan.width / plan.height),
            "control_resample": profile.control_resample,
            "control_images_sha256": list(plan.control_images),
            "loras": [{"path": use.path, "id": use.id, "network_multiplier": use.scale} for use in plan.adapters],
            "loras_applied": "PEFT layers beside the base weights",
            "device": str(self.device),
            "dtype": str(self._pipeline.transformer.dtype).removeprefix("torch."),
            "threads": self.threads,
            "versions": {m.__name__: m.__version__ for m in (torch, diffusers, transformers)},
        }
