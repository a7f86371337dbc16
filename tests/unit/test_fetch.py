"""What a client can make the service download, and from where."""

import asyncio
import gzip
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from aiohttp import web

from serve_app.config import FetchConfig
from serve_app.errors import FetchFailed
from serve_app.storage.fetch import Fetcher


@pytest.fixture
async def fetcher_with() -> AsyncIterator[Callable[..., Fetcher]]:
    fetchers = []

    def make(**limits: object) -> Fetcher:
        fetchers.append(Fetcher(FetchConfig.model_validate(limits)))
        return fetchers[-1]

    yield make
    for fetcher in fetchers:
        await fetcher.close()


async def hello(request: web.Request) -> web.Response:
    return web.Response(body=b"hello")


async def test_body_is_fetched_from_an_allowed_address(web_server, fetcher_with):
    url = await web_server(hello)
    assert await fetcher_with(allow_private_addresses=True).get(url) == b"hello"
    assert await fetcher_with(allowed_networks=["127.0.0.0/8"]).get(url) == b"hello"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "0.0.0.0", "[::ffff:127.0.0.1]"])
async def test_loopback_is_refused_however_it_is_spelled(web_server, fetcher_with, host):
    url = (await web_server(hello)).replace("127.0.0.1", host)
    with pytest.raises(FetchFailed, match="not a public one"):
        await fetcher_with().get(url)


@pytest.mark.parametrize(
    "host",
    [
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "224.0.0.1",
        "[fe80::1]",
        "[fd00::1]",
        "[fec0::1]",
        "[64:ff9b::a9fe:a9fe]",
        "[2002:a9fe:a9fe::1]",
        "[::169.254.169.254]",
    ],
)
async def test_address_is_refused_before_a_connection_is_tried(fetcher_with, host):
    with pytest.raises(FetchFailed, match="not a public one"):
        await asyncio.wait_for(fetcher_with(timeout_s=5).get(f"http://{host}/"), 1)


async def test_redirect_to_a_refused_address_is_refused(web_server, fetcher_with):
    inner = await web_server(hello)

    async def redirect(request: web.Request) -> web.Response:
        raise web.HTTPFound(inner.replace("127.0.0.1", "[::1]"))

    outer = await web_server(redirect)
    # Only the outer server's address is allowed: the redirect leads to one that is not.
    with pytest.raises(FetchFailed, match="not a public one"):
        await fetcher_with(allowed_networks=["127.0.0.0/8"]).get(outer)


async def test_redirects_are_followed_up_to_the_limit(web_server, fetcher_with):
    async def count_down(request: web.Request) -> web.Response:
        left = int(request.match_info["path"])
        if left:
            raise web.HTTPFound(f"/{left - 1}")
        return web.Response(body=b"end")

    url = await web_server(count_down)
    fetcher = fetcher_with(allow_private_addresses=True, max_redirects=3)
    assert await fetcher.get(f"{url}/2") == b"end"
    with pytest.raises(FetchFailed, match="redirects more than 3 times"):
        await fetcher.get(f"{url}/9")


async def test_redirect_to_another_scheme_is_refused(web_server, fetcher_with):
    async def to_file(request: web.Request) -> web.Response:
        raise web.HTTPFound("file:///etc/passwd")

    with pytest.raises(FetchFailed, match="not a valid http"):
        await fetcher_with(allow_private_addresses=True).get(await web_server(to_file))


async def test_too_many_bytes_are_refused_announced_or_not(web_server, fetcher_with):
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(1000):
            await response.write(bytes(1000))
        return response

    with pytest.raises(FetchFailed, match="larger than 5000 bytes"):
        await fetcher_with(allow_private_addresses=True, max_bytes=5000).get(await web_server(endless))


async def test_compressed_body_is_not_unpacked(web_server, fetcher_with):
    packed = gzip.compress(bytes(1_000_000))

    async def bomb(request: web.Request) -> web.Response:
        return web.Response(body=packed, headers={"Content-Encoding": "gzip"})

    fetcher = fetcher_with(allow_private_addresses=True, max_bytes=5000)
    assert await fetcher.get(await web_server(bomb)) == packed


async def test_slow_server_is_not_waited_for(web_server, fetcher_with):
    async def slow(request: web.Request) -> web.Response:
        await asyncio.sleep(30)
        return web.Response()

    with pytest.raises(FetchFailed, match=r"longer than 0\.2 s"):
        await fetcher_with(allow_private_addresses=True, timeout_s=0.2).get(await web_server(slow))


async def test_error_status_names_itself(web_server, fetcher_with):
    async def missing(request: web.Request) -> web.Response:
        return web.Response(status=404)

    with pytest.raises(FetchFailed, match="answered 404"):
        await fetcher_with(allow_private_addresses=True).get(await web_server(missing))


@pytest.mark.parametrize(
    "url", ["http://", "http://[", "http:///x", "httpx://example.org", "http://2130706433/", "http://exa mple.org/\x00"]
)
async def test_bad_url_is_refused(fetcher_with, url):
    with pytest.raises(FetchFailed):
        await fetcher_with().get(url)


async def test_unreachable_server_is_reported(fetcher_with, unused_tcp_port):
    with pytest.raises(FetchFailed, match="cannot be reached"):
        await fetcher_with(allow_private_addresses=True).get(f"http://127.0.0.1:{unused_tcp_port}/")


async def test_broken_off_body_is_reported(web_server, fetcher_with):
    async def breaks_off(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b"only this")
        request.transport.close()
        return response

    with pytest.raises(FetchFailed, match="broke the connection off"):
        await fetcher_with(allow_private_addresses=True).get(await web_server(breaks_off))


async def test_full_disk_is_not_the_servers_fault(web_server, fetcher_with):
    fetcher = fetcher_with(allow_private_addresses=True)
    with pytest.raises(OSError, match="No space left"):
        await fetcher.download(await web_server(hello), Path("/dev/full"), {})


async def test_download_gives_the_digest(web_server, fetcher_with, tmp_path: Path):
    fetcher = fetcher_with(allow_private_addresses=True)
    digest = await fetcher.download(await web_server(hello), tmp_path / "file", {})
    assert digest == "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    assert (tmp_path / "file").read_bytes() == b"hello"
