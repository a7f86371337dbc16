"""What becomes of claimed work, whatever happens to the one who makes the picture."""

import asyncio
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict

import pytest

from serve_app.artifacts import Artifacts
from serve_app.dispatch import Dispatcher
from serve_app.errors import EditorLost, EditorUnavailable, LoraChanged
from serve_app.jobs import JobStore
from serve_app.tasks import Status
from tests.unit.conftest import InstantEditors
from tests.unit.test_jobs import PLAN


class Bench:
    """A store, editors, and as many dispatchers as a test starts."""

    def __init__(self, config) -> None:
        self.jobs = config.jobs
        self.artifacts = Artifacts(config.artifacts_url)
        self.store = JobStore(self.jobs)
        self.editors = InstantEditors(self.artifacts)

    @asynccontextmanager
    async def dispatching(self):
        running = asyncio.create_task(Dispatcher(self.store, self.editors, self.artifacts, self.jobs).run())
        try:
            yield running
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running

    async def ended(self, request_id: str):
        async with asyncio.timeout(8):
            while not (record := await self.store.get(request_id)).status.ended:
                await asyncio.sleep(0.02)
        return record


@pytest.fixture
async def bench(config):
    bench = Bench(config.model_copy(update={"jobs": config.jobs.model_copy(update={"lease_s": 0.3})}))
    await bench.store.open()
    yield bench
    await bench.store.close()


async def test_every_picture_of_a_request_is_made(bench):
    record = await bench.store.create("m", [PLAN] * 5, {})
    async with bench.dispatching():
        record = await bench.ended(record.id)
    assert [image.status for image in record.images] == [Status.SUCCEEDED] * 5
    assert [image.step for image in record.images] == [PLAN.steps] * 5


async def test_lost_editor_costs_a_retry(bench):
    bench.editors.errors = [EditorLost("gone")] * 2
    record = await bench.store.create("m", [PLAN], {})
    async with bench.dispatching():
        record = await bench.ended(record.id)
    assert record.status == Status.SUCCEEDED
    assert len(bench.editors.tasks) == 3


async def test_retries_are_bounded_and_the_reason_is_told(bench):
    bench.editors.errors = [EditorLost("gone")] * 9
    record = await bench.store.create("m", [PLAN], {})
    async with bench.dispatching():
        record = await bench.ended(record.id)
    assert (record.status, record.error) == (Status.FAILED, "prompt 0: gone")
    assert len(bench.editors.tasks) == bench.jobs.max_attempts


async def test_being_turned_away_is_no_attempt(bench):
    bench.editors.errors = [EditorUnavailable("no editor")] * (bench.jobs.max_attempts + 1)
    record = await bench.store.create("m", [PLAN], {})
    async with bench.dispatching():
        record = await bench.ended(record.id)
    assert record.status == Status.SUCCEEDED


async def test_error_of_the_request_is_not_tried_again(bench):
    bench.editors.errors = [LoraChanged("the file was changed")]
    record = await bench.store.create("m", [PLAN], {})
    async with bench.dispatching():
        record = await bench.ended(record.id)
    assert record.error == "prompt 0: the file was changed"
    assert len(bench.editors.tasks) == 1


async def test_edit_that_takes_too_long_fails(bench):
    bench.jobs = bench.jobs.model_copy(update={"timeout_s": 0.1})
    bench.editors.gate.clear()
    record = await bench.store.create("m", [PLAN], {})
    async with bench.dispatching():
        record = await bench.ended(record.id)
    assert record.error == "prompt 0: it took longer than 0.1 s"


async def test_stopped_dispatcher_gives_its_work_back(bench):
    bench.editors.gate.clear()
    record = await bench.store.create("m", [PLAN] * 2, {})
    async with bench.dispatching():
        while len(bench.editors.tasks) < 2:
            await asyncio.sleep(0.01)
    bench.editors.gate.set()
    async with bench.dispatching():
        record = await bench.ended(record.id)
    assert record.status == Status.SUCCEEDED


async def test_work_of_a_vanished_dispatcher_is_taken_up(bench):
    record = await bench.store.create("m", [PLAN], {})
    [claim] = await bench.store.claim("vanished", 1)
    await bench.store.progress(claim, 1)
    async with bench.dispatching():
        record = await bench.ended(record.id)
    assert record.status == Status.SUCCEEDED


async def test_picture_that_a_vanished_dispatcher_had_made_is_used(bench):
    record = await bench.store.create("m", [PLAN], {})
    [claim] = await bench.store.claim("vanished", 1)
    events = [event async for event in bench.editors.edit(claim.task)]
    # What an editor writes beside a finished picture.
    bench.artifacts.put_json(f"results/{record.id}/0.json", asdict(events[-1]))
    async with bench.dispatching():
        record = await bench.ended(record.id)
    assert record.images[0].result == events[-1]
    assert len(bench.editors.tasks) == 1


async def test_lease_is_held_through_a_long_edit(bench):
    bench.editors.gate.clear()
    record = await bench.store.create("m", [PLAN], {})
    async with bench.dispatching(), bench.dispatching():
        await asyncio.sleep(0.8)
        bench.editors.gate.set()
        record = await bench.ended(record.id)
    assert record.status == Status.SUCCEEDED
    assert len(bench.editors.tasks) == 1
