"""The Python client where connections break: no request is made twice, none is lost, and no event either."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from edits_client import AsyncClient, Client, Options, Retries
from edits_client._async import job as async_job
from edits_client.events import Ended, Event, ImageFinished, Started, Step
from httpx2 import AsyncHTTPTransport, Limits

from serve_app.commands.ports import free_port
from serve_app.config import AppConfig, read_ingress_settings
from serve_app.tasks import EditDone, EditEvent, EditTask
from tests.unit.chaos import FATES, Proxy
from tests.unit.conftest import IMAGE, Application, InstantEditors
from tests.unit.serving import Served, serving, wait_until

SUBMITS = 200
RETRIES = Retries(for_s=60.0, first_s=0.01, longest_s=0.2)
OPTIONS: Options = {"model": "qwen_image_edit", "loras": ["job/lora.safetensors"], "steps": 1, "size": "64x64"}
PRESET = {"model": "qwen_image_edit", "loras": [{"path": "job/lora.safetensors"}], "sample_steps": 12, "size": "64x64"}


class PacedEditors(InstantEditors):
    """Editors that need time for each step."""

    pause = 0.0

    async def edit(self, task: EditTask) -> AsyncGenerator[EditEvent]:
        async for event in super().edit(task):
            if not isinstance(event, EditDone):
                await asyncio.sleep(self.pause)
            yield event


def application_of(config: AppConfig) -> Application:
    application = Application(config, PacedEditors)
    application.service.reconfigure(*read_ingress_settings({"presets": {"house": PRESET}}))
    return application


@pytest.fixture
def served(config: AppConfig) -> Iterator[Served]:
    with serving(application_of(config)) as served:
        yield served


def proxy_of(served: Served, seed: int, **fates: int) -> Proxy:
    address = urlsplit(served.url)
    return Proxy(str(address.hostname), int(address.port or 0), seed, fates or FATES)


async def test_each_of_200_submits_is_made_once(served, control_png):
    prompts = [f"prompt {number}" for number in range(SUBMITS)]
    # A connection per call, so that the proxy treats each call badly.
    transport = AsyncHTTPTransport(limits=Limits(max_connections=10, max_keepalive_connections=0))
    proxy = proxy_of(served, seed=1)
    async with proxy.running(), AsyncClient(proxy.url, retries=RETRIES, transport=transport) as client:
        jobs = await asyncio.gather(*(client.submit(control_png, prompt, **OPTIONS) for prompt in prompts))
        # The last ones, whose results come over the same proxy.
        for job in jobs[-20:]:
            [image] = await job.result(timeout=120)
            assert (image.data, image.request_id) == (IMAGE, job.id)
    async with AsyncClient(served.url) as direct:
        for job in jobs:
            assert (await direct.job(job.id).wait()).status == "succeeded"
    made = Counter(task.plan.prompt for task in served.application.editors.tasks)
    assert made == Counter(prompts)
    assert len({job.id for job in jobs}) == SUBMITS
    # The proxy has done each of its deeds, and often.
    assert all(proxy.happened[fate] > 10 for fate in FATES), proxy.happened


async def watch(client: AsyncClient, request_id: str) -> list[Event]:
    return [event async for event in client.job(request_id).events()]


def finished(events: list[Event]) -> list[tuple[Any, ...]]:
    """The images that were reported."""
    return [(each.image, each.seed, each.width, each.format) for each in events if isinstance(each, ImageFinished)]


def without_urls(event: Event) -> dict[str, Any]:
    """An end. The URLs of its images begin with the address under which a client knows the service."""
    assert isinstance(event, Ended)
    urls: Any = {"__all__": {"url"}}
    return event.result.model_dump(exclude={"outputs": {"images": urls}, "metadata": {"control_images": urls}})


@pytest.mark.parametrize("seed", [1, 2])
async def test_broken_streams_lose_and_repeat_no_event(served, control_png, seed):
    served.application.editors.pause = 0.03
    # Streams are cut, often, so that each watcher needs several. The first event ends after about 300 bytes.
    proxy = proxy_of(served, seed, **{"answer cut": 80, "503": 3, "refused": 3, "slow": 3})
    proxy.cuts = 200, 2000
    async with proxy.running(), AsyncClient(served.url) as direct, AsyncClient(proxy.url, retries=RETRIES) as client:
        job = await direct.submit(control_png, "x", preset="house", seeds=list(range(8)))
        watching = [watch(direct, job.id), *(watch(client, job.id) for _ in range(4))]
        undisturbed, *disturbed = await asyncio.gather(*watching)
    assert len(finished(undisturbed)) == 8
    for events in disturbed:
        # In the order in which they were finished. A watcher whose streams broke too often knows only the result.
        asked_status = any(isinstance(event, Step) and event.image is None for event in events)
        assert finished(events) == (sorted(finished(undisturbed)) if asked_status else finished(undisturbed))
        assert [type(event) for event in events].count(Started) <= 1
        assert [isinstance(event, Ended) for event in events].index(True) == len(events) - 1
        assert without_urls(events[-1]) == without_urls(undisturbed[-1])
        for image in range(8):
            steps = [event.step for event in events if isinstance(event, Step) and event.image == image]
            assert steps == sorted(steps)
    assert proxy.happened["answer cut"] > 2 * len(disturbed)


async def test_where_no_stream_gets_through_the_status_is_asked(served, control_png, monkeypatch):
    """A proxy that answers streams with something else: the events are made from the status."""
    monkeypatch.setattr(async_job, "POLL_S", 0.05)
    served.application.editors.pause = 0.05

    async def without_streams(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"].endswith("/events"):
            await send({"type": "http.response.start", "status": 502, "headers": []})
            await send({"type": "http.response.body", "body": b"no streams here"})
            return
        await served.application.app(scope, receive, send)

    served.server.config.loaded_app = without_streams
    async with AsyncClient(served.url, retries=RETRIES) as client:
        job = await client.submit(control_png, "x", preset="house", seeds=[5, 6])
        events = await watch(client, job.id)
    assert [(image, seed) for image, seed, *_ in finished(events)] == [(0, 5), (1, 6)]
    assert [type(event) for event in events].count(Started) == 1
    steps = [event.step for event in events if isinstance(event, Step)]
    assert steps == sorted(steps)
    assert isinstance(events[-1], Ended)


def test_restart_of_the_service_is_waited_for(config, control_png):
    port = free_port()
    happened: list[Event] = []
    client = Client(f"http://127.0.0.1:{port}", retries=RETRIES)
    with client:
        with serving(application_of(config), port) as before:
            before.hold_back()
            job = client.submit(control_png, "x", preset="house", seeds=[1, 2, 3])
            watching = threading.Thread(target=lambda: happened.extend(job.events()))
            watching.start()
            wait_until(lambda: before.application.editors.tasks)
        submitted: list[Any] = []
        # Sent while nobody is there.
        later = threading.Thread(target=lambda: submitted.append(client.submit(control_png, "y", preset="house")))
        later.start()
        time.sleep(1.0)
        with serving(application_of(config), port) as after:
            watching.join(60)
            later.join(60)
            assert not watching.is_alive()
            assert sorted(image for image, *_ in finished(happened)) == [0, 1, 2]
            assert isinstance(happened[-1], Ended)
            assert submitted[0].result(timeout=60)
            prompts = [task.plan.prompt for task in after.application.editors.tasks]
            assert Counter(prompts) == {"x": 3, "y": 1}
