"""A pool of threads for one kind of blocking call: calls that hang do not block calls of other kinds."""

import asyncio
import contextvars
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from queue import SimpleQueue
from typing import TypeVar

from serve_app.concurrency.budget import Budget, Hold

T = TypeVar("T")

# The calls that threads take from. None ends a thread.
Calls = SimpleQueue[Callable[[], None] | None]


class Threads:
    """At most `count` threads. A call that hangs occupies its thread, but does not keep the process alive."""

    def __init__(self, count: int, patience_s: float, what: str) -> None:
        """A call waits up to `patience_s` seconds for a thread. `what` names its purpose in the error after that."""
        self._places = Budget(count, count, patience_s, what)
        self._calls: Calls = SimpleQueue()
        self._started = 0
        weakref.finalize(self, _stop_threads, self._calls, count)

    async def run(self, call: Callable[[], T], timeout_s: float | None = None) -> T:
        """Run `call` in a thread. Returns its result, or raises its exception.

        Raises Overloaded if no thread becomes free, and TimeoutError after `timeout_s` seconds; the thread then
        continues.
        """
        place = Hold(self._places, "")
        await place.take(1)
        loop, outcome, context = asyncio.get_running_loop(), Future[T](), contextvars.copy_context()
        # Only the thread sets the outcome: a cancelled caller must not cancel it.
        outcome.set_running_or_notify_cancel()

        def work() -> None:
            try:
                outcome.set_result(context.run(call))
            except BaseException as error:
                outcome.set_exception(error)
            # RuntimeError: the event loop has closed, and nobody waits for the place.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(place.shrink_to, 0)

        try:
            self._start_missing()
        except RuntimeError as error:
            # The system cannot start another thread.
            place.shrink_to(0)
            raise self._places.overloaded() from error
        self._calls.put(work)
        async with asyncio.timeout(timeout_s):
            return await asyncio.wrap_future(outcome)

    def _start_missing(self) -> None:
        """Start a thread if all are busy. Threads are kept, since starting one blocks the event loop for a moment."""
        if self._started < self._places.held:
            threading.Thread(target=_run_calls, args=(self._calls,), daemon=True).start()
            self._started += 1


def _run_calls(calls: Calls) -> None:
    while (call := calls.get()) is not None:
        call()
        # Free the objects of this call while the thread waits for the next one.
        del call


def _stop_threads(calls: Calls, count: int) -> None:
    for _ in range(count):
        calls.put(None)
