"""An editor without Ray around it."""

import gc
import threading
import weakref
from functools import partial
from types import SimpleNamespace

import pytest

from serve_app.config import FetchConfig, ModelConfig
from serve_app.errors import UnusableResult
from serve_app.replicas import editor
from serve_app.replicas.editor import Editor


async def test_error_of_an_edit_does_not_keep_what_the_edit_had():
    """Whoever passes it on may hold it for a while, in a cycle even: a device's memory is not to wait for that."""
    gone = []

    class Image:
        pass

    async def make() -> None:
        image = Image()
        weakref.finalize(image, gone.append, "image")
        raise ValueError("no image")

    async def work(*_: object) -> None:
        try:
            await make()
        except ValueError as error:
            raise UnusableResult("no image") from error

    replica = SimpleNamespace(_engine=SimpleNamespace(alive=True), _stopping={}, _traced_edit=work)
    replica._clean_up = partial(Editor._clean_up, replica)
    gc.collect()
    gc.disable()
    try:
        with pytest.raises(UnusableResult) as told:
            async for _ in Editor.edit(replica, None):
                pass
        assert gone == ["image"]
        assert told.value.__cause__ is not None
    finally:
        gc.enable()


@pytest.mark.parametrize(("gpus", "same"), [(["0"], True), ([], False)])
async def test_engine_is_loaded_in_the_thread_that_edits_if_there_is_a_gpu(tmp_path, monkeypatch, gpus, same):
    """Warm is that thread alone. Without a GPU it is one that waits for idle cores, which a start should not."""
    context = SimpleNamespace(get_accelerator_ids=lambda: {"GPU": gpus})
    monkeypatch.setattr(editor.ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(editor.metrics_export, "start", lambda *_: None)
    loaded_in = []

    def load(*_: object) -> SimpleNamespace:
        loaded_in.append(threading.get_ident())
        return SimpleNamespace(adapters=None)

    replica = Editor(ModelConfig(), str(tmp_path), FetchConfig(), load)
    try:
        assert (replica._device_thread.submit(threading.get_ident).result() in loaded_in) == same
    finally:
        for task in replica._loops:
            task.cancel()
