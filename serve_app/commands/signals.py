"""SIGTERM and SIGINT for a command that runs in the foreground."""

import logging
import signal
from types import FrameType

logger = logging.getLogger(__name__)


def take_sigterm_as_ctrl_c() -> None:
    """Have the first SIGTERM raise KeyboardInterrupt, or end `asyncio.run` in order, and ignore all further ones.

    `timeout` and others send SIGTERM twice, and the second one must not interrupt the clean-up.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.raise_signal(signal.SIGINT)

    # asyncio replaces only this handler by its own, and a shell has SIGINT ignored by what it starts in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, stop)


class StopSignals:
    """The first SIGTERM or SIGINT sets `asked`; the next one raises KeyboardInterrupt in the main thread."""

    def __init__(self) -> None:
        self.asked = False

    def listen(self) -> None:
        """Install the handlers. Call it again after `ray.init`, which installs its own for SIGTERM."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
