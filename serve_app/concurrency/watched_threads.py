"""Blocking calls in threads that their caller watches: a call that hangs becomes an error, which names the cause."""

import threading
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self


class Stalled(Exception):
    """A call made no progress for too long. The text says what it waited for."""


class Stopped(Exception):
    """Another call has failed, so this one ends."""


class Watch:
    """What one thread waits for. The thread reports it before everything that may block."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._waiting: tuple[float, str] | None = None

    def before(self, what: str) -> None:
        """The thread now waits for `what`. Raises Stopped if another call has failed."""
        if self._stop.is_set():
            raise Stopped
        self._waiting = time.monotonic(), what

    def done(self) -> None:
        """The thread waits for nothing that may hang."""
        self._waiting = None

    def late(self, patience_s: float) -> str | None:
        """What the thread has waited for longer than `patience_s` seconds, if it has."""
        waiting = self._waiting
        return waiting[1] if waiting and time.monotonic() - waiting[0] > patience_s else None


# A call, which reports to the watch of its thread.
Call = Callable[[Watch], None]


class WatchedThreads:
    """Makes calls in `count` threads, in their order, from its construction on.

    Use it as a context: on an error inside, the calls stop. The threads do not keep the process alive, so one that
    hangs is left behind.
    """

    def __init__(self, calls: Iterable[Call], count: int, patience_s: float) -> None:
        """`calls` is advanced by one thread at a time. A call that waits longer than `patience_s` seconds fails."""
        self._calls = iter(calls)
        self._patience_s = patience_s
        self._stop = threading.Event()
        self._next = threading.Lock()
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._watches = [Watch(self._stop) for _ in range(count)]
        self._running = count
        for watch in self._watches:
            threading.Thread(target=self._run, args=(watch,), daemon=True, name="loading").start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()

    def finish(self) -> None:
        """Wait for all calls. Raises the first error of a call, or Stalled."""
        with self._changed:
            while self._running and self._error is None:
                self._changed.wait(min(1.0, self._patience_s))
                for watch in self._watches:
                    if (what := watch.late(self._patience_s)) is not None:
                        self._stop.set()
                        raise Stalled(what)
            if self._error is not None:
                raise self._error

    def _run(self, watch: Watch) -> None:
        try:
            while (call := self._take()) is not None:
                call(watch)
                watch.done()
        except Stopped:
            pass
        except BaseException as error:
            self._stop.set()
            with self._changed:
                self._error = self._error or error
        finally:
            watch.done()
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def _take(self) -> Call | None:
        if self._stop.is_set():
            return None
        with self._next:
            return next(self._calls, None)
