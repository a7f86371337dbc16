"""S3 by the real client and over real HTTP, with calls that fail: each costs a retry, none an image."""

import asyncio
import hashlib
import io
import time
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import PIL.Image
import pytest
from s3fs import S3FileSystem
from starlette.testclient import TestClient

from serve_app.adapters.verified_files import VerifiedFiles
from serve_app.config import FetchConfig, ModelConfig
from serve_app.engine.protocol import Edited
from serve_app.errors import StorageFailed
from serve_app.replicas import edit_storage
from serve_app.replicas.edit_storage import EditStorage
from serve_app.storage.artifacts import Artifacts
from serve_app.tasks import EditDone, EditEvent, EditTask, StepDone
from tests.object_store import Fault, ObjectStore, credentials, write_key
from tests.unit.conftest import LORA, Application, InstantEditors, safetensors_bytes
from tests.unit.test_http_contract import ended, finished

# A client waits for so long for an answer (s); a slow answer takes longer.
PATIENCE_S = 0.5
RED = Edited(PIL.Image.new("RGB", (64, 64), "red"), {"generate": 1.0, "load_control_images": 0.1}, {}, {})
TRANSIENT = [fault for fault in Fault if fault is not Fault.EXPIRED]


@pytest.fixture(scope="module")
def servers() -> Iterator[ObjectStore]:
    with ObjectStore(slow_s=2 * PATIENCE_S) as store:
        yield store


@pytest.fixture
def store(servers, tmp_path, monkeypatch) -> Iterator[ObjectStore]:
    """The object store, to which s3:// URLs lead during the test."""
    for name, value in credentials(tmp_path).items():
        monkeypatch.setenv(name, value)
    options = {"endpoint_url": servers.url, "config_kwargs": {"read_timeout": PATIENCE_S}}
    monkeypatch.setitem(fsspec.config.conf, "s3", options)
    # botocore pauses for up to a second before it tries again.
    monkeypatch.setattr("botocore.retryhandler.delay_exponential", lambda *_, **__: 0.01)
    S3FileSystem.clear_instance_cache()
    yield servers
    servers.valid_key = ""
    S3FileSystem.clear_instance_cache()


class FirstCalls:
    """Chooses a fault for the first call of each method to each path, a number of times."""

    def __init__(self, *faults: Fault) -> None:
        self._faults = faults
        self._seen: dict[tuple[str, str], int] = {}

    def __call__(self, method: str, path: str) -> Fault | None:
        count = self._seen[method, path] = self._seen.get((method, path), 0) + 1
        return self._faults[count - 1] if count <= len(self._faults) else None


def check_all_calls(artifacts: Artifacts, file: Path) -> None:
    """Make every kind of call at the same time, each on a file of its own, and check what it returns."""
    with ThreadPoolExecutor() as threads:
        got = threads.submit(artifacts.get, "there/get")
        missing = threads.submit(artifacts.get_json, "missing/json")
        found = threads.submit(artifacts.exists, "there/exists"), threads.submit(artifacts.exists, "missing/exists")
        listed = threads.submit(artifacts.older_than, "there", -60)
        written = [
            threads.submit(artifacts.put, "new/put", b"put"),
            threads.submit(artifacts.put_missing, "new/missing", b"missing"),
            threads.submit(artifacts.put_file, "new/file", file),
            threads.submit(artifacts.put_new, "new/new", b"new"),
        ]
        gone = threads.submit(artifacts.delete, ["gone/1", "gone/2"])
    assert got.result() == b"get" * 1000
    assert missing.result() is None
    assert [each.result() for each in found] == [True, False]
    assert listed.result() == ["there/exists", "there/get"]
    for each in (*written, gone):
        each.result()


@pytest.mark.parametrize("fault", TRANSIENT, ids=[fault.name for fault in TRANSIENT])
def test_a_call_that_fails_is_made_again(store, tmp_path, fault):
    (tmp_path / "file").write_bytes(b"file")
    artifacts = Artifacts(f"s3://{store.bucket()}/artifacts")
    artifacts.put("there/get", b"get" * 1000)
    for key in ("there/exists", "gone/1", "gone/2"):
        artifacts.put(key, b"")
    with store.failing(FirstCalls(fault)) as happened:
        check_all_calls(artifacts, tmp_path / "file")
    assert happened[fault] >= 2
    assert [artifacts.get(f"new/{name}") for name in ("put", "missing", "file", "new")] == [
        b"put",
        b"missing",
        b"file",
        b"new",
    ]
    assert not artifacts.exists("gone/1")
    assert not artifacts.put_new("new/new", b"another")


CALLS = {
    "put": lambda artifacts: artifacts.put("a/b", b"x"),
    "put_new": lambda artifacts: artifacts.put_new("a/new", b"x"),
    "get": lambda artifacts: artifacts.get("a/b"),
    "exists": lambda artifacts: artifacts.exists("a/b"),
    "older_than": lambda artifacts: artifacts.older_than("a", 0.0),
    "delete": lambda artifacts: artifacts.delete(["a/b"]),
}


def test_an_expired_key_is_an_outage_until_there_is_a_new_one(store, tmp_path):
    artifacts = Artifacts(f"s3://{store.bucket()}/artifacts")
    artifacts.put("a/b", b"x")
    store.valid_key = "second"
    for name, call in CALLS.items():
        with pytest.raises(StorageFailed):
            pytest.fail(f"{name} returned {call(artifacts)!r}")
    # The same file system, in the same process.
    write_key(tmp_path, "second")
    for call in CALLS.values():
        call(artifacts)


class StoringEditors(InstantEditors):
    """Editors that read and store files as real ones do. `made` counts the images that they have finished."""

    def __init__(self, artifacts: Artifacts) -> None:
        super().__init__(artifacts)
        self.made = 0
        self.storage = EditStorage(artifacts, patience_s=60)
        self.adapters: VerifiedFiles | None = None

    async def edit(self, task: EditTask) -> AsyncGenerator[EditEvent]:
        yield StepDone(0, task.plan.steps)
        await asyncio.to_thread(self._read, task)
        self.made += 1
        yield await self._stored(task, RED)

    def _read(self, task: EditTask) -> None:
        for sha256 in task.plan.control_images:
            assert hashlib.sha256(self.storage.control_image(sha256)).hexdigest() == sha256
        for use in task.plan.adapters:
            assert self.adapters
            assert self.adapters.read(use).data == safetensors_bytes()

    async def _stored(self, task: EditTask, edited: Edited) -> EditDone:
        return await self.storage.store_patiently(task, edited, lambda: False)


@pytest.fixture
def storing(store, config, tmp_path, monkeypatch) -> Iterator[tuple[TestClient, StoringEditors]]:
    """An application whose artifacts and LoRA root are in the object store."""
    monkeypatch.setattr(edit_storage, "STORAGE_PAUSE_S", 0.05)
    bucket = store.bucket()
    fsspec.filesystem("s3", use_listings_cache=False).pipe_file(f"{bucket}/loras/{LORA}", safetensors_bytes())
    urls = {"artifacts_url": f"s3://{bucket}/artifacts", "lora_root": f"s3://{bucket}/loras"}
    application = Application(config.model_copy(update=urls), StoringEditors)
    editors = application.editors
    disk = ModelConfig(adapter_disk_folder=str(tmp_path / "disk"))
    editors.adapters = VerifiedFiles(disk, FetchConfig(), editors.artifacts)
    with TestClient(application.app) as client:
        yield client, editors


def test_a_store_whose_every_first_call_fails_costs_no_image(storing, store, make_body):
    client, editors = storing
    faults = (Fault.LOST, Fault.BUSY, Fault.CUT)
    with store.failing(FirstCalls(*faults)) as happened:
        result = finished(client, make_body(output_format="png"))
        [image] = result["outputs"]["images"]
        answer = client.get(image["url"])
    assert (result["status"], editors.made) == ("succeeded", 1)
    assert PIL.Image.open(io.BytesIO(answer.content)).size == (image["width"], image["height"])
    assert min(happened[fault] for fault in faults) > 0


async def test_a_store_that_never_answers_uses_up_no_more_than_the_patience(store, make_plan):
    artifacts = Artifacts(f"s3://{store.bucket()}/artifacts")
    with store.failing(lambda method, path: Fault.SLOW):
        storing = EditStorage(artifacts, patience_s=0.2).store_patiently(
            EditTask("r", 0, make_plan()), RED, lambda: False
        )
        with pytest.raises(StorageFailed):
            # Without the limit, the client tries for `PATIENCE_S` 25 times.
            async with asyncio.timeout(PATIENCE_S * 20):
                await storing


def test_a_key_that_expires_before_an_image_is_stored_delays_it(storing, store, make_body, tmp_path):
    client, editors = storing
    stored = editors._stored

    async def expiring(task: EditTask, edited: Edited) -> EditDone:
        store.valid_key = "second"
        return await stored(task, edited)

    editors._stored = expiring
    with store.failing(lambda method, path: None) as happened:
        posted = client.post("/v1/inference", json=make_body())
        deadline = time.monotonic() + 30
        while happened[Fault.EXPIRED] < 3:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert editors.made == 1
        write_key(tmp_path, "second")
        result = ended(client, posted)
    assert (result["status"], editors.made) == ("succeeded", 1)
