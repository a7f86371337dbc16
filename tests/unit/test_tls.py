"""TLS with servers that a client names: what an error says of an unknown certificate, and where a token goes."""

import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp.client_exceptions import UnixClientConnectorError
from aiohttp.client_reqrep import ConnectionKey
from starlette.testclient import TestClient
from yarl import URL

from serve_app.adapters.urls import is_origin
from serve_app.config import AppConfig, FetchConfig, JobsConfig
from serve_app.errors import FetchFailed
from serve_app.jobs.store import JobStore
from serve_app.storage.fetch import Fetcher
from tests.loraserver import LoraServer, lora_server
from tests.tls import self_signed, server_context
from tests.unit.conftest import Application, safetensors_bytes
from tests.unit.receivers import all_failed, announce, delivering, rows, until
from tests.unit.test_http_contract import finished

UNVERIFIED = "its server's TLS certificate cannot be verified"


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    return self_signed(tmp_path)


@pytest.fixture
def server(certificate: Path) -> Iterator[LoraServer]:
    with lora_server(safetensors_bytes(), server_context(certificate)) as server:
        yield server


@pytest.fixture
def trusting(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The certificate is one that this machine trusts."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))


@pytest.fixture
def application(server: LoraServer, config: AppConfig) -> Application:
    """Its hub is the TLS server."""
    host = server.url.removeprefix("https://").partition("/")[0]
    fetch = {"allow_private_addresses": True, "hub_hosts": [host], "timeout_s": 2}
    return Application(AppConfig.model_validate(config.model_dump() | {"fetch": fetch}))


@pytest.fixture
def hub(trusting: None, client: TestClient) -> TestClient:
    """A client of a service that trusts the hub's certificate."""
    return client


def tokens(server: LoraServer) -> list[str | None]:
    return [token for _, _, token in server.requests]


def refusal(client: TestClient, body: dict) -> dict:
    answer = client.post("/v1/inference", json=body)
    assert answer.status_code == 400
    return answer.json()["detail"]["error"]


def test_certificate_of_a_loras_server_is_what_is_blamed(client_with, server, make_body):
    client = client_with(fetch={"allow_private_addresses": True})
    error = refusal(client, make_body(loras=[{"path": server.url}]))
    assert (error["code"], UNVERIFIED in error["message"]) == ("LORA_DOWNLOAD_FAILED", True)


def test_certificate_of_a_control_images_server_is_what_is_blamed(client_with, server, make_body):
    client = client_with(fetch={"allow_private_addresses": True})
    body = make_body()
    body["prompts"][0]["ctrl_img"] = server.url
    error = refusal(client, body)
    assert (error["code"], error["details"]["reason"]) == ("CONTROL_IMAGE_INVALID", UNVERIFIED)


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[JobStore]:
    store = JobStore(JobsConfig(database_url=database_url))
    await store.open()
    yield store
    await store.close()


async def test_certificate_of_a_webhooks_receiver_is_what_is_blamed(store, make_plan, server):
    await announce(store, make_plan, server.url)
    async with delivering(store):
        await until(lambda: all_failed(store))
    assert [row.error for row in await rows(store)] == [UNVERIFIED]


async def test_trusted_certificate_is_accepted(trusting, server):
    fetcher = Fetcher(FetchConfig(allow_private_addresses=True))
    assert await fetcher.get(server.url) == safetensors_bytes()
    await fetcher.close()


async def test_server_without_tls_is_what_is_blamed():
    with lora_server(b"") as plain:
        fetcher = Fetcher(FetchConfig(allow_private_addresses=True))
        with pytest.raises(FetchFailed, match="does not speak TLS"):
            await fetcher.get(plain.url.replace("http:", "https:"))
        await fetcher.close()


def _all_kinds(kind: type[BaseException]) -> Iterator[type[BaseException]]:
    yield kind
    for narrower in kind.__subclasses__():
        yield from _all_kinds(narrower)


KEY = ConnectionKey("example.org", 443, True, True, None, None, None)
INFO = aiohttp.RequestInfo(URL("https://example.org/"), "GET", None, URL("https://example.org/"))
# How the classes that do not take one text are made.
ARGUMENTS = {
    aiohttp.ClientConnectorCertificateError: (KEY, ssl.SSLCertVerificationError("secret")),
    aiohttp.ClientConnectorError: (KEY, OSError("secret")),
    UnixClientConnectorError: ("/secret", KEY, OSError("secret")),
    aiohttp.ServerFingerprintMismatch: (b"a", b"b", "secret", 443),
    aiohttp.WSServerHandshakeError: (INFO, ()),
    aiohttp.ClientResponseError: (INFO, ()),
    aiohttp.InvalidURL: ("https://secret/",),
    aiohttp.NonHttpUrlClientError: ("https://secret/",),
}
# The narrowest of these that an error is decides its reason.
REASONS = {
    aiohttp.ClientError: "broke the connection off",
    aiohttp.ClientConnectorError: "cannot be reached",
    aiohttp.ClientSSLError: "does not speak TLS",
    aiohttp.ClientConnectorCertificateError: "TLS certificate cannot be verified",
    aiohttp.ServerFingerprintMismatch: "TLS certificate cannot be verified",
    aiohttp.ClientResponseError: "not valid HTTP",
    aiohttp.TooManyRedirects: "redirects more than 5 times",
    aiohttp.ServerTimeoutError: "took longer than 10 s",
    aiohttp.InvalidURL: "not a valid http or https URL",
    aiohttp.NonHttpUrlClientError: "not a valid http or https URL",
    aiohttp.RedirectClientError: "not a valid http or https URL",
}


@pytest.mark.parametrize("kind", dict.fromkeys(_all_kinds(aiohttp.ClientError)))
async def test_every_error_of_the_http_client_has_a_sensible_reason(kind, monkeypatch):
    arguments = next((ARGUMENTS[of] for of in kind.__mro__ if of in ARGUMENTS), ("secret",))
    reason = next(REASONS[of] for of in kind.__mro__ if of in REASONS)

    class Fails:
        async def __aenter__(self) -> None:
            raise kind(*arguments)

        async def __aexit__(self, *error: object) -> None:
            pass

    monkeypatch.setattr(aiohttp.ClientSession, "request", lambda *args, **options: Fails())
    fetcher = Fetcher(FetchConfig())
    with pytest.raises(FetchFailed, match=reason) as failure:
        await fetcher.get("https://example.org/")
    assert "secret" not in failure.value.message
    await fetcher.close()


def test_file_that_needs_the_token_is_kept_and_the_token_is_not(hub, application, server, make_body, tmp_path):
    finished(hub, make_body(loras=[{"path": server.url}], hf_token="hf_secret"))
    assert tokens(server) == ["Bearer hf_secret"]
    assert [path.read_bytes() for path in tmp_path.glob("artifacts/loras/*")] == [server.content]
    [use] = application.editors.tasks[0].plan.adapters
    assert (use.version, use.url.startswith(str(tmp_path))) == ("", True)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"hf_secret" in path.read_bytes()]


@pytest.mark.parametrize("path", ["hf://owner/repo/a.safetensors", "https://{host}/owner/repo/blob/main/a.safetensors"])
def test_token_goes_to_the_hub_for_its_own_paths_and_pages(hub, server, make_body, path):
    host = server.url.removeprefix("https://").partition("/")[0]
    finished(hub, make_body(loras=[{"path": path.format(host=host)}], hf_token="hf_secret"))
    assert [(path, token) for path, _, token in server.requests] == [
        ("/owner/repo/resolve/main/a.safetensors", "Bearer hf_secret")
    ]


def test_token_is_refused_for_plain_http_to_the_hub(hub, server, make_body):
    """Nothing is sent at all: the sender believes that the hub needs the token."""
    url = server.url.replace("https:", "http:")
    error = refusal(hub, make_body(loras=[{"path": url}], hf_token="hf_secret"))
    assert (error["code"], "over https" in error["message"]) == ("LORA_DOWNLOAD_FAILED", True)
    assert server.requests == []


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_token_is_refused_for_another_port_of_the_hub(hub, certificate, make_body, scheme):
    with lora_server(safetensors_bytes(), server_context(certificate) if scheme == "https" else None) as other:
        error = refusal(hub, make_body(loras=[{"path": other.url}], hf_token="hf_secret"))
        assert (error["code"], "over https" in error["message"]) == ("LORA_DOWNLOAD_FAILED", True)
        assert other.requests == []


@pytest.mark.parametrize("with_tls", [True, False])
def test_token_does_not_follow_a_redirect_to_another_origin(hub, server, certificate, make_body, with_tls):
    """The same host at another port, with TLS or without."""
    with lora_server(safetensors_bytes(), server_context(certificate) if with_tls else None) as other:
        server.location = other.url
        finished(hub, make_body(loras=[{"path": server.url}], hf_token="hf_secret"))
        assert (tokens(server), tokens(other)) == (["Bearer hf_secret"], [None])


def test_default_hub_is_https_at_its_own_port():
    hosts = FetchConfig().hub_hosts
    assert is_origin("https://huggingface.co/a/b", hosts)
    assert is_origin("https://huggingface.co:443/a/b", hosts)
    for url in ("http://huggingface.co/a", "https://huggingface.co:8443/a", "https://huggingface.co.example.org/a"):
        assert not is_origin(url, hosts)
