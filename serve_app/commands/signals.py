"""What SIGTERM and SIGINT ask of a command that runs in the foreground."""

import logging
import signal
from types import FrameType

logger = logging.getLogger(__name__)


class StopSignals:
    """The first SIGTERM or SIGINT sets `asked`; the next one raises KeyboardInterrupt in the main thread."""

    def __init__(self) -> None:
        self.asked = False

    def listen(self) -> None:
        """Take the signals. Again after `ray.init`, which takes SIGTERM for itself."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
