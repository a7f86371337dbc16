"""No URL of a caller leads to an address that is not public: the corpus is `ssrf.yaml`, the fetcher is the service's.

A test sees each socket that the fetcher opens. What may be connected to is not: the connection is refused here. The
server of the attacker, which redirects, is on 127.0.0.2, and only this address is allowed.
"""

import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml
from aiohttp import web

from serve_app.config import FetchConfig
from serve_app.errors import FetchFailed
from serve_app.storage.fetch import Fetcher

CORPUS: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "ssrf.yaml").read_text())
ATTACKER, ATTACKERS_NAME = "127.0.0.2", "attacker.example"
PUBLIC = {"public.example": ["93.184.216.34"]}


class Resolver:
    """In place of the system's: numbers in all of its notations, and these names, each answer of which comes once."""

    def __init__(self, names: Mapping[str, Sequence[Sequence[str]]] = {}) -> None:
        self._answers = {name.lower().rstrip("."): list(answers) for name, answers in names.items()}
        self._real = socket.getaddrinfo

    def __call__(self, host: Any, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0) -> Any:
        name = host.decode() if isinstance(host, bytes) else str(host)
        answers = self._answers.get(name.lower().rstrip("."))
        if answers is None:
            return self._real(host, port, family, type, proto, flags | socket.AI_NUMERICHOST)
        addresses = answers.pop(0) if len(answers) > 1 else answers[0]
        return [found for each in addresses for found in self._real(each, port, 0, type, proto, socket.AI_NUMERICHOST)]


class WatchedFetcher(Fetcher):
    """Notes the address of each socket that it would connect, and connects only to the attacker."""

    def __init__(self) -> None:
        super().__init__(FetchConfig(timeout_s=5, allowed_networks=[f"{ATTACKER}/32"]))
        self.opened: list[str] = []

    def _open_socket(self, address: Any) -> socket.socket:
        opened = super()._open_socket(address)
        if address[4][0] != ATTACKER:
            self.opened.append(address[4][0])
            opened.close()
            raise OSError("no connection leaves a test")
        return opened

    async def way_through(self, url: str) -> str | None:
        """What a fetch of the URL reached, None if it failed without an attempt to connect."""
        self.opened.clear()
        try:
            await self.get(url)
        except FetchFailed:
            return f"{url!r} connects to {self.opened}" if self.opened else None
        return f"{url!r} was fetched"


@pytest.fixture
async def fetcher(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[WatchedFetcher]:
    resolve(monkeypatch, {})
    watched = WatchedFetcher()
    yield watched
    await watched.close()


def resolve(monkeypatch: pytest.MonkeyPatch, names: Mapping[str, Sequence[Sequence[str]]]) -> None:
    known = {name: [addresses] for name, addresses in (PUBLIC | {ATTACKERS_NAME: [ATTACKER]}).items()}
    monkeypatch.setattr(socket, "getaddrinfo", Resolver(known | names))


@pytest.fixture
async def redirecting() -> AsyncIterator[str]:
    """The URL of the attacker's server, which redirects to what follows."""

    async def redirect(request: web.Request) -> web.Response:
        # As it is written: aiohttp's own exceptions would mend it.
        return web.Response(status=302, headers={"Location": request.query["to"]})

    application = web.Application()
    application.router.add_get("/", redirect)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, ATTACKER, 0).start()
    yield f"http://{ATTACKERS_NAME}:{runner.addresses[0][1]}/?to="
    await runner.cleanup()


def test_corpus_is_as_large_as_it_is_said_to_be():
    urls = [url for group in CORPUS["refused"].values() for url in group]
    assert len(urls) == len(set(urls))
    assert len(urls) + len(CORPUS["names"]) + len(CORPUS["rebinding"]) > 500


@pytest.mark.parametrize("group", CORPUS["refused"])
async def test_url_is_refused_before_a_connection_is_tried(fetcher, group):
    assert [way for url in CORPUS["refused"][group] if (way := await fetcher.way_through(url))] == []


@pytest.mark.parametrize("group", CORPUS["refused"])
async def test_redirect_to_it_is_refused_too(fetcher, redirecting, group):
    # A server cannot send line breaks in a header.
    urls = [url for url in CORPUS["refused"][group] if not set(url) & set("\r\n")]
    assert [way for url in urls if (way := await fetcher.way_through(redirecting + quote(url, safe="")))] == []


async def test_name_of_such_an_address_is_refused(monkeypatch, fetcher, redirecting):
    resolve(monkeypatch, {name: [addresses] for name, addresses in CORPUS["names"].items()})
    urls = [f"http://{name}/" for name in CORPUS["names"]]
    urls += [redirecting + quote(url, safe="") for url in urls]
    assert [way for url in urls if (way := await fetcher.way_through(url))] == []


@pytest.mark.parametrize("answers", CORPUS["rebinding"])
async def test_name_that_changes_its_address_leads_to_the_public_one_at_most(monkeypatch, answers):
    resolve(monkeypatch, {"rebinding.example": answers})
    for _ in range(3):
        # Each is a process' first fetch: nothing of the last answer is remembered.
        fetcher = WatchedFetcher()
        await fetcher.way_through("http://rebinding.example/")
        assert set(fetcher.opened) <= {"93.184.216.34", "2606:2800:220:1::1"}
        await fetcher.close()


@pytest.mark.parametrize(("url", "addresses"), CORPUS["public"].items())
async def test_public_url_is_connected_to_where_it_says(fetcher, url, addresses):
    assert await fetcher.way_through(url) == f"{url!r} connects to {addresses}"


async def test_redirect_back_to_the_attacker_is_followed(fetcher, redirecting):
    """The redirects of these tests arrive: without this, all of them might be refused for another reason."""
    assert await fetcher.way_through(f"{redirecting}{quote('http://public.example/')}") is not None


async def test_proxy_of_the_environment_is_not_used(monkeypatch, fetcher):
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://{ATTACKER}:1")
    assert await fetcher.way_through("http://10.0.0.1/") is None
    assert (
        await fetcher.way_through("http://public.example/") == "'http://public.example/' connects to ['93.184.216.34']"
    )


@pytest.mark.parametrize("call", ["post", "read", "download", "follow"])
async def test_every_way_to_fetch_is_guarded(fetcher, tmp_path, call):
    calls = {
        "post": lambda url: fetcher.post(url, b"{}", {}),
        "read": lambda url: fetcher.read(url, 0, 8),
        "download": lambda url: fetcher.download(url, tmp_path / "file", {}),
        "follow": lambda url: entered(fetcher.follow(url, 0, "")),
    }
    for url in CORPUS["refused"]["IPv4 in every notation that a resolver reads"]:
        with pytest.raises(FetchFailed):
            await calls[call](url)
    assert fetcher.opened == []


async def entered(context: Any) -> None:
    async with context:
        pass
