"""The store's promises: claims, leases, generations, ends."""

import asyncio

import pytest

from serve_app.config import SQLITE_PREFIX, JobsConfig
from serve_app.errors import RequestNotFound
from serve_app.jobs import JobStore
from serve_app.tasks import AdapterUse, EditDone, EditPlan, Status

PLAN = EditPlan(
    "qwen_image_edit", "reference", "p", "", 64, 64, 8, 4.0, 42, "jpeg", ("ab",), (AdapterUse("i", "p", "u", 0.5),)
)
DONE = EditDone("/x.jpeg", "jpeg", 64, 64, 42, 3, "cd", {"generate": 1.0}, {"k": [1, 2]})


@pytest.fixture
async def open_store(tmp_path):
    stores = []

    async def open_store(**config: object) -> JobStore:
        store = JobStore(JobsConfig.model_validate({"database_url": f"{SQLITE_PREFIX}{tmp_path}/j.db"} | config))
        await store.open()
        stores.append(store)
        return store

    yield open_store
    for store in stores:
        await store.close()


@pytest.fixture
async def store(open_store):
    return await open_store()


async def status(store: JobStore, request_id: str) -> Status:
    return (await store.get(request_id)).status


async def test_what_is_stored_is_read_back(store):
    record = await store.create("qwen_image_edit", [PLAN, PLAN], {"ignored": ["fps"]})
    assert await store.get(record.id) == record
    assert [image.plan for image in record.images] == [PLAN, PLAN]


async def test_unknown_request(store):
    with pytest.raises(RequestNotFound):
        await store.get("x")


async def test_picture_is_claimed_once(store):
    await store.create("m", [PLAN], {})
    assert len(await store.claim("a", 10)) == 1
    assert await store.claim("b", 10) == []


async def test_two_stores_never_claim_the_same(open_store):
    stores = [await open_store(), await open_store()]
    await stores[0].create("m", [PLAN] * 40, {})
    taken = await asyncio.gather(*(stores[i % 2].claim(str(i % 2), 3) for i in range(20)))
    keys = [(claim.task.request_id, claim.task.index) for claims in taken for claim in claims]
    assert len(keys) == len(set(keys)) == 40


async def test_oldest_is_claimed_first_and_pictures_in_order(store):
    first = await store.create("m", [PLAN] * 2, {})
    await asyncio.sleep(0.01)
    second = await store.create("m", [PLAN], {})
    claims = await store.claim("a", 3)
    assert [(c.task.request_id, c.task.index) for c in claims] == [(first.id, 0), (first.id, 1), (second.id, 0)]


async def test_lost_lease_is_claimed_by_another_who_alone_may_write(open_store):
    store = await open_store(lease_s=0.05)
    record = await store.create("m", [PLAN], {})
    [lost] = await store.claim("a", 1)
    assert await store.progress(lost, 3)
    await asyncio.sleep(0.1)
    [won] = await store.claim("b", 1)
    assert (won.generation, won.attempts) == (2, 1)
    assert not await store.progress(lost, 4)
    assert not await store.succeed(lost, DONE)
    assert not await store.fail(lost, "late")
    assert await store.succeed(won, DONE)
    assert await status(store, record.id) == Status.SUCCEEDED


async def test_renewed_lease_is_not_lost(open_store):
    store = await open_store(lease_s=0.2)
    await store.create("m", [PLAN], {})
    [claim] = await store.claim("a", 1)
    for _ in range(6):
        await asyncio.sleep(0.05)
        await store.renew("a", [claim.task])
    assert await store.claim("b", 1) == []


async def test_released_work_is_free_at_once_and_counts_no_attempt(store):
    await store.create("m", [PLAN], {})
    [claim] = await store.claim("a", 1)
    await store.progress(claim, 1)
    await store.release("a")
    [again] = await store.claim("b", 1)
    assert again.attempts == 0


async def test_lost_before_its_first_step_counts_no_attempt(open_store):
    store = await open_store(lease_s=0.01)
    await store.create("m", [PLAN], {})
    await store.claim("a", 1)
    await asyncio.sleep(0.05)
    [again] = await store.claim("b", 1)
    assert again.attempts == 0


async def test_in_progress_never_goes_back_and_started_at_is_the_first_start(store):
    record = await store.create("m", [PLAN], {})
    [claim] = await store.claim("a", 1)
    await store.progress(claim, 0)
    started = (await store.get(record.id)).started_at
    await store.retry(claim, 1, "lost")
    assert await status(store, record.id) == Status.IN_PROGRESS
    [again] = await store.claim("a", 1)
    await asyncio.sleep(0.01)
    await store.progress(again, 0)
    assert (await store.get(record.id)).started_at == started
    assert again.attempts == 1


async def test_request_ends_with_its_last_picture(store):
    record = await store.create("m", [PLAN] * 3, {})
    claims = await store.claim("a", 3)
    await store.succeed(claims[0], DONE)
    await store.fail(claims[1], "too large")
    assert await status(store, record.id) in (Status.IN_QUEUE, Status.IN_PROGRESS)
    await store.succeed(claims[2], DONE)
    ended = await store.get(record.id)
    assert (ended.status, ended.error) == (Status.FAILED, "prompt 1: too large")
    assert [image.result for image in ended.images] == [DONE, None, DONE]
    assert ended.started_at is not None
    assert ended.finished_at >= ended.started_at


async def test_ended_picture_is_written_no_more(store):
    await store.create("m", [PLAN], {})
    [claim] = await store.claim("a", 1)
    await store.succeed(claim, DONE)
    assert not await store.fail(claim, "after the end")
    assert await store.claim("b", 1) == []


async def test_cancelled_caller_leaves_no_lock_behind(open_store):
    store, other = await open_store(), await open_store()
    for _ in range(20):
        creating = asyncio.create_task(store.create("m", [PLAN], {}))
        await asyncio.sleep(0)
        creating.cancel()
        with pytest.raises(asyncio.CancelledError):
            await creating
    await asyncio.wait_for(other.create("m", [PLAN], {}), 2)


async def test_store_survives_being_closed(open_store):
    record = await (await open_store()).create("m", [PLAN], {})
    again = await open_store()
    assert await again.get(record.id) == record
    assert len(await again.claim("b", 1)) == 1
