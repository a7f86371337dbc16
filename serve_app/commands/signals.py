"""SIGTERM and SIGINT for a command that runs in the foreground."""

import logging
import signal
from types import FrameType

logger = logging.getLogger(__name__)


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
