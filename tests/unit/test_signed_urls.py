"""Signed URLs: who has one gets exactly one image, without a key, until it expires."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from aiohttp import web
from httpx2 import Response
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic import SecretStr, ValidationError
from starlette.testclient import TestClient

from serve_app.config import AppConfig, AuthConfig, WebhooksConfig
from serve_app.intake import keys, signed_urls
from serve_app.intake.keys import Keys, new_key
from serve_app.intake.signed_urls import SignedUrls
from serve_app.telemetry import tracing
from tests.conformity import events
from tests.unit.conftest import IMAGE, Application
from tests.unit.receivers import SECRET
from tests.unit.test_http_contract import finished

LIFETIME_S = 3600
PATH = f"/v1/requests/{'0' * 32}/images/0"


@dataclass
class Clock:
    """The time that tokens are made and checked by."""

    now: float = 1_800_000_000.0

    def time(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(signed_urls, "time", clock)
    return clock


@pytest.fixture(autouse=True)
def look_at_once(monkeypatch) -> None:
    monkeypatch.setattr(keys, "CHECK_S", 0.0)


@dataclass
class KeysFile:
    """A file of keys that changes; each name has one key."""

    path: Path
    keys: dict[str, tuple[str, str]] = field(default_factory=dict)

    def write(self, *operators: str, **tenants: list[str]) -> None:
        for name in (*operators, *(name for names in tenants.values() for name in names)):
            self.keys.setdefault(name, new_key())
        content = {
            "tenants": {tenant: [self.keys[name][1] for name in names] for tenant, names in tenants.items()},
            "operators": [self.keys[name][1] for name in operators],
        }
        new = self.path.with_suffix(".new")
        new.write_text(yaml.safe_dump(content))
        new.replace(self.path)

    def header(self, name: str) -> dict[str, str]:
        return {"X-API-Key": self.keys[name][0]}

    def urls(self, **auth: object) -> SignedUrls:
        """What an ingress with this file signs with."""
        config = AuthConfig(keys_file=str(self.path), **auth)
        return SignedUrls(config, Keys(config))


class WithKey:
    """The same client, with somebody's key."""

    def __init__(self, client: TestClient, file: KeysFile, who: str) -> None:
        self._client = client
        self._headers = file.header(who)

    def get(self, url: str) -> Response:
        return self._client.get(url, headers=self._headers)

    def post(self, url: str, **content: Any) -> Response:
        return self._client.post(url, headers=self._headers, **content)

    def delete(self, url: str) -> Response:
        return self._client.delete(url, headers=self._headers)


@pytest.fixture
def file(tmp_path) -> KeysFile:
    file = KeysFile(tmp_path / "keys.yaml")
    file.write("boss", red=["red"], blue=["blue"])
    return file


@pytest.fixture
def keyed(config, file) -> AppConfig:
    return config.model_copy(update={"auth": AuthConfig(keys_file=str(file.path))})


@pytest.fixture
def application(keyed) -> Application:
    return Application(keyed)


@pytest.fixture
def client(application) -> Iterator[TestClient]:
    """A browser: it sends no key by itself."""
    with TestClient(application.app) as client:
        yield client


@pytest.fixture
def image(client, file, make_body) -> Callable[..., str]:
    """Have an image made as somebody, and return its URL."""

    def made(who: str = "red") -> str:
        with_key = WithKey(client, file, who)
        return finished(with_key, make_body())["outputs"]["images"][0]["url"]

    return made


def parts(url: str) -> tuple[str, str]:
    """The path of a URL, and its token."""
    split = urlsplit(url)
    return split.path, parse_qs(split.query)["token"][0]


def assert_as_without_a_key(client: TestClient, url: str, method: str = "GET") -> None:
    """The answer does not tell whether there was a token, an image or a request."""
    answer = client.request(method, url)
    path = urlsplit(url).path
    bare = client.request(method, path)
    assert (answer.status_code, answer.content) == (bare.status_code, bare.content)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"


def test_an_image_is_downloaded_without_a_key(client, image):
    url = image()
    answer = client.get(url)
    assert (answer.status_code, answer.content, answer.headers["content-type"]) == (200, IMAGE, "image/jpeg")
    assert answer.headers["referrer-policy"] == "no-referrer"
    head = client.head(url)
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(IMAGE)))
    assert client.get(url, headers={"If-None-Match": answer.headers["etag"]}).status_code == 304


def test_without_keys_urls_are_as_before(config, make_body):
    with TestClient(Application(config).app) as client:
        result = finished(client, make_body())
        [output] = result["outputs"]["images"]
        assert output["url"] == f"http://testserver/v1/requests/{result['request_id']}/images/0"
        [listed] = client.get(f"/v1/requests/{result['request_id']}/status").json()["finished_images"]
        assert listed == {"image": 0, "url": output["url"]}


def test_the_url_is_the_same_in_every_answer_and_for_every_poll(client, file, make_body, clock):
    as_red = WithKey(client, file, "red")
    result = finished(as_red, make_body())
    base = f"/v1/requests/{result['request_id']}"
    [output] = result["outputs"]["images"]
    stream = list(events(as_red.get(f"{base}/events").text))
    urls = {
        output["url"],
        output["file_path"],
        as_red.get(f"{base}/result").json()["outputs"]["images"][0]["url"],
        as_red.get(f"{base}/status").json()["finished_images"][0]["url"],
        *(event["data"]["url"] for event in stream if event["event"] == "image"),
        stream[-1]["data"]["outputs"]["images"][0]["url"],
    }
    clock.now += 60
    urls.add(as_red.get(f"{base}/result").json()["outputs"]["images"][0]["url"])
    assert len(urls) == 1
    clock.now += LIFETIME_S
    renewed = as_red.get(f"{base}/result").json()["outputs"]["images"][0]["url"]
    assert renewed not in urls
    assert [client.get(url).status_code for url in (*urls, renewed)] == [200, 200]


def test_images_of_a_request_that_failed_are_signed_too(application, client, file, make_body):
    application.editors.errors = [ValueError("no")]
    body = make_body()
    body["prompts"] *= 2
    result = finished(WithKey(client, file, "red"), body)
    [partial] = result["metadata"]["partial"]
    assert client.get(partial["url"]).content == IMAGE
    [listed] = WithKey(client, file, "red").get(f"/v1/requests/{result['request_id']}/status").json()["finished_images"]
    assert listed == {"image": partial["image"], "url": partial["url"]}


async def test_webhooks_carry_signed_urls(keyed, file, make_body, web_server):
    received: list[dict] = []

    async def receive(request: web.Request) -> web.Response:
        received.append(await request.json())
        return web.Response()

    url = await web_server(receive)
    webhooks = WebhooksConfig(secret=SecretStr(SECRET), allow_private_addresses=True)
    application = Application(keyed.model_copy(update={"webhooks": webhooks}))

    def use_it() -> list[int]:
        with TestClient(application.app) as client:
            hook = {"webhook_url": f"{url}/hook", "webhook_events": ["image", "succeeded"]}
            finished(WithKey(client, file, "red"), make_body() | hook)
            deadline = time.monotonic() + 10
            while len(received) < 2 and time.monotonic() < deadline:
                time.sleep(0.05)
            by_type = {body["type"]: body["data"] for body in received}
            urls = [by_type["request.image"]["url"], by_type["request.succeeded"]["outputs"]["images"][0]["url"]]
            return [client.get(url).status_code for url in urls]

    assert await asyncio.to_thread(use_it) == [200, 200]


@pytest.mark.parametrize(("later_s", "status"), [(LIFETIME_S, 200), (2 * LIFETIME_S, 401)])
def test_a_url_holds_for_at_least_its_lifetime_and_expires(client, image, clock, later_s, status):
    clock.now -= clock.now % LIFETIME_S
    url = image()
    clock.now += later_s
    assert client.get(url).status_code == status
    if status == 401:
        assert_as_without_a_key(client, url)


def test_a_tampered_token_is_none(client, image):
    path, token = parts(image())
    expiry, tenant, signature = token.split(".")
    other = "A" if signature[0] != "A" else "B"
    for forged in (
        f"{int(expiry) + 1}.{tenant}.{signature}",
        f"0{expiry}.{tenant}.{signature}",
        f"{expiry}.{signed_urls._encoded(b'blue')}.{signature}",
        f"{expiry}..{signature}",
        f"{expiry}.{tenant}.{other}{signature[1:]}",
        f"{expiry}.{tenant}.{signature[:-1]}",
        f"{expiry}.{tenant}.",
        f"{expiry}.{tenant}.{signature}.x",
        f"{expiry}.{tenant}==.{signature}",
        token.upper(),
        "",
        "x",
        "é" * 99,
        "." * 10_000,
    ):
        assert_as_without_a_key(client, f"{path}?token={forged}")
    for query in (f"Token={token}", f"token={token}&token={token}", f"token={token}&token=", f"x={token}"):
        assert_as_without_a_key(client, f"{path}?{query}")
    assert client.get(f"{path}?x=1&token={token}").status_code == 200


def test_a_token_opens_exactly_its_image(application, client, file, image, make_body):
    body = make_body()
    body["prompts"] *= 2
    as_red = WithKey(client, file, "red")
    request_id = finished(as_red, body)["request_id"]
    path, token = parts(as_red.get(f"/v1/requests/{request_id}/result").json()["outputs"]["images"][0]["url"])
    another, _ = parts(image())
    blues, _ = parts(image("blue"))
    base = f"/v1/requests/{request_id}"
    for other in (
        f"{base}/images/1",
        f"{base}/images/00",
        f"{base}/images/0/",
        f"{base}/images/-0",
        f"{base}/images/0/preview",
        f"{base}/images/0%2Fpreview",
        f"{base}/status",
        f"{base}/result",
        f"{base}/events",
        another,
        blues,
        "/v1/requests",
        "/v1/models",
        "/v1/usage",
    ):
        assert_as_without_a_key(client, f"{other}?token={token}")
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        assert_as_without_a_key(client, f"{path}?token={token}", method)
    assert_as_without_a_key(client, f"{base}?purge=true&token={token}", "DELETE")
    assert_as_without_a_key(client, f"{base}/cancel?token={token}", "POST")
    assert client.get(f"{path}?token={token}").status_code == 200


def test_a_token_for_another_path_or_anothers_image_opens_nothing(client, file, image):
    """The service signs no such thing, and if it did, nothing would come of it."""
    urls = file.urls()
    request_id = parts(image("blue"))[0].split("/")[3]
    base = f"/v1/requests/{request_id}"
    for path in (f"{base}/images/0", f"{base}/status", f"{base}/images/00", "/v1/models"):
        assert_as_without_a_key(client, urls.signed("red", path))
    assert client.get(urls.signed("blue", f"{base}/images/0")).status_code == 200


def test_a_token_of_a_preview_opens_only_the_preview(application, client, file, make_body):
    client.portal.call(application.editors.gate.clear)
    as_red = WithKey(client, file, "red")
    request_id = as_red.post("/v1/inference", json=make_body()).json()["request_id"]
    deadline = time.monotonic() + 10
    while (url := as_red.get(f"/v1/requests/{request_id}/status").json()["preview_url"]) is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    path, token = parts(url)
    assert path == f"/v1/requests/{request_id}/images/0/preview"
    # No editor makes previews here. The caller was let in, for the answer is the route's own.
    answer = client.get(url)
    assert (answer.status_code, answer.json()["detail"]["error"]["code"]) == (404, "PREVIEW_NOT_READY")
    assert_as_without_a_key(client, f"/v1/requests/{request_id}/images/0?token={token}")
    as_red.delete(f"/v1/requests/{request_id}?purge=true")
    assert_as_without_a_key(client, url)
    client.portal.call(application.editors.gate.set)


def test_a_purged_image_is_as_without_a_key(client, file, image):
    url = image()
    request_id = urlsplit(url).path.split("/")[3]
    as_red = WithKey(client, file, "red")
    purged = as_red.delete(f"/v1/requests/{request_id}?purge=true").json()
    assert purged["finished_images"] == []
    assert_as_without_a_key(client, url)
    # Who has a key is told what happened to the image.
    assert as_red.get(url).json()["detail"]["error"]["code"] == "IMAGE_NOT_FOUND"
    # So is a request that never was, with a token that is good for it.
    unknown = f"/v1/requests/{'a' * 32}/images/0"
    assert_as_without_a_key(client, file.urls().signed("red", unknown))


def test_a_key_decides_where_the_token_does_not(client, file, image, clock):
    url = image()
    wrong = {"X-API-Key": "edits_wrong"}
    # A gateway may put its own token into Authorization.
    assert client.get(url, headers=wrong | {"Authorization": "Bearer of-a-gateway"}).status_code == 200
    clock.now += 2 * LIFETIME_S
    assert client.get(url, headers=wrong).status_code == 401
    assert client.get(url, headers=file.header("red")).status_code == 200
    assert client.get(url, headers=file.header("blue")).status_code == 404


def test_an_operator_hands_out_urls_of_the_tenant(client, file, image):
    url = image("red")
    request_id = urlsplit(url).path.split("/")[3]
    as_boss = WithKey(client, file, "boss")
    assert as_boss.get(f"/v1/requests/{request_id}/result").json()["outputs"]["images"][0]["url"] == url
    # Requests of operators have URLs, too.
    assert client.get(image("boss")).status_code == 200


def test_every_ingress_and_every_restart_accepts_the_same_tokens(file):
    for auth in ({}, {"url_secret": SecretStr("s" * 40)}):
        one, other = file.urls(**auth), file.urls(**auth)
        signed = one.signed("red", PATH)
        assert signed == other.signed("red", PATH)
        assert other.tenant_of(*parts(signed)) == "red"


def test_urls_outlive_the_rotation_of_keys_until_their_own_key_is_removed(file):
    urls = file.urls()
    first = parts(urls.signed("red", PATH))
    file.write("boss", red=["red", "new"], blue=["blue"])
    second = parts(urls.signed("red", PATH))
    assert urls.tenant_of(*first) == urls.tenant_of(*second) == "red"
    file.write("boss", red=["new"], blue=["blue"])
    assert urls.tenant_of(*first) is None
    third = parts(urls.signed("red", PATH))
    assert urls.tenant_of(*third) == "red"
    # A tenant without keys has no URLs, and those that it had are void.
    file.write("boss", blue=["blue"])
    assert urls.tenant_of(*third) is None
    assert urls.signed("red", PATH) == PATH


def test_an_ingress_that_has_not_read_the_new_file_yet_accepts_tokens_of_one_that_has(file, monkeypatch):
    slow = file.urls()
    monkeypatch.setattr(slow._keys, "_reload_if_changed", lambda path: None)
    file.write("boss", red=["red", "new"], blue=["blue"])
    quick = file.urls()
    assert slow.tenant_of(*parts(quick.signed("red", PATH))) == "red"
    assert quick.tenant_of(*parts(slow.signed("red", PATH))) == "red"


def test_tokens_of_a_secret_hold_while_keys_change_and_end_with_the_tenant(file):
    urls = file.urls(url_secret=SecretStr("s" * 40))
    signed = parts(urls.signed("red", PATH))
    file.write("boss", red=["new"], blue=["blue"])
    assert urls.tenant_of(*signed) == "red"
    assert file.urls().tenant_of(*signed) is None
    assert file.urls(url_secret=SecretStr("t" * 40)).tenant_of(*signed) is None
    file.write("boss", blue=["blue"])
    assert urls.tenant_of(*signed) is None


def test_tenants_cannot_sign_for_each_other(file):
    """Not even with the same secret, and not by names that look alike in a token."""
    urls = file.urls(url_secret=SecretStr("s" * 40))
    tokens = {parts(urls.signed(tenant, PATH))[1] for tenant in ("red", "blue", "")}
    assert len({token.rpartition(".")[2] for token in tokens}) == 3


@pytest.mark.parametrize("tenant", ["red team", "röt", "a.b", "x" * 100, "a\nb", '"', "../x"])
def test_any_name_of_a_tenant_can_be_signed_for(file, tenant):
    file.write("boss", **{tenant: ["red"]})
    urls = file.urls()
    assert urls.tenant_of(*parts(urls.signed(tenant, PATH))) == tenant


def test_without_keys_no_token_is_accepted():
    config = AuthConfig(url_secret=SecretStr("s" * 40))
    urls = SignedUrls(config, Keys(config))
    assert urls.signed("", PATH) == PATH
    assert urls.tenant_of(PATH, "1900000000..x") is None


@pytest.mark.parametrize("secret", ["", "short", "s" * 31])
def test_a_short_secret_is_refused_and_not_quoted(monkeypatch, secret):
    monkeypatch.setenv("URL_SECRET", secret)
    with pytest.raises(ValidationError, match="at least 32 characters") as caught:
        AuthConfig.model_validate({"url_secret": "${URL_SECRET}"})
    assert not secret or f"'{secret}'" not in str(caught.value)


def test_a_secret_is_not_written_out_in_the_config():
    with pytest.raises(ValidationError, match="environment variable"):
        AuthConfig.model_validate({"url_secret": "s" * 40})


def test_tokens_are_nowhere_in_logs_and_spans(client, file, image, caplog, monkeypatch):
    caplog.set_level(logging.DEBUG)
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "_tracer", provider.get_tracer("serve_app"))
    url = image()
    _, token = parts(url)
    caplog.clear()
    exporter.clear()
    trace = {"traceparent": f"00-{'1' * 32}-{'2' * 16}-01"}
    for answer in (
        client.get(url, headers=trace),
        client.head(url),
        client.post(url),
        client.get(f"/v1/requests/x/status?token={token}", headers=file.header("red")),
        client.get(f"/nowhere?token={token}", headers=file.header("red")),
    ):
        assert token not in answer.text
    own = [record for record in caplog.records if record.name.startswith(("serve_app", "uvicorn", "fastapi"))]
    formatter = logging.Formatter("%(message)s")
    assert all(token not in formatter.format(record) for record in own)
    assert all(token not in span.to_json() for span in exporter.get_finished_spans())


def test_a_failing_download_is_logged_without_its_token(application, client, image, caplog, monkeypatch):
    path, token = parts(image())

    async def fail(*arguments: object) -> None:
        raise ValueError("a fault of the service")

    monkeypatch.setattr(application.service.queries, "image", fail)
    assert client.get(f"{path}?token={token}").status_code == 500
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    text = logging.Formatter("%(message)s").format(record)
    assert "a fault of the service" in text
    assert token not in text
