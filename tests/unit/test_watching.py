"""Watching, waiting, cancelling and listing requests, over the real application with instant editors."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from serve_app.intake.answers import watch
from serve_app.storage.artifacts import Artifacts
from serve_app.tasks import Status
from tests.unit.conftest import SHARES_AN_APPLICATION, Application
from tests.unit.test_http_contract import finished

pytestmark = SHARES_AN_APPLICATION


@pytest.fixture
def held_back(application, client):
    """Editors that begin and then wait: `held_back.set()` lets them go on."""
    application.editors.gate.clear()
    yield application.editors.gate
    client.portal.call(application.editors.gate.set)


def submit(client, body: dict, **headers: str) -> str:
    answer = client.post("/v1/inference", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()["request_id"]


def events(client, request_id: str, **headers: str) -> list[tuple[str | None, str, dict]]:
    """The whole stream: (id, event, data) each."""
    with client.stream("GET", f"/v1/requests/{request_id}/events", headers=headers) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        return list(parsed(answer.iter_lines()))


def parsed(lines: Iterator[str]) -> Iterator[tuple[str | None, str, dict]]:
    fields: dict[str, str] = {}
    for line in lines:
        if line and not line.startswith(":"):
            name, _, value = line.partition(": ")
            fields[name] = value
        elif fields:
            yield fields.get("id"), fields["event"], json.loads(fields["data"])
            fields = {}


def wait_for(client, request_id: str, status: Status) -> dict:
    deadline = time.monotonic() + 5
    while (seen := client.get(f"/v1/requests/{request_id}/status").json())["status"] != status:
        assert time.monotonic() < deadline, seen
        time.sleep(0.01)
    return seen


def test_late_watcher_gets_all_events(client, make_body):
    body = make_body()
    body["prompts"] *= 2
    result = finished(client, body)
    seen_events = events(client, result["request_id"])
    assert [event for _, event, _ in seen_events] == ["started", "image", "image", "succeeded"]
    assert sorted(data["image"] for _, event, data in seen_events if event == "image") == [0, 1]
    assert seen_events[-1][2] == result
    for _, event, data in seen_events:
        if event == "image":
            assert client.get(data["url"]).status_code == 200


def test_events_come_as_they_happen(application, client, make_body, held_back):
    application.running["qwen_image_edit"] = 1
    running = [submit(client, make_body()) for _ in range(2)]
    waiting = submit(client, make_body())
    wait_for(client, running[0], Status.IN_PROGRESS)
    with client.stream("GET", f"/v1/requests/{waiting}/events") as answer:
        seen_events = parsed(answer.iter_lines())
        assert next(seen_events) == (None, "queued", {"request_id": waiting, "queue_position": 0})
        client.portal.call(held_back.set)
        assert [event for _, event, _ in seen_events][-2:] == ["image", "succeeded"]


def test_events_are_resumed_after_the_last_that_was_seen(client, make_body):
    result = finished(client, make_body())
    seen_events = events(client, result["request_id"])
    for i in range(len(seen_events) - 1):
        assert events(client, result["request_id"], **{"Last-Event-ID": seen_events[i][0]}) == seen_events[i + 1 :]
    url = f"/v1/requests/{result['request_id']}/events"
    # The end was seen: an EventSource must not reconnect.
    assert client.get(url, headers={"Last-Event-ID": seen_events[-1][0]}).status_code == 204


def test_events_of_an_unknown_request(client):
    answer = client.get("/v1/requests/x/events")
    assert (answer.status_code, answer.json()["detail"]["error"]["code"]) == (404, "REQUEST_NOT_FOUND")


def test_waiting_answers_with_the_result_if_it_is_there_in_time(client, make_body):
    answer = client.post("/v1/inference?wait=10", json=make_body()).json()
    assert answer["status"] == "succeeded"
    assert answer == client.get(f"/v1/requests/{answer['request_id']}/result").json()


def test_waiting_ends_when_the_image_is_recorded_and_not_at_the_next_poll(client_with, make_body, monkeypatch):
    monkeypatch.setattr(watch, "POLL_S", 3600.0)
    client, started = client_with(), time.monotonic()
    assert client.post("/v1/inference?wait=20", json=make_body()).json()["status"] == "succeeded"
    assert time.monotonic() - started < 10


def test_waiting_too_short_answers_as_usual(client, make_body, held_back):
    started = time.monotonic()
    answer = client.post("/v1/inference?wait=0.3", json=make_body()).json()
    assert time.monotonic() - started >= 0.3
    assert set(answer) == {"request_id", "status", "status_url", "result_url", "created_at"}
    assert client.post("/v1/inference?wait=301", json=make_body()).status_code == 422


def test_waiting_request_is_cancelled_at_once(application, client, make_body, held_back):
    application.running["qwen_image_edit"] = 1
    running = [submit(client, make_body()) for _ in range(2)]
    waiting = submit(client, make_body())
    wait_for(client, running[1], Status.IN_PROGRESS)
    assert client.delete(f"/v1/requests/{waiting}").json()["status"] == "canceled"
    client.portal.call(held_back.set)
    for request_id in running:
        wait_for(client, request_id, Status.SUCCEEDED)
    assert len(application.editors.tasks) == 2
    result = client.get(f"/v1/requests/{waiting}/result").json()
    assert (result["status"], result["outputs"], result["error"]) == ("canceled", None, None)
    assert client.get(f"/v1/requests/{waiting}/status").json()["started_at"] is None
    assert result["metadata"]["partial"] == []


@pytest.mark.parametrize("way", ["delete", "post"])
def test_running_request_is_cancelled_and_cancelling_again_changes_nothing(
    application, client, make_body, held_back, way
):
    request_id = submit(client, make_body())
    wait_for(client, request_id, Status.IN_PROGRESS)

    def cancel() -> dict:
        url = f"/v1/requests/{request_id}"
        return (client.delete(url) if way == "delete" else client.post(f"{url}/cancel")).json()

    first = cancel()
    assert first["status"] == "canceled"
    client.portal.call(application.editors.stopped.wait)
    assert cancel() == first
    assert [event for _, event, _ in events(client, request_id)] == ["started", "canceled"]


def test_what_has_ended_stays_as_it_ended(client, make_body):
    result = finished(client, make_body())
    url = f"/v1/requests/{result['request_id']}"
    assert client.delete(url).json()["status"] == "succeeded"
    assert client.get(f"{url}/result").json() == result
    assert client.delete("/v1/requests/x").status_code == 404


def test_purged_request_keeps_its_record_and_loses_its_images(application, client, make_body):
    other = finished(client, make_body(seed=1))
    result = finished(client, make_body(seed=2, output_format="png"))
    url = f"/v1/requests/{result['request_id']}"
    [image] = result["outputs"]["images"]
    for _ in range(2):
        assert client.delete(f"{url}?purge=true").json()["status"] == "succeeded"
        seen = client.get(f"{url}/result").json()
        assert (seen["outputs"], seen["metadata"]["purged"]) == (None, True)
        assert client.get(image["url"]).status_code == 404
    artifacts = application.config.artifacts_url
    assert not any(path.suffix == ".png" for path in files_in(artifacts))
    # The other request has the same control image, and keeps it.
    assert len(files_in(f"{artifacts}/controls")) == 1
    assert client.get(other["outputs"]["images"][0]["url"]).status_code == 200
    client.delete(f"/v1/requests/{other['request_id']}?purge=true")
    assert files_in(f"{artifacts}/controls") == []


def files_in(folder: str) -> list[Path]:
    return [path for path in sorted(Path(folder).rglob("*")) if path.is_file()]


def test_control_image_that_was_deleted_before_the_commit_is_written_again(application, client, make_body, monkeypatch):
    """As the sweeper or a purge of another request may do, between the two."""
    deleted = []
    put = Artifacts.put_missing

    def put_and_lose_once(self: Artifacts, key: str, data: bytes) -> None:
        put(self, key, data)
        if not deleted:
            deleted.append(key)
            self.delete([key])

    monkeypatch.setattr(Artifacts, "put_missing", put_and_lose_once)
    submit(client, make_body())
    assert Artifacts(application.config.artifacts_url).exists(deleted[0])


def test_purging_a_running_request_cancels_it(client, make_body, held_back):
    request_id = submit(client, make_body())
    wait_for(client, request_id, Status.IN_PROGRESS)
    assert client.delete(f"/v1/requests/{request_id}?purge=true").json()["status"] == "canceled"


def test_same_idempotency_key_and_body_is_the_same_request(application, client, make_body):
    body = make_body(hf_token="hf_one")
    first = client.post("/v1/inference", json=body, headers={"Idempotency-Key": "k"}).json()
    # The token is no part of what a request is.
    again = client.post("/v1/inference", json=body | {"hf_token": "hf_two"}, headers={"Idempotency-Key": "k"}).json()
    assert again | {"status": "queued"} == first
    other = submit(client, make_body(), **{"Idempotency-Key": "another"})
    assert other != first["request_id"]
    wait_for(client, other, Status.SUCCEEDED)
    assert len(application.editors.tasks) == 2


def test_repeated_post_is_answered_with_the_current_status(client, make_body, held_back):
    def post() -> dict:
        return client.post("/v1/inference", json=make_body(), headers={"Idempotency-Key": "k"}).json()

    first = post()
    assert first["status"] == "queued"
    for status in (Status.IN_PROGRESS, Status.SUCCEEDED):
        wait_for(client, first["request_id"], status)
        assert post() == first | {"status": status}
        client.portal.call(held_back.set)


def test_same_idempotency_key_with_another_body_is_a_conflict(client, make_body):
    submit(client, make_body(), **{"Idempotency-Key": "k"})
    answer = client.post("/v1/inference", json=make_body(seed=5), headers={"Idempotency-Key": "k"})
    assert (answer.status_code, answer.json()["detail"]["error"]["code"]) == (409, "IDEMPOTENCY_CONFLICT")


def test_full_queue_is_429_and_says_when_to_retry(config, make_body):
    tight = Application(config.model_copy(update={"jobs": config.jobs.model_copy(update={"max_queued": 2})}))
    tight.editors.gate.clear()
    with TestClient(tight.app) as client:
        running = [submit(client, make_body()) for _ in range(2)]
        for request_id in running:
            wait_for(client, request_id, Status.IN_PROGRESS)
        waiting = [submit(client, make_body()) for _ in range(2)]
        refused = client.post("/v1/inference", json=make_body())
        assert (refused.status_code, refused.json()["detail"]["error"]["code"]) == (429, "QUEUE_FULL")
        assert refused.json()["detail"]["error"]["details"] == {"queued": 2, "limit": 2, "sent": 1}
        assert int(refused.headers["retry-after"]) > 0
        client.delete(f"/v1/requests/{waiting[0]}")
        submit(client, make_body())
        client.portal.call(tight.editors.gate.set)


def test_request_that_could_never_be_queued_is_refused_as_such(client_with, make_body):
    body = make_body()
    body["prompts"] *= 2
    answer = client_with(jobs={"max_queued_per_tenant": 1}).post("/v1/inference", json=body)
    assert (answer.status_code, answer.json()["detail"]["error"]["code"]) == (400, "INVALID_PARAMETER")


def test_deadline_ends_a_request_and_says_so(client, make_body, held_back):
    request_id = submit(client, make_body() | {"deadline_s": 0.2})
    seen = wait_for(client, request_id, Status.FAILED)
    assert seen["error"] == "it was not finished within its deadline of 0.2 s"


def test_history_is_off_without_keys(client, make_body):
    for url in ("/v1/requests", "/v1/usage"):
        answer = client.get(url)
        assert (answer.status_code, answer.json()["detail"]["error"]["code"]) == (403, "HISTORY_UNAVAILABLE")


def test_eta_is_predicted_once_an_edit_was_measured(application, client, make_body, held_back):
    application.running["qwen_image_edit"] = 1
    first = submit(client, make_body())
    assert wait_for(client, first, Status.IN_PROGRESS)["eta_s"] is None
    client.portal.call(held_back.set)
    assert wait_for(client, first, Status.SUCCEEDED)["eta_s"] is None
    client.portal.call(held_back.clear)
    twice = make_body(sample_steps=4)
    running = [submit(client, make_body()) for _ in range(2)]
    waiting = client.get(f"/v1/requests/{submit(client, twice)}/status").json()
    wait_for(client, running[1], Status.IN_PROGRESS)
    # An instant edit of 2 steps says that it took 1 s: two of them before it, and it takes twice as long itself.
    assert waiting["queue_position"] is not None
    assert waiting["eta_s"] == pytest.approx(4.0, rel=0.2)
