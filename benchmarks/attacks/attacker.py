"""The attacks of the attacking tenant. Each is limited in time, uses loopback only and stops by itself.

python -m benchmarks.attacks.attacker NAME PORT KEY FOLDER   # one attack; `python -m benchmarks.attacks` runs all

Connections come from 127.0.0.2, as if from another machine.
"""

import asyncio
import base64
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from benchmarks.attacks.files import (
    MB,
    jpeg_of_scans,
    large_png,
    safetensors_of_one_shape,
    small_png,
    tiff_of_directories,
)
from benchmarks.attacks.flood import SENT, Flood

HOST, HERE = "127.0.0.1", "127.0.0.2"
# An attack is repeated for at least LEAST_S and lasts at most ATTACK_S (s).
LEAST_S, ATTACK_S = 10.0, 40.0
# Pause between two repetitions (s): the effect of one attack is measured, not that of many requests.
PAUSE_S = 1.0
LORA = "my_lora_job/my_lora.safetensors"
PIPE = "pipe.safetensors"
# The limit of waiting images per tenant in the attacked service's config.
MAX_QUEUED = 300

Attack = Callable[["Attacker"], Awaitable[None]]


class Attacker:
    """The attacker's connection to the service. `answers` counts answers by status, and errors by type."""

    def __init__(self, port: int, key: str, folder: Path) -> None:
        self.port = port
        self.key = key
        self.folder = folder
        self.answers: dict[str, int] = {}

    async def post(self, path: str, body: bytes, *, with_key: bool = True) -> Any:
        headers = {"Content-Type": "application/json"} | (self._authorization if with_key else {})
        return await self._request("POST", path, data=body, headers=headers)

    async def get(self, path: str) -> None:
        await self._request("GET", path, headers=self._authorization)

    async def delete(self, path: str) -> None:
        await self._request("DELETE", path, headers=self._authorization)

    @property
    def _authorization(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    async def _request(self, method: str, path: str, **options: Any) -> Any:
        """The JSON of an answer with status 200, otherwise None."""
        connector = aiohttp.TCPConnector(local_addr=(HERE, 0))
        try:
            async with (
                aiohttp.ClientSession(f"http://{HOST}:{self.port}", connector=connector) as session,
                session.request(method, path, **options) as answer,
            ):
                body = await answer.read()
                self.count(str(answer.status))
                return json.loads(body) if answer.status == 200 else None
        except (aiohttp.ClientError, OSError) as error:
            self.count(type(error).__name__)
            return None

    def count(self, answer: str) -> None:
        self.answers[answer] = self.answers.get(answer, 0) + 1

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection(HOST, self.port, local_addr=(HERE, 0))
        try:
            yield reader, writer
        finally:
            writer.close()


def request(controls: Iterable[str], loras: Iterable[str] = (LORA,), steps: int = 1) -> bytes:
    """The body of a request with one prompt per control image."""
    options = {"width": 64, "height": 64, "sample_steps": steps}
    prompts = [{"prompt": "x", "ctrl_img": control, **options} for control in controls]
    paths = [{"path": path} for path in loras]
    return json.dumps({"model": "qwen_image_edit", "prompts": prompts, "loras": paths}).encode()


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


@asynccontextmanager
async def server(handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    """Run a web server of the attacker; yields its URL."""
    application = web.Application()
    application.router.add_get("/{path:.*}", handler)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, HERE, 0)
    await site.start()
    yield f"http://{HERE}:{runner.addresses[0][1]}"
    await runner.cleanup()


async def endless_headers(attacker: Attacker) -> None:
    """Four connections send headers of 100 MB each, without a key."""

    async def one() -> None:
        try:
            async with attacker.connection() as (reader, writer):
                writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n")
                for _ in range(4):
                    writer.write(b"X-Filler: ")
                    for _ in range(25):
                        writer.write(b"a" * MB)
                        await writer.drain()
                    writer.write(b"\r\n")
                writer.write(b"\r\n")
                attacker.count((await reader.readline()).decode(errors="replace").strip() or "closed")
        except OSError as error:
            attacker.count(type(error).__name__)

    await asyncio.gather(*(one() for _ in range(4)))


async def bodies_without_a_key(attacker: Attacker) -> None:
    """16 bodies of 60 MB, `[{},{},...]`, without a key."""
    body = b"[" + b"{}," * (20 * MB - 1) + b"{}]"
    await asyncio.gather(*(attacker.post("/v1/inference", body, with_key=False) for _ in range(16)))


async def slow_bodies(attacker: Attacker) -> None:
    """2,200 connections with a body of one byte per second each."""

    async def one() -> None:
        try:
            async with attacker.connection() as (_, writer):
                head = f"POST /v1/inference HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {attacker.key}\r\n"
                writer.write(f"{head}Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n".encode())
                while True:
                    writer.write(b" ")
                    await writer.drain()
                    await asyncio.sleep(1)
        except OSError as error:
            attacker.count(type(error).__name__)

    await asyncio.gather(*(one() for _ in range(2200)))


async def headers_of_safetensors(attacker: Attacker) -> None:
    """Four POSTs name a LoRA whose header has a tensor of 131,000 dimensions."""
    content = safetensors_of_one_shape(131_000)

    async def handler(asked: web.Request) -> web.Response:
        return web.Response(body=content, headers={"ETag": f'"{asked.path}"'})

    control = base64_of(small_png())
    async with server(handler) as url:
        await asyncio.gather(
            *(attacker.post("/v1/inference", request([control], [f"{url}/{i}.safetensors"])) for i in range(4))
        )


async def costly_images(attacker: Attacker) -> None:
    """Three progressive JPEGs of as many scans as fit into 2.4 MB, and two TIFFs with 40,000 directories."""
    images = [jpeg_of_scans(2_400_000)] * 3 + [tiff_of_directories(40_000)] * 2
    await asyncio.gather(*(attacker.post("/v1/inference", request([base64_of(image)])) for image in images))


async def answers_larger_than_requests(attacker: Attacker) -> None:
    """Four times 2 MB of `"prompts": [1, 1, ...]`."""
    prompts = ",".join(["1"] * MB)
    body = f'{{"model": "qwen_image_edit", "loras": [], "prompts": [{prompts}]}}'.encode()
    await asyncio.gather(*(attacker.post("/v1/inference", body) for _ in range(4)))


async def amplification(attacker: Attacker) -> None:
    """One POST names 150 URLs of 20 MB each, and 50 parallel POSTs carry 20 MB each."""
    large = large_png(19 * MB, seed=1)

    async def handler(asked: web.Request) -> web.Response:
        return web.Response(body=large)

    carried = request([base64_of(large)])
    async with server(handler) as url:
        named = request(f"{url}/{index}.png" for index in range(150))
        await asyncio.gather(
            attacker.post("/v1/inference", named), *(attacker.post("/v1/inference", carried) for _ in range(50))
        )


async def dripping_downloads(attacker: Attacker) -> None:
    """40 POSTs name four URLs each, whose server sends a byte per second."""

    async def handler(asked: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(asked)
        # The service closes the connection when it has waited long enough.
        with suppress(ConnectionError):
            for _ in range(int(ATTACK_S)):
                await answer.write(b"x")
                await asyncio.sleep(1)
        return answer

    async with server(handler) as url:
        await asyncio.gather(
            *(attacker.post("/v1/inference", request(f"{url}/{post}/{i}.png" for i in range(4))) for post in range(40))
        )


async def full_disk(attacker: Attacker) -> None:
    """29 POSTs of 27 MB beyond the queue's limit, and ten explains of a LoRA's URL with a query."""
    content = await asyncio.to_thread(Path(attacker.folder, LORA).read_bytes)

    async def handler(asked: web.Request) -> web.Response:
        return web.Response(body=content)

    control = base64_of(small_png())
    # This request keeps the queue full until it is cancelled at the end of the attack.
    filling = await attacker.post("/v1/inference", request([control] * MAX_QUEUED, steps=20))
    try:
        async with server(handler) as url:
            for number in range(29):
                images = [base64_of(large_png(4_500_000, seed=6 * number + index)) for index in range(6)]
                await attacker.post("/v1/inference", request(images))
            for number in range(10):
                await attacker.post("/v1/explain", request([control], [f"{url}/a.safetensors?{number}"]))
    finally:
        await attacker.delete(f"/v1/requests/{filling['request_id']}")


async def named_pipe(attacker: Attacker) -> None:
    """Put a named pipe under the LoRA root; twelve listings and twelve requests try to read it."""
    pipe = attacker.folder / PIPE
    os.mkfifo(pipe)
    try:
        control = base64_of(small_png())
        await asyncio.gather(
            *(attacker.get("/v1/loras") for _ in range(12)),
            *(attacker.post("/v1/inference", request([control], [PIPE])) for _ in range(12)),
        )
    finally:
        pipe.unlink()


async def flood(attacker: Attacker) -> None:
    """200 requests per second: submissions, polls, sweeps and uploads. This tenant has limits of its own."""
    body = request([base64_of(small_png())])
    flooding = Flood(f"http://{HOST}:{attacker.port}", attacker.key, body, HERE)
    await flooding.run()
    attacker.answers |= flooding.answers | {SENT: flooding.sent}


ATTACKS: dict[str, Attack] = {
    attack.__name__: attack
    for attack in (
        endless_headers,
        bodies_without_a_key,
        slow_bodies,
        headers_of_safetensors,
        costly_images,
        answers_larger_than_requests,
        amplification,
        dripping_downloads,
        full_disk,
        named_pipe,
        flood,
    )
}


async def attack(name: str, port: int, key: str, folder: Path) -> dict[str, int]:
    """Repeat one attack; returns the counts of its answers."""
    attacker = Attacker(port, key, folder)
    began = time.monotonic()
    try:
        async with asyncio.timeout(ATTACK_S):
            while time.monotonic() - began < LEAST_S:
                await ATTACKS[name](attacker)
                await asyncio.sleep(PAUSE_S)
    except TimeoutError:
        attacker.count("unfinished")
    return attacker.answers


def main() -> None:
    name, port, key, folder = sys.argv[1:]
    # The lowest priority: a real attacker would not use this machine's processor.
    os.nice(19)
    print(json.dumps(asyncio.run(attack(name, int(port), key, Path(folder)))))


if __name__ == "__main__":
    main()
