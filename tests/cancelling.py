"""Cancels a coroutine at each of its awaits, as a caller that goes away may do."""

import asyncio
import types
from collections.abc import Awaitable, Callable, Collection, Coroutine, Generator
from typing import Any

# A clean-up that takes longer than this (s) hangs.
PATIENCE_S = 10.0
# Runs in a row that ended before the await at which they were to be cancelled: then there is no later one.
ENOUGH = 2
# Awaits of one coroutine; more would mean that it waits in a loop.
MOST_AWAITS = 500


async def cancelled_at_each_await(
    make: Callable[[], Coroutine[Any, Any, Any]],
    check: Callable[[], Awaitable[None]],
    *,
    from_await: int = 1,
    at_least: int = 1,
) -> int:
    """Run `make()` once for each of its awaits, cancelled there, and `check` after each; how many runs that were.

    Then each run once more for every await that follows the first cancellation, cancelled there a second time. Where
    threads work, the number of awaits differs from run to run: `at_least` so many must have been cancelled, and two
    runs in a row must have ended before their turn.
    """
    runs = ended_early = 0
    for first in range(from_await, MOST_AWAITS):
        seen = await _run(make(), {first})
        await check()
        if seen < first:
            ended_early += 1
            if ended_early < ENOUGH:
                continue
            assert runs >= at_least, f"it was cancelled at {runs} awaits only"
            return runs
        ended_early = 0
        runs += 1
        for second in range(first + 1, seen + 1):
            await _run(make(), {first, second})
            await check()
            runs += 1
    raise AssertionError(f"it has more than {MOST_AWAITS} awaits")


async def _run(work: Coroutine[Any, Any, Any], moments: Collection[int]) -> int:
    """Run it in a task that is cancelled at these awaits, counted from 1; how many awaits there were."""
    counted = _Counted(work, moments)
    task = asyncio.create_task(counted.run())
    done, _ = await asyncio.wait([task], timeout=PATIENCE_S)
    if not done:
        task.cancel()
        raise AssertionError(f"it was not done {PATIENCE_S} s after it was cancelled at await {sorted(moments)}")
    if not task.cancelled() and (error := task.exception()) is not None:
        raise AssertionError(f"cancelled at await {sorted(moments)}, it raised {error!r}") from error
    if not task.cancelled() and min(moments) <= counted.awaits:
        raise AssertionError(f"the cancellation at await {sorted(moments)} was lost")
    return counted.awaits


class _Counted:
    """A coroutine whose awaits are counted: the places where it gives control back to the event loop."""

    def __init__(self, work: Coroutine[Any, Any, Any], moments: Collection[int]) -> None:
        self._work = work
        self._moments = moments
        self.awaits = 0

    async def run(self) -> Any:
        return await self._step()

    @types.coroutine
    def _step(self) -> Generator[Any, Any, Any]:
        resume, value = self._work.send, None
        while True:
            try:
                awaited = resume(value)
            except StopIteration as end:
                return end.value
            self.awaits += 1
            if self.awaits in self._moments:
                # Takes effect at the `yield` below: what is awaited there is cancelled.
                task = asyncio.current_task()
                assert task
                task.cancel()
            try:
                value = yield awaited
                resume = self._work.send
            except BaseException as error:
                resume, value = self._work.throw, error


async def after_ticks(ticks: int, act: Callable[[], object]) -> None:
    """Act after so many rounds of the event loop."""
    for _ in range(ticks):
        await asyncio.sleep(0)
    act()
