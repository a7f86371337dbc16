"""What an editor does with a finished image while artifact storage is away."""

import asyncio

import pytest
from PIL import Image

from serve_app.engine.protocol import Edited
from serve_app.errors import StorageFailed
from serve_app.replicas import edit_storage
from serve_app.replicas.edit_storage import EditStorage
from serve_app.storage.artifacts import Artifacts
from serve_app.tasks import EditTask
from tests.unit.outages import RemoteStore, stand_in

EDITED = Edited(Image.new("RGB", (8, 8)), {}, {}, {})


@pytest.fixture
def stores(monkeypatch) -> type[RemoteStore]:
    monkeypatch.setattr(edit_storage, "STORAGE_PAUSE_S", 0.01)
    return stand_in(monkeypatch)


@pytest.fixture
def artifacts() -> Artifacts:
    return Artifacts("s3://bucket/artifacts")


async def test_finished_image_is_stored_once_storage_is_back(stores, artifacts, make_plan):
    stores.failure = "full"
    storage = EditStorage(artifacts, patience_s=120)
    storing = asyncio.create_task(storage.store_patiently(EditTask("r", 0, make_plan()), EDITED, lambda: False))
    async with asyncio.timeout(30):
        while stores.failed_writes < 2:
            await asyncio.sleep(0.005)
        assert not storing.done()
        stores.failure = ""
        done = await storing
    assert artifacts.exists(done.key)
    assert artifacts.get_json("results/r/0.json")["key"] == done.key


async def test_patience_ends_with_an_error_that_has_the_image_made_again(stores, artifacts, make_plan):
    stores.failure = "away"
    with pytest.raises(StorageFailed) as failed:
        await EditStorage(artifacts, patience_s=0.05).store_patiently(
            EditTask("r", 0, make_plan()), EDITED, lambda: False
        )
    assert failed.value.retryable


def test_control_image_that_cannot_be_read_now_is_an_outage_and_no_error_of_the_edit(stores, artifacts):
    stores.failure = "away"
    with pytest.raises(StorageFailed):
        EditStorage(artifacts, patience_s=120).control_image("0" * 64)
