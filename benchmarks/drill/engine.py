"""The drill's engines, which note what they do, and the applications around them.

The failure drill runs the real miniature, the drill of cancelling a declared timed one.
"""

# No `from __future__ import annotations` here: Serve reads the annotation of a builder to validate the args.

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import PIL.Image
from ray import serve

from benchmarks.drill.notes import TIMED_STEP_S, Notes
from serve_app.adapters.contents import Contents
from serve_app.app import build_application
from serve_app.config import AppConfig, ModelConfig
from serve_app.editor import load_engine
from serve_app.errors import EditCanceled
from serve_app.tasks import EditPlan

if TYPE_CHECKING:
    # Ingresses read this module too, and never import torch.
    from serve_app.engine import Edited, Engine, Prepared


class WatchedEngine:
    """`Engine`'s interface around the real one."""

    def __init__(self, engine: "Engine", notes: Notes) -> None:
        self._engine = engine
        self._notes = notes

    @property
    def alive(self) -> bool:
        return self._engine.alive

    def prepare(self, plan: EditPlan, control_images: Sequence[bytes]) -> "Prepared":
        return self._engine.prepare(plan, control_images)

    def run(self, prepared: "Prepared", on_step: Callable[[int], None], should_stop: Callable[[], bool]) -> "Edited":
        def noted(step: int) -> None:
            self._notes.write("step", prepared.plan, step)
            on_step(step)

        edited = self._engine.run(prepared, noted, should_stop)
        self._notes.write("made", prepared.plan, prepared.plan.steps)
        return edited


class TimedEngine:
    """`Engine`'s interface without a model: steps of a fixed time, a picture of one colour, by the seed."""

    alive = True

    def __init__(self, notes: Notes) -> None:
        self._notes = notes

    def prepare(self, plan: EditPlan, control_images: Sequence[bytes]) -> "Prepared":
        import torch

        from serve_app.engine import Prepared, Stopwatch

        return Prepared(plan, (), (), Stopwatch(torch.device("cpu")))

    def run(self, prepared: "Prepared", on_step: Callable[[int], None], should_stop: Callable[[], bool]) -> "Edited":
        from serve_app.engine import Edited

        plan = prepared.plan
        if should_stop():
            raise EditCanceled("stopped before its first step")
        for step in range(plan.steps + 1):
            if step:
                time.sleep(TIMED_STEP_S)
            self._notes.write("step", plan, step)
            on_step(step)
            if should_stop():
                self._notes.write("stopped", plan, step)
                raise EditCanceled(f"stopped after step {step} of {plan.steps}")
        self._notes.write("made", plan, plan.steps)
        picture = PIL.Image.new("RGB", (plan.width, plan.height), (plan.seed % 256, 0, 0))
        return Edited(picture, {"generate": plan.steps * TIMED_STEP_S, "load_control_images": 0.0}, {}, {})


def notes_of(config: AppConfig) -> Notes:
    """The notes of a service lie beside its artifacts."""
    return Notes(Path(config.artifacts_url).parent / "notes")


def load_watched(config: ModelConfig, contents: Contents, notes: Notes) -> WatchedEngine:
    return WatchedEngine(load_engine(config, contents), notes)


def load_timed(config: ModelConfig, contents: Contents, notes: Notes) -> TimedEngine:
    return TimedEngine(notes)


def build(args: AppConfig) -> serve.Application:
    """`serve_app.app:build` with the real engine, watched. Paths in the args are absolute."""
    return build_application(args, partial(load_watched, notes=notes_of(args)))


def build_timed(args: AppConfig) -> serve.Application:
    return build_application(args, partial(load_timed, notes=notes_of(args)))
