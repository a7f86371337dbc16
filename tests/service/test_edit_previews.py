"""Step previews in an editor without Ray around it: made for watchers only, and never at the expense of the edit."""

import asyncio
import io
import threading
from collections.abc import Callable
from contextlib import aclosing, suppress

import PIL.Image
import pytest

from serve_app.config import ModelConfig
from serve_app.engine.protocol import Edited, MakePreview, OnStep, ShouldStop
from serve_app.errors import StorageFailed
from serve_app.replicas import edit_previews
from serve_app.replicas.editor import TIME_LIMITS, Editor
from serve_app.storage.artifacts import Artifacts
from serve_app.storage.step_previews import StepPreviewStorage
from serve_app.tasks import EditDone, EditPlan, EditTask, StepDone
from serve_app.telemetry.metrics import NoMeter
from tests.service.bare import bare_editor
from tests.standin import PreparedPlan, StandInEngine, edited, preview_of

# The last step is one after which a preview would be due.
STEPS = 13
REQUEST = "request"


class SteppedEngine(StandInEngine):
    """Makes a step when the test lets it, and notes after which steps a preview was made.

    `done` counts steps. `fails`: previews raise. `starts_again_after`: the step after which the edit starts again,
    once, as after it ran out of memory.
    """

    def __init__(self) -> None:
        super().__init__(ModelConfig(), step_s=0.0)
        self.may_step = threading.Semaphore(0)
        self.done = 0
        self.made: list[int] = []
        self.fails = False
        self.starts_again_after = 0

    def run(self, prepared: PreparedPlan, on_step: OnStep, should_stop: ShouldStop) -> Edited:
        on_step(0, None)
        again = [*range(1, self.starts_again_after + 1), 0] if self.starts_again_after else []
        for step in [*again, *range(1, prepared.plan.steps + 1)]:
            assert self.may_step.acquire(timeout=30)
            on_step(step, self._making(prepared.plan, step) if step else None)
            self.done += 1
            if should_stop():
                break
        return edited(prepared.plan, 0.0, {})

    def _making(self, plan: EditPlan, step: int) -> MakePreview:
        def make() -> PIL.Image.Image:
            self.made.append(step)
            if self.fails:
                raise RuntimeError("no preview")
            return preview_of(plan, step)

        return make


class Running:
    """An edit under way: `step` makes its next steps and waits for what follows from them."""

    def __init__(self, replica: Editor, task: EditTask, storage: StepPreviewStorage) -> None:
        self.engine: SteppedEngine = replica._engine
        self.storage = storage
        self._maker = replica._previews
        self._work = asyncio.create_task(self._consume(replica, task))

    async def _consume(self, replica: Editor, task: EditTask) -> EditDone:
        async with aclosing(replica.edit(task)) as events:
            async for event in events:
                if isinstance(event, EditDone):
                    return event
                assert not isinstance(event, StepDone) or event.step <= STEPS
        raise AssertionError

    async def look(self) -> None:
        """Wait until the editor has looked at the marker, and has stored what it was about to."""
        await asyncio.sleep(5 * edit_previews.LOOK_S)
        await asyncio.get_running_loop().run_in_executor(self._maker.thread, lambda: None)

    async def step(self, count: int = 1) -> None:
        for _ in range(count):
            until = self.engine.done + 1
            self.engine.may_step.release()
            while self.engine.done < until:
                await asyncio.sleep(0.001)
            await asyncio.get_running_loop().run_in_executor(self._maker.thread, lambda: None)

    async def finish(self) -> EditDone:
        self.engine.may_step.release(STEPS)
        async with asyncio.timeout(30):
            done = await self._work
        await asyncio.get_running_loop().run_in_executor(self._maker.thread, lambda: None)
        return done

    async def cancel(self) -> None:
        self._work.cancel()
        # Until the editor knows that its caller has gone: it stops at its next step.
        await asyncio.sleep(0.05)
        self.engine.may_step.release(STEPS)
        with suppress(asyncio.CancelledError):
            await self._work


Start = Callable[[], Running]


@pytest.fixture
def storage(tmp_path) -> StepPreviewStorage:
    return StepPreviewStorage(Artifacts(str(tmp_path)))


@pytest.fixture
async def start(tmp_path, monkeypatch, make_plan, storage):
    """Start an edit of `STEPS` steps, of which none is made yet. Its editor looks at the marker every 10 ms."""
    monkeypatch.setattr(edit_previews, "LOOK_S", 0.01)
    monkeypatch.setattr(edit_previews, "SECONDS_BETWEEN", 0.0)
    replica = bare_editor(tmp_path, monkeypatch, lambda *_: SteppedEngine(), TIME_LIMITS)
    task = EditTask(REQUEST, 0, make_plan(steps=STEPS, control_images=()))
    yield lambda: Running(replica, task, storage)
    for loop in replica._loops:
        loop.cancel()


async def test_watched_edit_has_previews_every_few_steps_and_none_of_its_last(start: Start, storage):
    storage.change_marker(REQUEST)
    edit = start()
    await edit.look()
    await edit.step(STEPS - 1)
    assert edit.engine.made == [1, 4, 7, 10]
    step, jpeg = storage.get(REQUEST, 0)
    assert step == 10
    assert PIL.Image.open(io.BytesIO(jpeg)).format == "JPEG"
    await edit.finish()
    assert edit.engine.made == [1, 4, 7, 10]


async def test_edit_that_nobody_watches_makes_no_preview(start: Start, storage):
    edit = start()
    await edit.look()
    await edit.finish()
    assert edit.engine.made == []
    assert storage.get(REQUEST, 0) is None


async def test_edit_that_starts_again_has_previews_again(start: Start, storage):
    storage.change_marker(REQUEST)
    edit = start()
    edit.engine.starts_again_after = 8
    await edit.look()
    await edit.step(8 + 1 + 5)
    assert edit.engine.made == [1, 4, 7, 1, 4]
    edit.engine.may_step.release(STEPS)
    await edit.finish()


async def test_watcher_who_comes_late_gets_the_next_step(start: Start, storage):
    edit = start()
    await edit.step(5)
    storage.change_marker(REQUEST)
    await edit.look()
    await edit.step(2)
    assert edit.engine.made == [6]
    await edit.finish()


async def test_previews_end_with_their_watchers_and_begin_again_with_new_ones(start: Start, storage, monkeypatch):
    monkeypatch.setattr(edit_previews, "WATCHED_S", 0.2)
    storage.change_marker(REQUEST)
    edit = start()
    await edit.look()
    await edit.step()
    await asyncio.sleep(0.25)
    # The marker is still there, but it does not change any more.
    await edit.step(6)
    assert edit.engine.made == [1]
    storage.change_marker(REQUEST)
    await edit.look()
    await edit.step()
    assert edit.engine.made == [1, 8]
    await edit.finish()


async def test_previews_are_some_time_apart(start: Start, storage, monkeypatch):
    monkeypatch.setattr(edit_previews, "SECONDS_BETWEEN", 60.0)
    storage.change_marker(REQUEST)
    edit = start()
    await edit.look()
    await edit.finish()
    assert edit.engine.made == [1]


async def test_slow_storage_delays_previews_and_no_step(start: Start, storage, monkeypatch):
    put, may_store = StepPreviewStorage.put, threading.Event()

    def slow_put(*args) -> None:
        assert may_store.wait(30)
        put(*args)

    storage.change_marker(REQUEST)
    edit = start()
    await edit.look()
    monkeypatch.setattr(StepPreviewStorage, "put", slow_put)
    edit.engine.may_step.release(STEPS - 1)
    async with asyncio.timeout(30):
        while edit.engine.done < STEPS - 1:
            await asyncio.sleep(0.001)
    assert edit.engine.made == [1]
    may_store.set()
    await edit.finish()


async def test_preview_that_cannot_be_made_leaves_the_edit_alone(start: Start, storage, caplog, monkeypatch):
    counted = []
    monkeypatch.setattr(NoMeter, "record", lambda self, metric, *_, **tags: counted.append((metric.name, tags)))
    storage.change_marker(REQUEST)
    edit = start()
    edit.engine.fails = True
    await edit.look()
    await edit.step(STEPS - 1)
    assert isinstance(await edit.finish(), EditDone)
    assert edit.engine.made == [1, 4, 7, 10]
    failed = [tags for name, tags in counted if name == "edits_previews_total"]
    assert failed == [{"model": "qwen_image_edit", "outcome": "failed"}] * 4
    assert caplog.text.count("a step preview could not be made") == 1


@pytest.mark.parametrize("call", ["marker", "put", "delete"])
async def test_storage_that_is_away_leaves_the_edit_alone(start: Start, storage, monkeypatch, caplog, call):
    def fail(*_: object) -> None:
        raise StorageFailed("away")

    storage.change_marker(REQUEST)
    monkeypatch.setattr(StepPreviewStorage, call, fail)
    edit = start()
    await edit.look()
    await edit.step(STEPS - 1)
    assert isinstance(await edit.finish(), EditDone)
    assert caplog.text.count("the edit goes on") == 1


async def test_preview_is_deleted_when_its_edit_ends(start: Start, storage):
    storage.change_marker(REQUEST)
    edit = start()
    await edit.look()
    await edit.step()
    assert storage.get(REQUEST, 0) is not None
    await edit.finish()
    assert storage.get(REQUEST, 0) is None
    # Other images of the request are still watched.
    assert storage.marker(REQUEST) is not None


async def test_edit_that_was_stopped_stores_no_preview_after_the_end_of_its_request(start: Start, storage, monkeypatch):
    put, stored = StepPreviewStorage.put, []

    def noted_put(*args) -> None:
        stored.append(args[-1].step)
        put(*args)

    monkeypatch.setattr(StepPreviewStorage, "put", noted_put)
    storage.change_marker(REQUEST)
    edit = start()
    await edit.look()
    await edit.step(3)
    storage.delete_all(REQUEST)
    await edit.cancel()
    # It learns only after this step that it should stop.
    assert edit.engine.made == [1, 4]
    assert stored == [1]
    assert (storage.get(REQUEST, 0), storage.marker(REQUEST)) == (None, None)
