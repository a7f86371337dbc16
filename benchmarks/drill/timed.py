"""A stand-in engine that notes its steps, and the application around it.

For drills of what happens between processes. It is five times slower on machines that the drill declares slow.
"""

# No `from __future__ import annotations` here: Serve reads the annotation of a builder to validate the args.

import time
from functools import partial
from pathlib import Path

import ray
from ray import serve

from benchmarks.drill.notes import TIMED_STEP_S, Notes, register_editor
from serve_app.adapters.verified_files import VerifiedFiles
from serve_app.app import build_application
from serve_app.config import AppConfig, ModelConfig
from serve_app.engine.protocol import Edited, OnStep, ShouldStop
from serve_app.tasks import EditPlan
from tests.standin import PreparedPlan, StandInEngine

SLOWER = 5


def busy(seconds: float) -> None:
    """Hold Python's interpreter for so long, as an engine on a CPU does: the event loop gets its turn late."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


class TimedEngine(StandInEngine):
    """Notes each step in its folder. The file `slow` there lists the addresses of slow machines, one per line."""

    def __init__(self, config: ModelConfig, folder: Path) -> None:
        super().__init__(config, TIMED_STEP_S)
        self._notes = Notes(folder / "notes")
        self._slow = folder / "slow"
        self._address = ray.util.get_node_ip_address()
        register_editor(folder)

    def seconds_per_step(self, plan: EditPlan) -> float:
        is_slow = self._slow.exists() and self._address in self._slow.read_text().splitlines()
        return TIMED_STEP_S * SLOWER if is_slow else TIMED_STEP_S

    def run(self, prepared: PreparedPlan, on_step: OnStep, should_stop: ShouldStop) -> Edited:
        with self._notes.of_run(prepared.plan):
            return super().run(prepared, self._notes.of_steps(prepared.plan, on_step), should_stop)


def load_timed(config: ModelConfig, files: VerifiedFiles, folder: Path) -> TimedEngine:
    return TimedEngine(config, folder)


def build(args: AppConfig) -> serve.Application:
    """`serve_app.app:build` with this engine. Paths in the args are absolute; notes lie next to the artifacts."""
    return build_application(args, partial(load_timed, folder=Path(args.artifacts_url).parent))
