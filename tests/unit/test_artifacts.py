"""Artifact storage: what is old is found, what is deleted is gone, wherever it is."""

import asyncio
import threading

import pytest

from serve_app.concurrency import background
from serve_app.errors import StorageFailed
from serve_app.storage.artifacts import Artifacts


@pytest.mark.parametrize("url", ["{folder}", "file://{folder}", "memory://{folder}"])
def test_artifacts_are_found_by_age_and_deleted(tmp_path, url):
    artifacts = Artifacts(url.format(folder=tmp_path / "a"))
    for key in ("controls/a", "controls/b", "results/1/0.json", "results/1/1.json", "results/10/0.json"):
        artifacts.put(key, b"x")
    assert artifacts.older_than("controls", 60.0) == []
    assert sorted(artifacts.older_than("controls", -60.0)) == ["controls/a", "controls/b"]
    assert artifacts.older_than("nothing", -60.0) == []
    artifacts.delete(["controls/gone", "controls/a", "controls/never"])
    artifacts.delete([])
    artifacts.delete_folder("results/1")
    artifacts.delete_folder("results/1")
    assert sorted(artifacts.older_than("", -60.0)) == ["controls/b", "results/10/0.json"]


def test_failing_storage_is_reported(tmp_path):
    artifacts = Artifacts(str(tmp_path))
    # A file where a folder should be.
    artifacts.put("controls", b"x")
    with pytest.raises(StorageFailed, match="cannot be deleted"):
        artifacts.delete(["controls/a"])


async def test_new_files_are_noted_across_tasks_and_threads(tmp_path):
    artifacts = Artifacts(str(tmp_path))
    artifacts.put_missing("controls/old", b"x")

    async def write(key: str) -> None:
        await asyncio.to_thread(artifacts.put_missing, f"controls/{key}", b"x")

    with artifacts.recording_new_keys() as outer, artifacts.recording_new_keys() as inner:
        await asyncio.gather(*map(write, ("old", "a", "b")))
    await write("c")
    assert (inner, outer) == ({"controls/a", "controls/b"}, set())


async def test_what_a_cancelled_request_was_writing_is_noted_before_the_cancellation_goes_on(tmp_path):
    artifacts, gate = Artifacts(str(tmp_path)), threading.Event()

    def write() -> None:
        gate.wait(5)
        artifacts.put_missing("controls/a", b"x")

    with artifacts.recording_new_keys() as new:
        writing = asyncio.create_task(background.shielded(asyncio.to_thread(write)))
        await asyncio.sleep(0)
        writing.cancel()
        asyncio.get_running_loop().call_later(0.1, gate.set)
        with pytest.raises(asyncio.CancelledError):
            await writing
        assert new == {"controls/a"}
