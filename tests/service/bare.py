"""An editor without Ray around it, and a quick engine for it."""

import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from serve_app.config import FetchConfig, ModelConfig
from serve_app.engine.protocol import Edited, MakePreview, OnStep, ShouldStop
from serve_app.replicas import editor
from serve_app.replicas.edit_storage import EditStorage
from serve_app.replicas.editor import Editor, EngineFactory, TimeLimits
from serve_app.tasks import EditDone
from serve_app.telemetry.metrics import NO_METER
from tests.standin import PreparedPlan, StandInEngine

STEPS = 2


class GatedEngine(StandInEngine):
    """Its steps take no time. It counts the edits that run; with `gate` cleared, an edit stays at its last step."""

    def __init__(self) -> None:
        super().__init__(ModelConfig(), step_s=0.0)
        self.gate = threading.Event()
        self.gate.set()
        self.running = self.most_running = self.begun = 0

    def run(self, prepared: PreparedPlan, on_step: OnStep, should_stop: ShouldStop) -> Edited:
        def gated(step: int, preview: MakePreview | None) -> None:
            on_step(step, preview)
            if step == STEPS:
                self.gate.wait(10)

        self.begun += 1
        self.running += 1
        self.most_running = max(self.running, self.most_running)
        try:
            return super().run(prepared, gated, should_stop)
        finally:
            self.running -= 1


def bare_editor(folder: Path, monkeypatch: pytest.MonkeyPatch, load: EngineFactory, time_limits: TimeLimits) -> Editor:
    """A replica whose artifacts lie in `folder`; its images are stored nowhere. The caller cancels its `_loops`."""
    context = SimpleNamespace(get_accelerator_ids=dict)
    monkeypatch.setattr("serve_app.replicas.editor.ray.get_runtime_context", lambda: context)
    monkeypatch.setattr("serve_app.replicas.editor.metrics_export.start", lambda *_: NO_METER)
    monkeypatch.setattr(editor, "yield_to_others", lambda: None)
    monkeypatch.setattr(EditStorage, "store", lambda *_: EditDone("", "", "png", 8, 8, 0, 0, "", {}, {}))
    return Editor(ModelConfig(), str(folder), FetchConfig(), load, time_limits)
