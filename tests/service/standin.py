"""A whole engine without a model: timed steps, a deterministic image, and a device that can die."""

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import PIL.Image
import torch

from serve_app.adapters.verified_files import VerifiedFiles
from serve_app.config import ModelConfig
from serve_app.engine.adapter_cache import AdapterCache
from serve_app.engine.deltas import Adapter
from serve_app.engine.protocol import Edited
from serve_app.engine.torch_engine import Prepared, Stopwatch
from serve_app.errors import DeviceLost, EditCanceled
from serve_app.models.architecture import MINIATURE_ARCHITECTURE
from serve_app.tasks import AdapterUse, EditPlan

STEP_S = 0.1


def as_checkpoint(folder: Path) -> Path:
    """A folder for notes that says of itself what an ingress reads of a checkpoint: the miniature's dimensions."""
    (folder / "transformer").mkdir()
    (folder / "transformer/config.json").write_text(json.dumps(asdict(MINIATURE_ARCHITECTURE)))
    return folder


class TimedEngine:
    """`Engine`'s interface. Its image is one colour, by the seed; its checkpoint is a folder for notes.

    A prompt "kill the device" ends the device's life, once for each folder.
    """

    def __init__(self, config: ModelConfig, files: VerifiedFiles) -> None:
        self._notes = Path(config.checkpoint)
        self.alive = True
        self.adapters: AdapterCache[Adapter] = AdapterCache(config.adapter_cache_bytes)
        self._note(f"started {os.getpid()}")

    def hold(self, uses: Sequence[AdapterUse]) -> None:
        self._note(f"warmed up {' '.join(use.path for use in uses)}")
        self.adapters.get_all({use.id: lambda: Adapter({}, pinned=False) for use in uses})

    def prepare(self, plan: EditPlan, control_images: Sequence[bytes]) -> Prepared:
        return Prepared(plan, (), (), Stopwatch(torch.device("cpu")))

    def run(self, prepared: Prepared, on_step: Callable[[int], None], should_stop: Callable[[], bool]) -> Edited:
        plan = prepared.plan
        on_step(0)
        if not self.alive:
            raise DeviceLost("the device is still dead")
        if plan.prompt == "kill the device" and not (self._notes / "killed").exists():
            (self._notes / "killed").touch()
            self.alive = False
            raise DeviceLost("the device failed")
        for step in range(1, plan.steps + 1):
            time.sleep(STEP_S)
            on_step(step)
            if should_stop():
                self._note(f"stopped {plan.seed} after {step}")
                raise EditCanceled("stopped")
        self._note(f"made {plan.seed}")
        image = PIL.Image.new("RGB", (plan.width, plan.height), (plan.seed % 256, 0, 0))
        return Edited(image, {"generate": 1.0, "load_control_images": 0.0}, {}, {})

    def _note(self, text: str) -> None:
        with (self._notes / "notes").open("a") as file:
            file.write(text + "\n")
