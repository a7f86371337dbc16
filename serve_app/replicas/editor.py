"""Both ends of the one Ray call: the editor replica that makes images, and the client that asks it to."""

import asyncio
import contextvars
import hashlib
import logging
import os
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import ray
from opentelemetry.trace import SpanKind
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from serve_app.adapters.verified_files import VerifiedFiles
from serve_app.concurrency import background
from serve_app.config import EditorSettings, FetchConfig, ModelConfig
from serve_app.engine.protocol import Edited, Engine
from serve_app.errors import (
    DeviceLost,
    EditError,
    EditorLost,
    EditorUnavailable,
    ServiceError,
    StorageFailed,
    clear_frames,
)
from serve_app.images.encode import encode
from serve_app.images.output_formats import OUTPUT_FORMATS
from serve_app.replicas import metrics_export, serve_port
from serve_app.replicas.routing_stats import ADAPTER_BYTES, Holdings
from serve_app.storage.artifacts import Artifacts
from serve_app.tasks import AdapterUse, Alive, EditDone, EditEvent, EditPlan, EditTask, Stage, StepDone
from serve_app.telemetry import tracing
from serve_app.telemetry.metrics import (
    ADAPTER_EDITS,
    CACHE_BYTES,
    COMPILATIONS,
    EVICTIONS,
    GPU_SECONDS,
    STAGE_SECONDS,
    SWAP_SECONDS,
    SWAPS,
    Metric,
)
from serve_app.workers.dispatcher import control_key, record_key
from serve_app.workers.warm_list import Warm, fill, read_warm

if TYPE_CHECKING:
    # The client's end lives in ingress processes, which never import torch.
    from serve_app.engine.torch_engine import Prepared

logger = logging.getLogger(__name__)

# How often an editor says that it is there (s): a few times within any `silence_s` worth setting.
ALIVE_S = 2.0
# How long an editor waits between two tries to store an image (s).
STORAGE_PAUSE_S = 2.0
# The longest time that a start waits for adapters to load, and how often adapters that must stay are loaded again (s).
WARM_UP_S, STAY_WARM_S = 60.0, 20.0
# What reading an adapter may raise: for what is in its file, for its store, or for the lack of memory. Any other error
# is a mistake in the code.
UNREADABLE = (ServiceError, OSError, RuntimeError, ValueError, ArithmeticError, LookupError)
# How often operators are told how full the host cache is (s).
TELL_S = 5.0

# Keys of `runtime` that differ between two runs of the same edit; they are left out of the image's own metadata.
OF_ONE_RUN = ("peak_memory_gib", "reused", "recompilations")

EngineFactory = Callable[[ModelConfig, VerifiedFiles], Engine[Any]]


@dataclass(frozen=True)
class TimeLimits:
    """How long an editor waits (s): for an edit that was told to stop, and for storage that refuses an image.

    Stopping may take longer than any step, than decoding, and than storage is waited for.
    """

    stopping_s: float = 300.0
    storage_s: float = 120.0


TIME_LIMITS = TimeLimits()


def load_engine(config: ModelConfig, files: VerifiedFiles) -> Engine["Prepared"]:
    """The real engine, imported where it is needed only."""
    from serve_app.engine.torch_engine import TorchEngine

    return TorchEngine.load(config, files)


def adapter_set_id(uses: tuple[AdapterUse, ...]) -> str:
    """What the router knows a set of adapters by, whatever their scales; "" for none.

    Base-model requests carry no id: with one, Serve would pin them to a single replica.
    """
    ids = sorted({use.id for use in uses})
    return hashlib.sha256("\0".join(ids).encode()).hexdigest()[:16] if ids else ""


def yield_to_others() -> None:
    """Have this thread, and the threads that it will start, run when nothing else wants the core.

    On a CPU an edit takes every core for seconds, and what answers HTTP on the same machine comes first.
    Only Linux has this policy.
    """
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


class Editor:
    """A replica: one engine, one edit at a time on its device, the next one prepared meanwhile."""

    def __init__(
        self,
        config: ModelConfig,
        artifacts_url: str,
        limits: FetchConfig,
        load: EngineFactory = load_engine,
        time_limits: TimeLimits = TIME_LIMITS,
    ) -> None:
        self._time_limits = time_limits
        serve_port.keep_to_this_machine()
        self._meter = metrics_export.start("editor", [config.id])
        self._model = config.id
        self._artifacts = Artifacts(artifacts_url)
        # One thread for the device: edits run one after the other, and the event loop stays free.
        on_gpu = ray.get_runtime_context().get_accelerator_ids().get("GPU")
        self._device_thread = ThreadPoolExecutor(1, "device", initializer=None if on_gpu else yield_to_others)
        files = VerifiedFiles(config, limits, self._artifacts)
        if on_gpu:
            # In the thread that edits: cuDNN remembers by thread what it has planned for the sizes of the warm-up.
            self._engine = self._device_thread.submit(load, config, files).result()
        else:
            # Not in a thread that waits for an idle core: a start should end soon.
            self._engine = load(config, files)
        # Waited for here and not in the thread's own queue, where nothing could be cancelled.
        self._device = asyncio.Lock()
        # Edits whose caller has gone and that have not stopped yet, with the moment since when (s, monotonic).
        self._stopping: dict[asyncio.Task[EditDone], float] = {}

        names = max(1, config.adapter_cache_bytes // ADAPTER_BYTES)
        self._holdings = Holdings(self._engine.adapters, names)

        @serve.multiplexed(max_num_models_per_replica=names)  # type: ignore[untyped-decorator]  # Ray
        async def advertise(set_id: str) -> str:
            return set_id

        self._advertise = advertise
        self._warm_up()
        # Serve calls this on the replica's event loop.
        self._beside = [background.begin(self._stay_warm()), background.begin(self._tell_of_cache())]

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """What Serve calls at the start and at a change of `user_config`, in place."""
        settings = EditorSettings.model_validate(user_config)
        logging.getLogger("serve_app").setLevel(settings.log_level)

    def _warm_up(self) -> None:
        """Bring what is most asked for into host memory, before there is traffic that would wait for it."""

        def load(uses: tuple[AdapterUse, ...]) -> bool:
            with self._loading(uses):
                return self._load(uses)

        warm, until = self._read_warm(), time.monotonic() + WARM_UP_S
        fill(takewhile(lambda _: time.monotonic() < until, (*warm.kept, *warm.hottest)), load, self._is_held)

    def _is_held(self, uses: tuple[AdapterUse, ...]) -> bool:
        return all(self._engine.adapters.holds(use.id) for use in uses)

    async def _stay_warm(self) -> None:
        """Hold what is to be kept, whatever else is asked for."""
        while True:
            await asyncio.sleep(STAY_WARM_S)
            for uses in (await asyncio.to_thread(self._read_warm)).kept:
                with self._loading(uses):
                    await asyncio.to_thread(self._load, uses)

    def _read_warm(self) -> Warm:
        try:
            return read_warm(self._artifacts, self._model)
        except (StorageFailed, ValueError):
            logger.exception("could not read which adapters should be warm")
            return Warm()

    def _loading(self, uses: tuple[AdapterUse, ...]) -> AbstractContextManager[None]:
        return self._holdings.loading(adapter_set_id(uses), [use.id for use in uses])

    def _load(self, uses: tuple[AdapterUse, ...]) -> bool:
        """Have adapters in host memory as for an edit; whether they are. Blocks."""
        try:
            self._engine.hold(uses)
        except UNREADABLE:
            # The requests that name them are told why they cannot be read. The replica works without them.
            logger.exception("%s cannot be kept warm", [use.path for use in uses])
            return False
        return True

    def check_health(self) -> None:
        """Serve replaces a replica whose health check raises: its device cannot be brought back."""
        if not self._engine.alive:
            raise DeviceLost("the device's context is dead")
        if any(time.monotonic() - since > self._time_limits.stopping_s for since in self._stopping.values()):
            raise DeviceLost("the device hangs: an edit that was told to stop has not")

    async def record_routing_stats(self) -> dict[str, Any]:
        """What Serve takes to the routers: see `serve_app.policy.routing.Report`."""
        return asdict(self._holdings.report(alive=self._engine.alive))

    async def edit(self, task: EditTask) -> AsyncGenerator[EditEvent]:
        """The events of one edit. When the caller goes away, the edit stops at its next step.

        Raises EditorUnavailable at once between the death of the device and this replica's replacement.
        """
        if not self._engine.alive:
            raise EditorUnavailable("the device of this replica is dead; it is being replaced")
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[EditEvent | None] = asyncio.Queue()
        begun, stop = asyncio.Event(), asyncio.Event()

        def on_step(step: int) -> None:
            loop.call_soon_threadsafe(events.put_nowait, StepDone(step, task.plan.steps))

        def at_stage(stage: Stage) -> None:
            events.put_nowait(Alive(stage))

        alive = Alive(Stage.PREPARING)
        work = asyncio.create_task(self._work(task, begun, at_stage, on_step, stop.is_set))
        work.add_done_callback(lambda _: events.put_nowait(None))
        work.add_done_callback(self._forget)
        try:
            yield alive
            while (event := await _next_of(events, alive)) is not None:
                if isinstance(event, Alive):
                    alive = event
                yield event
            yield work.result()
        finally:
            stop.set()
            if not begun.is_set():
                work.cancel()
            if not work.done():
                self._stopping[work] = time.monotonic()
            # The call does not end before the device thread is free. Nothing may follow this await: a cancellation
            # of the caller skips it. What is to be cleaned up after the edit is `_forget`'s.
            await background.until_done(work)

    def _forget(self, work: asyncio.Task[EditDone]) -> None:
        """Clean up after an edit, at the moment when it ends."""
        self._stopping.pop(work, None)
        if not work.cancelled():
            # The caller may keep the error for a while, and what the edit has on the device must not stay with it.
            # Reading it here also says that somebody has seen it: the caller may be gone.
            clear_frames(work.exception())

    async def _work(
        self,
        task: EditTask,
        begun: asyncio.Event,
        at_stage: Callable[[Stage], None],
        on_step: Callable[[int], None],
        should_stop: Callable[[], bool],
    ) -> EditDone:
        about = tracing.about(task.request_id, task.traceparent)
        with about, tracing.span("edit", SpanKind.SERVER, model=self._model):
            return await self._make(task, begun, at_stage, on_step, should_stop)

    async def _make(
        self,
        task: EditTask,
        begun: asyncio.Event,
        at_stage: Callable[[Stage], None],
        on_step: Callable[[int], None],
        should_stop: Callable[[], bool],
    ) -> EditDone:
        with tracing.span("prepare"):
            prepared = await self._prepare(task.plan)
        loop = asyncio.get_running_loop()

        def run() -> tuple[Edited, float]:
            started = time.perf_counter()
            return self._engine.run(prepared, on_step, should_stop), time.perf_counter() - started

        if self._device.locked():
            at_stage(Stage.WAITING)
        async with self._device:
            begun.set()
            at_stage(Stage.RUNNING)
            # In the request's context, which an executor's threads do not have.
            edited, seconds = await loop.run_in_executor(self._device_thread, contextvars.copy_context().run, run)
        at_stage(Stage.STORING)
        self._holdings.work_s.add(seconds)
        with tracing.span("store"):
            done = await self._store_patiently(task, edited, should_stop)
        self._tell(edited, done, seconds)
        logger.info("image %s of %s: made, %.2f s on the device", task.index, task.request_id, seconds)
        return done

    def _tell(self, edited: Edited, done: EditDone, seconds: float) -> None:
        """Tell operators of a finished edit, which kept the device for so long."""
        self._record(GPU_SECONDS, seconds)
        for stage, stage_s in done.timings.items():
            self._record(STAGE_SECONDS, stage_s, stage=stage)
        if edited.swapped:
            self._record(SWAPS)
            self._record(SWAP_SECONDS, edited.timings["apply_adapters"])
        self._record(COMPILATIONS, edited.compilations)

    async def _tell_of_cache(self) -> None:
        """Now and again, edits or none: Ray forgets a gauge that is not set anew."""
        adapters, told = self._engine.adapters, 0
        while True:
            self._record(CACHE_BYTES, adapters.size_bytes)
            evictions = adapters.evictions
            self._record(EVICTIONS, evictions - told)
            told = evictions
            await asyncio.sleep(TELL_S)

    def _record(self, metric: Metric, value: float = 1.0, **tags: str) -> None:
        self._meter.record(metric, value, model=self._model, **tags)

    async def _prepare(self, plan: EditPlan) -> Any:
        """The engine's own value, for its `run`."""

        def prepare() -> Any:
            return self._engine.prepare(plan, [self._control_image(sha256) for sha256 in plan.control_images])

        if not plan.adapters:
            return await asyncio.to_thread(prepare)
        self._record(ADAPTER_EDITS, warm="true" if self._is_held(plan.adapters) else "false")
        with self._loading(plan.adapters):
            # Before the load: others who want this set should come here, not load it too. Only a name; the
            # adapters are the engine's to keep, and what it gives up or fails to load the holdings take back.
            await self._advertise(adapter_set_id(plan.adapters))
            return await asyncio.to_thread(prepare)

    def _control_image(self, sha256: str) -> bytes:
        """Raises EditError if it is gone, StorageFailed if it cannot be read now."""
        try:
            return self._artifacts.get(control_key(sha256))
        except FileNotFoundError as error:
            raise EditError("its control image is no longer stored") from error

    async def _store_patiently(self, task: EditTask, edited: Edited, should_stop: Callable[[], bool]) -> EditDone:
        """Store a finished image, and wait for storage that is away; the device is free for others meanwhile.

        Raises StorageFailed when patience ends: the dispatcher then has the image made again.
        """
        patience = time.monotonic() + self._time_limits.storage_s
        while True:
            try:
                return await asyncio.to_thread(self._store, task, edited)
            except StorageFailed:
                logger.exception("the image of %s could not be stored", task)
                if should_stop() or time.monotonic() > patience:
                    raise
            await asyncio.sleep(STORAGE_PAUSE_S)

    def _store(self, task: EditTask, edited: Edited) -> EditDone:
        """Encode and store the image; the record beside it comes last and says that it is whole."""
        started = time.perf_counter()
        # What differs from run to run is no part of an image that can be made again.
        runtime = {key: value for key, value in edited.runtime.items() if key not in OF_ONE_RUN}
        text = {"effective": edited.effective, "runtime": runtime}
        output_format = OUTPUT_FORMATS[task.plan.output_format]
        data = encode(edited.image, output_format, text)
        digest = hashlib.sha256(data).hexdigest()
        key = f"pictures/{digest}{output_format.suffix}"
        self._artifacts.put(key, data)
        done = EditDone(
            key=key,
            url=self._artifacts.url(key),
            format=output_format.name,
            width=edited.image.width,
            height=edited.image.height,
            seed=task.plan.seed,
            size_bytes=len(data),
            sha256=digest,
            timings=edited.timings | {"save": time.perf_counter() - started},
            effective=edited.effective,
            runtime=edited.runtime,
        )
        self._artifacts.put_json(record_key(task.request_id, task.index), asdict(done))
        return done


async def _next_of(events: asyncio.Queue[EditEvent | None], alive: Alive) -> EditEvent | None:
    """The next event, or `alive` again when there was none for a while."""
    try:
        async with asyncio.timeout(ALIVE_S):
            return await events.get()
    except TimeoutError:
        return alive


class EditorHandles:
    """The caller's end: Serve handles by model id. Every error of Ray becomes one of ours here."""

    def __init__(self, handles: Mapping[str, DeploymentHandle]) -> None:
        # With its first options a handle starts to learn where the replicas are: before there is a request.
        self._handles = {model: handle.options(stream=True) for model, handle in handles.items()}

    async def edit(self, task: EditTask) -> AsyncGenerator[EditEvent]:
        """The events of one edit. Raises what the editor raised, or EditorLost, which is worth another try."""
        handle = self._handles[task.plan.model].options(multiplexed_model_id=adapter_set_id(task.plan.adapters))
        response = handle.edit.remote(task)
        try:
            async for event in response:
                yield event
        except RayTaskError as error:
            # Its text is the remote traceback, with colour codes; the cause is the error itself.
            cause = error.cause
            if isinstance(cause, ServiceError):
                raise cause from None
            raise EditError("the editor failed to make it; its log says why") from error
        except (BackPressureError, DeploymentUnavailableError) as error:
            raise EditorUnavailable("no editor could be reached") from error
        except RayError as error:
            # The replica or its node died, or was ended for its memory: whatever the edit did to it, it counts.
            raise EditorLost("the editor that worked on it went away") from error
        finally:
            response.cancel()
