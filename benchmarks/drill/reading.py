"""The timed engine that also reads adapter files as the real one does, and the application around it."""

# No `from __future__ import annotations` here: Serve reads the annotation of a builder to validate the args.

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ray import serve

from benchmarks.drill.service import FOLDER_VARIABLE
from benchmarks.drill.timed import TimedEngine
from serve_app.adapters.verified_files import VerifiedFiles
from serve_app.app import build_application
from serve_app.config import AppConfig, ModelConfig
from serve_app.tasks import EditPlan
from tests.standin import PreparedPlan


class ReadingEngine(TimedEngine):
    """Reads every adapter of every edit, through the node's disk cache."""

    def __init__(self, config: ModelConfig, files: VerifiedFiles, folder: Path) -> None:
        super().__init__(config, folder)
        self._files = files

    def prepare(self, plan: EditPlan, control_images: Sequence[bytes]) -> PreparedPlan:
        for use in plan.adapters:
            self._files.read(use)
        return super().prepare(plan, control_images)


def load_reading(config: ModelConfig, files: VerifiedFiles, folder: Path) -> ReadingEngine:
    return ReadingEngine(config, files, folder)


def build(args: AppConfig) -> serve.Application:
    """`serve_app.app:build` with this engine."""
    return build_application(args, partial(load_reading, folder=Path(os.environ[FOLDER_VARIABLE])))
