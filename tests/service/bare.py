"""An editor without Ray around it, and a quick engine for it."""

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from serve_app.config import FetchConfig, ModelConfig
from serve_app.engine.adapter_cache import AdapterCache
from serve_app.errors import EditCanceled
from serve_app.replicas import editor
from serve_app.replicas.editor import Editor, TimeLimits
from serve_app.tasks import EditDone
from serve_app.telemetry.metrics import NO_METER

STEPS = 2


class QuickEngine:
    """Real threads, no model. It notes if two edits share it. With `gate` cleared, an edit stays at its last step."""

    def __init__(self) -> None:
        self.alive = True
        self.adapters: AdapterCache = AdapterCache(1000)
        self.gate = threading.Event()
        self.gate.set()
        self.running = self.most_running = self.begun = 0

    def hold(self, uses):
        return ()

    def prepare(self, plan, control_images):
        return plan

    def run(self, prepared, on_step, should_stop):
        self.begun += 1
        self.running += 1
        self.most_running = max(self.running, self.most_running)
        try:
            for step in range(STEPS + 1):
                on_step(step)
                if step == STEPS:
                    self.gate.wait(10)
                if should_stop():
                    raise EditCanceled("stopped")
            return SimpleNamespace(timings={}, swapped=0, compilations=0)
        finally:
            self.running -= 1


def bare_editor(
    folder: Path, monkeypatch: pytest.MonkeyPatch, load: Callable[..., object], time_limits: TimeLimits
) -> Editor:
    """A replica whose artifacts lie in `folder`; its images are stored nowhere. Its `_beside` is to be cancelled."""
    context = SimpleNamespace(get_accelerator_ids=dict)
    monkeypatch.setattr(editor.ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(editor.metrics_export, "start", lambda *_: NO_METER)
    monkeypatch.setattr(editor, "yield_to_others", lambda: None)
    monkeypatch.setattr(Editor, "_store", lambda *_: EditDone("", "", "png", 8, 8, 0, 0, "", {}, {}))
    return Editor(ModelConfig(), str(folder), FetchConfig(), load, time_limits)
