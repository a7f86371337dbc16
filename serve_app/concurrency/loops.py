"""Loops that run next to requests: the same work every few seconds, for as long as the process lives."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from serve_app.telemetry.failures import log_failure
from serve_app.telemetry.metrics import LOOP_FAILURES, Loop, Meter

logger = logging.getLogger(__name__)

# Waits for this number of seconds, or returns earlier if there is work to do.
Pause = Callable[[float], Awaitable[object]]


async def every(
    seconds: float,
    work: Callable[[], Awaitable[object]],
    *,
    loop: Loop,
    meter: Meter,
    pause: Pause = asyncio.sleep,
    pauses_first: bool = False,
) -> None:
    """Call `work` again and again, with a pause of `seconds` after each call, until this coroutine is cancelled.

    Each call is a round. If a round raises an exception, the loop continues: the failure is logged with the loop's
    name and counted in `LOOP_FAILURES`, whose tag `repeated` says whether the previous round failed too. A
    cancellation interrupts the current round or pause; CancelledError is raised after its clean-up. With
    `pauses_first`, the loop begins with a pause.

    `pause` waits between rounds, and may return early. Tests pass one that does not wait, or that ends the loop by
    raising CancelledError.
    """
    failures = 0
    if pauses_first:
        await pause(seconds)
    while True:
        try:
            await work()
        except asyncio.CancelledError:
            if _is_cancelled():
                raise
            # Something that the round waited for was cancelled, not the loop.
            failures = _count_failure(loop, meter, failures)
        except Exception:
            failures = _count_failure(loop, meter, failures)
        else:
            failures = 0
        if _is_cancelled():
            # The round swallowed the cancellation: its clean-up raised another error, or it returned.
            raise asyncio.CancelledError
        await pause(seconds)


class WakeUp:
    """Lets others end a loop's pause early. Give its `pause` to `every`."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def set(self) -> None:
        """End the current pause. If a round is running, end the pause after it: it may have missed the new work."""
        self._event.set()

    async def pause(self, seconds: float) -> None:
        """Return when `set` is called, at once if it was called since the last pause, or else after `seconds`."""
        try:
            # Not `wait_for`: in Python 3.11 it loses a cancellation that arrives together with the event.
            async with asyncio.timeout(seconds):
                await self._event.wait()
        except TimeoutError:
            return
        self._event.clear()


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _count_failure(loop: Loop, meter: Meter, failures_before: int) -> int:
    """Log and count the exception that is being handled. Returns the number of failed rounds in a row."""
    failures = failures_before + 1
    log_failure(logger, "a round of the loop %s failed (%s in a row); the loop goes on", loop, failures)
    try:
        meter.record(LOOP_FAILURES, loop=loop, repeated="true" if failures > 1 else "false")
    except Exception:
        logger.exception("the failure could not be counted")
    return failures
