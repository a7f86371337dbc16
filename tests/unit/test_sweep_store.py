"""Sweeps in the job database: submitted once whoever does it, kept with their requests, and deleted with them."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
import sqlalchemy as sa

from serve_app.config import JobsConfig, SweepsConfig
from serve_app.errors import FilesGone, RequestNotFound, SweepNotFound, SweepPurged
from serve_app.jobs import tables
from serve_app.jobs.limits.quotas import NO_QUOTAS, Quotas
from serve_app.jobs.store import JobStore
from serve_app.jobs.sweeps.records import Axes, NewCell, NewSweep, SweepDefinition, SweepRecord
from serve_app.policy.sweep_order import Lengths, places, room_for_cells
from serve_app.storage.artifacts import Artifacts
from serve_app.tasks import EditPlan, Status
from serve_app.workers.sweep_cells import SweepCells
from serve_app.workers.sweeper import Sweeper
from tests.unit.conftest import ON_BOTH_DATABASES
from tests.unit.test_jobs import DONE

CELLS = 12
CONTROL = "controls/" + "0" * 64
BASE = {"prompts": [{"prompt": "p"}]}


def no_limits(tenant: str) -> tuple[None, Quotas]:
    return None, NO_QUOTAS


@dataclass
class Bench:
    """A store of jobs, and the sweeps that a test puts into it."""

    store: JobStore
    url: str
    plan: EditPlan

    async def sweep(self, cells: int = CELLS, **changes: Any) -> SweepRecord:
        """A new sweep over seeds."""
        axes = Axes(("a",), (1.0,), ("p",), tuple(range(cells)), (("sha256:0",),), (None,), ("exact",))
        made = (
            NewCell(place, replace(self.plan, seed=place.seed), 1.0, {CONTROL: 7}) for place in places(axes.lengths)
        )
        definition = SweepDefinition(BASE, axes)
        new = NewSweep(uuid.uuid4().hex, "t", self.plan.model, definition, tuple(made), 1e6)
        return await self.store.sweeps.create(replace(new, **changes), lambda key: True)

    async def submit_all(self, sweep_id: str) -> None:
        await self.store.sweep_queue.submit(sweep_id, 1_000, no_limits)

    async def execute(self, statement: Any) -> Any:
        async with self.store._database.writing() as connection:
            return await connection.execute(statement)

    async def count(self, table: sa.Table) -> int:
        return int((await self.execute(sa.select(sa.func.count()).select_from(table))).scalar_one())


@pytest.fixture
async def stored(database_url: str, make_plan: Callable[..., EditPlan]) -> AsyncIterator[Bench]:
    store = JobStore(JobsConfig(database_url=database_url))
    await store.open()
    yield Bench(store, database_url, make_plan())
    await store.close()


@ON_BOTH_DATABASES
async def test_several_ingresses_submit_each_cell_once(stored):
    sweep = await stored.sweep()
    others = [JobStore(JobsConfig(database_url=stored.url)) for _ in range(3)]
    for other in others:
        await other.open()
    try:
        calls = (store.sweep_queue.submit(sweep.id, 1_000, no_limits) for store in (stored.store, *others))
        submitted = await asyncio.gather(*calls)
    finally:
        for other in others:
            await other.close()
    assert sorted(submitted) == [0, 0, 0, CELLS]
    assert await stored.count(tables.requests) == await stored.count(tables.images) == CELLS


@ON_BOTH_DATABASES
async def test_cells_wait_in_their_order(stored):
    sweep = await stored.sweep()
    await stored.submit_all(sweep.id)
    claims = await stored.store.queue.claim("me", stored.plan.model, CELLS, CELLS)
    cells = await stored.store.sweeps.cells(sweep)
    assert [claim.task.request_id for claim in claims] == [cell.request_id for cell in cells]


async def test_no_more_cells_wait_than_may(stored):
    sweep = await stored.sweep()
    queue = stored.store.sweep_queue
    assert [await queue.submit(sweep.id, 5, no_limits) for _ in range(2)] == [5, 0]
    # A queue is filled by half.
    assert await queue.submit(sweep.id, 1_000, lambda tenant: (14, NO_QUOTAS)) == 2
    stored.store.requests.max_queued = 18
    assert await queue.submit(sweep.id, 1_000, no_limits) == 2


async def test_sweeps_of_a_tenant_for_a_model_run_one_after_the_other(stored):
    first, second = await stored.sweep(), await stored.sweep()
    other_tenant, other_model = await stored.sweep(tenant="u"), await stored.sweep(model="qwen_image")
    assert set(await stored.store.sweep_queue.due()) == {first.id, other_tenant.id, other_model.id}
    await stored.submit_all(first.id)
    assert second.id in await stored.store.sweep_queue.due()


async def test_cancelled_sweep_submits_nothing(stored):
    sweep = await stored.sweep()
    await stored.store.sweep_queue.submit(sweep.id, 3, no_limits)
    cancelled = await stored.store.sweeps.cancel(sweep.id)
    assert len(cancelled) == 3
    assert await stored.store.sweep_queue.submit(sweep.id, 1_000, no_limits) == 0
    assert (await stored.store.sweeps.get(sweep.id)).counts == {Status.CANCELED: CELLS}
    await stored.store.sweeps.resume(sweep.id)
    await stored.submit_all(sweep.id)
    # The three that had been submitted are new requests.
    assert await stored.count(tables.requests) == CELLS + 3


async def test_sweep_needs_files_that_are_there(stored):
    axes = Axes(("a",), (1.0,), ("p",), (1,), ((),), (None,), ("exact",))
    cells = (NewCell(next(places(axes.lengths)), stored.plan, 1.0, {CONTROL: 7}),)
    new = NewSweep(uuid.uuid4().hex, "t", "m", SweepDefinition(BASE, axes), cells, 1e6)
    with pytest.raises(FilesGone):
        await stored.store.sweeps.create(new, lambda key: False)
    assert await stored.count(tables.sweeps) == 0


@ON_BOTH_DATABASES
async def test_sweep_is_deleted_with_its_requests_and_files(stored, config):
    artifacts = Artifacts(config.artifacts_url)
    artifacts.put(CONTROL, b"an image")
    sweep = await stored.sweep()
    await stored.store.sweep_queue.submit(sweep.id, 3, no_limits)
    await stored.store.sweeps.cancel(sweep.id)
    await stored.store.sweep_queue.record_ends()
    [request_id, *_] = await stored.store.sweeps.all_requests(sweep.id)
    long_ago = tables.now() - 5_000
    await stored.execute(tables.requests.update().values(finished_at=long_ago))
    await stored.execute(tables.sweeps.update().values(ended_at=long_ago))
    jobs = JobsConfig(database_url=stored.url, keep_s=1_000)
    await Sweeper(stored.store, artifacts, jobs, keep_sweeps_s=10_000).sweep()
    # Requests of sweeps stay for as long as the sweep, also its cells that never were requests.
    assert (await stored.store.requests.get(request_id)).status == Status.CANCELED
    assert artifacts.exists(CONTROL)
    # The duty is the other sweeper's.
    await stored.execute(tables.duties.delete())
    await Sweeper(stored.store, artifacts, jobs, keep_sweeps_s=1_000).sweep()
    with pytest.raises(SweepNotFound):
        await stored.store.sweeps.get(sweep.id)
    with pytest.raises(RequestNotFound):
        await stored.store.requests.get(request_id)
    assert not artifacts.exists(CONTROL)
    assert await stored.count(tables.sweep_cells) == 0


async def test_sweep_that_was_resumed_meanwhile_is_not_deleted(stored, config):
    sweep = await stored.sweep(cells=2)
    await stored.store.sweeps.cancel(sweep.id)
    await stored.store.sweep_queue.record_ends()
    assert await stored.store.sweeps.ended_before(-1, 10) == [sweep.id]
    await stored.store.sweeps.resume(sweep.id)
    assert await stored.store.retention.delete_sweep(sweep.id, -1, lambda keys: None) == []
    assert (await stored.store.sweeps.get(sweep.id)).status == Status.IN_QUEUE


async def test_requests_of_earlier_attempts_are_deleted_with_the_sweep(stored):
    sweep = await stored.sweep(cells=1)
    for _ in range(2):
        await stored.submit_all(sweep.id)
        await stored.store.sweeps.cancel(sweep.id)
        await stored.store.sweeps.resume(sweep.id)
    assert len(await stored.store.sweeps.all_requests(sweep.id)) == 2


async def test_purged_sweep_starts_no_cell(stored):
    sweep = await stored.sweep()
    await stored.store.sweeps.cancel(sweep.id, purge=True)
    with pytest.raises(SweepPurged):
        await stored.store.sweeps.resume(sweep.id)
    await stored.execute(tables.sweeps.update().values(canceled=False))
    assert await stored.store.sweep_queue.submit(sweep.id, 1_000, no_limits) == 0


async def test_sweep_that_cannot_be_submitted_does_not_stop_others(stored):
    broken, sound = await stored.sweep(tenant="a"), await stored.sweep(tenant="b")
    await stored.execute(tables.sweep_cells.update().where(tables.sweep_cells.c.sweep_id == broken.id).values(plan={}))
    await SweepCells(stored.store, SweepsConfig(), no_limits, lambda: None).submit()
    assert {cell.request_id is None for cell in await stored.store.sweeps.cells(broken)} == {True}
    assert {cell.request_id is None for cell in await stored.store.sweeps.cells(sound)} == {False}


async def test_control_image_of_a_waiting_cell_is_needed(stored):
    await stored.sweep()
    assert await stored.store.requests.need(CONTROL, "t")
    assert not await stored.store.requests.need(CONTROL, "u")
    assert await stored.store.retention.unneeded([CONTROL]) == []


async def test_cell_whose_request_was_deleted_is_cancelled_and_made_again(stored):
    sweep = await stored.sweep(cells=2)
    await stored.submit_all(sweep.id)
    [first, second] = await stored.store.sweeps.cells(sweep)
    await stored.store.requests.cancel(first.request_id)
    await stored.store.retention.delete_requests([first.request_id], lambda keys: None)
    assert [cell.status for cell in await stored.store.sweeps.cells(sweep)] == [Status.CANCELED, Status.IN_QUEUE]
    assert await stored.store.sweeps.resume(sweep.id) == 1
    await stored.submit_all(sweep.id)
    again = await stored.store.sweeps.cells(sweep)
    assert again[0].request_id != first.request_id
    assert again[1].request_id == second.request_id


@ON_BOTH_DATABASES
async def test_sweep_that_is_extended_while_it_is_read_has_the_cells_of_its_axes(stored):
    """Whoever has read the sweep before has no names for the values of the new cells."""
    old = await stored.sweep(cells=2)
    axes = replace(old.definition.axes, multipliers=(1.0, 0.5), seeds=(0, 1, 2))
    known = {cell.place for cell in await stored.store.sweeps.cells(old)}
    new = [NewCell(place, stored.plan, 1.0, {CONTROL: 7}) for place in places(axes.lengths) if place not in known]
    assert await stored.store.sweeps.extend(old, replace(old.definition, axes=axes), new, lambda key: True)
    assert {cell.place for cell in await stored.store.sweeps.cells(old)} == known
    assert len(await stored.store.sweeps.cells(await stored.store.sweeps.get(old.id))) == 6


async def test_image_of_a_later_cell_is_none_of_the_sweep_as_it_was_read(stored):
    sweep = await stored.sweep(cells=2)
    await stored.submit_all(sweep.id)
    for claim in await stored.store.queue.claim("me", stored.plan.model, 2, 2):
        await stored.store.queue.succeed(claim, DONE, lambda key: True)
    shorter = replace(sweep, definition=replace(sweep.definition, axes=replace(sweep.definition.axes, seeds=(0,))))
    assert [image.place.seed for image in await stored.store.sweeps.images(sweep)] == [0, 1]
    assert [image.place.seed for image in await stored.store.sweeps.images(shorter)] == [0]


async def test_end_is_recorded_once_no_cell_is_left(stored):
    sweep = await stored.sweep(cells=2)
    assert await stored.store.sweep_queue.record_ends() == 1
    await stored.submit_all(sweep.id)
    for cell in await stored.store.sweeps.cells(sweep):
        assert (await stored.store.sweeps.get(sweep.id)).ended_at is None
        await stored.store.requests.cancel(cell.request_id)
    assert await stored.store.sweep_queue.record_ends() == 0
    assert (await stored.store.sweeps.get(sweep.id)).ended_at is not None


@pytest.mark.parametrize(
    ("waiting", "queues", "room"),
    [
        (0, [(5_000, 0)], 100),
        (40, [(5_000, 40)], 60),
        (100, [(5_000, 100)], 0),
        (0, [(5_000, 0), (20, 4)], 6),
        (0, [(20, 12)], 1),
        (1, [(20, 12)], 0),
        (0, [(20, 20)], 0),
        (0, [(1, 0)], 1),
    ],
)
def test_room_for_cells(waiting, queues, room):
    assert room_for_cells(100, waiting, queues) == room


def test_many_prompts_are_made_in_blocks_that_an_editor_keeps_encoded():
    lengths = Lengths((True, True), multipliers=2, prompts=5, seeds=2, control_images=1, profiles=1, qualities=1)
    order = list(places(lengths, encodings_at_once=2))
    assert len(order) == len(set(order)) == lengths.cells == 40
    blocks = [{place.prompt for place in order[start : start + 16]} for start in (0, 16)]
    assert blocks == [{0, 1}, {2, 3}]
    settings = [(place.checkpoint, place.multiplier) for place in order]
    # Each of three blocks goes through all four settings.
    assert sum(one != other for one, other in pairwise(settings)) == 11
