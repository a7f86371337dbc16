"""A declared timed engine, and the application around it: for drills of what happens between processes.

Steps take a fixed time and nothing of the processor; an image is of one colour, by the seed. It imports no torch, so
that a replica starts in the time that Ray takes. It is five times slower on machines that are named as slow.
"""

# No `from __future__ import annotations` here: Serve reads the annotation of a builder to validate the args.

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import PIL.Image
import ray
from ray import serve

from benchmarks.drill.notes import TIMED_STEP_S, Notes, register_editor
from benchmarks.routing import Edited, Prepared, TimedAdapter
from serve_app.adapters.verified_files import VerifiedFiles
from serve_app.app import build_application
from serve_app.config import AppConfig, ModelConfig
from serve_app.engine.adapter_cache import AdapterCache
from serve_app.errors import EditCanceled
from serve_app.tasks import AdapterUse, EditPlan

SLOWER = 5


def busy(seconds: float) -> None:
    """Keep Python's interpreter for so long, as an engine does that computes on a CPU: the event loop gets on late."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def run(
    plan: EditPlan,
    on_step: Callable[[int], None],
    should_stop: Callable[[], bool],
    step_s: float = TIMED_STEP_S,
    step: Callable[[float], None] = time.sleep,
) -> Edited:
    for number in range(plan.steps + 1):
        if number:
            step(step_s)
        elif should_stop():
            raise EditCanceled("stopped before its first step")
        on_step(number)
        if should_stop():
            raise EditCanceled(f"stopped after step {number} of {plan.steps}")
    image = PIL.Image.new("RGB", (plan.width, plan.height), (plan.seed % 256, 0, 0))
    return Edited(image, {}, {"generate": plan.steps * step_s, "load_control_images": 0.0})


class TimedEngine:
    """`Engine`'s interface. The file `slow` in its folder has the addresses of slow machines, a line each."""

    def __init__(self, config: ModelConfig, folder: Path) -> None:
        self.alive = True
        self.adapters: AdapterCache[TimedAdapter] = AdapterCache(config.adapter_cache_bytes)
        self._notes = Notes(folder / "notes")
        self._slow = folder / "slow"
        self._address = ray.util.get_node_ip_address()
        register_editor(folder)

    def hold(self, uses: Sequence[AdapterUse]) -> None:
        """It has no use for adapters."""

    def prepare(self, plan: EditPlan, control_images: Sequence[bytes]) -> Prepared:
        return Prepared(plan, adapters={}, loads=0)

    def run(self, prepared: Prepared, on_step: Callable[[int], None], should_stop: Callable[[], bool]) -> Edited:
        plan = prepared.plan

        def noted(step: int) -> None:
            self._notes.write("step", plan, step)
            on_step(step)

        slow = self._slow.exists() and self._address in self._slow.read_text().splitlines()
        try:
            edited = run(plan, noted, should_stop, TIMED_STEP_S * (SLOWER if slow else 1))
        except EditCanceled:
            self._notes.write("stopped", plan, 0)
            raise
        self._notes.write("made", plan, plan.steps)
        return edited


def load_timed(config: ModelConfig, files: VerifiedFiles, folder: Path) -> TimedEngine:
    return TimedEngine(config, folder)


def build(args: AppConfig) -> serve.Application:
    """`serve_app.app:build` with this engine. Paths in the args are absolute; notes lie beside the artifacts."""
    return build_application(args, partial(load_timed, folder=Path(args.artifacts_url).parent))
