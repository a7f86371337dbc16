"""The progress of `edits-server calibrate`, a line per image, and its end before the last one."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Stopped(Exception):
    """The command was interrupted: no further image is made."""


class Progress:
    """Prints a line before each of `total` images. Used by one thread at a time; `stopping` by another."""

    def __init__(self, total: int, show: Callable[[str], object], clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` returns seconds."""
        self._total = total
        self._show = show
        self._clock = clock
        self._begun = 0
        self._started_at = 0.0
        self._stopped = False

    def next(self, title: str) -> None:
        """Say that the next image begins. Raises Stopped after the command was interrupted."""
        if self._stopped:
            raise Stopped
        made, self._begun = self._begun, self._begun + 1
        if not made:
            self._started_at = self._clock()
        left = ""
        if made:
            seconds = (self._clock() - self._started_at) / made * (self._total - made)
            left = f", about {_time_text(seconds)} left"
        self._show(f"{title}: image {self._begun} of {self._total}{left}")

    @contextmanager
    def stopping(self) -> Iterator[None]:
        """Stop the thread that makes images if this block fails or is cancelled."""
        try:
            yield
        except BaseException:
            self._stopped = True
            raise


def _time_text(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 60 else f"{seconds / 60:.0f} min"
