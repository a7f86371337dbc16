"""Storage that is full, read-only or away: said as what it is, whatever its client library raises."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from starlette.testclient import TestClient

from serve_app.adapters.verified_files import VerifiedFiles
from serve_app.concurrency.threads import Threads
from serve_app.config import FetchConfig, ModelConfig
from serve_app.errors import StorageFailed, StorageRefused
from serve_app.storage.artifacts import Artifacts
from serve_app.storage.identity import fingerprint
from serve_app.tasks import AdapterUse, Status, StepDone
from tests.unit.bench import run_scripted
from tests.unit.conftest import Application, safetensors_bytes
from tests.unit.outages import RemoteStore, stand_in
from tests.unit.test_http_contract import finished
from tests.unit.test_jobs import is_stored, new

URL = "s3://bucket/artifacts"


@pytest.fixture
def stores(monkeypatch: pytest.MonkeyPatch) -> type[RemoteStore]:
    return stand_in(monkeypatch)


CALLS = {
    "put": lambda artifacts, file: artifacts.put("a/b", b"x"),
    "put_missing": lambda artifacts, file: artifacts.put_missing("a/b", b"x"),
    "put_new": lambda artifacts, file: artifacts.put_new("a/b", b"x"),
    "put_file": lambda artifacts, file: artifacts.put_file("a/b", file),
    "put_json": lambda artifacts, file: artifacts.put_json("a/b", {}),
    "get": lambda artifacts, file: artifacts.get("a/b"),
    "get_json": lambda artifacts, file: artifacts.get_json("a/b"),
    "exists": lambda artifacts, file: artifacts.exists("a/b"),
    "older_than": lambda artifacts, file: artifacts.older_than("a", 0.0),
    "delete": lambda artifacts, file: artifacts.delete(["a/b"]),
    "delete_folder": lambda artifacts, file: artifacts.delete_folder("a"),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_an_outage_of_a_remote_store_is_a_storage_error(stores, tmp_path, call):
    (tmp_path / "file").write_bytes(b"x")
    artifacts = Artifacts(URL)
    stores.failure = "away"
    with pytest.raises(StorageFailed) as failed:
        call(artifacts, tmp_path / "file")
    # What the client library says is for the log alone.
    assert "secret-bucket" not in failed.value.message
    stores.failure = "wrong"
    with pytest.raises(TypeError):
        call(artifacts, tmp_path / "file")


@pytest.mark.parametrize("call", ["put", "put_missing", "put_new", "put_file", "exists", "get", "older_than", "delete"])
def test_a_folder_that_cannot_be_used_is_a_storage_error(tmp_path, call):
    (tmp_path / "file").write_bytes(b"x")
    # A file where a folder should be: root, as whom tests may run, is refused nothing else.
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts/a").write_bytes(b"x")
    with pytest.raises(StorageFailed):
        CALLS[call](Artifacts(str(tmp_path / "artifacts")), tmp_path / "file")


def test_missing_file_is_not_an_outage(stores, tmp_path):
    for url in (URL, str(tmp_path)):
        artifacts = Artifacts(url)
        assert not artifacts.exists("a/b")
        assert artifacts.get_json("a/b") is None
        with pytest.raises(FileNotFoundError):
            artifacts.get("a/b")


@pytest.mark.parametrize("url", [URL, "az://bucket/artifacts", "memory://artifacts/{tmp_path}", "{tmp_path}"])
def test_a_file_is_written_only_if_none_is_there(stores, tmp_path, url):
    artifacts = Artifacts(url.format(tmp_path=tmp_path))
    assert artifacts.put_new("adapters/a.sha256", b"first")
    assert not artifacts.put_new("adapters/a.sha256", b"second")
    assert artifacts.get("adapters/a.sha256") == b"first"


def test_a_store_that_may_overwrite_is_refused_at_the_start(stores):
    with pytest.raises(StorageRefused, match="odd:// URL"):
        Artifacts("odd://bucket/artifacts")


@pytest.fixture
def remote(config, stores) -> Iterator[TestClient]:
    application = Application(config.model_copy(update={"artifacts_url": URL}))
    with TestClient(application.app) as client:
        yield client


@pytest.mark.parametrize("failure", ["away", "full"])
def test_post_while_storage_fails_is_503_and_says_when_to_retry(remote, stores, make_body, failure):
    stores.failure = failure
    answer = remote.post("/v1/inference", json=make_body())
    assert (answer.status_code, answer.json()["detail"]["error"]["code"]) == (503, "STORAGE_FAILED")
    assert int(answer.headers["retry-after"]) > 0
    stores.failure = ""
    assert finished(remote, make_body())["status"] == "succeeded"


def test_image_that_cannot_be_read_now_is_503(remote, stores, make_body):
    [image] = finished(remote, make_body())["outputs"]["images"]
    stores.failure = "away"
    answer = remote.get(image["url"])
    assert (answer.status_code, answer.json()["detail"]["error"]["code"]) == (503, "STORAGE_FAILED")


def test_post_to_a_folder_that_cannot_be_written_is_503(client, application, make_body):
    Path(application.config.artifacts_url).mkdir(exist_ok=True)
    (Path(application.config.artifacts_url) / "controls").write_bytes(b"a file where a folder should be")
    answer = client.post("/v1/inference", json=make_body())
    assert (answer.status_code, answer.json()["detail"]["error"]["code"]) == (503, "STORAGE_FAILED")


def test_unavailable_lora_root_is_reported_as_such(config, stores, make_body):
    path = "/loras/job/lora.safetensors"
    application = Application(config.model_copy(update={"lora_root": "s3://loras"}))
    with TestClient(application.app) as client:
        fsspec.filesystem("s3").pipe_file(path, safetensors_bytes())
        assert finished(client, make_body())["status"] == "succeeded"
        stores.failure = "away"
        answer = client.post("/v1/inference", json=make_body())
        assert (answer.status_code, answer.json()["detail"]["error"]["code"]) == (400, "LORA_DOWNLOAD_FAILED")
        answer = client.get("/v1/loras")
        assert (answer.status_code, answer.json()["detail"]["error"]["code"]) == (503, "STORAGE_FAILED")


def test_adapter_whose_store_is_away_is_read_once_it_is_back(stores, tmp_path):
    url = "s3://loras/lora.safetensors"
    fsspec.filesystem("s3").pipe_file("/loras/lora.safetensors", safetensors_bytes())
    contents = VerifiedFiles(
        ModelConfig(adapter_disk_folder=str(tmp_path / "disk")), FetchConfig(), Artifacts(str(tmp_path))
    )
    use = AdapterUse(fingerprint(url), "lora.safetensors", url, 1.0)
    stores.failure = "away"
    with pytest.raises(StorageFailed) as failed:
        contents.read(use)
    assert failed.value.retryable
    stores.failure = ""
    assert contents.read(use).data == safetensors_bytes()


async def test_edit_whose_lora_cannot_be_read_now_loses_no_attempt(bench, stores, tmp_path):
    url = "s3://loras/lora.safetensors"
    fsspec.filesystem("s3").pipe_file("/loras/lora.safetensors", safetensors_bytes())
    contents = VerifiedFiles(ModelConfig(adapter_disk_folder=str(tmp_path / "disk")), FetchConfig())
    use = AdapterUse(fingerprint(url), "lora.safetensors", url, 1.0)
    stores.failure = "away"
    with pytest.raises(StorageFailed) as failed:
        contents.read(use)
    record = await run_scripted(bench, *[[failed.value]] * (bench.jobs.max_attempts + 1))
    assert (record.status, record.images[0].reasons) == (Status.SUCCEEDED, ())


async def test_finished_image_is_recorded_after_looks_into_storage_hung_in_every_thread(bench):
    record = await bench.store.requests.create(new(), is_stored)
    threads = Threads(2, 0.05, "reading artifact storage")
    bench.store._database._threads = threads
    end = threading.Event()
    hanging = [asyncio.create_task(threads.run(lambda: end.wait(10))) for _ in range(2)]
    async with bench.dispatching():
        async with asyncio.timeout(8):
            while not bench.editors.tasks:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        end.set()
        record = await bench.ended(record.id)
    await asyncio.gather(*hanging)
    assert (record.status, record.images[0].reasons, len(bench.editors.tasks)) == (Status.SUCCEEDED, (), 1)


async def test_image_that_could_not_be_stored_is_made_again_however_often(bench):
    unstored = [StepDone(0, 8), StepDone(8, 8), StorageFailed("full")]
    record = await run_scripted(bench, *[unstored] * (bench.jobs.max_attempts + 2))
    assert (record.status, record.images[0].reasons) == (Status.SUCCEEDED, ())


async def test_finished_image_waits_to_be_recorded_until_storage_can_be_asked_for_it(bench):
    away = 3
    asked = bench.artifacts.exists

    def exists(key: str) -> bool:
        nonlocal away
        away -= 1
        if away >= 0:
            raise StorageFailed("away")
        return asked(key)

    bench.artifacts.exists = exists
    record = await bench.store.requests.create(new(), is_stored)
    async with bench.dispatching():
        record = await bench.ended(record.id)
    assert (record.status, record.images[0].reasons, len(bench.editors.tasks)) == (Status.SUCCEEDED, (), 1)
