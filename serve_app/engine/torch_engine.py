"""The engine: a checkpoint, adapters and a plan in, an image and its timings out. One process, no Ray."""

import contextvars
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Self

import diffusers
import PIL.Image
import torch
import transformers

from serve_app.adapters.verified_files import VerifiedFiles
from serve_app.config import FetchConfig, ModelConfig
from serve_app.engine.adapter_cache import AdapterCache
from serve_app.engine.adapter_loading import read_adapter
from serve_app.engine.canary import LEAST_LIKENESS_DB, fixed_files, fixed_plan, likeness
from serve_app.engine.deltas import Adapter
from serve_app.engine.denoiser import Denoiser
from serve_app.engine.merged_weights import Near
from serve_app.engine.protocol import Edited
from serve_app.errors import CheckpointRefused, DeviceLost, EditCanceled, OutOfMemory, UnusableResult, clear_frames
from serve_app.images.decode import DecodedImage, decode
from serve_app.models import architecture
from serve_app.models.effective import effective_record
from serve_app.models.profile import PROFILES
from serve_app.models.recipe import Recipe, make_recipe
from serve_app.models.registry import MODELS, ModelSpec
from serve_app.pipeline import checkpoint
from serve_app.pipeline import device as devices
from serve_app.pipeline.acceleration import configure_thread, graphs_compiled, is_accelerated
from serve_app.pipeline.device import StageTimer
from serve_app.pipeline.encoders import Conditions, Encoders
from serve_app.tasks import AdapterUse, EditPlan

# Of the fixed edit by which a replica compares itself with what it was before it was accelerated.
CANARY_STEPS = 4

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """What an edit needs but no denoising: made beside the edit before, consumed by `TorchEngine.run`.

    `given` and `near` (by the adapters' ids) lie on the device, if they could be made beside the edit before.
    """

    plan: EditPlan
    control_images: tuple[DecodedImage, ...]
    adapters: tuple[Adapter, ...]
    timer: StageTimer
    given: Conditions | None = None
    near: dict[str, Near] = field(default_factory=dict)


class TorchEngine:
    """One model's pipeline on one device.

    `prepare` may run in any thread while an edit runs; `run` is for one caller at a time. What is prepared takes
    memory of the device: whoever calls lets one edit be prepared while one runs, not more.
    """

    def __init__(
        self,
        pipeline: checkpoint.Pipeline,
        spec: ModelSpec,
        config: ModelConfig,
        files: VerifiedFiles | None = None,
        second: torch.device | None = None,
    ) -> None:
        """An engine for a pipeline where it lies; of the config, what says how to run it.

        `files` reads the adapters' files: by default with nobody to agree with on what is in them. A `second` device
        gets a copy of the transformer, which does one of the two guidance branches.
        """
        offload = config.offload
        self.device: torch.device = pipeline.device if offload == "none" else devices.choose(config.device)
        # Ray gives a small replica one thread; the number decides the last bits of an image on a CPU.
        self.threads = config.threads or os.cpu_count() or 1
        self.alive = True
        self.adapters: AdapterCache[Adapter] = AdapterCache(config.adapter_cache_bytes)
        self._files = files or VerifiedFiles(config, FetchConfig())
        self._spec = spec
        self._config = config
        self._graphs_when_ready: int | None = None
        self._pipeline = pipeline
        self._devices = [self.device] if second is None else [self.device, second]
        ahead = config.prepare_ahead
        if ahead is None:
            ahead = self.device.type == "cuda" and offload == "none" and not config.switches_kernels
        self._side_stream = devices.SideStream(self.device) if ahead else None
        # One thread: there is memory for one edit beside the current one, and cuDNN remembers by thread what it has
        # planned for a size. Whoever holds the lock has that memory.
        self._beside = ThreadPoolExecutor(1, "beside", configure_thread, (self.threads,))
        self._preparing = threading.Lock()
        self._architecture = architecture.from_config(pipeline.transformer.config)
        self._denoiser = Denoiser(pipeline, config, self.device, second, self.threads)
        self._encoders = Encoders(
            pipeline, self._denoiser.placement, config.prompt_cache_bytes, config.control_cache_bytes
        )

    @classmethod
    def load(cls, config: ModelConfig, files: VerifiedFiles | None = None) -> Self:
        """The engine for a configured model. Raises CheckpointRefused."""
        spec, device = MODELS[config.id], devices.choose(config.device)
        if config.gpus_per_replica > 1 and torch.cuda.device_count() < config.gpus_per_replica:
            raise CheckpointRefused(
                f"gpus_per_replica: {config.gpus_per_replica}, but this replica sees {torch.cuda.device_count()}: the "
                "ray_actor_options of a serve config replace the code's, so num_gpus has to stand there"
            )
        pipeline = checkpoint.load(config, spec, device, devices.dtype_for(device))
        second = torch.device("cuda", 1) if config.gpus_per_replica == 2 else None
        engine = cls(pipeline, spec, config, files, second)
        engine.make_ready()
        return engine

    def make_ready(self) -> None:
        """Accelerate the transformer as the config says, and warm up, so that no request waits for what is slow once.

        Raises UnusableResult if a fixed edit is no image then, or another one than before.
        """
        config, started = self._config, time.perf_counter()
        if not (is_accelerated(config) or config.warm_up):
            return
        size = next(iter(config.warm_up), (self._spec.default_width, self._spec.default_height))
        plain = self._fixed_edit(*size, CANARY_STEPS)
        self._denoiser.accelerate()
        for width, height in config.warm_up:
            self._fixed_edit(width, height, steps=1)
        found = likeness(plain, self._fixed_edit(*size, CANARY_STEPS))
        self._graphs_when_ready = graphs_compiled()
        logger.info("warm after %.1f s; a fixed edit is %.1f dB like a plain one", time.perf_counter() - started, found)
        if found < LEAST_LIKENESS_DB:
            raise UnusableResult(
                f"a fixed edit is only {found:.1f} dB like the one without compile: {config.compile}, "
                f"attention: {config.attention}" + (config.lossy and f", {config.lossy}")
            )

    def _fixed_edit(self, width: int, height: int, steps: int) -> PIL.Image.Image:
        plan = fixed_plan(self._spec, width, height, steps)
        return self.edit(plan, fixed_files(plan)).image

    @property
    def recompilations(self) -> int:
        """Graphs compiled since the replica was ready: each one is seconds that an edit waited."""
        return 0 if self._graphs_when_ready is None else graphs_compiled() - self._graphs_when_ready

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

        With `prepare_ahead`, go on to the device, beside whatever it computes: encode prompts and control images, and
        copy the adapters there. Raises LoraChanged, LoraDownloadFailed, LoraInvalidFile or LoraIncompatible for a file
        that is not what was admitted, or cannot be had.
        """
        timer = StageTimer(torch.device("cpu"))
        with timer.stage("load_control_images"):
            decoded = tuple(decode(data, plan.exif) for data in control_images)
        with timer.stage("read_adapters"):
            adapters = self._adapters_of(plan.adapters)
        prepared = Prepared(plan, decoded, adapters, timer)
        if self._side_stream is None:
            return prepared
        # In the caller's context, which says whose span this is.
        context = contextvars.copy_context()
        return self._beside.submit(context.run, self._prepare_on_device, prepared, self._side_stream).result()

    def hold(self, uses: Sequence[AdapterUse]) -> None:
        """Load adapters into host memory, as for an edit that uses them. Raises as `prepare` does."""
        self._adapters_of(uses)

    def _adapters_of(self, uses: Sequence[AdapterUse]) -> tuple[Adapter, ...]:
        """The adapters of one edit in host memory, in the order of `uses`."""
        try:
            loaded = self.adapters.get_all({use.id: partial(self._read, use) for use in uses})
        except RuntimeError as error:
            # Pinning memory takes the device's context.
            self._raise_if_lost(error)
            raise
        return tuple(loaded[use.id] for use in uses)

    def _prepare_on_device(self, prepared: Prepared, side_stream: devices.SideStream) -> Prepared:
        plan = prepared.plan
        try:
            with self._preparing, torch.no_grad(), side_stream.current():
                timer = StageTimer(self.device, prepared.timer.seconds)
                given = self._encoders.conditions(plan, prepared.control_images, self._recipe(prepared), timer)
                near = {}
                with timer.stage("copy_adapters"):
                    # What the weights have now is a hint: an edit runs beside this, and may change them.
                    if self._denoiser.copies != "hooks" and scales_of(plan) != self._denoiser.scales:
                        near = {
                            use.id: adapter.on(self.device)
                            for use, adapter in zip(plan.adapters, prepared.adapters, strict=True)
                        }
        except RuntimeError as error:
            # No memory beside the running edit, or a dead device: `run` does it all, in its turn, and tells which.
            logger.warning("an edit could not be prepared ahead", exc_info=True)
            if devices.is_out_of_memory(error):
                self._free(error)
            return prepared
        return replace(prepared, given=given, near=near)

    def _recipe(self, prepared: Prepared) -> Recipe:
        plan = prepared.plan
        sizes = [image.facts.size for image in prepared.control_images]
        return make_recipe(self._spec, PROFILES[plan.profile], plan, sizes)

    def _read(self, use: AdapterUse) -> Adapter:
        pinned = self.device.type == "cuda"
        return read_adapter(use, self._files, self._spec.id, self._architecture, pinned=pinned)

    def run(
        self,
        prepared: Prepared,
        on_step: Callable[[int], None] = lambda step: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Edited:
        """Make the image. `on_step` is told 0 at the start and then each finished step; `should_stop` is asked then.

        Raises EditCanceled when told to stop, LoraIncompatible, OutOfMemory, UnusableResult, and DeviceLost
        when the device's context died; `alive` is False from then on.
        """
        configure_thread(self.threads)
        try:
            with torch.no_grad():
                return self._run_beside(prepared, on_step, should_stop)
        except RuntimeError as error:
            self._raise_if_lost(error)
            if not devices.is_out_of_memory(error):
                raise
            self._free(error)
            plan = prepared.plan
            raise OutOfMemory(
                f"an image of {plan.width}x{plan.height} does not fit into this device's memory"
            ) from error

    def _run_beside(
        self, prepared: Prepared, on_step: Callable[[int], None], should_stop: Callable[[], bool]
    ) -> Edited:
        """Run; once more if what was missing was memory, and another edit was being prepared with some meanwhile."""
        try:
            return self._run(prepared, on_step, should_stop)
        except RuntimeError as error:
            if not (self._preparing.locked() and devices.is_out_of_memory(error)):
                raise
            logger.warning("out of memory beside an edit that was being prepared; once more after it", exc_info=True)
            self._free(error)
        with self._preparing:
            return self._run(prepared, on_step, should_stop)

    def _free(self, error: RuntimeError) -> None:
        """Give back what the frames that failed hold of the edit, and what torch keeps."""
        clear_frames(error)
        for device in self._devices:
            devices.free_cached_memory(device)

    def _raise_if_lost(self, error: RuntimeError) -> None:
        """Raise DeviceLost if the device has not survived what failed with `error`."""
        self.alive = all(map(devices.is_alive, self._devices))
        if not self.alive:
            raise DeviceLost("the device failed while it edited; its replica is being replaced") from error

    def _run(self, prepared: Prepared, on_step: Callable[[int], None], should_stop: Callable[[], bool]) -> Edited:
        plan, decoded = prepared.plan, prepared.control_images
        recipe = self._recipe(prepared)
        timer = StageTimer(self.device, prepared.timer.seconds)
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
        with timer.stage("generate"):
            given = prepared.given or self._encoders.conditions(plan, decoded, recipe, timer)
            given.record_stream()
            with self._denoiser.working():
                with timer.stage("apply_adapters"):
                    swapped = self._apply(prepared)
                with timer.stage("denoise"):
                    latents = self._denoiser.denoise(plan, recipe, given, after_step)
            with timer.stage("decode"):
                made = self._encoders.decode(latents, plan)
        record = effective_record(plan, self._spec, recipe, self._architecture, [image.facts for image in decoded])
        compilations = graphs_compiled() - compiled_before
        runtime = self._runtime(prepared) | {"reused": given.reused}
        return Edited(made, dict(timer.seconds), record, runtime, swapped, compilations)

    def _apply(self, prepared: Prepared) -> int:
        """Set the weights, and say how many had to be; the same adapter twice adds up."""
        by_id = {use.id: adapter for use, adapter in zip(prepared.plan.adapters, prepared.adapters, strict=True)}
        for changes in prepared.near.values():
            # One of them stands for all: they lie in one piece of memory.
            next(iter(changes.values())).moved(devices.record_stream)
        uses = {adapter_id: (by_id[adapter_id], scale) for adapter_id, scale in scales_of(prepared.plan).items()}
        try:
            return self._denoiser.apply(uses, prepared.near)
        finally:
            # Their memory is free for the next edit's.
            prepared.near.clear()

    def _runtime(self, prepared: Prepared) -> dict[str, Any]:
        """What of an edit only this process knows."""
        on_gpu = self.device.type == "cuda"
        return {
            "device": torch.cuda.get_device_name(self.device) if on_gpu else "cpu",
            "peak_memory_gib": round(torch.cuda.max_memory_allocated(self.device) / 2**30, 2) if on_gpu else None,
            "dtype": str(self._pipeline.transformer.dtype).removeprefix("torch."),
            "threads": self.threads,
            "adapter_weights": self._denoiser.copies,
            "offload": self._config.offload,
            "transformers": len(self._denoiser.transformers),
            "attention": self._config.attention,
            "compile": self._config.compile,
            "quantization": self._config.quantization,
            "feature_cache": self._config.feature_cache,
            "recompilations": self.recompilations,
            "adapters": [
                {"id": use.id, "sha256": adapter.sha256, "factor": adapter.factor and asdict(adapter.factor)}
                for use, adapter in zip(prepared.plan.adapters, prepared.adapters, strict=True)
            ],
            # As plain strings: torch's own type would have whoever unpickles it import torch.
            "versions": {m.__name__: str(m.__version__) for m in (torch, diffusers, transformers)},
        }


def scales_of(plan: EditPlan) -> dict[str, float]:
    """The scale of each of a plan's adapters, by id; the same adapter twice adds up."""
    scales: dict[str, float] = {}
    for use in plan.adapters:
        scales[use.id] = scales.get(use.id, 0.0) + use.scale
    return scales
