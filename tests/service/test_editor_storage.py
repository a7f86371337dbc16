"""What an editor does with a finished image while artifact storage is away. Without Ray around it."""

import asyncio
from functools import partial
from types import SimpleNamespace

import pytest
from PIL import Image

from serve_app.errors import StorageFailed
from serve_app.replicas import editor
from serve_app.replicas.editor import Editor, TimeLimits
from serve_app.storage.artifacts import Artifacts
from serve_app.tasks import EditTask
from tests.unit.outages import RemoteStore, stand_in

EDITED = SimpleNamespace(image=Image.new("RGB", (8, 8)), runtime={}, effective={}, timings={})


@pytest.fixture
def stores(monkeypatch) -> type[RemoteStore]:
    monkeypatch.setattr(editor, "STORAGE_PAUSE_S", 0.01)
    return stand_in(monkeypatch)


@pytest.fixture
def replica() -> SimpleNamespace:
    replica = SimpleNamespace(_artifacts=Artifacts("s3://bucket/artifacts"), _time_limits=TimeLimits())
    replica._store = partial(Editor._store, replica)
    return replica


async def test_finished_image_is_stored_once_storage_is_back(stores, replica, make_plan):
    stores.failure = "full"
    storing = asyncio.create_task(
        Editor._store_patiently(replica, EditTask("r", 0, make_plan()), EDITED, lambda: False)
    )
    async with asyncio.timeout(30):
        while stores.failed_writes < 2:
            await asyncio.sleep(0.005)
        assert not storing.done()
        stores.failure = ""
        done = await storing
    assert replica._artifacts.exists(done.key)
    assert replica._artifacts.get_json("results/r/0.json")["key"] == done.key


async def test_patience_ends_with_an_error_that_has_the_image_made_again(stores, replica, make_plan):
    replica._time_limits = TimeLimits(storage_s=0.05)
    stores.failure = "away"
    with pytest.raises(StorageFailed) as failed:
        await Editor._store_patiently(replica, EditTask("r", 0, make_plan()), EDITED, lambda: False)
    assert failed.value.retryable


def test_control_image_that_cannot_be_read_now_is_an_outage_and_no_error_of_the_edit(stores, replica):
    stores.failure = "away"
    with pytest.raises(StorageFailed):
        Editor._control_image(replica, "0" * 64)
