"""The stand-in engine of this folder: it notes what it does, and its device can die."""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from serve_app.adapters.verified_files import VerifiedFiles
from serve_app.config import ModelConfig
from serve_app.engine.protocol import Edited, MakePreview, OnStep, ShouldStop
from serve_app.errors import DeviceLost, EditCanceled, UnusableResult
from serve_app.models.architecture import MINIATURE_ARCHITECTURE
from serve_app.tasks import AdapterUse, EditPlan
from tests.standin import PreparedPlan, StandInEngine

STEP_S = 0.1
# How long an adapter takes to be read (s).
LOAD_S = 0.1


def as_checkpoint(folder: Path) -> Path:
    """Make a folder for notes look like a checkpoint to an ingress: it reads the miniature's dimensions there."""
    (folder / "transformer").mkdir()
    (folder / "transformer/config.json").write_text(json.dumps(asdict(MINIATURE_ARCHITECTURE)))
    return folder


class NotingEngine(StandInEngine):
    """Writes a line into the file `notes` of its checkpoint's folder for all that it does.

    The prompt "kill the device" kills the device, once for each folder; "give no image" has a result that is none.
    """

    def __init__(self, config: ModelConfig, files: VerifiedFiles) -> None:
        super().__init__(config, STEP_S)
        self._folder = Path(config.checkpoint)
        self._note(f"started {os.getpid()}")

    def hold(self, uses: Sequence[AdapterUse]) -> None:
        self._note(f"warmed up {' '.join(use.path for use in uses)}")
        super().hold(uses)

    def run(self, prepared: PreparedPlan, on_step: OnStep, should_stop: ShouldStop) -> Edited:
        plan, latest = prepared.plan, 0
        if not self.alive:
            raise DeviceLost("the device is still dead")
        if plan.prompt == "kill the device" and not (self._folder / "killed").exists():
            on_step(0, None)
            (self._folder / "killed").touch()
            self.alive = False
            raise DeviceLost("the device failed")
        if plan.prompt == "give no image":
            raise UnusableResult("the result is all of one colour")

        def noted(step: int, preview: MakePreview | None) -> None:
            nonlocal latest
            latest = step
            self._note_step(plan.seed, step)
            on_step(step, preview)

        try:
            done = super().run(prepared, noted, should_stop)
        except EditCanceled:
            self._note(f"stopped {plan.seed} after {latest}")
            raise
        self._note(f"made {plan.seed}")
        return done

    def _note_step(self, seed: int, step: int) -> None:
        """When a step was made, by this machine's clock (s), in a file of its own: `steps`."""
        with (self._folder / "steps").open("a") as file:
            file.write(f"{seed} {step} {time.time()}\n")

    def _note(self, text: str) -> None:
        with (self._folder / "notes").open("a") as file:
            file.write(text + "\n")


class AdapterNotingEngine(StandInEngine):
    """Writes a line into `notes` for each edit before it is made: process, held or read, the adapters' paths."""

    def __init__(self, config: ModelConfig, files: VerifiedFiles) -> None:
        super().__init__(config, STEP_S, LOAD_S)
        self._notes = Path(config.checkpoint) / "notes"

    def prepare(self, plan: EditPlan, control_images: Sequence[bytes]) -> PreparedPlan:
        held = all(self.adapters.holds(use.id) for use in plan.adapters)
        with self._notes.open("a") as file:
            file.write(f"{os.getpid()} {'held' if held else 'read'} {' '.join(use.path for use in plan.adapters)}\n")
        return super().prepare(plan, control_images)
