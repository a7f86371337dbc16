"""What becomes of claimed work, whatever happens to the one who makes the image."""

import asyncio
from dataclasses import asdict

import pytest

from serve_app.errors import EditorLost, EditorUnavailable, LoraChanged, StorageFailed
from serve_app.tasks import Heartbeat, Stage, Status, StepDone
from serve_app.workers.editing import CLAIMS_WITHOUT_ATTEMPT
from tests.unit.bench import run_scripted
from tests.unit.test_jobs import MODEL, PLAN, claim, is_stored, new


class BusyEditors:
    """Editors that do not begin: each call waits for a slot."""

    def __init__(self) -> None:
        self.called = asyncio.Event()

    async def edit(self, task):
        self.called.set()
        await asyncio.Event().wait()
        yield


async def test_every_image_of_a_request_is_made(bench):
    record = await bench.store.requests.create(new(5), is_stored)
    async with bench.dispatching():
        record = await bench.ended(record.id)
    assert [image.status for image in record.images] == [Status.SUCCEEDED] * 5
    assert [image.step for image in record.images] == [PLAN.steps] * 5


async def test_lost_editor_costs_a_retry(bench):
    bench.editors.errors = [EditorLost("gone")] * 2
    record = await bench.store.requests.create(new(), is_stored)
    async with bench.dispatching():
        record = await bench.ended(record.id)
    assert record.status == Status.SUCCEEDED
    assert len(bench.editors.tasks) == 3


async def test_retries_are_bounded_and_the_reason_is_told(bench):
    bench.editors.errors = [EditorLost("gone")] * 9
    record = await bench.store.requests.create(new(), is_stored)
    async with bench.dispatching():
        record = await bench.ended(record.id)
    assert (record.status, record.error) == (
        Status.FAILED,
        "prompt 0: failed after 3 attempts (1: gone; 2: gone; 3: gone)",
    )
    assert len(bench.editors.tasks) == bench.jobs.max_attempts


async def test_rejected_edit_does_not_count_as_an_attempt(bench):
    bench.editors.errors = [EditorUnavailable("no editor")] * (bench.jobs.max_attempts + 1)
    record = await bench.store.requests.create(new(), is_stored)
    async with bench.dispatching():
        record = await bench.ended(record.id)
    assert record.status == Status.SUCCEEDED


async def test_error_of_the_request_is_not_tried_again(bench):
    bench.editors.errors = [LoraChanged("the file was changed")]
    record = await bench.store.requests.create(new(), is_stored)
    async with bench.dispatching():
        record = await bench.ended(record.id)
    assert record.error == "prompt 0: the file was changed"
    assert len(bench.editors.tasks) == 1


async def test_edit_that_takes_too_long_fails_and_is_stopped(bench):
    bench.editors.gate.clear()
    record = await bench.store.requests.create(new(deadline_s=1.5), is_stored)
    async with bench.dispatching():
        record = await bench.ended(record.id)
        await bench.stopped()
    assert record.error == "it was not finished within its deadline of 1.5 s"


async def test_editor_that_hangs_costs_a_retry(bench):
    bench.jobs = bench.jobs.model_copy(update={"stall_s": 0.2})
    bench.editors.gate.clear()
    record = await bench.store.requests.create(new(), is_stored)
    async with bench.dispatching():
        await bench.stopped()
        bench.editors.gate.set()
        record = await bench.ended(record.id)
    assert record.status == Status.SUCCEEDED
    assert record.images[0].reasons == ("the editor made no step for 0.2 s",)


SILENCE = 30.0


async def test_silent_editor_costs_a_retry(bench):
    record = await run_scripted(bench, [Heartbeat(Stage.PREPARING), StepDone(0, 8), SILENCE], silence_s=0.3)
    assert record.status == Status.SUCCEEDED
    assert record.images[0].reasons == ("the editor sent nothing for 0.3 s",)


async def test_editor_that_sends_heartbeats_is_waited_for(bench):
    begun = [StepDone(0, 8), *[0.1, Heartbeat(Stage.RUNNING)] * 15, StepDone(1, 8), EditorLost("gone")]
    record = await run_scripted(bench, [Heartbeat(Stage.PREPARING), *begun], silence_s=1)
    assert record.images[0].reasons == ("gone",)


async def test_image_that_waits_for_storage_is_not_stalled(bench):
    storing = [StepDone(8, 8), Heartbeat(Stage.STORING), *[0.1, Heartbeat(Stage.STORING)] * 6, EditorLost("gone")]
    record = await run_scripted(bench, [Heartbeat(Stage.PREPARING), StepDone(0, 8), *storing], stall_s=0.3)
    assert record.images[0].reasons == ("gone",)


async def test_edit_that_no_editor_reports_is_requested_again_and_loses_no_attempt(bench):
    record = await run_scripted(bench, *[[SILENCE]] * (bench.jobs.max_attempts + 1), silence_s=0.2)
    assert (record.status, record.images[0].reasons) == (Status.SUCCEEDED, ())


async def test_image_that_only_waited_on_a_lost_editor_loses_no_attempt(bench):
    lost = [Heartbeat(Stage.PREPARING), Heartbeat(Stage.WAITING), EditorLost("gone")]
    silent = [Heartbeat(Stage.PREPARING), Heartbeat(Stage.WAITING), SILENCE]
    record = await run_scripted(bench, *[lost, silent] * bench.jobs.max_attempts, silence_s=0.2)
    assert (record.status, record.images[0].reasons) == (Status.SUCCEEDED, ())


async def test_image_whose_control_image_cannot_be_read_now_loses_no_attempt(bench):
    away = [Heartbeat(Stage.PREPARING), StorageFailed("away")]
    record = await run_scripted(bench, *[away] * (bench.jobs.max_attempts + 1))
    assert (record.status, record.images[0].reasons) == (Status.SUCCEEDED, ())


async def test_image_that_was_being_prepared_on_a_lost_editor_loses_an_attempt(bench):
    record = await run_scripted(
        bench,
        [Heartbeat(Stage.PREPARING), EditorLost("gone")],
        [Heartbeat(Stage.WAITING), Heartbeat(Stage.RUNNING), EditorLost("gone")],
    )
    assert record.images[0].reasons == ("gone", "gone")


async def test_image_that_seems_to_kill_editors_while_it_waits_fails(bench):
    lost = [Heartbeat(Stage.PREPARING), Heartbeat(Stage.WAITING), EditorLost("gone")]
    record = await run_scripted(bench, *[lost] * (CLAIMS_WITHOUT_ATTEMPT + bench.jobs.max_attempts))
    assert record.error == "prompt 0: failed after 3 attempts (1: gone; 2: gone; 3: gone)"


async def test_cancelled_edit_is_stopped_and_the_editor_is_free_for_the_next(bench):
    bench.running = 1
    bench.editors.gate.clear()
    record = await bench.store.requests.create(new(2), is_stored)
    async with bench.dispatching():
        while len(bench.editors.tasks) < 2:
            await asyncio.sleep(0.01)
        waiting = await bench.store.requests.create(new(), is_stored)
        await bench.store.requests.cancel(record.id)
        bench.editors.stopped.clear()
        await bench.stopped()
        bench.editors.gate.set()
        assert (await bench.ended(waiting.id)).status == Status.SUCCEEDED
    assert (await bench.store.requests.get(record.id)).status == Status.CANCELED
    # What was used until then is booked.
    assert (await bench.store.requests.get(record.id)).gpu_seconds > 0


async def test_no_more_is_in_flight_than_editors_can_use(bench):
    bench.running = 2
    bench.editors.gate.clear()
    await bench.store.requests.create(new(20), is_stored)
    async with bench.dispatching(), bench.dispatching():
        await asyncio.sleep(0.5)
        assert len(bench.editors.tasks) == 4


async def test_late_tenant_waits_for_no_more_than_what_is_in_flight(bench):
    bench.running = 1
    bench.editors.gate.clear()
    await bench.store.requests.create(new(1000, tenant="early"), is_stored)
    async with bench.dispatching():
        while len(bench.editors.tasks) < 2:
            await asyncio.sleep(0.01)
        late = await bench.store.requests.create(new(3, tenant="late"), is_stored)
        bench.editors.gate.set()
        await bench.ended(late.id)
        # The late one's last image may end before the next is begun.
        async with asyncio.timeout(8):
            while len(bench.editors.tasks) < 8:
                await asyncio.sleep(0.01)
    order = [task.request_id == late.id for task in bench.editors.tasks]
    # Two were in flight; then the tenants take turns.
    assert order[:8] == [False, False, True, False, True, False, True, False]


async def test_stopped_dispatcher_gives_its_work_back(bench):
    bench.editors.gate.clear()
    record = await bench.store.requests.create(new(2), is_stored)
    async with bench.dispatching():
        while len(bench.editors.tasks) < 2:
            await asyncio.sleep(0.01)
    bench.editors.gate.set()
    async with bench.dispatching():
        record = await bench.ended(record.id)
    assert record.status == Status.SUCCEEDED


async def test_images_of_a_lost_dispatcher_are_taken_over(bench):
    record = await bench.store.requests.create(new(), is_stored)
    [mine] = await claim(bench.store, "vanished")
    await bench.store.queue.progress(mine, 1)
    async with bench.dispatching():
        record = await bench.ended(record.id)
    assert record.status == Status.SUCCEEDED


async def test_finished_image_of_a_lost_dispatcher_is_used(bench):
    record = await bench.store.requests.create(new(), is_stored)
    [mine] = await claim(bench.store, "vanished")
    events = [event async for event in bench.editors.edit(mine.task)]
    # What an editor writes next to a finished image.
    bench.artifacts.put_json(f"results/{record.id}/0.json", asdict(events[-1]))
    async with bench.dispatching():
        record = await bench.ended(record.id)
    assert record.images[0].result == events[-1]
    assert len(bench.editors.tasks) == 1


# The edit lasts for two leases.
@pytest.mark.parametrize("lease_s", [1.5])
async def test_lease_is_held_through_a_long_edit(bench):
    bench.editors.gate.clear()
    record = await bench.store.requests.create(new(), is_stored)
    async with bench.dispatching(), bench.dispatching():
        await asyncio.sleep(3)
        bench.editors.gate.set()
        record = await bench.ended(record.id)
    assert record.status == Status.SUCCEEDED
    assert len(bench.editors.tasks) == 1


async def test_without_an_editor_work_waits_where_it_is_counted(bench):
    bench.running = 0
    record = await bench.store.requests.create(new(3), is_stored)
    async with bench.dispatching():
        await asyncio.sleep(0.2)
        backlog = (await bench.store.queue.backlogs())[MODEL]
        assert (backlog.images, backlog.running_s) == (3, 0.0)
        assert not bench.editors.tasks
        bench.running = 1
        record = await bench.ended(record.id)
    assert record.status == Status.SUCCEEDED
    assert await bench.store.queue.backlogs() == {}


async def test_draining_dispatcher_finishes_started_edits_and_starts_none(bench):
    bench.editors.gate.clear()
    begun = await bench.store.requests.create(new(), is_stored)
    async with bench.dispatching() as dispatcher:
        async with asyncio.timeout(8):
            while (await bench.store.requests.get(begun.id)).status != Status.IN_PROGRESS:
                await asyncio.sleep(0.01)
        draining = asyncio.create_task(dispatcher.drain(8))
        await asyncio.sleep(0)
        late = await bench.store.requests.create(new(), is_stored)
        dispatcher.wake()
        bench.editors.gate.set()
        await draining
        assert (await bench.store.requests.get(begun.id)).status == Status.SUCCEEDED
    assert (await bench.store.requests.get(late.id)).status == Status.IN_QUEUE


async def test_draining_dispatcher_gives_back_at_once_what_no_editor_has_started(bench):
    bench.editors = busy = BusyEditors()
    record = await bench.store.requests.create(new(), is_stored)
    async with bench.dispatching() as dispatcher:
        async with asyncio.timeout(8):
            await busy.called.wait()
        await dispatcher.drain(60)
        [taken] = await claim(bench.store, "another")
    assert taken.task.request_id == record.id
    assert taken.reasons == ()
