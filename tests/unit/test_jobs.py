"""The store's promises: claims, leases, generations, ends. On both databases."""

import asyncio
import uuid
from dataclasses import replace

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from serve_app.config import JobsConfig
from serve_app.errors import (
    EditorLost,
    FilesGone,
    IdempotencyConflict,
    LoraNotFound,
    OutOfMemory,
    QueueFull,
    RequestNotFound,
    describe,
)
from serve_app.jobs import tables
from serve_app.jobs.database import Database
from serve_app.jobs.records import HistoryFilter, NewImage, NewRequest, WebhookTarget
from serve_app.jobs.store import JobStore
from serve_app.policy.routing import UNMEASURED_WORK_S
from serve_app.tasks import AdapterUse, EditDone, EditPlan, Priority, Status
from tests.unit.conftest import ON_BOTH_DATABASES

pytestmark = ON_BOTH_DATABASES

PLAN = EditPlan(
    "qwen_image_edit", "reference", "p", "", 64, 64, 8, 4.0, 42, "jpeg", ("ab",), (AdapterUse("i", "p", "u", 0.5),)
)
DONE = EditDone("pictures/cd.jpeg", "/x.jpeg", "jpeg", 64, 64, 42, 3, "cd", {"generate": 2.0}, {"k": [1, 2]})
MODEL = "qwen_image_edit"
TOO_LARGE = describe(OutOfMemory("too large", {"gib": 80}))


def new(images: int = 1, **fields: object) -> NewRequest:
    request = NewRequest(uuid.uuid4().hex, "", MODEL, (NewImage(PLAN, 10.0),) * images, deadline_s=60)
    return replace(request, **fields)


def is_stored(key: str) -> bool:
    return True


@pytest.fixture
async def open_store(database_url):
    """Open a store on one and the same database: `open_store(lease_s=1)`."""
    stores = []

    async def open_store(**config: object) -> JobStore:
        store = JobStore(JobsConfig.model_validate({"database_url": database_url} | config))
        await store.open()
        stores.append(store)
        return store

    yield open_store
    for store in stores:
        await store.close()


@pytest.fixture
async def store(open_store):
    return await open_store()


async def claim(store: JobStore, owner: str = "a", limit: int = 1, capacity: int = 1000):
    return await store.queue.claim(owner, MODEL, capacity, limit)


async def status(store: JobStore, request_id: str) -> Status:
    return (await store.requests.get(request_id)).status


async def test_the_migrations_make_the_tables(open_store, empty_database_url):
    await open_store(database_url=empty_database_url)
    database = Database(empty_database_url)
    async with database.reading() as connection:
        differences = await connection.run_sync(
            lambda c: compare_metadata(MigrationContext.configure(c, opts={"compare_type": True}), tables.metadata)
        )
    await database.close()
    assert differences == []


async def test_previous_version_works_while_the_next_one_rolls_out(open_store, database_url):
    await open_store()
    database = Database(database_url)
    async with database.writing() as connection:
        await connection.execute(sa.text("ALTER TABLE requests ADD COLUMN of_the_next_version TEXT"))
        await connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    await database.close()
    restarted = await open_store()
    record = await restarted.requests.create(new(), is_stored)
    [mine] = await claim(restarted)
    assert await restarted.queue.succeed(mine, DONE, is_stored)
    assert await status(restarted, record.id) == Status.SUCCEEDED


async def test_any_number_may_open_a_new_database_at_once(open_store, empty_database_url):
    stores = await asyncio.gather(*(open_store(database_url=empty_database_url) for _ in range(6)))
    record = await stores[0].requests.create(new(), is_stored)
    assert await stores[5].requests.get(record.id) == record


async def test_what_is_stored_is_read_back(store):
    asked = new(2, notes={"ignored": ["fps"]}, priority=Priority.BULK, tenant="t")
    record = await store.requests.create(asked, is_stored)
    assert await store.requests.get(record.id) == record
    assert (record.id, record.tenant, record.priority, record.notes) == (asked.id, "t", "bulk", {"ignored": ["fps"]})
    assert [image.plan for image in record.images] == [PLAN, PLAN]


@pytest.mark.parametrize("request_id", ["x", "0" * 32, "0" * 31 + "\0", "'; --"])
async def test_unknown_request(store, request_id):
    for ask in (store.requests.get, store.requests.state):
        with pytest.raises(RequestNotFound):
            await ask(request_id)


async def test_error_may_quote_anything_that_a_client_sent(store):
    record = await store.requests.create(new(), is_stored)
    [mine] = await claim(store)
    error = LoraNotFound("no file 'a\0b\ud800'", {"lora_path": "a\0b\ud800", "among": ["\0"]})
    assert await store.queue.fail(mine, describe(error), 0.0)
    ended = await store.requests.get(record.id)
    assert ended.error == "prompt 0: no file 'a\\0b\\ud800'"
    assert ended.error_details == {"prompt_index": 0, "lora_path": "a\\0b\\ud800", "among": ["\\0"]}


async def test_image_is_claimed_once(store):
    await store.requests.create(new(), is_stored)
    assert len(await claim(store, "a", 10)) == 1
    assert await claim(store, "b", 10) == []


async def test_two_stores_never_claim_the_same(open_store):
    stores = [await open_store(), await open_store()]
    await stores[0].requests.create(new(40), is_stored)
    taken = await asyncio.gather(*(claim(stores[i % 2], str(i % 2), 3) for i in range(20)))
    keys = [(claim.task.request_id, claim.task.index) for claims in taken for claim in claims]
    assert len(keys) == len(set(keys)) == 40


async def test_no_more_are_claimed_than_editors_can_use_whoever_claims(store):
    await store.requests.create(new(10), is_stored)
    assert len(await claim(store, "a", 10, capacity=3)) == 3
    assert await claim(store, "b", 10, capacity=3) == []
    assert len(await claim(store, "b", 10, capacity=4)) == 1


async def test_lost_lease_is_claimed_by_another_who_alone_may_write(open_store):
    store = await open_store(lease_s=0.05)
    record = await store.requests.create(new(), is_stored)
    [lost] = await claim(store, "a")
    assert await store.queue.progress(lost, 3)
    await asyncio.sleep(0.1)
    [won] = await claim(store, "b")
    assert (won.generation, won.reasons) == (2, ("its dispatcher was lost",))
    assert await store.queue.held("a") == set()
    assert not await store.queue.progress(lost, 4)
    assert not await store.queue.succeed(lost, DONE, is_stored)
    assert not await store.queue.retry(lost, ["late"], 0.0)
    assert not await store.queue.fail(lost, TOO_LARGE, 0.0)
    assert await store.queue.succeed(won, DONE, is_stored)
    assert await status(store, record.id) == Status.SUCCEEDED


async def test_renewed_lease_is_not_lost(open_store):
    store = await open_store(lease_s=0.3)
    await store.requests.create(new(), is_stored)
    [mine] = await claim(store, "a")
    for _ in range(6):
        await asyncio.sleep(0.1)
        await store.queue.renew("a", [mine.task])
    assert await claim(store, "b") == []


async def test_released_work_is_free_at_once_and_counts_no_attempt(store):
    await store.requests.create(new(), is_stored)
    [mine] = await claim(store, "a")
    await store.queue.progress(mine, 1)
    await store.queue.release("a")
    [again] = await claim(store, "b")
    assert again.reasons == ()


async def test_lost_before_its_first_step_counts_no_attempt(open_store):
    store = await open_store(lease_s=0.01)
    await store.requests.create(new(), is_stored)
    await claim(store, "a")
    await asyncio.sleep(0.05)
    [again] = await claim(store, "b")
    assert again.reasons == ()


async def test_in_progress_never_goes_back_and_started_at_is_the_first_start(store):
    record = await store.requests.create(new(), is_stored)
    [mine] = await claim(store)
    await store.queue.progress(mine, 0)
    started = (await store.requests.get(record.id)).started_at
    await store.queue.retry(mine, ["lost"], 0.0)
    assert await status(store, record.id) == Status.IN_PROGRESS
    [again] = await claim(store)
    await asyncio.sleep(0.01)
    await store.queue.progress(again, 0)
    assert (await store.requests.get(record.id)).started_at == started
    assert again.reasons == ("lost",)


async def test_request_ends_with_its_last_image(store):
    record = await store.requests.create(new(3), is_stored)
    claims = await claim(store, limit=3)
    await store.queue.succeed(claims[0], DONE, is_stored)
    await store.queue.fail(claims[1], TOO_LARGE, 1.0)
    assert await status(store, record.id) == Status.IN_PROGRESS
    await store.queue.succeed(claims[2], DONE, is_stored)
    ended = await store.requests.get(record.id)
    assert (ended.status, ended.error) == (Status.FAILED, "prompt 1: too large")
    assert [image.result for image in ended.images] == [DONE, None, DONE]
    assert ended.started_at is not None
    assert ended.finished_at >= ended.started_at


async def test_ended_image_is_written_no_more(store):
    await store.requests.create(new(), is_stored)
    [mine] = await claim(store)
    await store.queue.succeed(mine, DONE, is_stored)
    assert not await store.queue.fail(mine, TOO_LARGE, 0.0)
    assert await claim(store, "b") == []


async def test_image_that_is_no_longer_stored_is_not_reported(store):
    record = await store.requests.create(new(), is_stored)
    [mine] = await claim(store)
    with pytest.raises(EditorLost):
        await store.queue.succeed(mine, DONE, lambda key: False)
    assert (await store.requests.get(record.id)).images[0].result is None


async def test_request_whose_files_were_deleted_meanwhile_is_not_accepted(store):
    asked = new(files={"controls/ab": 3})
    with pytest.raises(FilesGone):
        await store.requests.create(asked, lambda key: False)
    with pytest.raises(RequestNotFound):
        await store.requests.get(asked.id)
    assert (await store.requests.create(asked, lambda key: key == "controls/ab")).id == asked.id


async def test_cancelled_caller_leaves_no_lock_behind(open_store):
    store, other = await open_store(), await open_store()
    for _ in range(20):
        creating = asyncio.create_task(store.requests.create(new(), is_stored))
        await asyncio.sleep(0)
        creating.cancel()
        with pytest.raises(asyncio.CancelledError):
            await creating
    async with asyncio.timeout(2):
        await other.requests.create(new(), is_stored)


async def test_store_survives_being_closed(open_store):
    record = await (await open_store()).requests.create(new(), is_stored)
    again = await open_store()
    assert await again.requests.get(record.id) == record
    assert len(await claim(again)) == 1


async def test_cancelled_request_ends_at_once_and_its_claims_are_lost(store):
    record = await store.requests.create(new(3), is_stored)
    done, running = await claim(store, limit=2)
    await store.queue.succeed(done, DONE, is_stored)
    await store.queue.progress(running, 2)
    await store.requests.cancel(record.id)
    ended = await store.requests.get(record.id)
    assert ended.status == Status.CANCELED
    assert [image.status for image in ended.images] == [Status.SUCCEEDED, Status.CANCELED, Status.CANCELED]
    assert await store.queue.held("a") == set()
    assert not await store.queue.succeed(running, DONE, is_stored)
    assert await claim(store) == []
    await store.requests.cancel(record.id)
    assert await store.requests.get(record.id) == ended


async def test_request_past_its_deadline_fails_and_keeps_what_is_finished(store):
    record = await store.requests.create(new(2, deadline_s=1.5), is_stored)
    patient = await store.requests.create(new(), is_stored)
    [done] = await claim(store)
    await store.queue.succeed(done, DONE, is_stored)
    assert await store.queue.expire() == {}
    await asyncio.sleep(1.6)
    assert await store.queue.expire() == {record.id: MODEL}
    ended = await store.requests.get(record.id)
    assert (ended.status, ended.error) == (Status.FAILED, "it was not finished within its deadline of 1.5 s")
    assert [image.result for image in ended.images] == [DONE, None]
    assert await status(store, patient.id) == Status.IN_QUEUE


async def test_same_key_and_body_is_the_same_request(store):
    asked = new(idempotency_key="k", body_sha256="1" * 64, tenant="t")
    first = await store.requests.create(asked, is_stored)
    again = await asyncio.gather(
        *(store.requests.create(replace(asked, id=uuid.uuid4().hex), is_stored) for _ in range(5))
    )
    assert {record.id for record in again} == {first.id}
    assert await store.requests.earlier("t", "k", "1" * 64) == first
    assert await store.requests.earlier("another", "k", "1" * 64) is None
    with pytest.raises(IdempotencyConflict):
        await store.requests.create(replace(asked, id=uuid.uuid4().hex, body_sha256="2" * 64), is_stored)
    assert len(await claim(store, limit=10)) == 1


async def test_request_whose_commit_lost_its_answer_is_created_once(store):
    asked = new()
    assert await store.requests.create(asked, is_stored) == await store.requests.create(asked, is_stored)
    assert len(await claim(store, limit=10)) == 1


async def test_full_queue_refuses_and_what_is_claimed_no_longer_counts(open_store):
    store = await open_store(max_queued=5)
    await store.requests.create(new(3, tenant="a"), is_stored, 3)
    with pytest.raises(QueueFull, match="your queue is full: 3 images wait, at most 3 may"):
        await store.requests.create(new(1, tenant="a"), is_stored, 3)
    await store.requests.create(new(2, tenant="b"), is_stored)
    with pytest.raises(QueueFull, match="the queue is full"):
        await store.requests.create(new(1, tenant="c"), is_stored)
    await claim(store)
    await store.requests.create(new(1, tenant="c"), is_stored)


async def test_state_has_position_and_work_left(store):
    first = await store.requests.create(new(2), is_stored)
    second = await store.requests.create(new(3, tenant="t"), is_stored)
    bulk = await store.requests.create(new(1, priority=Priority.BULK), is_stored)
    assert [(await store.requests.state(r.id)).queue_position for r in (first, second, bulk)] == [0, 1, 5]
    state = await store.requests.state(second.id)
    # Two of the first request's and three of its own.
    assert (state.work_left, state.speed) == (50.0, None)
    [mine] = await claim(store)
    await store.queue.progress(mine, 4)
    assert (await store.requests.state(second.id)).work_left == 45.0
    await store.queue.succeed(mine, DONE, is_stored)
    state = await store.requests.state(bulk.id)
    assert (state.queue_position, state.work_left, state.speed) == (4, 50.0, 5.0)


async def test_running_request_has_no_position_and_its_own_work_left(store):
    record = await store.requests.create(new(), is_stored)
    [mine] = await claim(store)
    await store.queue.progress(mine, 6)
    state = await store.requests.state(record.id)
    assert (state.queue_position, state.work_left) == (None, 2.5)


async def test_every_change_has_a_version_of_its_own(store):
    record = await store.requests.create(new(2), is_stored)
    seen = [record.version]

    async def changed() -> None:
        version = (await store.requests.versions([record.id, "x"]))[record.id]
        assert version > seen[-1]
        seen.append(version)

    first, second = await claim(store, limit=2)
    await store.queue.progress(first, 0)
    await changed()
    await store.queue.succeed(first, DONE, is_stored)
    await changed()
    await store.queue.retry(second, ["lost"], 0.0)
    await changed()
    [second] = await claim(store)
    await store.queue.succeed(second, DONE, is_stored)
    await changed()
    ended = await store.requests.get(record.id)
    # So that a watcher who has seen the last image has not seen the end.
    assert ended.images[1].version < ended.version


async def test_usage_is_charged_to_request_and_tenant(store):
    record = await store.requests.create(new(3, tenant="t"), is_stored)
    done, lost, canceled = await claim(store, limit=3)
    await store.queue.succeed(done, DONE, is_stored)
    await store.queue.retry(lost, ["lost"], 0.5)
    await store.requests.cancel(record.id)
    await store.queue.charge(canceled, 0.25)
    assert (await store.requests.get(record.id)).gpu_seconds == 2.75
    [usage] = await store.requests.usage("t")
    assert (usage.gpu_seconds, usage.images) == (2.75, 1)
    assert await store.requests.usage("another") == []


async def test_history_is_filtered_and_paged(store):
    other = replace(PLAN, adapters=(AdapterUse("j", "other.safetensors", "u", 1.0),))
    ids = []
    for i in range(5):
        await asyncio.sleep(0.005)
        asked = replace(new(tenant="t"), images=(NewImage(other if i == 3 else PLAN, 1.0),))
        ids.append((await store.requests.create(asked, is_stored)).id)
    await store.requests.create(new(tenant="another"), is_stored)
    await store.requests.cancel(ids[1])

    async def listed(limit: int = 50, before: tuple[float, str] | None = None, **which: object) -> list[str]:
        rows = await store.requests.history(HistoryFilter(**{"tenant": "t"} | which), before, limit)
        return [row.request_id for row in rows]

    assert await listed() == ids[::-1]
    assert await listed(lora="other.safetensors") == [ids[3]]
    assert await listed(status=Status.CANCELED) == [ids[1]]
    assert await listed(model="x") == []
    assert len(await listed(tenant=None)) == 6
    last = await store.requests.get(ids[2])
    assert await listed(since=last.created_at) == ids[:1:-1]
    assert await listed(until=last.created_at) == ids[1::-1]
    assert await listed(2) == ids[:2:-1]
    assert await listed(2, before=((await store.requests.get(ids[3])).created_at, ids[3])) == [ids[2], ids[1]]


async def test_webhooks_are_written_with_the_change_that_they_report(store):
    hook = WebhookTarget("http://h", ("started", "image", "succeeded"), "http://b")
    record = await store.requests.create(new(webhook=hook), is_stored)
    await store.requests.create(new(), is_stored)
    assert await store.webhooks.take(10, 60, per_host=10) == []
    [mine] = await claim(store)
    await store.queue.progress(mine, 0)
    await store.queue.progress(mine, 1)
    await store.queue.succeed(mine, DONE, is_stored)
    taken = await store.webhooks.take(10, 60, per_host=10)
    assert [(d.event, d.request_id, d.image_index, d.attempts, d.webhook) for d in taken] == [
        ("started", record.id, None, 1, hook),
        ("image", record.id, 0, 1, hook),
        ("succeeded", record.id, None, 1, hook),
    ]
    assert await store.webhooks.take(10, 60, per_host=10) == []


async def test_delivery_without_an_outcome_is_due_again(store):
    await store.requests.create(
        new(webhook=WebhookTarget("http://h", ("canceled",), "http://b"), tenant="t"), is_stored
    )
    [row] = await store.requests.history(HistoryFilter(), None, 1)
    await store.requests.cancel(row.request_id)
    [first] = await store.webhooks.take(10, 0.05, per_host=10)
    await asyncio.sleep(0.1)
    [again] = await store.webhooks.take(10, 0.05, per_host=10)
    assert (again.id, again.attempts) == (first.id, 2)
    await store.webhooks.failed(again.id, "refused", 0.01)
    await asyncio.sleep(0.05)
    [third] = await store.webhooks.take(10, 60, per_host=10)
    await store.webhooks.delivered(third.id)
    await asyncio.sleep(0.05)
    assert await store.webhooks.take(10, 0, per_host=10) == []


async def test_a_duty_has_one_owner_at_a_time(store):
    assert await store.take_duty("sweep", "a", 0.2)
    assert not await store.take_duty("sweep", "b", 0.2)
    assert await store.take_duty("sweep", "a", 0.2)
    await asyncio.sleep(0.3)
    assert await store.take_duty("sweep", "b", 0.2)


async def test_backlog_is_in_seconds(open_store):
    store = await open_store()
    await store.requests.create(new(4), is_stored)
    # Before the first edit has ended nobody knows how fast they are.
    unmeasured = (await store.queue.backlogs())[MODEL]
    assert (unmeasured.waiting_s, unmeasured.running_s) == (4 * UNMEASURED_WORK_S, 0.0)
    first, second = await claim(store, limit=2)
    await store.queue.succeed(first, DONE, is_stored)
    await store.queue.progress(second, PLAN.steps // 4)
    backlog = (await store.queue.backlogs())[MODEL]
    # The first one took 2 s.
    assert (backlog.waiting_s, backlog.running_s, backlog.images) == (4.0, 1.5, 3)
    assert 0 < backlog.oldest_s < 30


async def test_the_newest_adapters_come_first(open_store):
    store = await open_store()
    for name in ("a", "b", "c"):
        plan = replace(PLAN, adapters=(AdapterUse(name, name, "u", 1.0),))
        await store.requests.create(replace(new(), images=(NewImage(plan, 1.0),)), is_stored)
    assert [uses[0].id for uses in await store.requests.recent_adapters(MODEL, 2)] == ["c", "b"]
