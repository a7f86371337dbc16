"""The real engine: makes an image from a checkpoint, adapters and a plan. It runs in one process, without Ray."""

import contextvars
import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import PIL.Image
import torch

from serve_app.adapters.verified_files import VerifiedFiles
from serve_app.config import FetchConfig, ModelConfig
from serve_app.engine.adapter_cache import AdapterCache
from serve_app.engine.adapter_loading import read_adapter
from serve_app.engine.canary import MIN_SIMILARITY_DB, fixed_control_images, fixed_plan, similarity_db
from serve_app.engine.deltas import Adapter
from serve_app.engine.denoiser import Denoiser
from serve_app.engine.device_health import DeviceHealth
from serve_app.engine.merging import DeviceDeltas
from serve_app.engine.placement import place
from serve_app.engine.protocol import Edited, OnStep, ShouldStop
from serve_app.engine.runtime_record import runtime_record
from serve_app.errors import (
    CheckpointRefused,
    DeviceLost,
    EditCanceled,
    EditorUnavailable,
    OutOfMemory,
    QualityUnavailable,
    UnusableResult,
)
from serve_app.images.decode import DecodedImage, decode
from serve_app.models import architecture
from serve_app.models.effective import effective_record
from serve_app.models.profile import PROFILES
from serve_app.models.recipe import Recipe, make_recipe
from serve_app.models.registry import MODELS, ModelSpec
from serve_app.pipeline import checkpoint
from serve_app.pipeline import device as devices
from serve_app.pipeline.acceleration import configure_thread, graphs_compiled, is_accelerated
from serve_app.pipeline.denoise import PredictClean
from serve_app.pipeline.device import StageTimer
from serve_app.pipeline.encoders import Conditions, Encoders
from serve_app.tasks import AdapterUse, EditPlan

# Steps of the fixed edit that is made before and after the acceleration, to compare the two images.
CANARY_STEPS = 4

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """Everything that an edit needs before its denoising. `TorchEngine.run` consumes it.

    `conditions` and `deltas` (by the adapters' ids) are on the device. They are there only if there was memory for
    them while the previous edit ran.
    """

    plan: EditPlan
    control_images: tuple[DecodedImage, ...]
    adapters: tuple[Adapter, ...]
    timer: StageTimer
    conditions: Conditions | None = None
    deltas: dict[str, DeviceDeltas] = field(default_factory=dict)


class TorchEngine:
    """An `Engine`: one model's pipeline on one device.

    A prepared edit takes memory of the device, so callers prepare one edit at most while another one runs.
    """

    def __init__(
        self,
        pipeline: checkpoint.Pipeline,
        spec: ModelSpec,
        config: ModelConfig,
        files: VerifiedFiles | None = None,
        more_devices: Sequence[torch.device] = (),
        why: str = "",
    ) -> None:
        """An engine for a loaded pipeline, on the pipeline's device unless the config streams the weights.

        `files` reads the adapters' files; by default it does not compare their content with other editors'. Each of
        `more_devices` gets a copy of the transformer, and computes a share of each step.
        """
        offload = config.offload
        # Why the weights are where they are.
        self._why = why
        self.device: torch.device = devices.choose(config.device) if offload == "stream" else pipeline.device
        # Explicit, because Ray gives a small replica one thread. On a CPU the number decides an image's last bits.
        self.threads = config.threads or os.cpu_count() or 1
        self.adapters: AdapterCache[Adapter] = AdapterCache(config.adapter_cache_bytes)
        self._files = files or VerifiedFiles(config, FetchConfig())
        self._spec = spec
        self._config = config
        self._graphs_when_ready: int | None = None
        self._pipeline = pipeline
        self._health = DeviceHealth([self.device, *more_devices])
        ahead = config.prepare_ahead
        if ahead is None:
            ahead = self.device.type == "cuda" and offload != "stream" and not config.switches_kernels
        self._side_stream = devices.SideStream(self.device) if ahead else None
        # One thread: the device has memory to prepare one edit while another one runs, and cuDNN keeps its plans for a
        # size per thread. The thread that holds the lock may use that memory.
        self._prepare_thread = ThreadPoolExecutor(1, "prepare", configure_thread, (self.threads,))
        self._prepare_lock = threading.Lock()
        self._preparations_ended = 0
        self._architecture = architecture.from_config(pipeline.transformer.config)
        self._denoiser = Denoiser(pipeline, config, self.device, more_devices, self.threads)
        self._encoders = Encoders(
            pipeline, self._denoiser.placement, config.prompt_cache_bytes, config.control_cache_bytes
        )
        self._colors = self._encoders.latent_colors()

    @classmethod
    def load(cls, config: ModelConfig, files: VerifiedFiles | None = None) -> Self:
        """The engine for a configured model. Raises CheckpointRefused."""
        spec = MODELS[config.id]
        if config.gpus_per_replica > 1 and torch.cuda.device_count() < config.gpus_per_replica:
            raise CheckpointRefused(
                f"gpus_per_replica: {config.gpus_per_replica}, but this replica sees {torch.cuda.device_count()} GPUs: "
                "ray_actor_options in a serve config replace the defaults, so they must include num_gpus"
            )
        engine = cls.read(checkpoint.find(config, spec), spec, config, files)
        engine.make_ready()
        return engine

    @classmethod
    def read(cls, folder: Path, spec: ModelSpec, config: ModelConfig, files: VerifiedFiles | None = None) -> Self:
        """The engine for the checkpoint in a folder, not yet made ready. Raises CheckpointRefused."""
        device = devices.choose(config.device)
        dtype = devices.dtype_for(device)
        with checkpoint.refused(f"the weights of the checkpoint in {folder} cannot be read", folder):
            weights = checkpoint.weight_bytes(folder, dtype)
        placed = place(config, weights, device)
        pipeline = checkpoint.load_folder(folder, placed.config, spec, device, dtype)
        return cls(pipeline, spec, placed.config, files, devices.more_gpus(config.gpus_per_replica), placed.why)

    @property
    def alive(self) -> bool:
        """False once the device cannot be used any more; the process has to be replaced then."""
        return self._health.alive

    def make_ready(self) -> None:
        """Accelerate the transformer as the config says, and warm up, so that no request waits for a compilation.

        Makes a fixed edit before and after. Raises UnusableResult if an image is unusable or the two differ too much.
        """
        config, started = self._config, time.perf_counter()
        if not (is_accelerated(config) or config.warm_up):
            return
        size = next(iter(config.warm_up), (self._spec.default_width, self._spec.default_height))
        plain = self._fixed_edit(*size, CANARY_STEPS)
        self._denoiser.accelerate()
        for width, height in config.warm_up:
            self._fixed_edit(width, height, steps=1)
            if len(self._denoiser.transformers) > 1:
                # Steps with one branch are divided among the devices in another way.
                self._fixed_edit(width, height, steps=1, guidance_scale=1.0)
        found = similarity_db(plain, self._fixed_edit(*size, CANARY_STEPS))
        self._graphs_when_ready = graphs_compiled()
        logger.info(
            "ready after %.1f s; similarity of a fixed edit with and without acceleration: %.1f dB",
            time.perf_counter() - started,
            found,
        )
        if found < MIN_SIMILARITY_DB:
            settings = [f"compile: {config.compile}", f"attention: {config.attention}"]
            if config.lossy:
                settings.append(config.lossy)
            raise UnusableResult(
                f"a fixed edit with {', '.join(settings)} has a similarity of only {found:.1f} dB to the one without"
            )

    def _fixed_edit(self, width: int, height: int, steps: int, guidance_scale: float | None = None) -> PIL.Image.Image:
        plan = fixed_plan(self._spec, width, height, steps, self._config.quantization)
        if guidance_scale is not None:
            plan = replace(plan, guidance_scale=guidance_scale)
        return self.edit(plan, fixed_control_images(plan)).image

    @property
    def recompilations(self) -> int:
        """The number of graphs compiled since `make_ready`. For each one, an edit waited for seconds."""
        if self._graphs_when_ready is None:
            return 0
        return graphs_compiled() - self._graphs_when_ready

    def edit(
        self,
        plan: EditPlan,
        control_images: Sequence[bytes],
        on_step: OnStep = lambda step, preview: None,
        should_stop: ShouldStop = lambda: False,
    ) -> Edited:
        """`prepare` and `run` in one call."""
        return self.run(self.prepare(plan, control_images), on_step, should_stop)

    def prepare(self, plan: EditPlan, control_images: Sequence[bytes]) -> Prepared:
        """Decode the control images and load the adapters into host memory.

        With `prepare_ahead` it also encodes prompts and control images on the device, while another edit may run there,
        and copies the adapters to the device. Raises LoraChanged, LoraDownloadFailed, LoraInvalidFile or
        LoraIncompatible for a file that is not the admitted one or cannot be read, StorageFailed, and DeviceLost; and
        EditorUnavailable or QualityUnavailable for a plan that these weights cannot follow.
        """
        refuse_other_weights(plan, self._config)
        timer = StageTimer(torch.device("cpu"))
        with timer.stage("load_control_images"):
            decoded = tuple(decode(data, plan.exif) for data in control_images)
        with timer.stage("read_adapters"):
            adapters = self._adapters_of(plan.adapters)
        prepared = Prepared(plan, decoded, adapters, timer)
        if self._side_stream is None:
            return prepared
        # In the caller's context, so that spans and log lines belong to the caller's request.
        context = contextvars.copy_context()
        work = self._prepare_thread.submit(context.run, self._prepare_on_device, prepared, self._side_stream)
        return work.result()

    def hold(self, uses: Sequence[AdapterUse]) -> None:
        """Load adapters into host memory, as for an edit that uses them. Raises as `prepare` does."""
        self._adapters_of(uses)

    def _adapters_of(self, uses: Sequence[AdapterUse]) -> tuple[Adapter, ...]:
        """The adapters of one edit in host memory, in the order of `uses`."""
        try:
            loaded = self.adapters.get_all({use.id: partial(self._read, use) for use in uses})
        except RuntimeError as error:
            # Pinning host memory uses the device's context.
            self._health.raise_if_lost(error)
            raise
        return tuple(loaded[use.id] for use in uses)

    def _prepare_on_device(self, prepared: Prepared, side_stream: devices.SideStream) -> Prepared:
        """Encode the conditions and copy the deltas to the device. Returns `prepared` as it is if that fails."""
        plan = prepared.plan
        try:
            with self._preparing(), torch.no_grad(), side_stream.current():
                timer = StageTimer(self.device, prepared.timer.seconds)
                conditions = self._encoders.conditions(plan, prepared.control_images, self._recipe(prepared), timer)
                deltas = {}
                with timer.stage("copy_adapters"):
                    # The weights' present adapters are only a hint: the edit that runs meanwhile may change them.
                    if self._denoiser.copies != "hooks" and scales_of(plan) != self._denoiser.scales:
                        deltas = {
                            use.id: adapter.copy_to(self.device)
                            for use, adapter in zip(plan.adapters, prepared.adapters, strict=True)
                        }
        except RuntimeError as error:
            # The running edit leaves no memory, or the device is dead. `run` repeats this work later, and raises the
            # error that applies.
            logger.warning("an edit could not be prepared on the device in advance", exc_info=True)
            if devices.is_out_of_memory(error):
                self._health.free_memory(error)
            return prepared
        return replace(prepared, conditions=conditions, deltas=deltas)

    @contextmanager
    def _preparing(self) -> Iterator[None]:
        with self._prepare_lock:
            try:
                yield
            finally:
                # Before the lock is released: who finds it free also finds the count.
                self._preparations_ended += 1

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
        on_step: OnStep = lambda step, preview: None,
        should_stop: ShouldStop = lambda: False,
    ) -> Edited:
        """Make the image. Calls `on_step` with 0 at the start and with n after step n, then asks `should_stop`.

        Raises EditCanceled if `should_stop` returns True, LoraIncompatible, OutOfMemory, UnusableResult, and DeviceLost
        if the device's context died; `alive` is False from then on.
        """
        configure_thread(self.threads)
        try:
            with torch.no_grad():
                return self._run_with_retry(prepared, on_step, should_stop)
        except DeviceLost:
            self._health.alive = False
            raise
        except RuntimeError as error:
            self._health.raise_if_lost(error)
            if not devices.is_out_of_memory(error):
                raise
            self._health.free_memory(error)
            plan = prepared.plan
            raise OutOfMemory(
                f"an image of {plan.width}x{plan.height} does not fit into this device's memory"
            ) from error

    def _run_with_retry(self, prepared: Prepared, on_step: OnStep, should_stop: ShouldStop) -> Edited:
        """Run the edit; a second time if it ran out of memory, and another edit was prepared on the device meanwhile.

        The other preparation may have ended by the time the error arrives here.
        """
        ended_before = self._preparations_ended
        try:
            return self._run(prepared, on_step, should_stop)
        except RuntimeError as error:
            prepared_meanwhile = self._prepare_lock.locked() or self._preparations_ended != ended_before
            if not (prepared_meanwhile and devices.is_out_of_memory(error)):
                raise
            logger.warning("out of memory while another edit was prepared; trying again after that", exc_info=True)
            self._health.free_memory(error)
        with self._prepare_lock:
            return self._run(prepared, on_step, should_stop)

    def _run(self, prepared: Prepared, on_step: OnStep, should_stop: ShouldStop) -> Edited:
        plan, decoded = prepared.plan, prepared.control_images
        recipe = self._recipe(prepared)
        timer = StageTimer(self.device, prepared.timer.seconds)
        compiled_before = graphs_compiled()

        def after_step(step: int, predict_clean: PredictClean) -> None:
            on_step(step, lambda: self._colors.image(predict_clean(), plan.width, plan.height))
            if should_stop():
                raise EditCanceled(f"stopped after step {step} of {plan.steps}")

        if should_stop():
            raise EditCanceled("stopped before its first step")
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        on_step(0, None)
        with timer.stage("generate"):
            conditions = prepared.conditions or self._encoders.conditions(plan, decoded, recipe, timer)
            conditions.record_stream()
            needed = self._denoiser.activations(plan, recipe, conditions, prepared.adapters)
            with self._denoiser.working(needed):
                with timer.stage("apply_adapters"):
                    swapped = self._apply(prepared)
                with timer.stage("denoise"):
                    latents = self._denoiser.denoise(plan, recipe, conditions, after_step)
            with timer.stage("decode"):
                image = self._encoders.decode(latents, plan)
        record = effective_record(plan, self._spec, recipe, self._architecture, [control.facts for control in decoded])
        compilations = graphs_compiled() - compiled_before
        runtime = self._runtime(prepared) | {"reused": conditions.reused}
        return Edited(image, dict(timer.seconds), record, runtime, swapped, compilations, latents)

    def _apply(self, prepared: Prepared) -> int:
        """Apply the plan's adapters to the weights. Returns how many parameters were rewritten."""
        plan = prepared.plan
        by_id = {use.id: adapter for use, adapter in zip(plan.adapters, prepared.adapters, strict=True)}
        for deltas in prepared.deltas.values():
            # One delta is enough: all deltas of an adapter lie in one allocation.
            next(iter(deltas.values())).moved(devices.record_stream)
        uses = {adapter_id: (by_id[adapter_id], scale) for adapter_id, scale in scales_of(plan).items()}
        try:
            return self._denoiser.apply(uses, prepared.deltas)
        finally:
            # Frees their memory for the next edit.
            prepared.deltas.clear()

    def _runtime(self, prepared: Prepared) -> dict[str, Any]:
        adapters = zip((use.id for use in prepared.plan.adapters), prepared.adapters, strict=True)
        record = runtime_record(self._config, self._denoiser, self.device, self.threads, self.recompilations, adapters)
        return record | {"placement": self._why}


def refuse_other_weights(plan: EditPlan, config: ModelConfig) -> None:
    """Raise an error if an editor with this config cannot make what a plan asks for.

    EditorUnavailable if another editor of the group may be able to: while a changed `quantization` is rolled out, there
    are editors of both kinds.
    """
    if plan.quantization != config.quantization:
        raise EditorUnavailable(
            f"the plan asks for quantization: {plan.quantization}, and this editor's weights have {config.quantization}"
        )
    if plan.feature_cache is not None and config.offload == "stream":
        raise QualityUnavailable("feature_cache: not with offload: stream, whose steps copy all blocks in any case")


def scales_of(plan: EditPlan) -> dict[str, float]:
    """The scale of each of a plan's adapters, by id. The scales of an adapter that is named twice add up."""
    scales: dict[str, float] = {}
    for use in plan.adapters:
        scales[use.id] = scales.get(use.id, 0.0) + use.scale
    return scales
