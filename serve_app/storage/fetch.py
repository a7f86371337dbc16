"""HTTP requests to URLs that clients name, with limits on the addresses, sizes and times."""

import errno
import hashlib
import re
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Self

import aiohttp
from anyio import open_file

from serve_app.concurrency.budget import Budget
from serve_app.config import FetchConfig
from serve_app.errors import FetchFailed
from serve_app.storage.ip_addresses import is_public, parse_address

CHUNK_BYTES = 1 << 16
NOT_HTTP = "its URL is not a valid http or https URL"
# The longest ETag that is accepted, since it is stored with requests.
MAX_VERSION = 200
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
# The lowest average speed of a download after `timeout_s` (bytes/s).
MIN_RATE = 16 * 2**10
# The Content-Range of a 206 or a 416: the first byte that is sent, and the length of the whole file.
CONTENT_RANGE = re.compile(r"^bytes (?:(?P<start>\d+)-\d+|\*)/(?P<size>\d+|\*)$")


class AddressRefused(OSError):
    """The address of a URL is not allowed. aiohttp's connector treats this error as a failed connection."""


@dataclass(frozen=True)
class Remote:
    """What a server reports about a file: its size in bytes (None if unknown) and its version ("" if unknown).

    The version is the ETag, otherwise the time of the last change. `start` is the position in the file of the first
    byte that is sent: 0 from a server that does not support ranges.
    """

    size: int | None
    version: str
    start: int

    @classmethod
    def of(cls, response: aiohttp.ClientResponse) -> Self:
        """Read the headers. Raises FetchFailed if the response is neither a file nor a part of one."""
        headers, length = response.headers, response.content_length
        version = headers.get("ETag") or headers.get("Last-Modified") or ""
        if len(version) > MAX_VERSION or not (version.isascii() and version.isprintable()):
            version = ""
        if response.status == 200:
            return cls(length, version, 0)
        content_range = CONTENT_RANGE.match(headers.get("Content-Range", ""))
        size = int(content_range["size"]) if content_range and content_range["size"] != "*" else None
        if response.status == 206 and content_range and content_range["start"]:
            return cls(size, version, int(content_range["start"]))
        if response.status == 416 and size == 0:
            # An empty file has no valid range.
            return cls(0, version, 0)
        raise FetchFailed(f"its server answered {response.status}", {"status": response.status})


@cache
def _tls_context(paths: ssl.DefaultVerifyPaths) -> ssl.SSLContext:
    """A TLS client's settings with this machine's certificates, which lie at `paths`.

    Reading the certificates takes 20 ms, so all fetchers of a process share them.
    """
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


class Fetcher:
    """Downloads and posts over http and https, within the limits of the config.

    The address is checked when a socket is opened. So resolved names, literal addresses and redirects all pass the
    same check. The connections belong to the event loop that uses them first; call `close` in that loop.

    Each tenant has at most `share` of the connections. A request that waits too long for one raises Overloaded, and is
    never reported as a fault of the remote server.
    """

    def __init__(self, config: FetchConfig, share: int | None = None) -> None:
        """`share` is a number of connections; by default a tenant may use all of them."""
        self._config = config
        self._connections = Budget(config.connections, share or config.connections, config.patience_s, "a download")
        self._trust = _tls_context(ssl.get_default_verify_paths())

    @cached_property
    def _session(self) -> aiohttp.ClientSession:
        # A session needs a running event loop, which does not exist yet when the service is built.
        return aiohttp.ClientSession(
            # Without aiohttp's own limit: time in its queue would count towards the server's time-out.
            connector=aiohttp.TCPConnector(socket_factory=self._open_socket, limit=0, ssl=self._trust),
            cookie_jar=aiohttp.DummyCookieJar(),
            # Without decompression: a small body must not become a large one here.
            headers={"Accept-Encoding": "identity", "User-Agent": "serve-app"},
            auto_decompress=False,
        )

    async def close(self) -> None:
        """Close all connections."""
        if "_session" in vars(self):
            await self._session.close()

    async def get(
        self,
        url: str,
        tenant: str = "",
        max_bytes: int | None = None,
        on_size: Callable[[int], None] = lambda size: None,
    ) -> bytes:
        """The body of one control image. Calls `on_size` with its size in bytes as soon as the server reports it.

        `max_bytes` is the config's limit by default. Raises FetchFailed with the reason, or Overloaded.
        """
        body, limits = bytearray(), self._config
        async for chunk in self._body(url, tenant, max_bytes or limits.max_bytes, limits.timeout_s, {}, on_size):
            body += chunk
        return bytes(body)

    async def download(self, url: str, target: Path, headers: Mapping[str, str], tenant: str = "") -> str:
        """Write the body of one adapter to `target` and return its sha256 (hex). Raises FetchFailed or Overloaded."""
        digest, limits = hashlib.sha256(), self._config
        async with await open_file(target, "wb") as file:
            async for chunk in self._body(url, tenant, limits.max_lora_bytes, limits.lora_timeout_s, headers):
                digest.update(chunk)
                await file.write(chunk)
        return digest.hexdigest()

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> int:
        """Post and return the status. The answer's body is not read, redirects are not followed. Raises FetchFailed."""
        # Without connection reuse: a connection that the server has just closed would look like a failure.
        headers = {**headers, "Connection": "close"}
        options: dict[str, Any] = {"method": "POST", "data": body, "allow_redirects": False}
        async with self._response(url, "", self._config.timeout_s, headers, **options) as response:
            return response.status

    async def read(self, url: str, start: int, end: int, version: str = "", tenant: str = "") -> tuple[bytes, Remote]:
        """The bytes of an adapter from `start` to before `end` or its own end, and what the server reports about it.

        No more is read, even if the server sends more. With a `version`, a server that has another version sends that
        one from its start. Raises FetchFailed or Overloaded.
        """
        body = bytearray()
        async with self._response(url, tenant, self._config.timeout_s, range_headers(start, end, version)) as response:
            remote = Remote.of(response)
            if (remote.size or 0) > self._config.max_lora_bytes:
                raise too_large(self._config.max_lora_bytes)
            if remote.start not in (0, start):
                raise FetchFailed("its server sent another range than the requested one")
            if response.status != 416:
                async for chunk in response.content.iter_chunked(CHUNK_BYTES):
                    body += chunk
                    if remote.start + len(body) >= end:
                        # Leaving the context closes the connection, since the server has more to send.
                        break
        return bytes(body[max(start - remote.start, 0) : end - remote.start]), remote

    @asynccontextmanager
    async def follow(self, url: str, start: int, version: str) -> AsyncIterator[tuple[Remote, AsyncIterator[bytes]]]:
        """An adapter's bytes from `start` if it still has this version, otherwise from 0. Raises FetchFailed."""
        headers = range_headers(start, None, version) if start else {}
        async with self._response(url, "", self._config.lora_timeout_s, headers) as response:
            yield Remote.of(response), response.content.iter_chunked(CHUNK_BYTES)

    async def _body(
        self,
        url: str,
        tenant: str,
        max_bytes: int,
        timeout_s: float,
        headers: Mapping[str, str],
        on_size: Callable[[int], None] = lambda size: None,
    ) -> AsyncIterator[bytes]:
        received = 0
        async with self._response(url, tenant, timeout_s, headers) as response:
            if response.status != 200:
                raise FetchFailed(f"its server answered {response.status}", {"status": response.status})
            if (length := response.content_length) is not None:
                if length > max_bytes:
                    raise too_large(max_bytes)
                on_size(length)
            began = time.monotonic()
            async for chunk in response.content.iter_chunked(CHUNK_BYTES):
                received += len(chunk)
                if received > max_bytes:
                    raise too_large(max_bytes)
                seconds = time.monotonic() - began
                if seconds > self._config.timeout_s and received < MIN_RATE * seconds:
                    raise FetchFailed(f"its server sends less than {MIN_RATE} bytes per second")
                yield chunk

    @asynccontextmanager
    async def _response(
        self, url: str, tenant: str, timeout_s: float, headers: Mapping[str, str], method: str = "GET", **options: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The open response, on one of the tenant's connections. Raises Overloaded.

        Every error of aiohttp, here or while the body is read, becomes FetchFailed.
        """
        if not url.lower().startswith(("http://", "https://")):
            # aiohttp asserts that a URL with a host has a scheme.
            raise FetchFailed(NOT_HTTP)
        # Even if a whole adapter may take longer, a server that sends nothing is not waited for.
        silence_s = self._config.timeout_s if self._config.timeout_s < timeout_s else None
        with self._connections.hold(tenant) as connection:
            await connection.take(1)
            try:
                async with self._session.request(
                    method,
                    url,
                    headers=headers,
                    timeout=aiohttp.ClientTimeout(total=timeout_s, sock_read=silence_s),
                    max_redirects=self._config.max_redirects,
                    **options,
                ) as response:
                    yield response
            except (aiohttp.ClientError, OSError, ValueError) as error:
                if isinstance(error, OSError) and error.errno in DISK_FULL:
                    # Not the server's error: the caller's disk is full.
                    raise
                raise FetchFailed(self._reason(error, timeout_s, silence_s)) from error

    def _reason(self, error: Exception, timeout_s: float, silence_s: float | None) -> str:
        """The reason for the failure, as a clause in which "it" is the file at the URL.

        aiohttp's classes overlap: its TLS errors are OSErrors and some are ValueErrors, its time-outs are OSErrors. So
        the cases go from the narrowest class to the widest.
        """
        match error:
            case aiohttp.SocketTimeoutError() if silence_s is not None:
                return f"its server sent nothing for {silence_s:g} s"
            case TimeoutError():
                return f"its server took longer than {timeout_s:g} s"
            case aiohttp.TooManyRedirects():
                return f"it redirects more than {self._config.max_redirects} times"
            case aiohttp.ClientConnectorCertificateError() | aiohttp.ServerFingerprintMismatch():
                return "its server's TLS certificate cannot be verified"
            case aiohttp.ClientSSLError() | ssl.SSLError():
                return "its server does not speak TLS as https needs it"
            case aiohttp.ClientConnectorError(os_error=AddressRefused() as refused):
                return str(refused)
            case aiohttp.ClientConnectorError():
                return "its server cannot be reached"
            case aiohttp.InvalidURL() | aiohttp.NonHttpUrlClientError() | aiohttp.RedirectClientError():
                return NOT_HTTP
            case aiohttp.ClientResponseError():
                return "its server's answer is not valid HTTP"
            case aiohttp.ClientError() | OSError():
                return "its server broke the connection off"
            case _:
                # Errors of the URL's parser, for instance of idna.
                return NOT_HTTP

    def _open_socket(self, address: tuple[int, int, int, str, tuple[object, ...]]) -> socket.socket:
        family, kind, protocol, _, target = address
        self._check_address(str(target[0]))
        return socket.socket(family=family, type=kind, proto=protocol)

    def _check_address(self, text: str) -> None:
        """Raises AddressRefused."""
        address, limits = parse_address(text), self._config
        allowed = limits.allow_private_addresses or any(address in network for network in limits.allowed_networks)
        denied = any(address in network for network in limits.denied_networks)
        if denied or not (allowed or is_public(address)):
            raise AddressRefused("its address is not a public one, so it is refused")


def too_large(max_bytes: int) -> FetchFailed:
    """The error for a file that is larger than the limit."""
    return FetchFailed(f"it is larger than {max_bytes} bytes", {"max_bytes": max_bytes})


def range_headers(start: int, end: int | None, version: str) -> dict[str, str]:
    """The headers that ask for the bytes from `start` to before `end` of this version of a file."""
    last = "" if end is None else end - 1
    return {"Range": f"bytes={start}-{last}"} | ({"If-Range": version} if version else {})
