"""Guarded requests: what a client may make this service fetch or post, and where."""

import errno
import hashlib
import ipaddress
import re
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import aiohttp
from anyio import open_file

from serve_app.config import FetchConfig
from serve_app.errors import FetchFailed

CHUNK_BYTES = 1 << 16
MAX_CONNECTIONS = 64
# Longest ETag that is believed: it is stored with requests.
MAX_VERSION = 200
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
# IPv6 addresses that a gateway may turn into any IPv4 one, private ones too: NAT64 (RFC 6052, 8215), 6to4
# (RFC 3056), IPv4-compatible and -translated (RFC 4291, 2765); and site-local ones (RFC 3879).
IPV4_IN_IPV6 = tuple(
    ipaddress.IPv6Network(network)
    for network in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "::/96", "::ffff:0:0:0/96", "fec0::/10")
)


# What a 206 or a 416 says: the first byte of what follows, and the length of the whole.
CONTENT_RANGE = re.compile(r"^bytes (?:(?P<start>\d+)-\d+|\*)/(?P<size>\d+|\*)$")


class AddressRefused(OSError):
    """Raised inside aiohttp's connector, which takes it for a connection that failed."""


@dataclass(frozen=True)
class Remote:
    """What a server says of a file: its length, None if it does not say, and its version, "" if it does not.

    The version is its ETag, else the time of its last change. `start` is the place in the file of the first byte
    that was sent: 0 from a server that knows no ranges.
    """

    size: int | None
    version: str
    start: int

    @classmethod
    def of(cls, response: aiohttp.ClientResponse) -> Self:
        """Raises FetchFailed for anything but a file or a part of one."""
        headers, length = response.headers, response.content_length
        version = headers.get("ETag") or headers.get("Last-Modified") or ""
        if len(version) > MAX_VERSION or not (version.isascii() and version.isprintable()):
            version = ""
        if response.status == 200:
            return cls(length, version, 0)
        place = CONTENT_RANGE.match(headers.get("Content-Range", ""))
        size = int(place["size"]) if place and place["size"] != "*" else None
        if response.status == 206 and place and place["start"]:
            return cls(size, version, int(place["start"]))
        if response.status == 416 and size == 0:
            # There is no range of an empty file.
            return cls(0, version, 0)
        raise FetchFailed(f"its server answered {response.status}", {"status": response.status})


class Fetcher:
    """Downloads and posts over http and https, within the limits of the config.

    The address is checked where the socket is made, so whatever a name resolves to, a literal address and
    every redirect pass the same gate. Made inside a running event loop; `close` it.
    """

    def __init__(self, config: FetchConfig) -> None:
        self._config = config
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(socket_factory=self._open_socket, limit=MAX_CONNECTIONS),
            cookie_jar=aiohttp.DummyCookieJar(),
            # Compressed bodies stay as they are: a small body must not become a large one here.
            headers={"Accept-Encoding": "identity", "User-Agent": "serve-app"},
            auto_decompress=False,
        )

    async def close(self) -> None:
        await self._session.close()

    async def get(self, url: str) -> bytes:
        """The body of one control image. Raises FetchFailed with the reason."""
        body = bytearray()
        async for chunk in self._body(url, self._config.max_bytes, self._config.timeout_s, {}):
            body += chunk
        return bytes(body)

    async def download(self, url: str, target: Path, headers: Mapping[str, str]) -> str:
        """Write the body of one adapter to `target` and return its sha256 (hex). Raises FetchFailed."""
        digest = hashlib.sha256()
        async with await open_file(target, "wb") as file:
            async for chunk in self._body(url, self._config.max_lora_bytes, self._config.lora_timeout_s, headers):
                digest.update(chunk)
                await file.write(chunk)
        return digest.hexdigest()

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> int:
        """The status of the answer, which is not read; a redirect is one like others. Raises FetchFailed."""
        # On a connection of its own: one that the other side has just closed would look like a refusal.
        headers = {**headers, "Connection": "close"}
        options: dict[str, Any] = {"method": "POST", "data": body, "allow_redirects": False}
        async with self._response(url, self._config.timeout_s, headers, **options) as response:
            return response.status

    async def read(self, url: str, start: int, end: int, version: str = "") -> tuple[bytes, Remote]:
        """The bytes of an adapter from `start` to `end`, or to its own end, and what its server says of it.

        No more is read than that, whatever the server sends. With a `version`, only bytes of that one are asked
        for: of another version they come from the start of the file. Raises FetchFailed.
        """
        body = bytearray()
        async with self._response(url, self._config.timeout_s, ranged(start, end, version)) as response:
            remote = Remote.of(response)
            if (remote.size or 0) > self._config.max_lora_bytes:
                raise FetchFailed(f"it is larger than {self._config.max_lora_bytes} bytes")
            if remote.start not in (0, start):
                raise FetchFailed("its server sent another range than it was asked for")
            if response.status != 416:
                async for chunk in response.content.iter_chunked(CHUNK_BYTES):
                    body += chunk
                    if remote.start + len(body) >= end:
                        # The connection is broken off: the server has more to send.
                        break
        return bytes(body[max(start - remote.start, 0) : end - remote.start]), remote

    @asynccontextmanager
    async def follow(self, url: str, start: int, version: str) -> AsyncIterator[tuple[Remote, AsyncIterator[bytes]]]:
        """An adapter's bytes from `start` on, while its version is this one; else from 0. Raises FetchFailed."""
        headers = ranged(start, None, version) if start else {}
        async with self._response(url, self._config.lora_timeout_s, headers) as response:
            yield Remote.of(response), response.content.iter_chunked(CHUNK_BYTES)

    async def _body(
        self, url: str, max_bytes: int, timeout_s: float, headers: Mapping[str, str]
    ) -> AsyncIterator[bytes]:
        received = 0
        async with self._response(url, timeout_s, headers) as response:
            if response.status != 200:
                raise FetchFailed(f"its server answered {response.status}", {"status": response.status})
            async for chunk in response.content.iter_chunked(CHUNK_BYTES):
                received += len(chunk)
                if received > max_bytes:
                    raise FetchFailed(f"it is larger than {max_bytes} bytes")
                yield chunk

    @asynccontextmanager
    async def _response(
        self, url: str, timeout_s: float, headers: Mapping[str, str], method: str = "GET", **options: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The open response. Every error of aiohttp, here or while the body is read, becomes FetchFailed."""
        # However long a whole adapter may take: a server that sends nothing is not waited for.
        silence_s = self._config.timeout_s if self._config.timeout_s < timeout_s else None
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
        except aiohttp.SocketTimeoutError as error:
            raise FetchFailed(f"its server sent nothing for {silence_s:g} s") from error
        except TimeoutError as error:
            raise FetchFailed(f"its server took longer than {timeout_s:g} s") from error
        except aiohttp.TooManyRedirects as error:
            raise FetchFailed(f"it redirects more than {self._config.max_redirects} times") from error
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError, ValueError) as error:
            raise FetchFailed("its URL is not a valid http or https URL") from error
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.os_error, AddressRefused):
                raise FetchFailed(str(error.os_error)) from error
            raise FetchFailed("its server cannot be reached") from error
        except (aiohttp.ClientError, OSError) as error:
            if isinstance(error, OSError) and error.errno in DISK_FULL:
                # Not the server's: of whoever writes down what comes.
                raise
            raise FetchFailed("its server broke the connection off") from error

    def _open_socket(self, address: tuple[int, int, int, str, tuple[object, ...]]) -> socket.socket:
        family, kind, protocol, _, target = address
        self._check_address(str(target[0]))
        return socket.socket(family=family, type=kind, proto=protocol)

    def _check_address(self, text: str) -> None:
        address = ipaddress.ip_address(text.partition("%")[0])
        embeds_ipv4 = False
        if isinstance(address, ipaddress.IPv6Address):
            embeds_ipv4 = any(address in network for network in IPV4_IN_IPV6)
            address = address.ipv4_mapped or address
        allowed = any(
            address.version == network.version and address in network for network in self._config.allowed_networks
        )
        # is_global is False for private, loopback, link-local (cloud metadata), reserved and shared addresses;
        # multicast ones can be global.
        public = address.is_global and not address.is_multicast and not embeds_ipv4
        if not (public or allowed or self._config.allow_private_addresses):
            raise AddressRefused("its address is not a public one, and those are refused")


def ranged(start: int, end: int | None, version: str) -> dict[str, str]:
    """The headers that ask for the bytes from `start` to before `end` of this version of a file."""
    last = "" if end is None else end - 1
    return {"Range": f"bytes={start}-{last}"} | ({"If-Range": version} if version else {})
