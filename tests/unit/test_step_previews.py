"""Step previews over HTTP: who watches is known to editors, and what editors store is seen on every ingress."""

import base64
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from serve_app.errors import StorageFailed
from serve_app.intake.answers import previews
from serve_app.storage import artifact_keys
from serve_app.storage.artifacts import Artifacts
from serve_app.storage.step_previews import StepPreview, StepPreviewStorage
from serve_app.tasks import Status
from tests.unit.conftest import Application
from tests.unit.test_tenants import keyed
from tests.unit.test_watching import held_back, parsed, submit, wait_for

__all__ = ["held_back", "keyed"]

JPEG = b"a small JPEG"


@pytest.fixture
def storage(application) -> StepPreviewStorage:
    """The storage of step previews as an editor sees it."""
    return StepPreviewStorage(Artifacts(application.config.artifacts_url))


@pytest.fixture
def running(client, make_body, held_back) -> str:
    """A request whose only image an editor makes, until `held_back` is set."""
    request_id = submit(client, make_body())
    wait_for(client, request_id, Status.IN_PROGRESS)
    return request_id


def preview_url(request_id: str, index: int = 0) -> str:
    return f"/v1/requests/{request_id}/images/{index}/preview"


def error_of(answer) -> dict:
    return answer.json()["detail"]["error"]


def folder_of(application: Application, request_id: str) -> Path:
    return Path(application.config.artifacts_url, artifact_keys.previews(request_id))


def eventually(is_so) -> None:
    deadline = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_newest_preview_is_answered_as_a_jpeg(client, storage, running):
    storage.put(running, 0, StepPreview(1, b"older"))
    storage.put(running, 0, StepPreview(2, JPEG))
    answer = client.get(preview_url(running))
    assert (answer.status_code, answer.content) == (200, JPEG)
    assert answer.headers["content-type"] == "image/jpeg"
    assert (answer.headers["x-step"], answer.headers["x-steps"]) == ("2", "2")
    assert answer.headers["cache-control"] == "private, no-store"


def test_before_the_first_preview_it_is_not_ready(client, running):
    answer = client.get(preview_url(running))
    assert answer.status_code == 404
    error = error_of(answer)
    assert error["code"] == "PREVIEW_NOT_READY"
    assert error["details"] == {"request_id": running, "image": 0, "status": "in_progress"}


def test_who_asks_for_a_preview_watches(client, storage, running):
    assert storage.marker(running) is None
    client.get(preview_url(running))
    assert storage.marker(running) is not None


def test_marker_changes_every_few_seconds_and_not_with_every_question(client, storage, running, monkeypatch):
    client.get(preview_url(running))
    first = storage.marker(running)
    client.get(preview_url(running))
    assert storage.marker(running) == first
    monkeypatch.setattr(previews, "MARK_S", 0.0)
    client.get(preview_url(running))
    assert storage.marker(running) != first


def test_waiting_image_can_be_watched_before_an_editor_has_it(application, client, make_body, held_back, storage):
    application.running["qwen_image_edit"] = 0
    request_id = submit(client, make_body())
    answer = client.get(preview_url(request_id))
    assert error_of(answer)["details"]["status"] == "in_queue"
    assert storage.marker(request_id) is not None


def test_finished_image_has_no_preview_and_the_answer_names_the_image(client, storage, running, held_back):
    client.portal.call(held_back.set)
    wait_for(client, running, Status.SUCCEEDED)
    storage.put(running, 0, StepPreview(1, JPEG))
    error = error_of(client.get(preview_url(running)))
    assert (error["code"], error["details"]["status"]) == ("PREVIEW_NOT_READY", "succeeded")
    assert f"/v1/requests/{running}/images/0" in error["message"]
    assert storage.marker(running) is None


def test_unknown_request_and_image(client, running):
    assert error_of(client.get(preview_url("x")))["code"] == "REQUEST_NOT_FOUND"
    assert error_of(client.get(preview_url(running, 1)))["code"] == "IMAGE_NOT_FOUND"


def test_preview_belongs_to_its_tenant(keyed, make_body):
    request_id = submit(keyed.client, make_body(), **keyed.key("red"))
    codes = [
        error_of(keyed.client.get(preview_url(request_id), headers=keyed.key(who)))["code"]
        for who in ("red", "operator", "blue")
    ]
    assert codes == ["PREVIEW_NOT_READY", "PREVIEW_NOT_READY", "REQUEST_NOT_FOUND"]
    assert keyed.client.get(preview_url(request_id)).status_code == 401


def test_unavailable_storage_is_reported_and_does_not_end_the_request(client, running, monkeypatch, held_back):
    def fail(*_: object) -> None:
        raise StorageFailed("away")

    monkeypatch.setattr(StepPreviewStorage, "change_marker", fail)
    assert client.get(preview_url(running)).status_code == 404
    monkeypatch.setattr(StepPreviewStorage, "get", fail)
    answer = client.get(preview_url(running))
    assert (answer.status_code, error_of(answer)["code"]) == (503, "STORAGE_FAILED")
    client.portal.call(held_back.set)
    wait_for(client, running, Status.SUCCEEDED)


def stream_of(client, request_id: str, query: str = "") -> Iterator[tuple[str | None, str, dict]]:
    with client.stream("GET", f"/v1/requests/{request_id}/events{query}") as answer:
        yield from parsed(answer.iter_lines())


def test_stream_sends_each_preview_once_and_without_an_id(application, client, storage, running, held_back):
    storage.put(running, 0, StepPreview(1, JPEG))
    seen = []
    for event in stream_of(client, running):
        seen.append(event)
        if event[1] == "preview" and event[2]["step"] == 1:
            # The stream looks again, and finds the one that it has sent.
            time.sleep(1.2)
            storage.put(running, 0, StepPreview(2, b"newer"))
        elif event[1] == "preview":
            client.portal.call(held_back.set)
    found = [event for event in seen if event[1] == "preview"]
    assert found == [
        (None, "preview", {"image": 0, "step": 1, "jpeg_base64": base64.b64encode(JPEG).decode()}),
        (None, "preview", {"image": 0, "step": 2, "jpeg_base64": base64.b64encode(b"newer").decode()}),
    ]
    assert seen[-1][1] == "succeeded"


def test_stream_has_the_previews_of_all_images(client, storage, make_body, held_back):
    body = make_body()
    body["prompts"] *= 2
    request_id = submit(client, body)
    storage.put(request_id, 0, StepPreview(1, JPEG))
    storage.put(request_id, 1, StepPreview(2, JPEG))
    seen = set()
    for _, event, data in stream_of(client, request_id):
        if event == "preview":
            seen.add((data["image"], data["step"]))
        if len(seen) == 2:
            client.portal.call(held_back.set)
    assert seen == {(0, 1), (1, 2)}
    assert [client.get(preview_url(request_id, index)).status_code for index in (0, 1, 2)] == [404, 404, 404]


def test_open_stream_watches(client, storage, running, held_back):
    markers = []
    for _, event, _ in stream_of(client, running):
        if event == "started":
            eventually(lambda: storage.marker(running) is not None)
            markers.append(storage.marker(running))
            client.portal.call(held_back.set)
    assert markers


def test_stream_without_previews_does_not_watch(client, storage, running, held_back):
    storage.put(running, 0, StepPreview(1, JPEG))
    names = []
    for _, event, _ in stream_of(client, running, "?previews=false"):
        names.append(event)
        if event == "started":
            # Longer than a stream takes to look for previews.
            time.sleep(1.2)
            client.portal.call(held_back.set)
            assert storage.marker(running) is None
    assert "preview" not in names
    assert names[-1] == "succeeded"


def test_watchers_of_an_ended_request_leave_nothing(client, application, storage, running, held_back):
    client.portal.call(held_back.set)
    wait_for(client, running, Status.SUCCEEDED)
    assert [event for _, event, _ in stream_of(client, running)][-1] == "succeeded"
    client.get(preview_url(running))
    assert not folder_of(application, running).exists()


@pytest.mark.parametrize("way", ["finish", "cancel", "purge"])
def test_previews_are_deleted_with_the_end_of_their_request(client, application, storage, running, held_back, way):
    client.get(preview_url(running))
    storage.put(running, 0, StepPreview(1, JPEG))
    assert folder_of(application, running).exists()
    if way == "finish":
        client.portal.call(held_back.set)
    else:
        client.delete(f"/v1/requests/{running}", params={"purge": way == "purge"})
    eventually(lambda: not folder_of(application, running).exists())


def test_previews_are_deleted_with_the_deadline_of_their_request(client, application, make_body, held_back, storage):
    request_id = submit(client, make_body() | {"deadline_s": 0.5})
    storage.put(request_id, 0, StepPreview(1, JPEG))
    wait_for(client, request_id, Status.FAILED)
    eventually(lambda: not folder_of(application, request_id).exists())


def test_other_ingress_sees_the_preview_and_watches_for_it(application, client, storage, running):
    storage.put(running, 0, StepPreview(1, JPEG))
    other = Application(application.config)
    other.editors.gate.clear()
    with TestClient(other.app) as its_client:
        assert its_client.get(preview_url(running)).content == JPEG
        for event in stream_of(its_client, running):
            if event[1] == "preview":
                assert event[2]["jpeg_base64"] == base64.b64encode(JPEG).decode()
                break
    assert storage.marker(running) is not None
