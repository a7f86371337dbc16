"""A failed request says why in words and in a code, wherever it is reported."""

import json

import pytest

from serve_app.errors import EditorLost, LoraChanged, OutOfMemory, UnusableResult, describe
from serve_app.intake.answers.bodies import Links
from serve_app.intake.answers.events import events_since, payload_of
from serve_app.jobs import tables
from serve_app.jobs.records import Delivery, HistoryFilter, WebhookTarget
from serve_app.jobs.store import JobStore
from serve_app.tasks import Status, WebhookEvent
from tests.unit.conftest import ON_BOTH_DATABASES
from tests.unit.test_http_contract import finished
from tests.unit.test_jobs import DONE, claim, is_stored, new

pytestmark = ON_BOTH_DATABASES

CHANGED = LoraChanged("the file was changed", {"lora_path": "a.safetensors"})


@pytest.fixture
def store(bench) -> JobStore:
    return bench.store


def test_result_status_events_and_history_carry_the_code(application, client, make_body):
    application.editors.errors = [CHANGED]
    result = finished(client, make_body())
    expected = {
        "error": "prompt 0: the file was changed",
        "error_code": "LORA_CHANGED",
        "error_details": {"prompt_index": 0, "lora_path": "a.safetensors"},
    }
    status = client.get(f"/v1/requests/{result['request_id']}/status").json()
    for answer in (result, status):
        assert {key: answer[key] for key in expected} == expected
    stream = client.get(f"/v1/requests/{result['request_id']}/events").text
    assert '"error_code":"LORA_CHANGED"' in stream.split("event: failed")[1].replace(" ", "")


def test_request_that_did_not_fail_has_no_code(client, make_body):
    result = finished(client, make_body())
    assert (result["error"], result["error_code"], result["error_details"]) == (None, None, None)


async def test_webhook_and_history_carry_the_code(store):
    hook = WebhookTarget("http://h", ("failed",), "http://b")
    record = await store.requests.create(new(webhook=hook, tenant="t"), is_stored)
    [mine] = await claim(store)
    await store.queue.fail(mine, describe(CHANGED), 0.0)
    record = await store.requests.get(record.id)
    delivery = Delivery("d", record.id, WebhookEvent.FAILED, None, 0.0, 1, hook)
    payload = payload_of(record, delivery, Links("http://b", True))
    assert (payload["error_code"], payload["error_details"]["prompt_index"]) == ("LORA_CHANGED", 0)
    [row] = await store.requests.history(HistoryFilter(tenant="t"), None, 1)
    assert (row.error_code, row.error_details["lora_path"]) == ("LORA_CHANGED", "a.safetensors")


async def test_the_first_prompt_that_failed_gives_the_request_its_code(store):
    record = await store.requests.create(new(3), is_stored)
    first, second, third = await claim(store, limit=3)
    await store.queue.fail(third, describe(OutOfMemory("too large")), 0.0)
    await store.queue.fail(second, describe(UnusableResult("of one colour", {"colour": "black"})), 0.0)
    await store.queue.succeed(first, DONE, is_stored)
    ended = await store.requests.get(record.id)
    assert ended.error == "prompt 1: of one colour; prompt 2: too large"
    assert (ended.error_code, ended.error_details) == ("UNUSABLE_RESULT", {"prompt_index": 1, "colour": "black"})
    assert [image.error_code for image in ended.images] == [None, "UNUSABLE_RESULT", "OUT_OF_MEMORY"]


async def test_error_of_a_request_is_short_however_many_prompts_failed_at_whatever_length(store):
    record = await store.requests.create(new(45), is_stored)
    changed = describe(LoraChanged("x" * 7_900, {"lora_path": "a" * 7_900, "keys": ["k" * 7_900]}))
    for mine in await claim(store, limit=45):
        await store.queue.fail(mine, changed, 0.0)
    ended = await store.requests.get(record.id)
    assert ended.error.startswith("prompt 0: xxx")
    assert ended.error.endswith("...; and 25 more")
    assert ended.error.count("prompt ") == 20
    assert len(ended.error) < 21_000
    assert len(json.dumps(ended.error_details)) < 2_200
    assert len(ended.images[44].error) == 1_000


async def test_texts_that_a_database_cannot_take_are_escaped(store):
    record = await store.requests.create(new(), is_stored)
    [mine] = await claim(store)
    await store.queue.fail(mine, describe(LoraChanged("a\0b\ud800", {"lora_path": "c\0\ud800"})), 0.0)
    ended = await store.requests.get(record.id)
    assert ended.error == "prompt 0: a\\0b\\ud800"
    assert ended.error_details["lora_path"] == "c\\0\\ud800"


async def test_expired_request_says_so_and_has_no_start_if_nothing_had_begun(store):
    record = await store.requests.create(new(deadline_s=1e-3), is_stored)
    await claim(store)
    assert await store.queue.expire()
    ended = await store.requests.get(record.id)
    assert (ended.error_code, ended.images[0].error_code) == ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED")
    assert ended.error_details == {"deadline_s": pytest.approx(1e-3, rel=0.1)}
    assert (ended.started_at, ended.finished_at is not None) == (None, True)


async def test_image_that_lost_all_attempts_has_the_code_of_the_last_one(bench):
    bench.editors.errors = [EditorLost("gone")] * 9
    record = await bench.store.requests.create(new(), is_stored)
    async with bench.dispatching():
        record = await bench.ended(record.id)
    assert record.error_code == "EDITOR_LOST"


async def test_unforeseen_error_is_an_internal_error(bench):
    bench.editors.errors = [ValueError("a secret of the inside")]
    record = await bench.store.requests.create(new(), is_stored)
    async with bench.dispatching():
        record = await bench.ended(record.id)
    assert (record.error_code, record.error_details) == ("INTERNAL_ERROR", {"prompt_index": 0})


async def test_image_that_is_refused_before_its_first_step_has_a_start_event(store):
    hook = WebhookTarget("http://h", ("started", "failed"), "http://b")
    record = await store.requests.create(new(webhook=hook), is_stored)
    [mine] = await claim(store)
    await store.queue.fail(mine, describe(CHANGED), 0.0)
    record = await store.requests.get(record.id)
    assert (record.status, record.started_at is not None) == (Status.FAILED, True)
    assert [event.event for event in events_since(record, -1, Links("", True))] == ["started", "failed"]
    assert [delivery.event for delivery in await store.webhooks.take(9, 60, 9)] == ["started", "failed"]


async def test_failure_that_the_previous_version_recorded_has_no_code(store):
    """That version knows no codes, and may run next to this one."""
    record = await store.requests.create(new(2), is_stored)
    first, second = await claim(store, limit=2)
    await store.queue.fail(first, describe(CHANGED), 0.0)
    async with store._database.writing() as connection:
        await connection.execute(tables.images.update().values(error_code=None, error_details=None))
        await connection.execute(tables.requests.update().values(row_bytes=None))
    await store.queue.succeed(second, DONE, is_stored)
    ended = await store.requests.get(record.id)
    assert (ended.error, ended.error_code, ended.error_details) == ("prompt 0: the file was changed", None, None)
