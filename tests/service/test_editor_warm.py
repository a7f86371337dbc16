"""What an editor does with an error while it brings adapters into host memory before there is traffic."""

from dataclasses import asdict

import pytest

from serve_app.config import ModelConfig
from serve_app.errors import LoraChanged
from serve_app.replicas.editor import TimeLimits
from serve_app.storage.artifacts import Artifacts
from serve_app.tasks import AdapterUse
from serve_app.workers.warm_list import WarmList
from tests.service.bare import GatedEngine, bare_editor

USES = (AdapterUse("id", "lora.safetensors", "/loras/lora.safetensors", 1.0),)


class WithoutHold(GatedEngine):
    """A stand-in that lacks a method of the engine."""

    hold = None


class Refusing(GatedEngine):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    def hold(self, uses):
        raise self._error


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Start an editor with an engine that is to hold one adapter from the start."""
    Artifacts(str(tmp_path)).put_json(f"warm/{ModelConfig().id}.json", asdict(WarmList(kept=(USES,))))
    replicas = []

    def start(engine: GatedEngine) -> None:
        replicas.append(bare_editor(tmp_path, monkeypatch, lambda *_: engine, TimeLimits()))

    yield start
    for replica in replicas:
        for task in replica._loops:
            task.cancel()


async def test_mistake_in_the_code_fails_the_start(start):
    with pytest.raises(TypeError, match="not callable"):
        start(WithoutHold())


@pytest.mark.parametrize(
    "error", [LoraChanged("changed"), OSError("away"), RuntimeError("no memory"), ZeroDivisionError(), KeyError("x")]
)
async def test_adapter_that_cannot_be_read_is_named_and_does_not_hinder_the_start(start, caplog, error):
    start(Refusing(error))
    assert "['lora.safetensors'] cannot be kept warm" in caplog.text
