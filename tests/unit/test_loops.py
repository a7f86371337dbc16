"""Loops that run next to requests: a failed round is logged and counted, and the loop goes on. Nothing sleeps here."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from serve_app import replicas
from serve_app.concurrency import background
from serve_app.concurrency.loops import WakeUp, every
from serve_app.errors import StoreUnavailable
from serve_app.telemetry.metrics import EDITOR_LOOPS, LOOP_FAILURES, Loop
from tests.unit.test_telemetry import Recorder


class Pauses:
    """Pauses that do not wait; the last one ends the loop. Keeps how long each would have been (s)."""

    def __init__(self, count: int) -> None:
        self.seconds: list[float] = []
        self._count = count

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
        await asyncio.sleep(0)
        if len(self.seconds) == self._count:
            raise asyncio.CancelledError


async def rounds(*outcomes: BaseException | None, pauses_first: bool = False) -> tuple[Recorder, Pauses]:
    """Run a loop whose rounds end like this, one after the other."""
    recorder, pauses, coming = Recorder(), Pauses(len(outcomes) + pauses_first), iter(outcomes)

    async def work() -> None:
        if error := next(coming):
            raise error

    with pytest.raises(asyncio.CancelledError):
        await every(7.0, work, loop=Loop.SWEEPER, meter=recorder, pause=pauses, pauses_first=pauses_first)
    assert next(coming, "no round is left") == "no round is left"
    return recorder, pauses


async def test_each_round_is_followed_by_a_pause():
    recorder, pauses = await rounds(None, None, None)
    assert pauses.seconds == [7.0, 7.0, 7.0]
    assert recorder.of(LOOP_FAILURES) == {}


async def test_the_first_round_can_wait_too():
    _, pauses = await rounds(None, pauses_first=True)
    assert pauses.seconds == [7.0, 7.0]


async def test_failed_round_is_logged_with_the_name_of_its_loop_and_the_loop_goes_on(caplog):
    _, pauses = await rounds(ValueError("no such thing"), None)
    assert "a round of the loop sweeper failed (1 in a row)" in caplog.text
    assert "ValueError: no such thing" in caplog.text
    assert pauses.seconds == [7.0, 7.0]


async def test_lost_database_is_one_line_per_round(caplog):
    recorder, _ = await rounds(StoreUnavailable("away"), StoreUnavailable("away"))
    said = [(record.levelname, record.getMessage(), record.exc_info) for record in caplog.records]
    lines = [f"a round of the loop sweeper failed ({count} in a row); the loop goes on: away" for count in (1, 2)]
    assert said == [("WARNING", line, None) for line in lines]
    assert recorder.of(LOOP_FAILURES) == {("sweeper", "false"): 1, ("sweeper", "true"): 1}


async def test_failure_that_follows_a_failure_is_counted_apart():
    recorder, _ = await rounds(ValueError("a"), ValueError("b"), OSError("c"), None, ValueError("d"))
    assert recorder.of(LOOP_FAILURES) == {("sweeper", "false"): 2, ("sweeper", "true"): 2}


async def test_round_that_waited_for_something_cancelled_has_failed_and_the_loop_goes_on():
    recorder, _ = await rounds(asyncio.CancelledError(), None)
    assert recorder.of(LOOP_FAILURES) == {("sweeper", "false"): 1}


def test_loops_of_an_editor_are_those_that_replicas_start():
    code = "".join(path.read_text() for path in Path(replicas.__path__[0]).glob("*.py"))
    assert {loop for loop in Loop if f"Loop.{loop.name}" in code} == set(EDITOR_LOOPS)


async def ended_in_the_middle(work: Callable[[], Awaitable[None]], begun: asyncio.Event) -> asyncio.Task[None]:
    task = background.start(every(7.0, work, loop=Loop.SWEEPER, meter=Recorder()))
    await begun.wait()
    await background.cancel(task)
    return task


async def test_cancelled_loop_finishes_the_clean_up_of_its_round():
    begun, cleaned_up = asyncio.Event(), []

    async def work() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(3):
                await asyncio.sleep(0)
            cleaned_up.append(1)

    task = await ended_in_the_middle(work, begun)
    assert task.cancelled()
    assert cleaned_up == [1]


async def test_loop_is_cancelled_during_its_pause():
    begun = asyncio.Event()

    async def work() -> None:
        begun.set()

    task = await ended_in_the_middle(work, begun)
    assert task.cancelled()


async def test_wake_up_ends_the_pause():
    wake_up = WakeUp()
    pause = asyncio.create_task(wake_up.pause(3600))
    await asyncio.sleep(0)
    assert not pause.done()
    wake_up.set()
    await pause


async def test_wake_up_during_a_round_ends_the_next_pause_only():
    wake_up = WakeUp()
    wake_up.set()
    await wake_up.pause(3600)
    pause = asyncio.create_task(wake_up.pause(3600))
    await asyncio.sleep(0)
    assert not pause.done()
    await background.cancel(pause)


async def test_pause_ends_without_a_wake_up():
    started = asyncio.get_running_loop().time()
    await WakeUp().pause(0.05)
    assert asyncio.get_running_loop().time() - started >= 0.04


async def test_pause_that_ended_by_itself_does_not_shorten_the_next_one():
    wake_up = WakeUp()
    await wake_up.pause(0)
    pause = asyncio.create_task(wake_up.pause(3600))
    await asyncio.sleep(0)
    assert not pause.done()
    await background.cancel(pause)


@pytest.mark.parametrize("raises", [True, False])
async def test_cancellation_ends_the_loop_even_if_its_round_swallows_it(raises):
    """A clean-up that fails replaces the cancellation by its error; a round may also swallow it."""
    waiting = asyncio.Event()

    async def work() -> None:
        waiting.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            if raises:
                raise RuntimeError("the clean-up failed") from None

    task = background.start(every(0.0, work, loop=Loop.SWEEPER, meter=Recorder()))
    await waiting.wait()
    async with asyncio.timeout(10):
        await background.cancel(task)
    assert task.cancelled()


async def test_failure_that_cannot_be_counted_does_not_end_the_loop():
    class Broken(Recorder):
        def record(self, *args: object, **tags: object) -> None:
            raise RuntimeError("no meter")

    pauses = Pauses(2)
    with pytest.raises(asyncio.CancelledError):
        await every(7.0, failing, loop=Loop.SWEEPER, meter=Broken(), pause=pauses)
    assert pauses.seconds == [7.0, 7.0]


async def failing() -> None:
    raise ValueError("the round failed")
