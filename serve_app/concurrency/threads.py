"""Threads for one kind of blocking call, so that calls of that kind which hang hold up no other kind."""

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

# What a thread does next; None: it ends.
Calls = SimpleQueue[Callable[[], None] | None]


class Threads:
    """At most `count` threads. One that hangs keeps its place until it ends; it does not keep the process alive."""

    def __init__(self, count: int, patience_s: float, what: str) -> None:
        """A call that waits longer than `patience_s` for a thread gets Overloaded, with `what` in its sentence."""
        self._places = Budget(count, count, patience_s, what)
        self._calls: Calls = SimpleQueue()
        self._started = 0
        weakref.finalize(self, _end, self._calls, count)

    async def run(self, call: Callable[[], T], timeout_s: float | None = None) -> T:
        """What `call` returns or raises. Raises Overloaded; after `timeout_s` TimeoutError, and the thread goes on."""
        place = Hold(self._places, "")
        await place.take(1)
        loop, outcome, context = asyncio.get_running_loop(), Future[T](), contextvars.copy_context()
        # From here on it cannot be cancelled: the thread settles it.
        outcome.set_running_or_notify_cancel()

        def work() -> None:
            try:
                outcome.set_result(context.run(call))
            except BaseException as error:
                outcome.set_exception(error)
            # A loop that has closed meanwhile counts nothing any more.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(place.keep, 0)

        try:
            self._start_missing()
        except RuntimeError as error:
            # The system has no thread left.
            place.keep(0)
            raise self._places.no_room() from error
        self._calls.put(work)
        async with asyncio.timeout(timeout_s):
            return await asyncio.wrap_future(outcome)

    def _start_missing(self) -> None:
        """As many threads as there are calls: they are kept, since starting one blocks the event loop for a moment."""
        if self._started < self._places.held:
            threading.Thread(target=_serve, args=(self._calls,), daemon=True).start()
            self._started += 1


def _serve(calls: Calls) -> None:
    while (call := calls.get()) is not None:
        call()
        # What it holds is free while the thread waits for the next.
        del call


def _end(calls: Calls, count: int) -> None:
    for _ in range(count):
        calls.put(None)
