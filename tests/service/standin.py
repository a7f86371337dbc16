"""The stand-in engine of this folder: it notes what it does, and its device can die."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from serve_app.adapters.verified_files import VerifiedFiles
from serve_app.config import ModelConfig
from serve_app.engine.protocol import Edited, MakePreview, OnStep, ShouldStop
from serve_app.errors import DeviceLost, EditCanceled
from serve_app.models.architecture import MINIATURE_ARCHITECTURE
from serve_app.tasks import AdapterUse
from tests.standin import PreparedPlan, StandInEngine

STEP_S = 0.1


def as_checkpoint(folder: Path) -> Path:
    """Make a folder for notes look like a checkpoint to an ingress: it reads the miniature's dimensions there."""
    (folder / "transformer").mkdir()
    (folder / "transformer/config.json").write_text(json.dumps(asdict(MINIATURE_ARCHITECTURE)))
    return folder


class NotingEngine(StandInEngine):
    """Writes a line into the file `notes` of its checkpoint's folder for all that it does.

    The prompt "kill the device" kills the device, once for each folder.
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

        def noted(step: int, preview: MakePreview | None) -> None:
            nonlocal latest
            latest = step
            on_step(step, preview)

        try:
            done = super().run(prepared, noted, should_stop)
        except EditCanceled:
            self._note(f"stopped {plan.seed} after {latest}")
            raise
        self._note(f"made {plan.seed}")
        return done

    def _note(self, text: str) -> None:
        with (self._folder / "notes").open("a") as file:
            file.write(text + "\n")
