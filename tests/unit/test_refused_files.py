"""What a request that is refused, or only explained, leaves in storage: nothing."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from serve_app.config import AppConfig
from serve_app.errors import QueueFull
from serve_app.jobs.requests import Requests
from serve_app.storage.fetch import Fetcher
from serve_app.tasks import Status
from tests.loraserver import LoraServer, lora_server
from tests.unit.conftest import ON_BOTH_DATABASES, Application, safetensors_bytes
from tests.unit.test_http_contract import finished
from tests.unit.test_watching import files_in, submit, wait_for

pytestmark = ON_BOTH_DATABASES


def stored(application: Application, folder: str) -> list[Path]:
    return files_in(f"{application.config.artifacts_url}/{folder}")


@pytest.fixture
def server() -> Iterator[LoraServer]:
    with lora_server(safetensors_bytes()) as server:
        yield server


@pytest.fixture
def application(config) -> Application:
    fetch = {"allow_private_addresses": True, "timeout_s": 1}
    return Application(AppConfig.model_validate(config.model_dump() | {"fetch": fetch}))


def test_full_queue_is_reported_before_anything_is_fetched_or_stored(config, make_body, monkeypatch):
    tight = Application(config.model_copy(update={"jobs": config.jobs.model_copy(update={"max_queued": 1})}))
    tight.running["qwen_image_edit"] = 0
    fetched = []
    monkeypatch.setattr(Fetcher, "get", lambda self, url: fetched.append(url))
    with TestClient(tight.app) as client:
        submit(client, make_body())
        [kept] = stored(tight, "controls")
        for seed in range(3):
            answer = client.post("/v1/inference", json=make_body(ctrl_img=f"http://127.0.0.1/{seed}.png"))
            assert (answer.status_code, answer.json()["detail"]["error"]["code"]) == (429, "QUEUE_FULL")
        assert stored(tight, "controls") == [kept]
    assert fetched == []


def test_request_that_could_never_be_queued_is_not_told_to_retry(config, make_body):
    tight = Application(config.model_copy(update={"jobs": config.jobs.model_copy(update={"max_queued": 1})}))
    body = make_body()
    body["prompts"] *= 2
    with TestClient(tight.app) as client:
        answer = client.post("/v1/inference", json=body)
    assert (answer.status_code, answer.json()["detail"]["error"]["code"]) == (400, "INVALID_PARAMETER")


@pytest.fixture
def refusing(monkeypatch):
    """The queue fills up between the first look and the commit."""

    async def refuse(self, *arguments):
        raise QueueFull("the queue is full")

    monkeypatch.setattr(Requests, "create", refuse)


def test_files_of_a_request_that_is_refused_late_are_deleted(application, client, make_body, server, refusing):
    answer = client.post("/v1/inference", json=make_body(loras=[{"path": server.url + "?key=1"}]))
    assert answer.status_code == 429
    assert stored(application, "controls") + stored(application, "loras") == []


def test_file_that_another_request_needs_outlives_one_that_is_refused(application, client, make_body, monkeypatch):
    kept = submit(client, make_body())
    wait_for(client, kept, Status.SUCCEEDED)

    async def refuse(self, *arguments):
        raise QueueFull("the queue is full")

    monkeypatch.setattr(Requests, "create", refuse)
    assert client.post("/v1/inference", json=make_body()).status_code == 429
    assert len(stored(application, "controls")) == 1


def test_file_that_another_request_comes_to_need_meanwhile_is_kept(application, client, make_body, monkeypatch):
    """The refused request wrote it; the other one found it there, and was committed before the first was refused."""
    create = Requests.create
    other = {}

    async def refuse_after_another(self, new, is_stored, *limits):
        if not other:
            other["id"] = (await create(self, replace(new, id="0" * 32), is_stored, *limits)).id
            raise QueueFull("the queue is full")
        return await create(self, new, is_stored, *limits)

    monkeypatch.setattr(Requests, "create", refuse_after_another)
    assert client.post("/v1/inference", json=make_body()).status_code == 429
    assert len(stored(application, "controls")) == 1
    wait_for(client, other["id"], Status.SUCCEEDED)


def test_adapter_that_was_downloaded_for_a_request_that_is_refused_is_deleted(application, client, make_body, server):
    loras = [{"path": server.url + "?key=1"}, {"path": server.url + "missing?key=2"}]
    answer = client.post("/v1/inference", json=make_body(loras=[loras[0], {"path": "job/../../x"}]))
    assert answer.status_code == 400
    server_of_nothing = server.url.replace("127.0.0.1", "127.0.0.2")
    answer = client.post("/v1/inference", json=make_body(loras=[loras[0], {"path": server_of_nothing + "?key=2"}]))
    assert (answer.status_code, answer.json()["detail"]["error"]["code"]) == (400, "LORA_DOWNLOAD_FAILED")
    assert server.requests
    assert stored(application, "loras") == []


def test_explaining_keeps_no_adapter(application, client, make_body, server):
    body = make_body(loras=[{"path": server.url + "?key=1"}])
    for _ in range(2):
        assert "effective" in client.post("/v1/explain", json=body).json()
    assert stored(application, "loras") == []


def test_explaining_deletes_no_adapter_that_a_request_needs(application, client, make_body, server):
    body = make_body(loras=[{"path": server.url + "?key=1"}])
    assert finished(client, body)["status"] == "succeeded"
    assert "effective" in client.post("/v1/explain", json=body).json()
    assert len(stored(application, "loras")) == 1


def test_repeat_that_lost_the_race_leaves_nothing(application, client, make_body, monkeypatch):
    """Two POSTs with one key at the same time: the second finds at its commit that the first was faster."""
    first = submit(client, make_body(), **{"Idempotency-Key": "k"})
    wait_for(client, first, Status.SUCCEEDED)
    client.delete(f"/v1/requests/{first}?purge=true")
    assert stored(application, "controls") == []

    async def nothing_yet(self, *arguments):
        return None

    monkeypatch.setattr(Requests, "earlier", nothing_yet)
    assert submit(client, make_body(), **{"Idempotency-Key": "k"}) == first
    assert stored(application, "controls") == []
