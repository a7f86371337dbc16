"""What is cleaned up when whoever works is cancelled, at any await and once more during the clean-up."""

import asyncio
from types import SimpleNamespace
from unittest.mock import AsyncMock

import pytest
from pydantic import SecretStr

from serve_app.concurrency import background
from serve_app.config import JobsConfig, WebhooksConfig
from serve_app.errors import EditorLost, OutOfMemory, StoreUnavailable
from serve_app.intake.answers.watch import Watch
from serve_app.intake.service import Service
from serve_app.jobs.records import Claim
from serve_app.jobs.store import JobStore
from serve_app.storage.artifacts import Artifacts
from serve_app.tasks import EditDone, EditTask, StepDone
from serve_app.workers.dispatcher import WATCH_S, Dispatcher
from serve_app.workers.webhooks import Deliverer
from tests.cancelling import cancelled_at_each_await
from tests.unit.conftest import InstantEditors
from tests.unit.receivers import SECRET
from tests.unit.test_jobs import MODEL, PLAN, claim, is_stored, new


@pytest.fixture
async def store(database_url):
    store = JobStore(JobsConfig(database_url=database_url, lease_s=3))
    await store.open()
    yield store
    await store.close()


async def one_editor() -> dict[str, int]:
    return {MODEL: 1}


def connections_in_use(store: JobStore) -> int:
    database = store._database
    return database._writer.pool.checkedout() + database._reader.pool.checkedout()


async def test_waiting_for_tasks_outlasts_cancellations():
    held = asyncio.Event()
    work = asyncio.create_task(held.wait())
    waiting = asyncio.create_task(background.join(work))
    for _ in range(3):
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.sleep(0)
        assert not waiting.done()
    held.set()
    await asyncio.wait([waiting])
    assert waiting.cancelled()


async def test_shielded_work_finishes_however_often_its_caller_is_cancelled():
    done = []

    async def work() -> int:
        for _ in range(3):
            await asyncio.sleep(0.001)
        done.append(1)
        return 7

    async def check() -> None:
        assert done.pop() == 1
        assert not done

    assert await background.shielded(work()) == 7
    await check()
    await cancelled_at_each_await(lambda: background.shielded(work()), check, at_least=2)


async def test_later_awaits_are_cancelled_though_a_run_had_fewer():
    """As where threads work: whoever waits for one that has ended already does not wait."""
    runs, cancelled = 0, []

    async def work() -> None:
        nonlocal runs
        runs += 1
        for number in range(1 if runs == 2 else 3):
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                cancelled.append(number)
                raise

    async def check() -> None:
        pass

    await cancelled_at_each_await(work, check, at_least=2)
    assert cancelled == [0, 2]
    with pytest.raises(AssertionError, match="at 3 awaits only"):
        await cancelled_at_each_await(work, check, at_least=4)


async def test_failure_of_a_background_task_is_logged_at_once(caplog):
    async def fails() -> None:
        raise AttributeError("no such thing")

    task = background.start(fails())
    await asyncio.wait([task])
    await asyncio.sleep(0)
    assert "fails failed and no longer runs" in caplog.text
    assert "no such thing" in caplog.text


async def test_watcher_that_goes_away_is_forgotten(store):
    watch = Watch(store)

    async def check() -> None:
        assert not watch._waiters
        assert not watch._has_waiters.is_set()

    await cancelled_at_each_await(lambda: watch.changed("request", 0, 0.01), check)


async def test_transaction_that_has_begun_ends_and_gives_its_connection_back(store):
    made = []

    async def create() -> None:
        made.append(new())
        await store.requests.create(made[-1], is_stored)

    async def check() -> None:
        assert connections_in_use(store) == 0
        assert (await store.requests.get(made[-1].id)).id == made[-1].id

    await cancelled_at_each_await(create, check)


async def test_reading_that_is_cancelled_gives_its_connection_back(store):
    record = await store.requests.create(new(), is_stored)

    async def check() -> None:
        assert connections_in_use(store) == 0

    await cancelled_at_each_await(lambda: store.requests.get(record.id), check)


async def test_service_that_is_cancelled_at_its_start_or_exit_leaves_nothing_behind(config):
    services: list[Service] = []

    async def once() -> None:
        services.append(Service(config, InstantEditors(Artifacts(config.artifacts_url)), one_editor))
        assert not services[-1].resources.fetcher._session.closed  # opens it
        async with services[-1].running():
            await asyncio.sleep(0)

    async def check() -> None:
        running = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        assert not running
        assert services[-1].resources.fetcher._session.closed
        assert connections_in_use(services[-1].resources.store) == 0

    await cancelled_at_each_await(once, check, at_least=6)


async def test_service_whose_store_does_not_open_leaves_nothing_behind(config, monkeypatch):
    async def away(_: JobStore) -> None:
        raise StoreUnavailable("away")

    monkeypatch.setattr(JobStore, "open", away)
    service = Service(config, InstantEditors(Artifacts(config.artifacts_url)), one_editor)
    assert not service.resources.fetcher._session.closed  # opens it
    with pytest.raises(StoreUnavailable):
        await service.running().__aenter__()
    assert service.resources.fetcher._session.closed


class SlowToStop:
    """Editors that begin and then stay; each takes its time to stop, and counts how often it is told to."""

    def __init__(self, stopping_s: float) -> None:
        self.begun = asyncio.Event()
        self.told_to_stop = 0
        self._stopping_s = stopping_s

    async def edit(self, task):
        yield StepDone(0, 9)
        self.begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.told_to_stop += 1
            try:
                await asyncio.sleep(self._stopping_s)
            except asyncio.CancelledError:
                self.told_to_stop += 1
            raise


async def test_dispatcher_gives_its_work_back_however_often_it_is_cancelled_while_it_stops(store, config):
    record = await store.requests.create(new(2), is_stored)

    async def dispatch() -> None:
        editors = SlowToStop(0.001)
        run = Dispatcher(store, editors, Artifacts(config.artifacts_url), config.jobs, one_editor).run()
        running = asyncio.create_task(run)
        try:
            await editors.begun.wait()
            raise asyncio.CancelledError
        finally:
            running.cancel()
            for _ in range(20):
                await asyncio.sleep(0)
                # Again and again while it cleans up.
                running.cancel()
            await asyncio.wait([running])

    with pytest.raises(asyncio.CancelledError):
        await dispatch()
    assert connections_in_use(store) == 0
    assert len(await claim(store, "another", limit=2)) == 2, record


async def test_edit_whose_claim_is_lost_is_cancelled_once(store, config):
    """Its end may take longer than the dispatcher takes to look again; a second cancellation would cut it short."""
    editors = SlowToStop(5 * WATCH_S)
    record = await store.requests.create(new(), is_stored)
    dispatcher = Dispatcher(store, editors, Artifacts(config.artifacts_url), config.jobs, one_editor)
    running = asyncio.create_task(dispatcher.run())
    await editors.begun.wait()
    await store.requests.cancel(record.id)
    async with asyncio.timeout(30):
        while dispatcher._leases.work:
            await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.wait([running])
    assert editors.told_to_stop == 1


class LostJustNow:
    """A queue in which a claim is lost at the moment when its result is to be recorded, with slow answers."""

    def __init__(self) -> None:
        self.charged: list[float] = []

    async def succeed(self, *_: object) -> None:
        await asyncio.sleep(0.001)

    async def held(self, owner: str) -> set[tuple[str, int, int]]:
        return set()

    async def charge(self, claim: object, seconds: float) -> None:
        await asyncio.sleep(0.001)
        self.charged.append(seconds)


async def test_seconds_of_a_cancelled_image_are_charged_wherever_it_is_cancelled(store, config):
    queue = LostJustNow()
    dispatcher = Dispatcher(
        SimpleNamespace(queue=queue, clients=None),
        SlowToStop(0),
        Artifacts(config.artifacts_url),
        config.jobs,
        one_editor,
    )
    await store.requests.create(new(), is_stored)
    [mine] = await claim(store)
    done = EditDone("k", "u", "png", 8, 8, 0, 3, "cd", {"generate": 2.0}, {})

    async def check() -> None:
        assert queue.charged.pop() == 2.0
        assert not queue.charged

    await cancelled_at_each_await(lambda: dispatcher._outcomes.succeed(mine, done), check)


class Away:
    """A queue that cannot be reached for any write but that of what was used. `holds`: whether claims still count."""

    def __init__(self, holds: bool = False) -> None:
        self.holds = holds
        self.charged: list[float] = []

    async def fail(self, *_: object) -> None:
        await asyncio.sleep(0.001)
        raise StoreUnavailable("away")

    succeed = retry = fail

    async def held(self, owner: str) -> set[tuple[str, int, int]]:
        return {(MINE.task.request_id, MINE.task.index, MINE.generation)} if self.holds else set()

    async def charge(self, claim: object, seconds: float) -> None:
        await asyncio.sleep(0.001)
        self.charged.append(seconds)


MINE = Claim(EditTask("r", 0, PLAN, None), "", 1, (), 10.0, 0.0, False)
MADE = EditDone("k", "u", "png", 8, 8, 0, 3, "cd", {"generate": 2.0}, {})


def dispatching(queue: object, config) -> Dispatcher:
    artifacts = Artifacts(config.artifacts_url)
    return Dispatcher(SimpleNamespace(queue=queue, clients=None), SlowToStop(0), artifacts, config.jobs, one_editor)


async def cancelled_after(seconds: float, work) -> None:
    task = asyncio.create_task(work)
    await asyncio.sleep(seconds)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# In the pause before a retry, and while the store is away.
@pytest.mark.parametrize("after_s", [0.0, 0.05])
@pytest.mark.parametrize("error", [EditorLost("gone"), OutOfMemory("too large")])
async def test_seconds_of_a_failed_attempt_are_charged_when_it_is_cancelled_before_it_is_recorded(
    config, after_s, error
):
    queue = Away()
    await cancelled_after(after_s, dispatching(queue, config)._outcomes.give_back(MINE, error, 2.0))
    assert queue.charged == [2.0]


@pytest.mark.parametrize(("holds", "booked"), [(False, [2.0]), (True, [])])
async def test_seconds_of_an_unrecorded_image_are_charged_unless_the_next_owner_charges_them(config, holds, booked):
    queue = Away(holds)
    await cancelled_after(0.05, dispatching(queue, config)._outcomes.succeed(MINE, MADE))
    assert queue.charged == booked


async def test_seconds_of_an_image_that_was_purged_before_it_was_recorded_are_charged(config):
    queue = Away()
    queue.succeed = AsyncMock(side_effect=EditorLost("its image is no longer stored"))
    with pytest.raises(EditorLost):
        await dispatching(queue, config)._outcomes.succeed(MINE, MADE)
    assert queue.charged == [2.0]


async def test_deliverer_closes_its_connections_wherever_it_is_cancelled(store):
    deliverers = []

    async def deliver() -> None:
        deliverers.append(Deliverer(store.webhooks, WebhooksConfig(secret=SecretStr(SECRET)), one_editor))

        async def slow() -> None:
            try:
                while not hasattr(deliverers[-1], "_fetcher"):
                    await asyncio.sleep(0)
                assert not deliverers[-1]._fetcher._session.closed  # opens it
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0.001)

        work = asyncio.create_task(slow())
        deliverers[-1]._posts[work] = "host"
        work.add_done_callback(deliverers[-1]._posts.pop)
        await asyncio.sleep(0)
        async with asyncio.timeout(0.05):
            await deliverers[-1].run()

    async def check() -> None:
        assert not deliverers[-1]._posts
        assert deliverers[-1]._fetcher._session.closed

    with pytest.raises(TimeoutError):
        await deliver()
    await check()
    await cancelled_twice(deliver, check)


async def cancelled_twice(make, check) -> None:
    task = asyncio.create_task(make())
    await asyncio.sleep(0.01)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    await asyncio.wait([task])
    await check()
