"""Guarded requests: what a client may make this service fetch or post, and where."""

import hashlib
import ipaddress
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from anyio import open_file

from serve_app.config import FetchConfig
from serve_app.errors import FetchFailed

CHUNK_BYTES = 1 << 16
MAX_CONNECTIONS = 64
# IPv6 addresses that a gateway may turn into any IPv4 one, private ones too: NAT64 (RFC 6052, 8215), 6to4
# (RFC 3056), IPv4-compatible and -translated (RFC 4291, 2765); and site-local ones (RFC 3879).
IPV4_IN_IPV6 = tuple(
    ipaddress.IPv6Network(network)
    for network in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "::/96", "::ffff:0:0:0/96", "fec0::/10")
)


class AddressRefused(OSError):
    """Raised inside aiohttp's connector, which takes it for a connection that failed."""


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

    async def post(self, url: str, body: bytes, headers: Mapping[str, str], timeout_s: float) -> int:
        """The status of the answer, which is not read; a redirect is one like others. Raises FetchFailed."""
        # On a connection of its own: one that the other side has just closed would look like a refusal.
        headers = {**headers, "Connection": "close"}
        async with self._response(url, timeout_s, headers, method="POST", data=body, allow_redirects=False) as response:
            return response.status

    async def _body(
        self, url: str, max_bytes: int, timeout_s: float, headers: Mapping[str, str]
    ) -> AsyncIterator[bytes]:
        received = 0
        async with self._response(url, timeout_s, headers) as response:
            if response.status != 200:
                raise FetchFailed(f"its server answered {response.status}")
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
        try:
            async with self._session.request(
                method,
                url,
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=timeout_s),
                max_redirects=self._config.max_redirects,
                **options,
            ) as response:
                yield response
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
