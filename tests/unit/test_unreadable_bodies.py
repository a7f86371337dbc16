"""Bodies and headers that cannot be read: a documented answer with the reason, never a 500."""

import gzip
import json
import time
from datetime import UTC, datetime, timedelta

import pytest
import yaml

from serve_app.intake.keys import new_key
from tests.unit.conftest import SHARES_AN_APPLICATION

pytestmark = SHARES_AN_APPLICATION

JSON = {"content-type": "application/json"}
DIGITS = 5_000


@pytest.fixture
def keyed_client(client_with, tmp_path):
    """The history is for those who have a key."""
    key, sha256 = new_key()
    (tmp_path / "keys.yaml").write_text(yaml.safe_dump({"tenants": {"red": [sha256]}}))
    client = client_with(auth={"keys_file": str(tmp_path / "keys.yaml")})
    client.headers["X-API-Key"] = key
    return client


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


@pytest.mark.parametrize(
    ("content", "headers", "reason"),
    [
        (b"{", {}, "Expecting property name"),
        (
            gzip.compress(b"{}", mtime=0),
            {"content-encoding": "gzip"},
            "in Content-Encoding 'gzip'; send it as it is",
        ),
        (gzip.compress(b"{}", mtime=0), {}, "not UTF-8"),
        ('{"model": "größe"}'.encode("latin-1"), {}, "not UTF-8"),
        (b'{"seed": ' + b"9" * DIGITS + b"}", {}, "too many digits"),
        (nested(100_000), {}, "nested too deep"),
    ],
)
def test_body_that_cannot_be_read_is_answered_with_the_reason(client, content, headers, reason):
    for route in ("/v1/inference", "/v1/explain"):
        answer = client.post(route, content=content, headers=JSON | headers)
        assert answer.status_code == 422, answer.text
        [fault] = answer.json()["detail"]
        assert (set(fault), fault["type"], fault["loc"][0]) == ({"type", "loc", "msg"}, "json_invalid", "body")
        assert reason in fault["msg"]


def test_body_that_says_it_is_encoded_and_is_not_is_read(client, make_body):
    answer = client.post("/v1/explain", content=json.dumps(make_body()), headers=JSON | {"content-encoding": "utf-8"})
    assert answer.status_code == 200


def test_body_with_an_idempotency_key_may_be_nested_as_deep_as_it_can_be_read(client, make_body):
    body = json.dumps(make_body())[:-1].encode() + b', "unknown": ' + nested(300) + b"}"
    answers = [client.post("/v1/inference", content=body, headers=JSON | {"idempotency-key": "k"}) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].json()["request_id"] == answers[1].json()["request_id"]


@pytest.mark.parametrize("last", ["9" * 4_301, "9" * 30, "x", "", "1.5"])
def test_event_id_that_was_never_given_is_no_event_seen(client, make_body, last):
    request_id = client.post("/v1/inference?wait=5", json=make_body()).json()["request_id"]
    answer = client.get(f"/v1/requests/{request_id}/events", headers={"Last-Event-ID": last})
    assert answer.status_code == 200
    assert "event: succeeded" in answer.text


@pytest.mark.parametrize("zone", ["", "Z", "+14:00", "-14:00"])
def test_history_goes_back_to_any_year(keyed_client, make_body, zone):
    keyed_client.post("/v1/inference", json=make_body())
    for year, found in (("0001-01-01", 1), ("9999-12-31", 0)):
        answer = keyed_client.get("/v1/requests", params={"since": f"{year}T00:00:00{zone}"})
        assert (answer.status_code, len(answer.json()["requests"])) == (200, found)


def test_time_without_a_zone_is_utc_wherever_the_machine_is(keyed_client, make_body, monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    keyed_client.post("/v1/inference", json=make_body())
    moments = [(datetime.now(UTC) + timedelta(minutes=m)).replace(tzinfo=None).isoformat() for m in (-1, 1)]
    found = [len(keyed_client.get("/v1/requests", params={"since": since}).json()["requests"]) for since in moments]
    monkeypatch.undo()
    time.tzset()
    assert found == [1, 0]
