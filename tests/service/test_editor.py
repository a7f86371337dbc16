"""An editor without Ray around it."""

import gc
import weakref
from types import SimpleNamespace

from serve_app.editor import Editor
from serve_app.errors import UnusableResult


async def test_error_of_an_edit_does_not_keep_what_the_edit_had():
    """A device's memory is not to wait for Python's collector of cycles."""
    gone = []

    class Picture:
        pass

    async def work(*_: object) -> None:
        picture = Picture()
        weakref.finalize(picture, gone.append, "picture")
        raise UnusableResult("no picture")

    async def ended() -> str:
        editor = SimpleNamespace(_engine=SimpleNamespace(alive=True), _stopping={}, _work=work)
        try:
            async for _ in Editor.edit(editor, None):
                pass
        except UnusableResult as error:
            return error.message
        return ""

    gc.collect()
    gc.disable()
    try:
        assert await ended() == "no picture"
        assert gone == ["picture"]
    finally:
        gc.enable()
