"""Metrics, traces and ids in log lines, without Ray."""

import asyncio
import io
import json
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest
from opentelemetry import trace
from starlette.testclient import TestClient

from serve_app.api.app import create_app
from serve_app.config import AppConfig, WebhooksConfig
from serve_app.engine.adapter_cache import AdapterCache
from serve_app.errors import EditorLost, OutOfMemory, StorageFailed
from serve_app.intake.service import Service
from serve_app.jobs.store import JobStore
from serve_app.storage.artifacts import Artifacts
from serve_app.tasks import Priority
from serve_app.telemetry import tracing
from serve_app.telemetry.metrics import (
    ATTEMPTS,
    LEASES_LOST,
    REQUESTS,
    SUBMISSIONS,
    SWEEPS,
    SWEPT,
    WEBHOOKS,
    Kind,
    Metric,
)
from serve_app.workers.backlog_report import BacklogReport
from serve_app.workers.dispatcher import Dispatcher
from serve_app.workers.sweeper import Sweeper
from serve_app.workers.webhooks import Deliverer
from tests.unit.conftest import ON_BOTH_DATABASES, InstantEditors
from tests.unit.receivers import LOOPBACK, Receiver, announce, payload
from tests.unit.test_jobs import DONE, MODEL, claim, is_stored, new

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Recorder:
    """A meter that adds counters up and keeps what gauges became. Refuses tags that are not declared."""

    def __init__(self) -> None:
        self.values: Counter[tuple[str, ...]] = Counter()

    def record(self, metric: Metric, value: float = 1.0, **tags: str) -> None:
        assert tags.keys() == metric.tags.keys()
        assert all(tags[key] in known for key, known in metric.tags.items() if known)
        key = (metric.name, *tags.values())
        self.values[key] = value if metric.kind == Kind.GAUGE else self.values[key] + value

    def of(self, metric: Metric) -> dict[tuple[str, ...], float]:
        return {key[1:]: value for key, value in self.values.items() if key[0] == metric.name}


class Observed:
    """The HTTP application with instant editors and a meter that keeps what is recorded."""

    def __init__(self, config: AppConfig) -> None:
        self.meter = Recorder()
        self.editors = InstantEditors(Artifacts(config.artifacts_url))
        self.service = Service(config, self.editors, self._editor_count, self.meter)
        self.client = TestClient(create_app(self.service))

    async def _editor_count(self) -> dict[str, int]:
        return {"qwen_image_edit": 1}

    def post(self, body: dict, wait: float = 30, **headers: str) -> dict:
        return self.client.post("/v1/inference", params={"wait": wait}, json=body, headers=headers).json()


@pytest.fixture
def observed(config: AppConfig) -> Iterator[Observed]:
    quick = config.model_copy(update={"jobs": config.jobs.model_copy(update={"lease_s": 0.5})})
    observed = Observed(quick)
    with observed.client:
        yield observed


def test_submissions_are_counted_by_outcome(observed, make_body):
    observed.post(make_body(), **{"idempotency-key": "one"})
    observed.post(make_body(), **{"idempotency-key": "one"})
    observed.post(make_body(model="flux"))
    observed.post(make_body(loras=[{"path": "job/none.safetensors"}]))
    assert observed.meter.of(SUBMISSIONS) == {
        ("qwen_image_edit", "ACCEPTED"): 1,
        ("qwen_image_edit", "REPEATED"): 1,
        ("none", "MODEL_NOT_FOUND"): 1,
        ("qwen_image_edit", "LORA_NOT_FOUND"): 1,
    }


def test_attempts_and_requests_are_counted_by_outcome(observed, make_body):
    observed.editors.errors += [EditorLost("gone"), OutOfMemory("too large")]
    assert observed.post(make_body())["status"] == "failed"
    assert observed.post(make_body())["status"] == "succeeded"
    observed.editors.gate.clear()
    request_id = observed.post(make_body(), wait=0)["request_id"]
    observed.client.delete(f"/v1/requests/{request_id}")
    observed.client.delete(f"/v1/requests/{request_id}")
    expected = {("qwen_image_edit", how): 1 for how in ("failed", "succeeded", "canceled")}
    assert observed.meter.of(REQUESTS) == expected
    attempts = observed.meter.of(ATTEMPTS)
    assert {key[1]: value for key, value in attempts.items() if key[1] != "stopped"} == {
        "EDITOR_LOST": 1,
        "OUT_OF_MEMORY": 1,
        "made": 1,
    }


@ON_BOTH_DATABASES
async def test_a_claim_that_is_taken_over_is_a_lost_lease_and_stays_in_its_trace(config):
    jobs = config.jobs.model_copy(update={"lease_s": 0.3})
    store, meter = JobStore(jobs), Recorder()
    await store.open()
    record = await store.requests.create(new(traceparent=f"00-{TRACE}-{PARENT}-01"), is_stored)
    [lost] = await claim(store)
    assert not lost.was_lost

    async def editor_count() -> dict[str, int]:
        return {MODEL: 1}

    artifacts = Artifacts(config.artifacts_url)
    editors = InstantEditors(artifacts)
    running = asyncio.create_task(Dispatcher(store, editors, artifacts, jobs, editor_count, meter).run())
    async with asyncio.timeout(20):
        while not (await store.requests.get(record.id)).status.ended:
            await asyncio.sleep(0.02)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert meter.of(LEASES_LOST) == {(MODEL,): 1}
    assert [task.traceparent.split("-")[1] for task in editors.tasks] == [TRACE]
    await store.close()


async def test_attempts_are_counted_for_the_editors_that_make_them(config):
    """Alerts compare attempts with the claimed images of the same editors: a tier in fp8 has its own."""
    group, store, meter = f"{MODEL}-fast", JobStore(config.jobs), Recorder()
    await store.open()
    [image] = (request := new()).images
    image = replace(image, plan=replace(image.plan, quality="fast", quantization="fp8"))
    record = await store.requests.create(replace(request, images=(image,)), is_stored)

    async def editor_count() -> dict[str, int]:
        return {group: 1}

    artifacts = Artifacts(config.artifacts_url)
    dispatcher = Dispatcher(store, InstantEditors(artifacts), artifacts, config.jobs, editor_count, meter)
    running = asyncio.create_task(dispatcher.run())
    async with asyncio.timeout(20):
        while not (await store.requests.get(record.id)).status.ended:
            await asyncio.sleep(0.02)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert meter.of(ATTEMPTS) == {(group, "made"): 1}
    assert meter.of(REQUESTS) == {(MODEL, "succeeded"): 1}
    await store.close()


@ON_BOTH_DATABASES
async def test_the_backlog_is_what_waits_and_what_it_takes(config):
    store = JobStore(config.jobs)
    await store.open()
    await store.requests.create(new(3), is_stored)
    await store.requests.create(new(2, priority=Priority.BULK), is_stored)
    [mine] = await claim(store)
    await store.queue.succeed(mine, DONE, is_stored)
    [_] = await claim(store)
    meter = Recorder()

    async def editor_count() -> dict[str, int]:
        return {MODEL: 4}

    report = asyncio.create_task(BacklogReport(store.queue.backlogs, editor_count, meter).run())
    async with asyncio.timeout(10):
        while ("edits_waiting_gpu_seconds", MODEL) not in meter.values:
            await asyncio.sleep(0.02)
    report.cancel()
    assert meter.values["edits_editors", MODEL] == 4
    assert meter.values["edits_claimed", MODEL] == 1
    assert [meter.values["edits_waiting", MODEL, priority] for priority in Priority] == [1, 2]
    assert 0 < meter.values["edits_oldest_waiting_seconds", MODEL] < 60
    # All are as large as the one that was measured.
    assert meter.values["edits_waiting_gpu_seconds", MODEL] == pytest.approx(3 * DONE.timings["generate"])
    await store.close()


async def test_a_sweep_is_counted_with_what_it_deleted(config):
    store, meter = JobStore(config.jobs), Recorder()
    await store.open()
    record = await store.requests.create(new(), is_stored)
    await store.requests.cancel(record.id)
    jobs = config.jobs.model_copy(update={"keep_s": 1e-6})
    await Sweeper(store, Artifacts(config.artifacts_url), jobs, meter).sweep()
    assert meter.of(SWEEPS) == {("finished",): 1}
    assert meter.of(SWEPT)[("requests",)] == 1
    await store.close()


async def test_a_sweep_of_storage_that_cannot_be_listed_has_not_finished(config):
    store, meter = JobStore(config.jobs), Recorder()
    await store.open()
    a_file_where_a_folder_should_be = __file__
    with pytest.raises(StorageFailed):
        await Sweeper(store, Artifacts(a_file_where_a_folder_should_be), config.jobs, meter).sweep()
    assert meter.of(SWEEPS) == {}
    await store.close()


async def test_posts_to_webhooks_are_counted_by_outcome(config, make_plan, web_server):
    store, meter, receiver = JobStore(config.jobs), Recorder(), Receiver()
    await store.open()
    receiver.statuses = [200, 410, 500]
    url = await web_server(receiver.answer)
    deliverer = Deliverer(store.webhooks, WebhooksConfig.model_validate(LOOPBACK), payload, meter)
    running = asyncio.create_task(deliverer.run())
    for posts in range(1, 4):
        await announce(store, make_plan, url)
        async with asyncio.timeout(20):
            while sum(meter.of(WEBHOOKS).values()) < posts:
                await asyncio.sleep(0.02)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert meter.of(WEBHOOKS) == {("delivered",): 1, ("given_up",): 1, ("retried",): 1}
    await store.close()


def test_an_adapter_that_makes_room_is_counted():
    class Sized:
        size_bytes = 10

    cache: AdapterCache[Sized] = AdapterCache(25)
    for name in "abc":
        cache.get(name, Sized)
    assert cache.evictions == 1


def test_a_clients_trace_continues_in_the_editor(observed, make_body):
    observed.post(make_body(), traceparent=f"00-{TRACE}-{PARENT}-01")
    observed.post(make_body())
    first, second = observed.editors.tasks
    assert first.traceparent.split("-")[1] == TRACE
    assert second.traceparent is None


def test_an_invalid_traceparent_is_ignored(observed, make_body):
    assert observed.post(make_body(), traceparent="00-nonsense")["status"] == "succeeded"
    assert observed.editors.tasks[0].traceparent is None


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What `serve_app` logs, as JSON lines of the message and the ids."""

    class AsJson(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            ids = (getattr(record, name, None) for name in ("edit_request_id", "trace_id"))
            return json.dumps([record.getMessage(), *ids])

    stream, logger, plain = io.StringIO(), logging.getLogger("serve_app"), logging.getLogRecordFactory()
    handler, level = logging.StreamHandler(stream), logger.level
    handler.setFormatter(AsJson())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    tracing.add_ids_to_logs()
    yield stream
    logging.setLogRecordFactory(plain)
    logger.setLevel(level)
    logger.removeHandler(handler)


def test_log_lines_of_a_request_have_its_ids(observed, make_body, lines):
    observed.editors.errors.append(EditorLost("gone"))
    request_id = observed.post(make_body(), traceparent=f"00-{TRACE}-{PARENT}-01")["request_id"]
    logged = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert len(logged) >= 3
    assert {tuple(ids) for _, *ids in logged} == {(request_id, TRACE)}


async def test_concurrent_tasks_keep_their_ids_apart():
    async def work(number: int) -> tuple[str | None, int]:
        with tracing.for_request(f"{number:032x}", f"00-{number:032x}-{PARENT}-01"):
            await asyncio.sleep(0)
            seen = await asyncio.to_thread(tracing.traceparent)
            return seen, trace.get_current_span().get_span_context().trace_id

    for number, (seen, trace_id) in enumerate(await asyncio.gather(*map(work, range(1, 20))), 1):
        assert trace_id == number
        assert seen == f"00-{number:032x}-{PARENT}-01"
