"""Retention: what is forgotten, what is deleted with it, and what stays because somebody needs it."""

import asyncio
import os
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest
import sqlalchemy as sa

from serve_app.config import JobsConfig
from serve_app.errors import RequestNotFound, StorageFailed
from serve_app.jobs import tables
from serve_app.jobs.records import HistoryFilter, NewImage, NewRequest, WebhookTarget
from serve_app.jobs.store import JobStore
from serve_app.storage.artifacts import Artifacts
from serve_app.tasks import EditDone
from serve_app.workers.sweeper import MIN_ORPHAN_AGE_S, Sweeper
from tests.unit.conftest import ON_BOTH_DATABASES

pytestmark = ON_BOTH_DATABASES

LONG_AGO = 10 * MIN_ORPHAN_AGE_S


class Service:
    """A store and its artifacts, and what a test does with them."""

    def __init__(self, database_url: str, artifacts: Artifacts, make_plan: Callable[..., Any]) -> None:
        self.database_url = database_url
        self.store = JobStore(JobsConfig(database_url=database_url))
        self.artifacts = artifacts
        self.plan = make_plan()

    def sweeper(self, artifacts: Artifacts | None = None, **config: object) -> Sweeper:
        values = {"database_url": self.database_url, "keep_s": 3600} | config
        return Sweeper(self.store, artifacts or self.artifacts, JobsConfig.model_validate(values))

    async def request(self, *files: str, ended_s_ago: float | None = None, size: int = 10) -> str:
        """A request that needs these files, which are there; its id. Null: it has not ended."""
        id_ = uuid.uuid4().hex
        for key in files:
            self.artifacts.put(key, bytes(size))
        webhook = WebhookTarget("http://x/", ("canceled",), "http://base")
        new = NewRequest(
            id_, "t", "m", (NewImage(self.plan, 1.0),), 1e6, files=dict.fromkeys(files, size), webhook=webhook
        )
        await self.store.requests.create(new, lambda key: True)
        if ended_s_ago is not None:
            await self.end(id_, ended_s_ago)
        return id_

    async def end(self, request_id: str, ended_s_ago: float) -> None:
        await self.store.requests.cancel(request_id)
        requests = tables.requests
        await self._execute(
            requests.update().where(requests.c.id == request_id).values(finished_at=tables.now() - ended_s_ago)
        )

    async def _execute(self, statement: sa.Update) -> None:
        async with self.store._database.writing() as connection:
            await connection.execute(statement)

    async def ids(self) -> set[str]:
        return {summary.request_id for summary in await self.store.requests.history(HistoryFilter(), None, 1000)}

    async def count(self, table: sa.Table) -> int:
        async with self.store._database.reading() as connection:
            return (await connection.execute(sa.select(sa.func.count()).select_from(table))).scalar_one()

    def files(self) -> set[str]:
        return set(self.artifacts.older_than("", -60.0))


@pytest.fixture
async def service(database_url, tmp_path, make_plan) -> AsyncIterator[Service]:
    service = Service(database_url, Artifacts(str(tmp_path / "artifacts")), make_plan)
    await service.store.open()
    yield service
    await service.store.close()


def age(artifacts: Artifacts, *keys: str, seconds: float = LONG_AGO) -> None:
    for key in keys:
        os.utime(artifacts.url(key), (time.time() - seconds,) * 2)


async def test_request_past_its_retention_is_deleted_with_its_own_files(service):
    old = await service.request("controls/a", "pictures/a.png", "loras/a.safetensors", ended_s_ago=LONG_AGO)
    young = await service.request("controls/b", "pictures/b.png", ended_s_ago=60)
    live = await service.request("controls/c")
    for id_ in (old, young, live):
        service.artifacts.put_json(f"results/{id_}/0.json", {})
    await service.sweeper().sweep()
    assert await service.ids() == {young, live}
    records = {f"results/{id_}/0.json" for id_ in (young, live)}
    assert service.files() == {"controls/b", "pictures/b.png", "controls/c"} | records
    with pytest.raises(RequestNotFound):
        await service.store.requests.get(old)
    for table, rows in ((tables.images, 2), (tables.request_files, 3), (tables.deliveries, 1)):
        assert await service.count(table) == rows


async def test_live_request_is_kept_however_old_it_and_its_files_are(service):
    live = await service.request("controls/a", "loras/a.safetensors")
    age(service.artifacts, "controls/a", "loras/a.safetensors")
    await service.sweeper(keep_s=1e-6, keep_bytes=1).sweep()
    assert await service.ids() == {live}
    assert service.files() == {"controls/a", "loras/a.safetensors"}


async def test_file_that_a_live_request_shares_with_an_old_one_stays_until_both_are_gone(service):
    await service.request("controls/shared", "controls/own", ended_s_ago=LONG_AGO)
    live = await service.request("controls/shared")
    age(service.artifacts, "controls/shared", "controls/own")
    sweeper = service.sweeper()
    await sweeper.sweep()
    assert await service.ids() == {live}
    assert service.files() == {"controls/shared"}
    await service.end(live, LONG_AGO)
    await sweeper.sweep()
    assert service.files() == set()


async def test_beyond_the_bytes_the_oldest_go_first_and_a_shared_file_counts_once(service):
    ids = [
        await service.request("controls/shared", f"pictures/{n}.png", ended_s_ago=100 - n, size=100_000)
        for n in range(5)
    ]
    live = await service.request("controls/live", size=100_000)
    # One shared, five images, one live; and rows of some hundred bytes.
    await service.sweeper(keep_bytes=710_000).sweep()
    assert await service.ids() == {*ids, live}
    await pass_the_duty(service)
    await service.sweeper(keep_bytes=450_000).sweep()
    assert await service.ids() == {*ids[3:], live}
    assert service.files() == {"controls/shared", "controls/live", "pictures/3.png", "pictures/4.png"}


async def test_rows_count_towards_the_bytes_that_are_kept_though_no_file_belongs_to_them(service, make_plan):
    service.plan = make_plan(prompt="x" * 20_000)
    ids = [await service.request(ended_s_ago=100 - n) for n in range(5)]
    await service.sweeper(keep_bytes=110_000).sweep()
    assert await service.ids() == set(ids)
    await pass_the_duty(service)
    await service.sweeper(keep_bytes=50_000).sweep()
    assert await service.ids() == set(ids[3:])


async def test_results_count_towards_the_bytes_that_are_kept(service):
    done = EditDone("pictures/a", "u", "png", 64, 64, 1, 10, "a", {}, {"prompt": "x" * 20_000})
    id_ = await service.request()
    [claim] = await service.store.queue.claim("me", service.plan.model, 1, 1)
    await service.store.queue.succeed(claim, done, lambda key: True)
    assert await service.store.retention.over_size(20_000, 10) == [id_]


async def pass_the_duty(service: Service) -> None:
    await service._execute(tables.duties.update().values(until=0.0))


async def test_many_requests_are_deleted_in_small_batches(service):
    for number in range(45):
        await service.request(f"controls/{number}", "controls/shared", ended_s_ago=LONG_AGO)
    await service.request(*(f"pictures/{number}" for number in range(250)), ended_s_ago=LONG_AGO)
    await service.sweeper().sweep()
    assert await service.ids() == set()
    assert service.files() == set()


async def test_orphans_go_when_they_are_an_hour_old(service):
    orphans = ["controls/a", "pictures/a.png", "loras/a.safetensors", "controls/b.1234.part"]
    needed = ["controls/c", "pictures/c.png", "loras/c.safetensors"]
    young = ["controls/d", "pictures/d.png", "loras/d.safetensors"]
    for key in orphans + young:
        service.artifacts.put(key, b"x")
    await service.request(*needed, ended_s_ago=60)
    age(service.artifacts, *orphans, *needed)
    age(service.artifacts, *young, seconds=MIN_ORPHAN_AGE_S - 60)
    await service.sweeper().sweep()
    assert service.files() == {*needed, *young}


async def test_orphans_go_although_losses_cannot_be_marked(service):
    async def fails() -> None:
        raise StorageFailed("the LoRA root does not answer")

    service.artifacts.put("pictures/a.png", b"x")
    age(service.artifacts, "pictures/a.png")
    config = JobsConfig(database_url=service.database_url)
    with pytest.raises(StorageFailed):
        await Sweeper(service.store, service.artifacts, config, mark_losses=fails).sweep()
    assert service.files() == set()


async def test_image_that_no_dispatcher_knows_of_yet_is_kept_for_its_live_request(service):
    live, ended = await service.request(), await service.request(ended_s_ago=60)
    keys = []
    for id_ in (live, ended, "0" * 32):
        service.artifacts.put(f"pictures/of-{id_}.png", b"x")
        service.artifacts.put_json(f"results/{id_}/0.json", {"key": f"pictures/of-{id_}.png"})
        keys += [f"pictures/of-{id_}.png", f"results/{id_}/0.json"]
    age(service.artifacts, *keys)
    await service.sweeper().sweep()
    # The record of a request that was forgotten goes too; the one of an ended request goes with it.
    assert service.files() == {f"pictures/of-{live}.png", f"results/{live}/0.json", f"results/{ended}/0.json"}


async def test_leftover_previews_go_when_they_are_an_hour_old(service):
    ended, live, young = [await service.request(ended_s_ago=60), await service.request(), await service.request()]
    kept = []
    for id_ in (ended, live, young, "0" * 32):
        keys = [f"previews/{id_}/0.json", f"previews/{id_}/watched"]
        for key in keys:
            service.artifacts.put(key, b"x")
        if id_ == young:
            kept = keys
        else:
            age(service.artifacts, *keys)
    await service.sweeper().sweep()
    assert service.files() == set(kept)


async def test_one_process_at_a_time_and_another_after_its_death(service):
    first, second = service.sweeper(sweep_s=2), service.sweeper(sweep_s=2)
    await first.sweep()
    await service.request("controls/a", ended_s_ago=LONG_AGO)
    await second.sweep()
    assert len(await service.ids()) == 1
    # The first one is never heard of again.
    async with asyncio.timeout(30):
        while await service.ids():
            await asyncio.sleep(0.3)
            await second.sweep()


class FailingArtifacts(Artifacts):
    """Storage that deletes nothing for a while."""

    fails = True

    def delete(self, keys: Sequence[str]) -> None:
        if self.fails:
            raise StorageFailed("no")
        super().delete(keys)


async def test_what_could_not_be_deleted_is_deleted_later(service, tmp_path, caplog):
    artifacts = FailingArtifacts(str(tmp_path / "artifacts"))
    await service.request("controls/a", ended_s_ago=LONG_AGO)
    age(artifacts, "controls/a")
    run = asyncio.create_task(service.sweeper(artifacts, sweep_s=0.05).run())
    try:
        await until(lambda: _is("a round of the loop sweeper failed" in caplog.text))
        assert service.files() == {"controls/a"}
        artifacts.fails = False
        await until(lambda: _is(service.files() == set()))
    finally:
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)


async def _is(value: bool) -> bool:
    return value


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    deadline = time.monotonic() + 10
    while not await holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def test_nothing_is_lost_while_requests_come_and_go(service):
    """Requests share few files; each is there for as long as its request is, whatever the sweepers do."""
    sweepers = [service.sweeper(keep_s=1e-6, sweep_s=1e-3) for _ in range(2)]
    stop = asyncio.Event()

    async def sweep(sweeper: Sweeper) -> None:
        while not stop.is_set():
            await sweeper.sweep()
            await asyncio.sleep(0)

    async def come_and_go(number: int) -> None:
        for turn in range(15):
            key = f"controls/{(number + turn) % 3}"
            id_ = await service.request(key)
            # As the service does: what was deleted just before the request was there.
            service.artifacts.put(key, bytes(10))
            for _ in range(3):
                assert service.artifacts.exists(key)
                await asyncio.sleep(0.002)
            await service.store.requests.cancel(id_)

    sweeping = [asyncio.create_task(sweep(sweeper)) for sweeper in sweepers]
    try:
        await asyncio.gather(*(come_and_go(number) for number in range(4)))
    finally:
        stop.set()
        await asyncio.gather(*sweeping)
    await pass_the_duty(service)
    await sweepers[0].sweep()
    assert (await service.ids(), service.files()) == (set(), set())


async def test_purged_images_no_longer_count_in_the_bytes_of_their_request(service):
    id_ = await service.request("controls/a")
    [mine] = await service.store.queue.claim("a", service.plan.model, 1, 1)
    rows = sa.select(tables.requests.c.row_bytes)

    async def row_bytes() -> int:
        async with service.store._database.reading() as connection:
            return (await connection.execute(rows)).scalar_one()

    before = await row_bytes()
    done = EditDone("pictures/a", "/a", "png", 8, 8, 1, 10, "cd", {"generate": 1.0}, {"k": "v" * 1000})
    await service.store.queue.succeed(mine, done, lambda key: True)
    assert await row_bytes() > before + 1000
    await service.store.retention.purge(id_, lambda keys: None)
    assert await row_bytes() == before
    # What the version before wrote was not counted.
    await service._execute(tables.requests.update().values(row_bytes=None))
    await service._execute(tables.images.update().values(result={"k": "v"}))
    await service.store.retention.purge(id_, lambda keys: None)
    assert await row_bytes() == 0
