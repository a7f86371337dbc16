"""The drill's engine, which notes what it does, and the application around it.

It is the real engine on the miniature of random weights. Prompts of the cancelling drills ask for steps of a fixed
time instead, so that a step takes equally long on a machine of any load.
"""

# No `from __future__ import annotations` here: Serve reads the annotation of a builder to validate the args.

import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ray import serve

from benchmarks.drill.notes import QUICK, QUICK_STEP_S, TIMED, TIMED_STEP_S, Notes, register_editor
from benchmarks.drill.service import FOLDER_VARIABLE, TIME_LIMITS
from benchmarks.drill.timed import busy
from serve_app.adapters.verified_files import VerifiedFiles
from serve_app.app import build_application
from serve_app.config import AppConfig, ModelConfig
from serve_app.engine.protocol import Edited, Engine, HeldAdapters, OnStep, ShouldStop
from serve_app.replicas.editor import load_engine
from serve_app.tasks import AdapterUse, EditPlan
from tests.standin import edited, run_steps

if TYPE_CHECKING:
    # Ingresses import this module too, and never import torch.
    from serve_app.engine.torch_engine import Prepared

# Prompts that ask for steps of a fixed time: that time (s), and the function that waits for it.
PACED = {TIMED: (TIMED_STEP_S, time.sleep), QUICK: (QUICK_STEP_S, busy)}


class DrillEngine:
    """An `Engine`: the real one, whose steps are noted, and steps of a fixed time for a prompt that asks for them."""

    def __init__(self, engine: Engine["Prepared"], notes: Notes) -> None:
        self._engine = engine
        self._notes = notes

    @property
    def alive(self) -> bool:
        return self._engine.alive

    @property
    def adapters(self) -> HeldAdapters:
        return self._engine.adapters

    def hold(self, uses: Sequence[AdapterUse]) -> None:
        self._engine.hold(uses)

    def prepare(self, plan: EditPlan, control_images: Sequence[bytes]) -> "Prepared":
        return self._engine.prepare(plan, control_images)

    def run(self, prepared: "Prepared", on_step: OnStep, should_stop: ShouldStop) -> Edited:
        plan = prepared.plan
        noted = self._notes.of_steps(plan, on_step)
        with self._notes.of_run(plan):
            if plan.prompt not in PACED:
                return self._engine.run(prepared, noted, should_stop)
            step_s, wait = PACED[plan.prompt]
            run_steps(plan, noted, should_stop, step_s, wait)
            return edited(plan, plan.steps * step_s, {})


def load_drilled(config: ModelConfig, files: VerifiedFiles, folder: Path) -> DrillEngine:
    engine = DrillEngine(load_engine(config, files), Notes(folder / "notes"))
    register_editor(folder)
    return engine


def build(args: AppConfig) -> serve.Application:
    """`serve_app.app:build` with this engine."""
    return build_application(args, partial(load_drilled, folder=Path(os.environ[FOLDER_VARIABLE])), TIME_LIMITS)
