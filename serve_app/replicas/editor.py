"""The editor: the Serve deployment around an engine, which makes images."""

import asyncio
import contextvars
import gc
import logging
import os
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import ray
from opentelemetry.trace import SpanKind
from ray import serve

from serve_app.adapters.verified_files import VerifiedFiles
from serve_app.concurrency import background
from serve_app.concurrency.loops import every
from serve_app.config import EditorSettings, FetchConfig, ModelConfig
from serve_app.engine.protocol import Edited, Engine, MakePreview
from serve_app.errors import DeviceLost, EditorUnavailable, clear_frames
from serve_app.replicas import metrics_export, serve_port
from serve_app.replicas.edit_previews import EditPreviews, PreviewMaker
from serve_app.replicas.edit_progress import EditProgress
from serve_app.replicas.edit_storage import EditStorage
from serve_app.replicas.editor_metrics import CACHE_REPORT_S, EditorMetrics
from serve_app.replicas.routing_stats import ADAPTER_BYTES, RoutingStats, adapter_set_id
from serve_app.replicas.settings import SettingsReader
from serve_app.replicas.start_report import StartReport
from serve_app.replicas.warm_adapters import KEEP_WARM_S, WarmAdapters
from serve_app.storage.artifacts import Artifacts
from serve_app.storage.step_previews import StepPreviewStorage
from serve_app.tasks import EditDone, EditEvent, EditPlan, EditTask, Stage
from serve_app.telemetry import tracing
from serve_app.telemetry.metrics import Loop

if TYPE_CHECKING:
    # Ingress processes import this module, but never torch.
    from serve_app.engine.torch_engine import Prepared

logger = logging.getLogger(__name__)

EngineFactory = Callable[[ModelConfig, VerifiedFiles], Engine[Any]]


@dataclass(frozen=True)
class TimeLimits:
    """How long an editor waits for an edit that was told to stop, and for storage that refuses an image (s).

    `stopping_s` has to be longer than any step, than decoding, and than `storage_s`.
    """

    stopping_s: float = 300.0
    storage_s: float = 120.0


TIME_LIMITS = TimeLimits()


def load_engine(config: ModelConfig, files: VerifiedFiles) -> Engine["Prepared"]:
    """Load the real engine. Imports torch here, in the editor's process."""
    # What an import makes stays: the garbage collector would search it in vain, for a fifth of the import's time.
    gc.disable()
    try:
        from serve_app.engine.torch_engine import TorchEngine
    finally:
        gc.enable()
    return TorchEngine.load(config, files)


def yield_to_others() -> None:
    """Have this thread, and the threads that it will start, run only when no other thread wants the core.

    On a CPU an edit takes every core for seconds, and HTTP on the same machine has to be answered meanwhile.
    Only Linux has this policy; elsewhere this does nothing.
    """
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


class Editor:
    """A replica: one engine, one edit at a time on its device, the next edit prepared meanwhile."""

    def __init__(
        self,
        config: ModelConfig,
        artifacts_url: str,
        limits: FetchConfig,
        load: EngineFactory = load_engine,
        time_limits: TimeLimits = TIME_LIMITS,
        group: str | None = None,
    ) -> None:
        """`group` is the editor group; by default that of the model."""
        group = group or config.id
        serve_port.keep_to_this_machine()
        meter = metrics_export.start("editor", [config.id], [group])
        artifacts = Artifacts(artifacts_url)
        self._model = config.id
        self._stopping_s = time_limits.stopping_s
        self._settings = SettingsReader(EditorSettings.model_validate)
        self._storage = EditStorage(artifacts, time_limits.storage_s)
        # One thread for the device: edits run one after the other, and the event loop stays free.
        on_gpu = ray.get_runtime_context().get_accelerator_ids().get("GPU")
        self._device_thread = ThreadPoolExecutor(1, "device", initializer=None if on_gpu else yield_to_others)
        files = VerifiedFiles(config, limits, artifacts)
        with StartReport(artifacts, group):
            if on_gpu:
                # In the thread that edits: cuDNN keeps its plans for the sizes of the warm-up per thread.
                context = contextvars.copy_context()
                self._engine = self._device_thread.submit(context.run, load, config, files).result()
            else:
                # Not in the device thread, which waits for an idle core: that would make the start slow.
                self._engine = load(config, files)
        # Edits wait for this lock and not in the thread's own queue, where a waiting edit could not be cancelled.
        self._device = asyncio.Lock()
        # Edits whose caller has gone and that have not stopped yet, with the time since when (s, monotonic).
        self._stopping: dict[asyncio.Task[EditDone], float] = {}

        names = max(1, config.adapter_cache_bytes // ADAPTER_BYTES)
        self._stats = RoutingStats(self._engine.adapters, names)
        self._metrics = EditorMetrics(meter, group, self._engine.adapters)
        self._previews = PreviewMaker(StepPreviewStorage(artifacts), meter, self._metrics)

        @serve.multiplexed(max_num_models_per_replica=names)  # type: ignore[untyped-decorator]  # Ray
        async def advertise(set_id: str) -> str:
            return set_id

        self._advertise = advertise
        warm = WarmAdapters(artifacts, config.id, self._engine, self._stats)
        warm.load_all()
        # Serve constructs the replica on its event loop.
        keep_warm = every(KEEP_WARM_S, warm.reload_kept, loop=Loop.KEEP_WARM, meter=meter, pauses_first=True)
        report_cache = every(CACHE_REPORT_S, self._metrics.cache, loop=Loop.CACHE_REPORT, meter=meter)
        self._loops = [background.start(keep_warm, Loop.KEEP_WARM), background.start(report_cache, Loop.CACHE_REPORT)]

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Apply a `user_config`. Serve calls this at the start and after each change, without a restart."""
        if (settings := self._settings.read(user_config)) is not None:
            logging.getLogger("serve_app").setLevel(settings.log_level)

    def check_health(self) -> None:
        """Raise DeviceLost if the device is dead or hangs. Serve replaces a replica whose health check raises."""
        self._settings.started()
        if not self._engine.alive:
            raise DeviceLost("the device's context is dead")
        if any(time.monotonic() - since > self._stopping_s for since in self._stopping.values()):
            raise DeviceLost("the device hangs: an edit that was told to stop has not stopped")

    async def record_routing_stats(self) -> dict[str, Any]:
        """The fields of a `serve_app.policy.routing.Report`, which Serve sends to the routers."""
        return asdict(self._stats.report(alive=self._engine.alive))

    async def edit(self, task: EditTask) -> AsyncGenerator[EditEvent]:
        """The events of one edit. When the caller goes away, the edit stops at its next step.

        Raises EditorUnavailable at once between the death of the device and this replica's replacement.
        """
        if not self._engine.alive:
            raise EditorUnavailable("the device of this replica is dead; it is being replaced")
        progress, on_device = EditProgress(task), asyncio.Event()
        work = asyncio.create_task(self._traced_edit(task, progress, on_device))
        work.add_done_callback(lambda _: progress.end())
        work.add_done_callback(self._clean_up)
        try:
            while (event := await progress.next_event()) is not None:
                yield event
            yield work.result()
        finally:
            progress.stop()
            if not on_device.is_set():
                work.cancel()
            if not work.done():
                self._stopping[work] = time.monotonic()
            # The call does not end before the device thread is free. Nothing may follow this await: a cancellation
            # of the caller skips it. `_clean_up` does what has to be done after the edit.
            await background.join(work)

    def _clean_up(self, work: asyncio.Task[EditDone]) -> None:
        """Runs when an edit ends, whether it succeeded or not."""
        self._stopping.pop(work, None)
        if not work.cancelled():
            # The caller may keep the error for a while. The frames in it would keep the edit's device memory.
            # Reading the error also marks it as retrieved: the caller may be gone.
            clear_frames(work.exception())

    async def _traced_edit(self, task: EditTask, progress: EditProgress, on_device: asyncio.Event) -> EditDone:
        about = tracing.for_request(task.request_id, task.traceparent)
        makes = tracing.Generation(self._model, seed=task.plan.seed)
        with about, tracing.span("edit", SpanKind.SERVER, makes=makes, model=self._model):
            return await self._make_image(task, progress, on_device)

    async def _make_image(self, task: EditTask, progress: EditProgress, on_device: asyncio.Event) -> EditDone:
        with tracing.span("prepare"):
            prepared = await self._prepare(task.plan)
        previews = self._previews.of_edit(task, progress.should_stop)
        try:
            if self._device.locked():
                progress.stage(Stage.WAITING)
            async with self._device:
                on_device.set()
                progress.stage(Stage.RUNNING)
                edited, seconds = await self._run(prepared, progress, previews)
            progress.stage(Stage.STORING)
            self._stats.work_s.add(seconds)
            with tracing.span("store"):
                done = await self._storage.store_patiently(task, edited, progress.should_stop)
        finally:
            previews.forget()
        self._metrics.finished_edit(edited, done, seconds)
        logger.info("image %s of %s: made, %.2f s on the device", task.index, task.request_id, seconds)
        return done

    async def _run(self, prepared: Any, progress: EditProgress, previews: EditPreviews) -> tuple[Edited, float]:
        """The finished image, and the seconds that it took on the device."""

        def on_step(step: int, make_preview: MakePreview | None) -> None:
            progress.step(step)
            previews.after_step(step, make_preview)

        def run() -> tuple[Edited, float]:
            started = time.perf_counter()
            return self._engine.run(prepared, on_step, progress.should_stop), time.perf_counter() - started

        # An executor's threads do not have the request's context: it is copied there for logs and spans.
        context = contextvars.copy_context()
        async with previews.watching():
            return await asyncio.get_running_loop().run_in_executor(self._device_thread, context.run, run)

    async def _prepare(self, plan: EditPlan) -> Any:
        """The value that the engine's `prepare` returns."""

        def prepare() -> Any:
            return self._engine.prepare(plan, [self._storage.control_image(sha256) for sha256 in plan.control_images])

        if not plan.adapters:
            return await asyncio.to_thread(prepare)
        set_id, adapter_ids = adapter_set_id(plan.adapters), [use.id for use in plan.adapters]
        self._metrics.edit_with_adapters(warm=self._stats.holds_all(adapter_ids))
        with self._stats.loading(set_id, adapter_ids):
            # Before the load: other requests for this set should come here instead of loading it elsewhere. Serve
            # learns the name only. The engine's cache owns the adapters, and `RoutingStats` reports it when they go.
            await self._advertise(set_id)
            return await asyncio.to_thread(prepare)
