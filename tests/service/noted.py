"""The real engine, noting which process made an edit and whether it had the adapters."""

import os
from collections.abc import Sequence
from pathlib import Path

from serve_app.config import ModelConfig
from serve_app.engine.torch_engine import Prepared, TorchEngine
from serve_app.tasks import EditPlan


def notes_file(config: ModelConfig) -> Path:
    return Path(config.adapter_disk_folder) / "notes"


class NotedEngine(TorchEngine):
    """A line an edit, before it is made: the process, held or read, the adapters' paths."""

    def prepare(self, plan: EditPlan, control_images: Sequence[bytes]) -> Prepared:
        held = all(self.adapters.holds(use.id) for use in plan.adapters)
        with notes_file(self._config).open("a") as file:
            file.write(f"{os.getpid()} {'held' if held else 'read'} {' '.join(use.path for use in plan.adapters)}\n")
        return super().prepare(plan, control_images)
