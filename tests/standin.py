"""The engine that stands in for a model in tests and benchmarks: it sleeps where a model would compute.

It imports no torch, so that an editor starts as soon as Ray has started its process. Modules that need another
behaviour subclass it.
"""

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import PIL.Image

from serve_app.config import ModelConfig
from serve_app.engine.adapter_cache import AdapterCache
from serve_app.engine.protocol import Edited, OnStep, ShouldStop
from serve_app.errors import EditCanceled
from serve_app.replicas.routing_stats import ADAPTER_BYTES
from serve_app.tasks import AdapterUse, EditPlan


@dataclass(frozen=True, eq=False)
class StandInAdapter:
    """An adapter in host memory, by its size alone."""

    size_bytes: int = ADAPTER_BYTES


@dataclass(frozen=True)
class PreparedPlan:
    """A plan, its adapters, which stay in memory until the edit ends, and how many were loaded for this edit."""

    plan: EditPlan
    adapters: tuple[StandInAdapter, ...]
    loads: int


class StandInEngine:
    """An `Engine` whose steps take `step_s` and whose loads of an adapter take `load_s` (s).

    The host cache is the real one. The image has one colour, which the seed decides.
    """

    def __init__(
        self,
        config: ModelConfig,
        step_s: float,
        load_s: float = 0.0,
        cache: type[AdapterCache[StandInAdapter]] = AdapterCache,
    ) -> None:
        self.alive = True
        self.adapters = cache(config.adapter_cache_bytes)
        self._step_s = step_s
        self._load_s = load_s
        self._of_this_thread = threading.local()

    def hold(self, uses: Sequence[AdapterUse]) -> None:
        self._adapters_of(uses)

    def prepare(self, plan: EditPlan, control_images: Sequence[bytes]) -> PreparedPlan:
        self._of_this_thread.loads = 0
        adapters = self._adapters_of(plan.adapters)
        return PreparedPlan(plan, adapters, self._of_this_thread.loads)

    def run(self, prepared: PreparedPlan, on_step: OnStep, should_stop: ShouldStop) -> Edited:
        started = time.perf_counter()
        run_steps(prepared.plan, on_step, should_stop, self.seconds_per_step(prepared.plan))
        seconds = time.perf_counter() - started
        return edited(prepared.plan, seconds, {"loads": prepared.loads, "pid": os.getpid()})

    def seconds_per_step(self, plan: EditPlan) -> float:
        """How long each step of this edit takes. Asked once, when the edit starts."""
        return self._step_s

    def load_adapter(self) -> StandInAdapter:
        """Called for each adapter that the host cache does not hold. Blocks."""
        time.sleep(self._load_s)
        return StandInAdapter()

    def _adapters_of(self, uses: Sequence[AdapterUse]) -> tuple[StandInAdapter, ...]:
        loaded = self.adapters.get_all({use.id: self._count_and_load for use in uses})
        return tuple(loaded[use.id] for use in uses)

    def _count_and_load(self) -> StandInAdapter:
        self._of_this_thread.loads = getattr(self._of_this_thread, "loads", 0) + 1
        return self.load_adapter()


def run_steps(
    plan: EditPlan,
    on_step: OnStep,
    should_stop: ShouldStop,
    step_s: float,
    wait: Callable[[float], None] = time.sleep,
) -> None:
    """A plan's steps, each of which is `wait(step_s)`. Raises EditCanceled when told to stop."""
    if should_stop():
        raise EditCanceled("stopped before its first step")
    on_step(0, None)
    for step in range(1, plan.steps + 1):
        wait(step_s)
        on_step(step, partial(preview_of, plan, step))
        if should_stop():
            raise EditCanceled(f"stopped after step {step} of {plan.steps}")


def preview_of(plan: EditPlan, step: int) -> PIL.Image.Image:
    """The step preview: of one colour, whose green grows with the step."""
    return PIL.Image.new("RGB", (plan.width // 8, plan.height // 8), (plan.seed % 256, 255 * step // plan.steps, 0))


def edited(plan: EditPlan, seconds: float, runtime: dict[str, int]) -> Edited:
    """The outcome of an edit that took `seconds`: an image of the plan's size in one colour."""
    image = PIL.Image.new("RGB", (plan.width, plan.height), (plan.seed % 256, 0, 0))
    return Edited(image, {"generate": seconds, "load_control_images": 0.0}, {}, dict(runtime))
