"""How far a request is: stages of an image, steps of an attempt, and a prediction that ends with the request."""

import pytest

from serve_app.intake.answers.bodies import Links, status_of
from serve_app.jobs.store import JobStore
from serve_app.schemas.answers import MAX_FINISHED_IMAGES
from serve_app.tasks import EditDone, Heartbeat, ImageStage, Stage, StepDone
from tests.unit.bench import Bench, ScriptedEditors
from tests.unit.conftest import ON_BOTH_DATABASES
from tests.unit.test_jobs import PLAN, claim, is_stored, new

pytestmark = ON_BOTH_DATABASES

# Ten seconds of an edit, of which decoding and storing take 3.5.
TIMINGS = {"generate": 8.0, "denoise": 6.0, "decode": 1.5, "save": 2.0}
LINKS = Links("http://base", True)
DONE = EditDone("pictures/cd.jpeg", "/x.jpeg", "jpeg", 64, 64, 42, 3, "cd", TIMINGS)


@pytest.fixture
def store(bench) -> JobStore:
    return bench.store


async def measure(store: JobStore) -> None:
    await store.requests.create(new(), is_stored)
    [mine] = await claim(store)
    await store.queue.succeed(mine, DONE, is_stored)


async def test_prediction_includes_decoding_and_storing(store):
    await measure(store)
    record = await store.requests.create(new(), is_stored)
    [mine] = await claim(store)
    left = []
    for step in (0, PLAN.steps // 2, PLAN.steps):
        await store.queue.progress(mine, step)
        left.append(status_of(await store.requests.state(record.id), 1, LINKS).eta_s)
    # The device is kept for 8 s, and 0.35 of the edit comes after its last step.
    assert left == [8.0, pytest.approx(5.4), pytest.approx(2.8)]
    await store.queue.reach(mine, ImageStage.STORING)
    assert status_of(await store.requests.state(record.id), 1, LINKS).eta_s > 0
    await store.queue.succeed(mine, DONE, is_stored)
    assert status_of(await store.requests.state(record.id), 1, LINKS).eta_s is None


async def test_work_of_an_edit_whose_steps_are_done_is_still_waited_for(store):
    await measure(store)
    await store.requests.create(new(), is_stored)
    [running] = await claim(store)
    await store.queue.progress(running, PLAN.steps)
    waiting = await store.requests.create(new(), is_stored)
    assert (await store.requests.state(waiting.id)).work_left == pytest.approx(13.5)
    [backlog] = (await store.queue.backlogs()).values()
    assert backlog.running_s == pytest.approx(2.8)


async def test_prediction_is_never_zero_before_the_end(store):
    await store.requests.create(new(), is_stored)
    [mine] = await claim(store)
    await store.queue.succeed(mine, EditDone("k", "u", "png", 1, 1, 1, 1, "k", {"generate": 1.0}), is_stored)
    record = await store.requests.create(new(), is_stored)
    [mine] = await claim(store)
    await store.queue.progress(mine, PLAN.steps)
    state = await store.requests.state(record.id)
    assert (state.work_left, status_of(state, 1, LINKS).eta_s) == (0.0, 0.1)


async def stage_of(bench: Bench, request_id: str) -> ImageStage | None:
    return (await bench.store.requests.state(request_id)).stage


async def test_stages_follow_each_other(bench):
    seen = []

    class RecordingEditors(ScriptedEditors):
        async def edit(self, task):
            async for event in super().edit(task):
                yield event
                # The dispatcher has recorded it by now.
                seen.append(((await bench.store.requests.state(task.request_id)).stage, type(event)))

    steps = PLAN.steps
    script = [Heartbeat(Stage.PREPARING), Heartbeat(Stage.WAITING), Heartbeat(Stage.RUNNING), StepDone(0, steps)]
    script += [StepDone(step, steps) for step in range(1, steps + 1)] + [Heartbeat(Stage.STORING)]
    editors = RecordingEditors(bench.editors, [script])
    record = await bench.store.requests.create(new(), is_stored)
    assert await stage_of(bench, record.id) is None
    bench.editors = editors
    async with bench.dispatching():
        ended = await bench.ended(record.id)
    stages = [stage for stage, _ in seen[: len(script)]]
    assert list(dict.fromkeys(stages)) == ["preparing", "waiting", "denoising", "decoding", "storing"]
    # The last step is recorded however soon it follows the one before.
    assert stages[-2] == "decoding"
    assert (ended.images[0].stage, await stage_of(bench, record.id)) == (None, None)


async def test_steps_of_a_lost_attempt_are_not_progress(store):
    record = await store.requests.create(new(), is_stored)
    [mine] = await claim(store)
    await store.queue.progress(mine, 5)
    await store.queue.retry(mine, ["lost"], 0.0)
    state = await store.requests.state(record.id)
    assert (state.steps_done, state.stage) == (0, None)
    [mine] = await claim(store)
    await store.queue.progress(mine, 5)
    await store.queue.release("a")
    assert (await store.requests.state(record.id)).steps_done == 0


async def test_finished_images_are_listed_while_others_are_made(store):
    record = await store.requests.create(new(4), is_stored)
    first, second, third, _ = await claim(store, limit=4)
    await store.queue.succeed(second, DONE, is_stored)
    await store.queue.reach(first, ImageStage.DENOISING)
    status = status_of(await store.requests.state(record.id), 1, LINKS)
    base = f"http://base/v1/requests/{record.id}/images"
    assert [(image.image, image.url) for image in status.finished_images] == [(1, f"{base}/1")]
    assert status.preview_url == f"{base}/0/preview"
    await store.queue.succeed(first, DONE, is_stored)
    status = status_of(await store.requests.state(record.id), 1, LINKS)
    assert [image.image for image in status.finished_images] == [0, 1]
    # An image that waits for the device has no preview.
    await store.queue.reach(third, ImageStage.WAITING)
    assert status_of(await store.requests.state(record.id), 1, LINKS).preview_url is None


@pytest.mark.parametrize("finished", [MAX_FINISHED_IMAGES + 2, MAX_FINISHED_IMAGES + 1])
async def test_a_status_lists_only_so_many_images(store, finished):
    """Of a request that has ended, and of one that goes on."""
    record = await store.requests.create(new(MAX_FINISHED_IMAGES + 2), is_stored)
    for claimed in (await claim(store, limit=MAX_FINISHED_IMAGES + 2))[:finished]:
        await store.queue.succeed(claimed, DONE, is_stored)
    state = await store.requests.state(record.id)
    assert (state.images_done, state.finished) == (finished, tuple(range(MAX_FINISHED_IMAGES)))
