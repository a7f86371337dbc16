"""What holds for every answer: CORS, HEAD, caching, unknown routes, and the host that a client names."""

import asyncio

import pytest
from starlette.testclient import TestClient

from tests.unit.conftest import IMAGE, SHARES_AN_APPLICATION, Application
from tests.unit.test_bodies import NEVER, Sender
from tests.unit.test_http_contract import finished

pytestmark = SHARES_AN_APPLICATION

ORIGIN = {"Origin": "https://page.example"}


@pytest.fixture
def broken(application: Application, monkeypatch: pytest.MonkeyPatch):
    """A client of an application of which one route fails in a way that nobody foresaw."""

    async def fail(*args: object) -> None:
        raise ZeroDivisionError("a secret of the inside")

    with TestClient(application.app, raise_server_exceptions=False) as client:
        monkeypatch.setattr("serve_app.intake.answers.queries.Queries.state", fail)
        yield client


def error_of(answer) -> dict:
    assert set(answer.json()) == {"detail"}
    assert set(answer.json()["detail"]["error"]) == {"code", "message", "details"}
    return answer.json()["detail"]["error"]


def test_unforeseen_error_is_readable_by_a_browser_and_logged(broken, caplog):
    answer = broken.get(f"/v1/requests/{'0' * 32}/status", headers=ORIGIN)
    assert (answer.status_code, error_of(answer)["code"]) == (500, "INTERNAL_ERROR")
    assert "secret" not in answer.text
    assert answer.headers["access-control-allow-origin"] == "*"
    [record] = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.exc_info[0] is ZeroDivisionError


def test_answer_that_breaks_off_is_not_completed(application: Application, make_body, monkeypatch):
    async def fail(*args: object):
        raise ZeroDivisionError
        yield

    monkeypatch.setattr("serve_app.intake.answers.events.Events.stream", fail)
    with TestClient(application.app) as client:
        request_id = client.post("/v1/inference", json=make_body()).json()["request_id"]
        with pytest.raises(ExceptionGroup):
            client.get(f"/v1/requests/{request_id}/events")


@pytest.mark.parametrize(
    "header", ["Retry-After", "ETag", "Location", "X-Request-ID", "Content-Disposition", "WWW-Authenticate", "Allow"]
)
def test_scripts_may_read_the_headers_that_clients_need(client, header):
    for path in ("/health", "/nowhere"):
        exposed = client.get(path, headers=ORIGIN).headers["access-control-expose-headers"]
        assert header in exposed.split(", ")


def test_head_is_get_without_the_body(client, make_body):
    image = finished(client, make_body())["outputs"]["images"][0]["url"]
    for url in ("/health", "/ready", "/v1/models", "/v1/loras", "/openapi.json", "/docs", image):
        get, head = client.get(url), client.head(url)
        assert (head.status_code, head.content) == (get.status_code, b"") == (200, b"")
        assert head.headers["content-length"] == str(len(get.content))
        assert head.headers.get("etag") == get.headers.get("etag")
    missing = client.head("/v1/requests/nobody/status")
    assert (missing.status_code, missing.content) == (404, b"")


def test_head_of_a_stream_does_not_wait_for_its_end(application, client, make_body):
    application.editors.gate.clear()
    request_id = client.post("/v1/inference", json=make_body()).json()["request_id"]
    # A server that never says that the client has gone.
    head = Sender(f"/v1/requests/{request_id}/events", [], pause_s=NEVER, method="HEAD")
    client.portal.call(asyncio.wait_for, head.post(application.app), 10)
    assert (head.status, [message.get("body", b"") for message in head.messages[1:]]) == (200, [b""])
    assert client.get(f"/v1/requests/{request_id}/status").json()["finished_at"] is None
    client.portal.call(application.editors.gate.set)


@pytest.mark.parametrize(
    ("if_none_match", "status"),
    [
        ("{etag}", 304),
        ("W/{etag}", 304),
        ('"another", {etag}', 304),
        ('"another",W/{etag},"third"', 304),
        ("*", 304),
        ('"another"', 200),
        ('W/"another"', 200),
        ("{bare}", 200),
        ("", 200),
    ],
)
def test_image_that_the_client_has_is_not_sent_again(client, make_body, if_none_match, status):
    url = finished(client, make_body())["outputs"]["images"][0]["url"]
    etag = client.get(url).headers["etag"]
    sent = if_none_match.format(etag=etag, bare=etag.strip('"'))
    answer = client.get(url, headers={"If-None-Match": sent})
    assert (answer.status_code, answer.content) == (status, IMAGE if status == 200 else b"")
    assert (answer.headers["etag"], answer.headers["cache-control"]) == (etag, "private, no-cache")


def test_etag_of_a_purged_image_is_no_longer_confirmed(client, make_body):
    result = finished(client, make_body())
    url = result["outputs"]["images"][0]["url"]
    etag = client.get(url).headers["etag"]
    client.delete(f"/v1/requests/{result['request_id']}", params={"purge": True})
    answer = client.get(url, headers={"If-None-Match": etag})
    assert (answer.status_code, error_of(answer)["code"]) == (404, "IMAGE_NOT_FOUND")


@pytest.mark.parametrize(
    "path", ["/nowhere", "/web/nothing.js", "/v1", "/v1/models/", "/v1/inference/", "/v1/requests/x"]
)
def test_unknown_route_is_answered_in_the_contracts_shape(client, path):
    answer = client.get(path, headers=ORIGIN, follow_redirects=False)
    expected = (405, "METHOD_NOT_ALLOWED") if path == "/v1/requests/x" else (404, "NOT_FOUND")
    assert (answer.status_code, error_of(answer)["code"]) == expected
    assert "location" not in answer.headers
    assert answer.headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/inference", "POST"),
        ("HEAD", "/v1/inference", "POST"),
        ("POST", "/v1/models", "GET, HEAD"),
        ("OPTIONS", "/health", "GET, HEAD"),
        ("POST", "/openapi.json", "GET, HEAD"),
        ("GET", "/v1/requests/x", "DELETE"),
        ("PATCH", "/v1/requests/x/cancel", "POST"),
    ],
)
def test_wrong_method_is_told_the_right_ones(client, method, path, allowed):
    answer = client.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
    if method != "HEAD":
        error = error_of(answer)
        assert error["code"] == "METHOD_NOT_ALLOWED"
        assert error["message"].endswith(f"it takes {allowed}")


def test_every_answer_is_private_and_taken_for_what_it_is(client, make_body):
    request_id = finished(client, make_body())["request_id"]
    preflight = ORIGIN | {"Access-Control-Request-Method": "POST"}
    answers = [
        client.post("/v1/inference", json=make_body()),
        client.post("/v1/inference", json={}),
        client.options("/v1/inference", headers=preflight),
        *(client.get(path) for path in ("/health", "/docs", "/nowhere", "/v1/models", "/v1/requests")),
        *(client.get(f"/v1/requests/{request_id}/{part}") for part in ("status", "result", "events", "images/0")),
    ]
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"].split(", ")[0] == "private"


@pytest.mark.parametrize(
    "host", ["a b", "a/b", "user@host", "host:port", "host:123456", "[::1", "::1", "a,b", "", "evil.example#", "h\xe9"]
)
def test_malformed_host_is_refused(client, host):
    answer = client.get("/v1/models", headers={"Host": host.encode("latin-1")})
    assert (answer.status_code, error_of(answer)["code"]) == (400, "HOST_NOT_ALLOWED")


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "[::1]:8000", "[::1]", "localhost", "my_service.default.svc:80"])
def test_urls_name_the_host_that_the_client_named(client, make_body, host):
    answer = client.post("/v1/inference", json=make_body(), headers={"Host": host})
    assert answer.json()["status_url"].startswith(f"http://{host}/v1/requests/")


def test_two_hosts_are_refused(client):
    answer = client.get("/v1/models", headers=[("Host", "one.example"), ("Host", "two.example")])
    assert answer.status_code == 400


def test_only_the_configured_hosts_are_answered(client_with, make_body):
    client = client_with(allowed_hosts=["Edits.example", "*.internal", "::1"])
    for host in ("edits.example", "EDITS.example:8443", "a.internal", "a.b.internal:80", "[::1]:8000"):
        assert client.get("/v1/models", headers={"Host": host}).status_code == 200, host
    for host in ("testserver", "internal", "edits.example.evil.example", "[::2]"):
        answer = client.post("/v1/inference", json=make_body(), headers={"Host": host})
        assert (answer.status_code, error_of(answer)["code"]) == (400, "HOST_NOT_ALLOWED"), host
        assert host not in answer.text


def test_probes_are_answered_under_any_host(client_with):
    client = client_with(allowed_hosts=["edits.example"])
    for path in ("/health", "/ready"):
        assert client.get(path, headers={"Host": "10.0.0.7:8000"}).status_code == 200


def test_missing_host_is_refused_where_names_are_set(application, client, client_with):
    named = client_with(allowed_hosts=["edits.example"])
    sender = Sender("/v1/models", [], method="GET")
    refused = named.portal.call(sender.post, named.app)
    assert (refused.status, refused.code) == (400, "HOST_NOT_ALLOWED")
    assert client.portal.call(Sender("/v1/models", [], method="GET").post, application.app).status == 200
    assert named.portal.call(Sender("/health", [], method="GET").post, named.app).status == 200
