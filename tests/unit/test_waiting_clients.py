"""Repeats of a call find its request; a request that no client waits for any more is cancelled. On both databases."""

import pytest
import sqlalchemy as sa

from serve_app.config import JobsConfig
from serve_app.errors import OutOfMemory, describe
from serve_app.jobs import waiting_clients
from serve_app.jobs.records import WaitingClient
from serve_app.jobs.store import JobStore
from serve_app.tasks import Status
from tests.unit.conftest import ON_BOTH_DATABASES
from tests.unit.test_jobs import DONE, MODEL, claim, is_stored, new, status

pytestmark = ON_BOTH_DATABASES

CALL = "c" * 64


@pytest.fixture
async def store(database_url):
    store = JobStore(JobsConfig(database_url=database_url))
    await store.open()
    yield store
    await store.close()


async def called(store: JobStore, **fields: object) -> str:
    return (await store.requests.create(new(call_sha256=CALL, **fields), is_stored)).id


async def end(store: JobStore, request_id: str, how: Status) -> None:
    if how == Status.CANCELED:
        await store.requests.cancel(request_id)
        return
    [mine] = await claim(store)
    if how == Status.FAILED:
        await store.queue.fail(mine, describe(OutOfMemory("too large")), 0.0)
    else:
        await store.queue.succeed(mine, DONE, is_stored)


async def let_time_pass(store: JobStore, seconds: float) -> None:
    """Everything that happened so far happened `seconds` earlier."""
    earlier = ", ".join(f"{column} = {column} - {seconds}" for column in ("created_at", "finished_at", "abandoned_at"))
    async with store._database.writing() as connection:
        await connection.execute(sa.text(f"UPDATE requests SET {earlier}"))


async def test_repeat_is_attached_to_the_newest_request_of_its_call_and_tenant(store):
    await called(store)
    await let_time_pass(store, 1)
    newest = await called(store)
    await called(store, tenant="other")
    await store.requests.create(new(), is_stored)
    assert await store.clients.attach("", CALL) == WaitingClient(newest, 1)
    assert await store.clients.attach("", CALL) == WaitingClient(newest, 2)
    assert await store.clients.attach("", "d" * 64) is None
    assert await store.clients.attach("third", CALL) is None


@pytest.mark.parametrize("how", [Status.SUCCEEDED, Status.FAILED, Status.CANCELED])
async def test_request_that_ended_well_answers_repeats_for_half_an_hour(store, how):
    request_id = await called(store)
    await end(store, request_id, how)
    attached = await store.clients.attach("", CALL)
    assert (attached is not None) == (how == Status.SUCCEEDED)
    await let_time_pass(store, waiting_clients.REPEATABLE_S + 1)
    assert await store.clients.attach("", CALL) is None


async def test_purged_request_answers_no_repeat(store):
    request_id = await called(store)
    await end(store, request_id, Status.SUCCEEDED)
    await store.retention.purge(request_id, lambda keys: None)
    assert await store.clients.attach("", CALL) is None


async def test_request_whose_client_hung_up_is_cancelled_after_a_while(store):
    request_id = await called(store)
    await store.clients.leave(WaitingClient(request_id), hung_up=True)
    await let_time_pass(store, waiting_clients.ABANDONED_S - 5)
    assert await store.clients.cancel_abandoned() == {}
    await let_time_pass(store, 6)
    assert await store.clients.cancel_abandoned() == {request_id: MODEL}
    assert await status(store, request_id) == Status.CANCELED
    assert await store.clients.cancel_abandoned() == {}
    assert await claim(store) == []


async def test_repeat_keeps_the_request_until_it_hangs_up_itself(store):
    request_id = await called(store)
    await store.clients.leave(WaitingClient(request_id), hung_up=True)
    repeat = await store.clients.attach("", CALL)
    await let_time_pass(store, 100)
    assert await store.clients.cancel_abandoned() == {}
    await store.clients.leave(repeat, hung_up=True)
    await let_time_pass(store, 100)
    assert await store.clients.cancel_abandoned() == {request_id: MODEL}


@pytest.mark.parametrize("first_to_leave", [0, 1])
async def test_request_is_kept_while_one_of_its_clients_waits(store, first_to_leave):
    """The first connection may be found to be lost only after the repeat has come."""
    request_id = await called(store)
    clients = [WaitingClient(request_id), await store.clients.attach("", CALL)]
    for _ in range(2):
        # As when the answer to the first commit is lost.
        await store.clients.leave(clients[first_to_leave], hung_up=True)
    await let_time_pass(store, 100)
    assert await store.clients.cancel_abandoned() == {}
    await store.clients.leave(clients[1 - first_to_leave], hung_up=True)
    await let_time_pass(store, 100)
    assert await store.clients.cancel_abandoned() == {request_id: MODEL}


async def test_client_that_was_answered_leaves_the_request_to_its_end(store):
    request_id = await called(store)
    await store.clients.leave(WaitingClient(request_id), hung_up=False)
    await let_time_pass(store, 100)
    assert await store.clients.cancel_abandoned() == {}
    repeat = await store.clients.attach("", CALL)
    await store.clients.leave(repeat, hung_up=True)
    await let_time_pass(store, 100)
    assert await store.clients.cancel_abandoned() == {request_id: MODEL}


async def test_hang_up_after_the_end_changes_nothing(store):
    request_id = await called(store)
    await end(store, request_id, Status.SUCCEEDED)
    await store.clients.leave(WaitingClient(request_id), hung_up=True)
    await let_time_pass(store, 100)
    assert await store.clients.cancel_abandoned() == {}
    assert await status(store, request_id) == Status.SUCCEEDED


async def test_request_that_ends_after_the_hang_up_is_not_cancelled(store):
    request_id = await called(store)
    await store.clients.leave(WaitingClient(request_id), hung_up=True)
    await end(store, request_id, Status.SUCCEEDED)
    await let_time_pass(store, 100)
    assert await store.clients.cancel_abandoned() == {}
    assert await status(store, request_id) == Status.SUCCEEDED
