"""Request bodies: the key is checked before a byte is read, and a body must come in time."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack

import pytest
import yaml
from starlette.testclient import TestClient
from starlette.types import Message

from serve_app.api.access import PUBLIC_PATHS
from serve_app.api.bodies import limits
from serve_app.api.routes import playground
from serve_app.config import AuthConfig
from serve_app.errors import Overloaded
from serve_app.intake.keys import new_key
from tests.unit.conftest import Application

NEVER = 60.0


class Sender:
    """One HTTP request by ASGI whose body comes in `parts`, each after `pause_s`; `read` counts the parts taken.

    One that is not `complete` goes away instead of sending the rest.
    """

    def __init__(
        self,
        path: str,
        parts: list[bytes],
        pause_s: float = 0.0,
        method: str = "POST",
        complete: bool = True,
        **headers: str,
    ) -> None:
        self._scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "scheme": "http",
            "server": ("testserver", 80),
            "client": ("127.0.0.1", 1),
            "http_version": "1.1",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "headers": ([] if "content_length" in headers or not parts else [(b"transfer-encoding", b"chunked")])
            + [(name.lower().replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
        }
        self._parts, self._pause_s, self._complete = parts, pause_s, complete
        self.read = 0
        self.messages: list[Message] = []

    async def receive(self) -> Message:
        await asyncio.sleep(self._pause_s)
        if self.read == len(self._parts):
            return {"type": "http.disconnect"}
        self.read += 1
        more = self.read < len(self._parts) or not self._complete
        return {"type": "http.request", "body": self._parts[self.read - 1], "more_body": more}

    async def send(self, message: Message) -> None:
        self.messages.append(message)

    async def post(self, app: Callable[..., Awaitable[None]]) -> "Sender":
        await app(self._scope, self.receive, self.send)
        return self

    @property
    def status(self) -> int:
        return self.messages[0]["status"]

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.messages[0]["headers"])

    @property
    def code(self) -> str:
        body = b"".join(message.get("body", b"") for message in self.messages[1:])
        return json.loads(body)["detail"]["error"]["code"]


@pytest.fixture
def few_slots(monkeypatch) -> None:
    monkeypatch.setattr(limits, "MAX_BODIES", 4)


@pytest.fixture
def keyed(config, tmp_path) -> Iterator[tuple[TestClient, Application, str]]:
    key, sha256 = new_key()
    file = tmp_path / "keys.yaml"
    file.write_text(yaml.safe_dump({"tenants": {"acme": [sha256]}}))
    application = Application(config.model_copy(update={"auth": AuthConfig(keys_file=str(file))}))
    with TestClient(application.app) as client:
        yield client, application, key


def test_without_a_key_no_byte_of_the_body_is_read(keyed):
    client, application, key = keyed
    for path in ("/v1/inference", "/v1/explain", "/v1/requests/x/cancel", "/nowhere", "/health", "/v1/models"):
        for headers in ({}, {"x_api_key": "edits_wrong"}, {"content_length": "9" * 20}):
            refused = client.portal.call(Sender(path, [b"[{},"] * 3, **headers).post, application.app)
            assert (refused.status, refused.code, refused.read) == (401, "UNAUTHORIZED", 0)
            assert refused.headers[b"www-authenticate"] == b"Bearer"
    known = client.portal.call(Sender("/v1/inference", [b"{", b"}"], x_api_key=key).post, application.app)
    assert (known.status, known.read) == (422, 2)


def test_every_route_needs_a_key_unless_it_is_listed(keyed):
    client, application, _ = keyed
    paths = {(route.path, method) for route in application.app.routes for method in route.methods}
    assert len(paths) > 15
    for path, method in sorted(paths):
        answer = client.request(method, path, headers={"content-type": "application/json"})
        is_public = path in PUBLIC_PATHS | playground.PATHS and method in ("GET", "HEAD")
        assert answer.status_code == (200 if is_public else 401), (method, path)


def test_a_new_route_needs_a_key_from_the_start(keyed):
    client, application, key = keyed

    @application.app.get("/v1/new")
    async def new() -> str:
        return "seen"

    assert client.get("/v1/new").status_code == 401
    assert client.get("/v1/new", headers={"X-API-Key": key}).json() == "seen"
    assert client.options("/v1/new").status_code == 401
    preflight = {"Origin": "https://a.example", "Access-Control-Request-Method": "GET"}
    assert client.options("/v1/new", headers=preflight).status_code == 200


@pytest.mark.parametrize(
    "path", ["/health/", "/health/../v1/models", "//health", "/docs/x", "/HEALTH", "/openapi.json/"]
)
def test_paths_that_resemble_a_public_one_need_a_key(keyed, path):
    client, application, _ = keyed
    assert client.portal.call(Sender(path, [], method="GET").post, application.app).status == 401


def test_slow_body_is_ended(application, client, monkeypatch):
    monkeypatch.setattr(limits, "GRACE_S", 0.2)
    monkeypatch.setattr(limits, "MIN_BYTES_PER_S", 1000)
    slow = client.portal.call(Sender("/v1/inference", [b" "] * 1000, pause_s=0.01).post, application.app)
    assert (slow.status, slow.code, slow.headers[b"connection"]) == (408, "REQUEST_TIMEOUT", b"close")
    assert 0 < slow.read < 100
    silent = client.portal.call(Sender("/v1/inference", [b"{}"], pause_s=NEVER).post, application.app)
    assert (silent.status, silent.code) == (408, "REQUEST_TIMEOUT")


def test_body_that_arrives_fast_enough_may_take_longer_than_the_grace_time(application, client, monkeypatch):
    monkeypatch.setattr(limits, "GRACE_S", 0.3)
    # Each part brings a minute, so that no pause of a busy machine ends it.
    monkeypatch.setattr(limits, "MIN_BYTES_PER_S", 100 / 60)
    parts = [b" " * 100] * 50 + [b"{}"]
    sent = client.portal.call(
        Sender("/v1/inference", parts, pause_s=0.01, content_type="application/json").post, application.app
    )
    assert (sent.status, sent.read) == (422, 51)


def test_no_body_may_take_longer_than_the_limit_for_all(client_with, monkeypatch):
    client = client_with(body_timeout_s=0.3)
    fast = client.portal.call(Sender("/v1/inference", [b" " * 9999] * 1000, pause_s=0.01).post, client.app)
    assert (fast.status, fast.code) == (408, "REQUEST_TIMEOUT")
    assert fast.read < 100


def test_body_of_a_sender_that_goes_away_reaches_no_route(application, client):
    cut = Sender("/v1/inference", [b"{}"], complete=False, content_type="application/json")
    assert client.portal.call(cut.post, application.app).code == "REQUEST_TIMEOUT"


@pytest.mark.parametrize("length", ["64000001", "9" * 5000])
def test_announced_length_is_refused_before_the_body_is_read(application, client, length):
    large = client.portal.call(Sender("/v1/inference", [b"{}"], content_length=length).post, application.app)
    assert (large.status, large.code, large.read) == (413, "BODY_TOO_LARGE", 0)


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "OPTIONS"])
def test_body_that_no_route_takes_is_not_waited_for(application, client, method):
    sender = Sender("/health", [b" "] * 10, pause_s=NEVER, method=method, content_length="10")
    answered = client.portal.call(sender.post, application.app)
    assert (answered.status, answered.read) == (200 if method in ("GET", "HEAD") else 405, 0)


def test_slow_bodies_leave_room_for_everything_else(few_slots, keyed):
    client, application, key = keyed

    async def crowd() -> tuple[list[Sender], Sender]:
        slow = [Sender("/v1/inference", [b"{}"], pause_s=NEVER, x_api_key=key) for _ in range(2)]
        tasks = [asyncio.create_task(sender.post(application.app)) for sender in slow]
        await asyncio.sleep(0.05)
        refused = await Sender("/v1/inference", [b"{}"], x_api_key=key).post(application.app)
        health = await Sender("/health", [], method="GET").post(application.app)
        assert health.status == 200
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        after = await Sender("/v1/inference", [b"{}"], x_api_key=key).post(application.app)
        return refused, after

    refused, after = client.portal.call(crowd)
    assert (refused.status, refused.code, refused.read) == (503, "OVERLOADED", 0)
    assert refused.headers[b"retry-after"] == b"5"
    assert after.status == 422


def test_one_tenant_leaves_slots_for_another(monkeypatch):
    monkeypatch.setattr(limits, "MAX_BODIES", 3)
    slots = limits.BodySlots(2)
    with ExitStack() as held:
        for tenant in ("red", "red", "blue"):
            held.enter_context(slots.one(tenant))
        for tenant in ("red", "blue", "green"):
            with pytest.raises(Overloaded), slots.one(tenant):
                pass
    with slots.one("green"):
        pass
