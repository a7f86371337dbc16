"""An object store with S3's HTTP interface (moto's server), and a proxy in front of it that makes calls fail.

s3fs and botocore are the real ones: they sign, retry, time out and read files of credentials as in production.
"""

import asyncio
import contextlib
import json
import logging
import re
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Self

import aiohttp
from aiohttp import web
from moto.server import ThreadedMotoServer
from yarl import URL

REGION = "us-east-1"
HOP_HEADERS = {"connection", "keep-alive", "transfer-encoding", "host", "content-length", "date", "server"}
ERROR = """<?xml version="1.0" encoding="UTF-8"?>
<Error><Code>{code}</Code><Message>{code}</Message><RequestId>1</RequestId></Error>"""


class Fault(StrEnum):
    """What happens to one call. `REFUSED`, `BUSY`, `BROKEN` and `EXPIRED` never reach the store."""

    REFUSED = "connection closed before the call"
    LOST = "connection closed before the answer"
    CUT = "connection closed in the middle of the answer"
    BUSY = "503 SlowDown"
    BROKEN = "500 InternalError"
    SLOW = "slow answer"
    EXPIRED = "403 ExpiredToken"


CODES = {Fault.BUSY: (503, "SlowDown"), Fault.BROKEN: (500, "InternalError"), Fault.EXPIRED: (403, "ExpiredToken")}
# Chooses the fault of a call by its method and path; None for a call that succeeds.
Choose = Callable[[str, str], Fault | None]


def no_fault(method: str, path: str) -> None:
    """Every call succeeds."""


class ObjectStore:
    """`with ObjectStore() as store`: `url` is the proxy's, `bucket()` makes a bucket, `failing` makes calls fail.

    `happened` counts the faults, `calls` all calls; calls to `store_url` never fail. If `valid_key` is set, calls that
    are signed with another access key are refused as expired.
    """

    def __init__(self, address: str = "127.0.0.1", slow_s: float = 1.0) -> None:
        """`slow_s` is the time that a slow answer takes."""
        self._address = address
        self._slow_s = slow_s
        self.choose: Choose = no_fault
        self.happened: Counter[Fault] = Counter()
        self.calls = 0
        self.valid_key = ""

    def __enter__(self) -> Self:
        # It logs every request.
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._store = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._store.start()
        self.store_url = f"http://127.0.0.1:{self._store.get_host_and_port()[1]}"
        started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run(started)), name="object store")
        self._thread.start()
        started.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._store.stop()

    def bucket(self) -> str:
        """The name of a new bucket."""
        name = f"bucket-{uuid.uuid4().hex[:12]}"
        asyncio.run_coroutine_threadsafe(self._make_bucket(name), self._loop).result()
        return name

    @contextlib.contextmanager
    def failing(self, choose: Choose) -> Iterator[Counter[Fault]]:
        """Make calls fail inside. Yields the faults that happen there."""
        self.happened, self.choose = Counter(), choose
        try:
            yield self.happened
        finally:
            self.choose = no_fault

    async def _make_bucket(self, name: str) -> None:
        async with self._session.put(f"{self.store_url}/{name}") as answer:
            answer.raise_for_status()

    async def _run(self, started: threading.Event) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        application = web.Application(client_max_size=2**30)
        application.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, self._address, 0)
        await site.start()
        self.url = f"http://{self._address}:{runner.addresses[0][1]}"
        async with aiohttp.ClientSession(auto_decompress=False) as self._session:
            started.set()
            await self._stop.wait()
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.calls += 1
        fault = self._fault(request)
        if fault:
            self.happened[fault] += 1
        body = await request.read()
        if fault == Fault.SLOW:
            await asyncio.sleep(self._slow_s)
        if fault == Fault.REFUSED:
            return self._close(request)
        if fault in CODES:
            status, code = CODES[fault]
            return web.Response(status=status, text=ERROR.format(code=code), content_type="application/xml")
        status, headers, content = await self._forward(request, body)
        if fault == Fault.LOST:
            return self._close(request)
        if fault == Fault.CUT and request.method == "GET":
            return await self._send_half(request, status, headers, content)
        return web.Response(status=status, headers=headers, body=content)

    def _fault(self, request: web.Request) -> Fault | None:
        key = re.search(r"Credential=([^/]+)/", request.headers.get("Authorization", ""))
        if self.valid_key and (key is None or key[1] != self.valid_key):
            return Fault.EXPIRED
        return self.choose(request.method, request.path)

    async def _forward(self, request: web.Request, body: bytes) -> tuple[int, dict[str, str], bytes]:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP_HEADERS}
        url = URL(f"{self.store_url}{request.raw_path}", encoded=True)
        async with self._session.request(request.method, url, headers=headers, data=body) as answer:
            dropped = HOP_HEADERS - ({"content-length"} if request.method == "HEAD" else set())
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in dropped}
            return answer.status, kept, await answer.read()

    @staticmethod
    def _close(request: web.Request) -> web.StreamResponse:
        if request.transport is not None:
            request.transport.abort()
        return web.Response()

    async def _send_half(
        self, request: web.Request, status: int, headers: dict[str, str], content: bytes
    ) -> web.StreamResponse:
        answer = web.StreamResponse(status=status, headers=headers | {"Content-Length": str(len(content))})
        await answer.prepare(request)
        await answer.write(content[: len(content) // 2])
        return self._close(request)


def write_key(folder: Path, name: str) -> None:
    """Write the access key that clients use from now on. It expires so soon that they read it before each call."""
    expires = datetime.now(UTC) + timedelta(minutes=9)
    key = {"Version": 1, "AccessKeyId": name, "SecretAccessKey": "secret", "Expiration": expires.isoformat()}
    part = folder / "aws-key.part"
    part.write_text(json.dumps(key))
    part.replace(folder / "aws-key.json")


def credentials(folder: Path) -> dict[str, str]:
    """Variables with which s3fs signs calls with the key that `write_key` has written last into this folder."""
    write_key(folder, "first")
    config = folder / "aws-config"
    config.write_text(f"[default]\nregion = {REGION}\ncredential_process = /bin/cat {folder / 'aws-key.json'}\n")
    return {
        "AWS_CONFIG_FILE": str(config),
        "AWS_SHARED_CREDENTIALS_FILE": str(folder / "none"),
        "AWS_EC2_METADATA_DISABLED": "true",
    }
