"""How far the start of an editor is: bytes of its checkpoint, for the log and for `/ready`."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, NamedTuple

logger = logging.getLogger(__name__)

StartState = Literal["starting", "downloading", "loading", "preparing"]


class StartProgress(NamedTuple):
    """What an editor does before it takes work, and how many bytes of how many it has read for that."""

    state: StartState
    bytes_read: int
    bytes: int


class Start:
    """The start of one editor. Any thread may use it."""

    def __init__(self) -> None:
        self._progress = StartProgress("starting", 0, 0)
        self._lock = threading.Lock()

    def set(self, state: StartState, done: int, total: int) -> None:
        """The editor is in this state, and has read so many bytes of so many."""
        with self._lock:
            self._progress = StartProgress(state, done, total)

    @property
    def progress(self) -> StartProgress:
        with self._lock:
            return self._progress


_start: ContextVar[Start | None] = ContextVar("start", default=None)


@contextmanager
def following() -> Iterator[Start]:
    """The start of the editor that the code inside loads."""
    start = Start()
    token = _start.set(start)
    try:
        yield start
    finally:
        _start.reset(token)


class Progress:
    """Logs each tenth of some bytes, and tells the start of this context's editor. Any thread may call it."""

    def __init__(self, what: str, total: int, state: StartState = "loading") -> None:
        self._what, self._total, self._state = what, total, state
        self._done = self._shown = 0
        self._started = time.perf_counter()
        self._lock = threading.Lock()
        self._start = _start.get()
        self.add(0)

    def add(self, size: int) -> None:
        """This many more bytes are done."""
        with self._lock:
            self._done += size
            if self._start is not None:
                self._start.set(self._state, self._done, self._total)
            tenth = 10 * self._done // max(1, self._total)
            if tenth == self._shown:
                return
            self._shown = tenth
            seconds = time.perf_counter() - self._started
            done, total = (value / 2**30 for value in (self._done, self._total))
        logger.info("%s: %.1f of %.1f GiB after %.1f s", self._what, done, total, seconds)

    def finished(self) -> None:
        """All is done. What follows reads nothing."""
        if self._start is not None:
            self._start.set("preparing", self._done, self._total)
