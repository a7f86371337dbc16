"""Calls that fail for a reason that passes are repeated; others are not, and no call is repeated for ever."""

import httpx2
import pytest

from edits_client import Client, ConnectionFailed, Retries, UnexpectedAnswer
from edits_client.errors import (
    ApiError,
    GpuQuotaExceeded,
    InternalError,
    ModelNotFound,
    QueueFull,
    RateLimited,
    SweepQuotaExceeded,
    TooManyUnfinished,
    ValidationFailed,
)
from edits_client.retries import retry_after_s

FAST = Retries(for_s=0.5, first_s=0.001, longest_s=0.004)
FAULT = {"type": "missing", "loc": ["body", "x"], "msg": "no"}
MODELS = {"object": "list", "data": [], "models": []}
ANSWERED = [httpx2.Response(200, json=MODELS)]


def error(status: int, code: str, headers: dict[str, str] | None = None, **details: object) -> httpx2.Response:
    body = {"detail": {"error": {"code": code, "message": "one sentence", "details": details}}}
    return httpx2.Response(status, json=body, headers=headers)


def client_for(answers: list, retries: Retries = FAST) -> tuple[Client, list[httpx2.Request]]:
    """A client whose calls get these answers, one after the other, the last one again and again; and its calls."""
    calls: list[httpx2.Request] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        calls.append(request)
        chosen = answers[min(len(calls), len(answers)) - 1]
        if isinstance(chosen, Exception):
            raise chosen
        return chosen

    return Client("http://service", retries=retries, transport=httpx2.MockTransport(answer)), calls


@pytest.mark.parametrize(
    "passing",
    [
        httpx2.ConnectError("refused"),
        httpx2.ReadError("reset"),
        httpx2.RemoteProtocolError("cut off"),
        error(503, "STORE_UNAVAILABLE"),
        error(429, "QUEUE_FULL"),
        httpx2.Response(502, text="<html>bad gateway</html>"),
        # Serve's proxy while the application starts.
        httpx2.Response(404, text="Path '/v1/models' not found."),
        httpx2.Response(200, text='{"models": ['),
    ],
)
def test_what_passes_is_tried_again(passing):
    client, calls = client_for([passing, passing, httpx2.Response(200, json=MODELS)])
    assert client.models() == []
    assert len(calls) == 3


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (error(400, "MODEL_NOT_FOUND"), ModelNotFound),
        (error(500, "INTERNAL_ERROR"), InternalError),
        (
            httpx2.Response(422, json={"detail": [{"type": "missing", "loc": ["body", "x"], "msg": "no"}]}),
            ValidationFailed,
        ),
    ],
)
def test_what_stays_wrong_is_not_tried_again(answer, kind):
    client, calls = client_for([answer])
    with pytest.raises(kind):
        client.models()
    assert len(calls) == 1


def test_time_for_tries_ends_with_the_service_s_own_error():
    client, calls = client_for([error(429, "QUEUE_FULL", queued=9)])
    with pytest.raises(QueueFull) as raised:
        client.models()
    assert raised.value.details == {"queued": 9}
    assert len(calls) > 3


LIMITS = [
    (RateLimited, {"kind": "submit", "limit": 30, "retry_after_s": 1}),
    (TooManyUnfinished, {"unfinished": 2, "limit": 2}),
    (GpuQuotaExceeded, {"used": 5.0, "limit": 5, "retry_after_s": 3600}),
    (SweepQuotaExceeded, {"used": 10, "limit": 10, "retry_after_s": 3600}),
]


@pytest.mark.parametrize(("kind", "details"), LIMITS)
def test_limit_that_passes_in_time_is_waited_for(monkeypatch, kind, details):
    """A tenant that is refused gets its answer once the service says that it may come back."""
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    refused = error(429, kind.code, {"Retry-After": "2"}, **details)
    client, calls = client_for([refused, refused, *ANSWERED], Retries(for_s=30.0))
    assert client.models() == []
    assert len(calls) == 3
    assert waited == [2.0, 2.0]


@pytest.mark.parametrize(("kind", "details"), LIMITS)
def test_limit_that_passes_too_late_is_reported_at_once(kind, details):
    """Nobody waits a minute in vain for a quota of the next day."""
    client, calls = client_for([error(429, kind.code, {"Retry-After": "3600"}, **details)], Retries(for_s=60.0))
    with pytest.raises(kind) as raised:
        client.models()
    assert raised.value.details == details
    assert len(calls) == 1


def test_limit_is_waited_for_by_a_submission_under_the_same_key(monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    submitted = {"request_id": "f" * 32, "status": "queued", "status_url": "", "result_url": ""}
    accepted = httpx2.Response(200, json=submitted | {"created_at": "2026-11-30T00:00:00Z"})
    refused = error(429, RateLimited.code, {"Retry-After": "1"}, **LIMITS[0][1])
    client, calls = client_for([refused, refused, accepted], Retries(for_s=30.0))
    assert client.submit_body({"model": "m", "loras": [], "prompts": [{"prompt": "p"}]}).id == "f" * 32
    assert len({call.headers["Idempotency-Key"] for call in calls}) == 1


def test_service_that_is_not_there_is_named():
    client, _ = client_for([httpx2.ConnectError("connection refused")])
    with pytest.raises(
        ConnectionFailed, match=r"no complete answer from http://service.*: connection refused \(after \d+ tries\)"
    ):
        client.models()


def test_retry_after_is_a_lower_bound():
    assert Retries().pause(1, 0.0, 5.0) == 5.0
    assert Retries(for_s=4.0).pause(1, 0.0, 5.0) is None
    assert retry_after_s({"retry-after": "7"}) == 7.0
    assert retry_after_s({"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}) == 0.0


def test_pauses_grow_to_their_limit_and_differ():
    pauses = [Retries(for_s=1e9).pause(tries, 0.0) for tries in range(1, 200)]
    assert all(0.125 <= pause <= 8.0 for pause in pauses)
    assert max(pauses[:2]) <= 0.5 < 4.0 <= min(pauses[10:])
    assert len(set(pauses)) > 100


def test_code_that_this_version_does_not_know_is_an_api_error():
    client, _ = client_for([error(400, "SOMETHING_NEW", a=1)])
    with pytest.raises(ApiError) as raised:
        client.models()
    assert (raised.value.code, raised.value.details, type(raised.value)) == ("SOMETHING_NEW", {"a": 1}, ApiError)


def test_submission_is_repeated_under_one_key_and_each_call_has_its_own():
    submitted = {"request_id": "f" * 32, "status": "queued", "status_url": "", "result_url": ""}
    accepted = httpx2.Response(200, json=submitted | {"created_at": "2026-11-30T00:00:00Z"})
    client, calls = client_for([httpx2.ReadError("reset"), accepted])
    body = {"model": "m", "loras": [], "prompts": [{"prompt": "p"}]}
    assert client.submit_body(body).id == "f" * 32
    client.submit_body(body)
    keys = [call.headers["Idempotency-Key"] for call in calls]
    assert keys[0] == keys[1] != keys[2]


def test_calibration_is_repeated_under_one_key():
    started = {"id": "f" * 32, "model": "m", "tiers": [], "requests": [], "created_at": "2026-11-30T00:00:00Z"}
    accepted = httpx2.Response(202, json=started | {"ended_at": None, "problem": None})
    client, calls = client_for([httpx2.ReadError("reset"), accepted])
    body = {"model": "m", "prompts": [{"prompt": "p"}]}
    assert client.start_calibration(body).id == "f" * 32
    assert client.start_calibration(body, idempotency_key="mine").id == "f" * 32
    keys = [call.headers["Idempotency-Key"] for call in calls]
    assert keys[0] == keys[1] != keys[2] == "mine"


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (httpx2.Response(200, json={"models": [{"id": 1}]}), None),
        (httpx2.Response(401, text="<html>log in</html>"), "answered 401: '<html>log in"),
        (httpx2.Response(404, json={"detail": "Not Found"}), "answered 404"),
        (httpx2.Response(301, headers={"location": "https://service/v1/models"}), "a redirect to https://service/v1"),
        (httpx2.UnsupportedProtocol("no such protocol"), "no such protocol"),
    ],
)
def test_another_service_s_answer_is_an_error_at_once(answer, text):
    client, calls = client_for([answer])
    with pytest.raises(ConnectionFailed if text else UnexpectedAnswer, match=text):
        client.models()
    assert len(calls) == 1


def test_first_failure_of_a_call_is_logged_once(caplog):
    client, _ = client_for([httpx2.ConnectError("refused"), httpx2.ConnectError("refused"), *ANSWERED])
    client.models()
    assert [record.getMessage() for record in caplog.records] == [
        "no complete answer from http://service: refused; trying again for up to 0.5 s"
    ]


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://service", "service"])
def test_url_without_http_is_refused(url):
    with pytest.raises(ValueError, match="must start with http"):
        Client(url)
