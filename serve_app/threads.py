"""Threads for one kind of blocking call, so that calls of that kind which hang hold up no other kind."""

import asyncio
import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeVar

from serve_app.budget import Budget, Hold

T = TypeVar("T")


class Threads:
    """At most `count` threads. One that hangs keeps its place until it ends; it does not keep the process alive."""

    def __init__(self, count: int, patience_s: float, what: str) -> None:
        """A call that waits longer than `patience_s` for a thread gets Overloaded, with `what` in its sentence."""
        self._places = Budget(count, count, patience_s, what)

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
            threading.Thread(target=work, daemon=True).start()
        except RuntimeError:
            # The system has no thread left.
            place.keep(0)
            raise
        async with asyncio.timeout(timeout_s):
            return await asyncio.wrap_future(outcome)
