"""An editor, without Ray around it, whose caller goes away at any moment."""

import asyncio
import time
from contextlib import aclosing
from types import SimpleNamespace

import pytest

from serve_app.errors import DeviceLost
from serve_app.replicas.editor import Editor, TimeLimits
from serve_app.replicas.editor_client import EditorHandles
from serve_app.tasks import EditDone, EditTask, StepDone
from tests.cancelling import after_ticks, cancelled_at_each_await
from tests.service.bare import STEPS, GatedEngine, bare_editor


@pytest.fixture
async def replica(tmp_path, monkeypatch):
    """Any edit that was told to stop and has not is one that hangs."""
    replica = bare_editor(tmp_path, monkeypatch, lambda *_: GatedEngine(), TimeLimits(stopping_s=0))
    yield replica
    replica._engine.gate.set()
    for task in replica._loops:
        task.cancel()


@pytest.fixture
def task(make_plan) -> EditTask:
    return EditTask("request", 0, make_plan(steps=STEPS, control_images=()))


def assert_healthy(replica: Editor) -> None:
    """It raises for an edit that stops for longer than `stopping_s`, which is 0 here."""
    time.sleep(0.001)
    assert not replica._stopping
    replica.check_health()


async def until_free(replica: Editor) -> None:
    """An edit that was told to stop before the device was its own ends without being waited for."""
    async with asyncio.timeout(30):
        while replica._engine.running or replica._stopping:
            await asyncio.sleep(0.001)


async def consume(replica: Editor, task: EditTask) -> list:
    async with aclosing(replica.edit(task)) as events:
        return [event async for event in events]


async def test_edit_without_a_disturbance_ends_with_its_image(replica, task):
    events = await consume(replica, task)
    assert isinstance(events[-1], EditDone)
    assert_healthy(replica)


@pytest.mark.parametrize("ticks", range(6))
async def test_editor_stays_healthy_when_its_caller_goes_just_after_the_image(replica, task, ticks):
    done = asyncio.Event()

    async def consume_and_go_on() -> None:
        async with aclosing(replica.edit(task)) as events:
            async for event in events:
                if isinstance(event, EditDone):
                    done.set()

    caller = asyncio.create_task(consume_and_go_on())
    async with asyncio.timeout(30):
        await done.wait()
        await after_ticks(ticks, caller.cancel)
        await asyncio.wait([caller])
    await until_free(replica)
    assert_healthy(replica)


async def test_editor_stays_healthy_wherever_its_caller_is_cancelled(replica, task):
    async def check() -> None:
        await until_free(replica)
        assert_healthy(replica)

    await cancelled_at_each_await(lambda: consume(replica, task), check, at_least=5)
    assert replica._engine.most_running == 1


async def test_call_does_not_end_before_the_device_is_free_however_often_it_is_cancelled(replica, task):
    engine = replica._engine
    engine.gate.clear()
    began = asyncio.Event()

    async def consume() -> None:
        async for event in replica.edit(task):
            if isinstance(event, StepDone) and event.step == STEPS:
                began.set()

    caller = asyncio.create_task(consume())
    await began.wait()
    for _ in range(3):
        caller.cancel()
        await asyncio.sleep(0.02)
        assert not caller.done()
    with pytest.raises(DeviceLost, match="hangs"):
        replica.check_health()
    engine.gate.set()
    await asyncio.wait([caller])
    assert caller.cancelled()
    assert engine.running == 0
    assert_healthy(replica)


class Response:
    """An answer of Serve's handle: one step, and then nothing for a moment."""

    def __init__(self) -> None:
        self.cancelled = 0

    def cancel(self) -> None:
        self.cancelled += 1

    async def __aiter__(self):
        yield StepDone(0, STEPS)
        await asyncio.sleep(0.001)
        yield EditDone("", "", "png", 8, 8, 0, 0, "", {}, {})


async def test_editor_is_told_when_its_caller_goes_away_wherever_that_is(task):
    responses = []

    def remote(_: EditTask) -> Response:
        responses.append(Response())
        return responses[-1]

    handle = SimpleNamespace(edit=SimpleNamespace(remote=remote))
    handle.options = lambda **_: handle
    handles = EditorHandles({task.plan.model: handle})

    async def use() -> None:
        async with aclosing(handles.edit(task)) as events:
            async for _ in events:
                await asyncio.sleep(0)

    async def check() -> None:
        assert responses.pop().cancelled == 1

    await cancelled_at_each_await(use, check, at_least=3)
