"""What one tenant's requests may take of memory, downloads and connections, and that others get theirs."""

import asyncio
import hashlib
import json
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from aiohttp import web

from serve_app.config import AppConfig, FetchConfig
from serve_app.errors import FetchFailed
from serve_app.intake.admission.admission import IMAGES_AT_ONCE
from serve_app.intake.service import Service
from serve_app.storage.fetch import Fetcher
from tests.unit.conftest import Application

Start = Callable[..., Awaitable[httpx.AsyncClient]]


@pytest.fixture
async def start(config: AppConfig, tmp_path: Path) -> AsyncIterator[Start]:
    """Start a service with tenants red and blue, whose keys are their names, and these settings of `fetch`."""
    hashes = {name: [hashlib.sha256(name.encode()).hexdigest()] for name in ("red", "blue")}
    (tmp_path / "keys.yaml").write_text(yaml.safe_dump({"tenants": hashes}))
    async with AsyncExitStack() as exits:

        async def start(changes: dict[str, Any] = {}, **fetch: object) -> httpx.AsyncClient:  # noqa: B006  # read
            changed = config.model_dump() | {"auth": {"keys_file": str(tmp_path / "keys.yaml")}} | changes
            changed["fetch"] = {"allow_private_addresses": True, "timeout_s": 2, **fetch}
            application = Application(AppConfig.model_validate(changed))
            await exits.enter_async_context(application.app.router.lifespan_context(application.app))
            transport = httpx.ASGITransport(application.app)
            client = httpx.AsyncClient(transport=transport, base_url="http://service", timeout=30)
            client.application = application  # type: ignore[attr-defined]
            return await exits.enter_async_context(client)

        yield start


def service_of(client: httpx.AsyncClient) -> Service:
    application: Application = client.application  # type: ignore[attr-defined]
    return application.service


class ImageServer:
    """A server of one image under any path. `pause_s` is before each answer; `says_length` whether it tells it."""

    def __init__(self, image: bytes) -> None:
        self.image = image
        self.pause_s = 0.0
        self.says_length = True
        self.status = 200
        self.requests = self.running = self.most = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.requests += 1
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            if "slow" in request.path:
                await asyncio.sleep(30)
            await asyncio.sleep(self.pause_s)
            if self.says_length or self.status != 200:
                return web.Response(body=self.image, status=self.status)
            response = web.StreamResponse()
            await response.prepare(request)
            await response.write(self.image)
            return response
        finally:
            self.running -= 1

    async def wait_for_requests(self, running: int) -> None:
        """Return once so many requests are being answered."""
        async with asyncio.timeout(20):
            while self.running < running:
                await asyncio.sleep(0.01)


@pytest.fixture
def images(control_png: bytes) -> ImageServer:
    return ImageServer(control_png)


@pytest.fixture
async def url(images: ImageServer, web_server) -> str:
    return str(await web_server(images.answer))


@pytest.fixture
def body_of(make_body) -> Callable[..., dict]:
    """A request with these control images."""

    def body_of(*images: str) -> dict:
        body = make_body()
        body["prompts"] = [body["prompts"][0] | {"ctrl_img": image} for image in images]
        return body

    return body_of


async def post(client: httpx.AsyncClient, tenant: str, body: dict, route: str = "/v1/inference") -> httpx.Response:
    return await client.post(route, json=body, headers={"X-API-Key": tenant})


def error_of(answer: httpx.Response) -> dict:
    return answer.json()["detail"]["error"]


async def test_slow_downloads_of_one_tenant_leave_others_their_connections(start, images, url, body_of):
    client = await start(connections=4, patience_s=0.5, timeout_s=4)
    slow = [
        asyncio.create_task(post(client, "red", body_of(f"{url}/slow/{number}"), "/v1/explain")) for number in range(20)
    ]
    await images.wait_for_requests(running=2)
    answer = await post(client, "blue", body_of(f"{url}/image"))
    # While red's downloads hold their connections.
    assert (answer.status_code, [task.done() for task in slow].count(False) >= 2) == (200, True)
    answers = await asyncio.gather(*slow)
    refused = [answer for answer in answers if answer.status_code == 503]
    assert len(refused) == 18
    for answer in refused:
        assert (error_of(answer)["code"], answer.headers["Retry-After"]) == ("OVERLOADED", "5")
    # Those that had a connection are the server's own fault.
    blamed = [error_of(answer) for answer in answers if answer.status_code == 400]
    assert [error["code"] for error in blamed] == ["CONTROL_IMAGE_INVALID"] * 2
    assert service_of(client).resources.image_memory.held == 0


async def test_wait_for_a_connection_does_not_count_as_time_of_the_server(images, url):
    images.pause_s = 0.3
    fetcher = Fetcher(FetchConfig(allow_private_addresses=True, timeout_s=0.6, connections=1))
    bodies = await asyncio.gather(*(fetcher.get(f"{url}/{number}") for number in range(4)))
    assert (bodies, images.most) == ([images.image] * 4, 1)
    await fetcher.close()


async def test_slow_download_is_aborted(web_server, tmp_path):
    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(200):
            await response.write(b"x")
            await asyncio.sleep(0.05)
        return response

    fetcher = Fetcher(FetchConfig(allow_private_addresses=True, timeout_s=0.3, lora_timeout_s=20))
    began = time.monotonic()
    with pytest.raises(FetchFailed, match="sends less than"):
        await fetcher.download(await web_server(drip), tmp_path / "file", {})
    assert time.monotonic() - began < 3
    await fetcher.close()


async def test_request_downloads_no_more_at_a_time_than_it_holds(start, images, url, body_of):
    """Each image may be as large as the limit, until its server says how large it is."""
    images.says_length, images.pause_s = False, 0.02
    size = len(images.image)
    client = await start(max_bytes=size, budget_bytes=4 * size)
    answer = await post(client, "red", body_of(*(f"{url}/{number}" for number in range(50))))
    assert (images.most, images.requests) == (2, 2)
    error = error_of(answer)
    assert (error["code"], "together are larger than" in error["message"]) == ("CONTROL_IMAGE_INVALID", True)
    assert error["details"]["prompt_index"] == 2
    assert service_of(client).resources.image_memory.held == 0


async def test_memory_that_an_image_does_not_need_is_used_for_others(start, images, url, body_of):
    """Of two tenants that hold all there is, one waits for the other's answer alone."""
    images.pause_s = 0.02
    size = len(images.image)
    client = await start(max_bytes=10 * size, budget_bytes=30 * size * 2)
    many = body_of(*(f"{url}/{number}" for number in range(25)))
    answers = await asyncio.gather(*(post(client, tenant, many) for tenant in ("red", "blue", "red", "blue")))
    assert [answer.status_code for answer in answers] == [200] * 4
    assert images.most <= 2 * IMAGES_AT_ONCE
    assert service_of(client).resources.image_memory.held == 0


async def test_memory_for_images_is_waited_for_and_then_refused(start, images, url, body_of):
    client = await start(max_bytes=100_000, budget_bytes=200_000, patience_s=0.3, timeout_s=4)
    slow = asyncio.create_task(post(client, "red", body_of(f"{url}/slow")))
    await images.wait_for_requests(running=1)
    again, blue = await asyncio.gather(*(post(client, tenant, body_of(f"{url}/x")) for tenant in ("red", "blue")))
    assert (again.status_code, error_of(again)["code"], blue.status_code) == (503, "OVERLOADED", 200)
    assert (await slow).status_code == 400


async def test_request_with_more_prompts_than_may_wait_makes_no_download(start, images, url, body_of, config):
    client = await start({"jobs": config.jobs.model_dump() | {"max_queued_per_tenant": 5}})
    answer = await post(client, "red", body_of(*(f"{url}/{number}" for number in range(6))))
    assert (answer.status_code, error_of(answer)["code"], images.requests) == (400, "INVALID_PARAMETER", 0)


async def test_request_with_too_many_urls_makes_no_download(start, images, url, body_of):
    client = await start(max_urls=5)
    answer = await post(client, "red", body_of(*(f"{url}/{number}" for number in range(6))))
    assert (answer.status_code, error_of(answer)["code"], images.requests) == (400, "INVALID_PARAMETER", 0)
    assert (await post(client, "red", body_of(*[f"{url}/1"] * 20))).status_code == 200
    assert images.requests == 1


async def test_nothing_more_is_downloaded_after_an_image_that_failed(start, images, url, body_of):
    images.status = 404
    client = await start()
    answer = await post(client, "red", body_of(*(f"{url}/{number}" for number in range(100))))
    assert (answer.status_code, error_of(answer)["details"]["prompt_index"]) == (400, 0)
    assert images.requests <= 2 * IMAGES_AT_ONCE


async def test_waiting_for_a_result_holds_no_memory_for_the_body(start, make_body):
    client = await start()
    application: Application = client.application
    application.editors.gate.clear()
    bodies = service_of(client).resources.body_memory
    waiting = asyncio.create_task(client.post("/v1/inference?wait=20", json=make_body(), headers={"X-API-Key": "red"}))
    async with asyncio.timeout(20):
        while not (application.editors.tasks and bodies.held == 0):
            assert not waiting.done()
            await asyncio.sleep(0.01)
    application.editors.gate.set()
    answer = await waiting
    assert (answer.status_code, answer.json()["status"]) == (200, "succeeded")


async def test_waiting_for_a_result_keeps_no_copy_of_the_body(start, make_body):
    """Of a body of 20 MB nothing is left while its request waits."""
    client = await start()
    application: Application = client.application
    application.editors.gate.clear()
    content = iter([json.dumps(make_body() | {"unknown": "x" * 20_000_000}).encode()])

    async def sent() -> AsyncIterator[bytes]:
        for part in content:
            yield part
            del part

    tracemalloc.start()
    try:
        headers = {"X-API-Key": "red", "Content-Type": "application/json"}
        waiting = asyncio.create_task(client.post("/v1/inference?wait=20", content=sent(), headers=headers))
        async with asyncio.timeout(20):
            while not application.editors.tasks or service_of(client).resources.body_memory.held:
                assert not waiting.done()
                await asyncio.sleep(0.01)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        application.editors.gate.set()
    assert (await waiting).json()["status"] == "succeeded"
    assert held < 10_000_000
