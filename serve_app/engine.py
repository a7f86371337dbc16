"""The engine: a checkpoint, adapters and a plan in, a picture and its timings out. One process, no Ray."""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

import diffusers
import PIL.Image
import torch
import transformers

from serve_app import device as devices
from serve_app import images, tracing
from serve_app.adapters.cache import AdapterCache
from serve_app.adapters.changes import Adapter
from serve_app.adapters.contents import Contents
from serve_app.adapters.files import read_adapter
from serve_app.adapters.hooks import Hooks
from serve_app.adapters.weights import Weights, place_for_copies
from serve_app.config import FetchConfig, ModelConfig
from serve_app.effective import effective
from serve_app.errors import DeviceLost, EditCanceled, OutOfMemory
from serve_app.geometry import Size
from serve_app.models import architecture, checkpoint, conditioning
from serve_app.models.denoise import denoise, noise
from serve_app.models.profile import PROFILES
from serve_app.models.recipe import Recipe, make_recipe
from serve_app.models.registry import MODELS, ModelSpec
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
        with tracing.span(name):
            yield
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
        self.seconds[name] = time.perf_counter() - started


@dataclass(frozen=True)
class Prepared:
    """What an edit needs and the device does not: made beside the edit before, consumed by `Engine.run`."""

    plan: EditPlan
    control_images: tuple[images.Picture, ...]
    adapters: tuple[Adapter, ...]
    watch: Stopwatch


@dataclass(frozen=True)
class Edited:
    """A finished picture: RGB, of the plan's size. `timings` are seconds by stage; the rest as in `EditDone`.

    `swapped` is how many linears (with hooks: adapters) were set anew for it, `compilations` how many graphs
    torch.compile made meanwhile.
    """

    image: PIL.Image.Image
    timings: dict[str, float]
    effective: dict[str, Any]
    runtime: dict[str, Any]
    swapped: int = 0
    compilations: int = 0


class Engine:
    """One model's pipeline on one device.

    `prepare` may run in any thread while an edit runs; `run` is for one caller at a time.
    """

    def __init__(
        self, pipeline: checkpoint.Pipeline, spec: ModelSpec, config: ModelConfig, contents: Contents | None = None
    ) -> None:
        """An engine for a pipeline where it lies; of the config, what says how to run it.

        `contents` reads the adapters' files: by default with nobody to agree with on what is in them.
        """
        self.device: torch.device = pipeline.device
        # Ray gives a small replica one thread; the number decides the last bits of a picture on a CPU.
        self.threads = config.threads or os.cpu_count() or 1
        self.alive = True
        self.adapters: AdapterCache[Adapter] = AdapterCache(config.adapter_cache_bytes)
        self._contents = contents or Contents(config, FetchConfig())
        self._spec = spec
        self._pipeline = pipeline
        self._architecture = architecture.from_config(pipeline.transformer.config)
        self._linears = self._architecture.linears
        self._copies = config.adapter_weights
        if self._copies == "auto":
            self._copies = place_for_copies(pipeline.transformer, self.device)
        self._weights = Hooks(pipeline) if self._copies == "hooks" else Weights(pipeline.transformer, self._copies)

    @classmethod
    def load(cls, config: ModelConfig, contents: Contents | None = None) -> Self:
        """The engine for a configured model. Raises CheckpointRefused."""
        spec, device = MODELS[config.id], devices.choose(config.device)
        return cls(checkpoint.load(config, spec, device, devices.dtype_for(device)), spec, config, contents)

    def edit(
        self,
        plan: EditPlan,
        control_images: Sequence[bytes],
        on_step: Callable[[int], None] = lambda step: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Edited:
        """`prepare` and `run` in one call."""
        return self.run(self.prepare(plan, control_images), on_step, should_stop)

    def prepare(self, plan: EditPlan, control_images: Sequence[bytes]) -> Prepared:
        """Decode the control images and bring the adapters' files into host memory.

        Raises LoraChanged, LoraDownloadFailed, LoraInvalidFile or LoraIncompatible for a file that is not what was
        admitted, or cannot be had.
        """
        watch = Stopwatch(torch.device("cpu"))
        with watch.stage("load_control_images"):
            pictures = tuple(images.read(data, plan.exif) for data in control_images)
        with watch.stage("read_adapters"):
            loaded = self.adapters.get_all({use.id: partial(self._read, use) for use in plan.adapters})
        return Prepared(plan, pictures, tuple(loaded[use.id] for use in plan.adapters), watch)

    def _read(self, use: AdapterUse) -> Adapter:
        pinned = self.device.type == "cuda"
        return read_adapter(use, self._contents, self._spec.id, self._linears, pinned=pinned)

    def run(
        self,
        prepared: Prepared,
        on_step: Callable[[int], None] = lambda step: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Edited:
        """Make the picture. `on_step` is told 0 at the start and then each finished step; `should_stop` is asked then.

        Raises EditCanceled when told to stop, LoraIncompatible, OutOfMemory, UnusableResult, and DeviceLost
        when the device's context died; `alive` is False from then on.
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
        plan, pipeline, pictures = prepared.plan, self._pipeline, prepared.control_images
        recipe = make_recipe(self._spec, PROFILES[plan.profile], plan, [picture.facts.size for picture in pictures])
        watch = Stopwatch(self.device, prepared.watch.seconds)
        compiled_before = graphs_compiled()

        def after_step(step: int) -> None:
            on_step(step)
            if should_stop():
                raise EditCanceled(f"stopped after step {step} of {plan.steps}")

        if should_stop():
            raise EditCanceled("stopped before its first step")
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        on_step(0)
        # The switch that diffusers' enable_tiling sets; its sizes of tiles are the class's own.
        pipeline.vae.use_tiling = plan.vae_tiling
        with watch.stage("generate"):
            with watch.stage("apply_adapters"):
                swapped = self._apply(plan.adapters, prepared.adapters)
            with watch.stage("encode_prompt"):
                positive = self._encode(plan.prompt, pictures, recipe.encoder_sizes, recipe)
                negative = None
                if recipe.guided:
                    negative = self._encode(plan.negative_prompt, pictures, recipe.negative_encoder_sizes, recipe)
            with watch.stage("encode_control"):
                pixels = [
                    conditioning.control_pixels(pipeline, picture.image, resizes)
                    for picture, resizes in zip(pictures, recipe.control_resizes, strict=True)
                ]
                control = [conditioning.encode_control(pipeline, each) for each in pixels]
            with watch.stage("denoise"):
                sizes = ((plan.width, plan.height), *recipe.control_sizes)
                latents = denoise(
                    pipeline.transformer,
                    noise(plan.seed, plan.width, plan.height, self.device, positive.dtype),
                    torch.cat(control, dim=1) if control else None,
                    [(1, height // 16, width // 16) for width, height in sizes],
                    positive,
                    negative,
                    plan.guidance_scale,
                    recipe.guidance_rescaled,
                    plan.steps,
                    after_step,
                    plan.sampler,
                )
            with watch.stage("decode"):
                made = conditioning.decode_latents(pipeline, latents, plan.width, plan.height)
        record = effective(plan, self._spec, recipe, self._architecture, [picture.facts for picture in pictures])
        compilations = graphs_compiled() - compiled_before
        return Edited(made, dict(watch.seconds), record, self._runtime(prepared), swapped, compilations)

    def _encode(
        self, text: str, pictures: Sequence[images.Picture], sizes: Sequence[Sequence[Size]], recipe: Recipe
    ) -> torch.Tensor:
        """A prompt's embeddings beside the control images, each resized to its `sizes` in turn."""
        encoder = self._pipeline.text_encoder
        seen = [
            conditioning.encoder_image(picture.image, steps, encoder.device, encoder.dtype)
            for picture, steps in zip(pictures, sizes, strict=True)
        ]
        return conditioning.encode_prompt(self._pipeline, text, seen, recipe)

    def _apply(self, uses: Sequence[AdapterUse], adapters: Sequence[Adapter]) -> int:
        """Set the weights, and say how many had to be; the same adapter twice adds up."""
        stack: dict[str, tuple[Adapter, float]] = {}
        for use, adapter in zip(uses, adapters, strict=True):
            _, scale = stack.get(use.id, (adapter, 0.0))
            stack[use.id] = (adapter, scale + use.scale)
        return self._weights.apply(stack)

    def _runtime(self, prepared: Prepared) -> dict[str, Any]:
        """What of an edit only this process knows."""
        on_gpu = self.device.type == "cuda"
        return {
            "device": torch.cuda.get_device_name(self.device) if on_gpu else "cpu",
            "peak_memory_gib": round(torch.cuda.max_memory_allocated(self.device) / 2**30, 2) if on_gpu else None,
            "dtype": str(self._pipeline.transformer.dtype).removeprefix("torch."),
            "threads": self.threads,
            "adapter_weights": self._copies,
            "adapters": [
                {"id": use.id, "sha256": adapter.sha256}
                for use, adapter in zip(prepared.plan.adapters, prepared.adapters, strict=True)
            ],
            # As plain strings: torch's own type would have whoever unpickles it import torch.
            "versions": {m.__name__: str(m.__version__) for m in (torch, diffusers, transformers)},
        }


def graphs_compiled() -> int:
    """How many graphs torch.compile has made in this process; a recompilation is one more."""
    # Its import takes a second, which a process that compiles nothing need not spend.
    dynamo = sys.modules.get("torch._dynamo.utils")
    return dynamo.counters["stats"]["unique_graphs"] if dynamo else 0
