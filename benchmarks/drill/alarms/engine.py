"""The timed engine whose prompts order what goes wrong, and the application around it."""

# No `from __future__ import annotations` here: Serve reads the annotation of a builder to validate the args.

import dataclasses
import os
import signal
import time
from functools import partial
from pathlib import Path

from ray import serve

from benchmarks.drill.service import FOLDER_VARIABLE
from benchmarks.drill.timed import TimedEngine
from serve_app.adapters.verified_files import VerifiedFiles
from serve_app.app import build_application
from serve_app.config import AppConfig, ModelConfig
from serve_app.engine.protocol import Edited, OnStep, ShouldStop
from serve_app.errors import EditCanceled, EditError, OutOfMemory
from tests.standin import PreparedPlan

FAIL, MEMORY, DIE, HELD, COMPILE = "fail", "memory", "die", "held", "compile"
# How many graphs an edit compiles.
GRAPHS = 30
# While these files are in the folder, an engine is not loaded, and held edits make no step.
NOT_LOADED, HOLDING = "not-loaded", "holding"


class AlarmEngine(TimedEngine):
    """Obeys its prompts. Every edit has adapters set anew, so that all metrics of a real engine are there."""

    def __init__(self, config: ModelConfig, folder: Path) -> None:
        super().__init__(config, folder)
        self._folder = folder

    def run(self, prepared: PreparedPlan, on_step: OnStep, should_stop: ShouldStop) -> Edited:
        prompt = prepared.plan.prompt
        if prompt == FAIL:
            raise EditError("the prompt asks for it")
        if prompt == MEMORY:
            raise OutOfMemory("the prompt asks for it")
        if prompt == DIE:
            os.kill(os.getpid(), signal.SIGKILL)
        while prompt == HELD and (self._folder / HOLDING).exists():
            if should_stop():
                raise EditCanceled("stopped while it was held")
            time.sleep(0.2)
        edited = super().run(prepared, on_step, should_stop)
        timings = edited.timings | {"apply_adapters": 0.01}
        return dataclasses.replace(edited, timings=timings, swapped=1, compilations=GRAPHS * (prompt == COMPILE))


def load_alarming(config: ModelConfig, files: VerifiedFiles, folder: Path) -> AlarmEngine:
    while (folder / NOT_LOADED).exists():
        time.sleep(0.2)
    return AlarmEngine(config, folder)


def build(args: AppConfig) -> serve.Application:
    """`serve_app.app:build` with this engine."""
    return build_application(args, partial(load_alarming, folder=Path(os.environ[FOLDER_VARIABLE])))
