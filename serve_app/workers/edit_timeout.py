"""How long one edit runs: until when its editor may be silent, and how long it has used the device."""

import time

from serve_app.config import JobsConfig
from serve_app.errors import EditorLost, EditorUnavailable
from serve_app.tasks import Heartbeat, Stage, StepDone


class EditTimeout:
    """When an edit is stopped because its editor sends nothing or makes no step. Times are the event loop's (s)."""

    def __init__(self, config: JobsConfig, now: float) -> None:
        self._config = config
        self._has_event = False
        self._silent_at = now + config.silence_s
        self._stalled_at: float | None = None
        # Whether the last event says that the edit waits for another one on the same device.
        self.waits_for_device = False

    @property
    def ends_at(self) -> float:
        return self._silent_at if self._stalled_at is None else min(self._silent_at, self._stalled_at)

    def extend(self, event: Heartbeat | StepDone, now: float) -> None:
        """Move the end after an event from the editor."""
        self._has_event = True
        self._silent_at = now + self._config.silence_s
        stage = Stage.RUNNING if isinstance(event, StepDone) else event.stage
        self.waits_for_device = stage is Stage.WAITING
        if isinstance(event, StepDone):
            self._stalled_at = now + self._config.stall_s
        elif stage is Stage.STORING:
            # Storage may be unavailable for longer than a step takes.
            self._stalled_at = None

    def error(self) -> EditorLost | EditorUnavailable:
        """The error of an edit whose time is over."""
        if not self._has_event:
            return EditorUnavailable(f"no editor accepted the edit within {self._config.silence_s:g} s")
        if self.ends_at == self._stalled_at:
            return EditorLost(f"the editor made no step for {self._config.stall_s:g} s")
        return EditorLost(f"the editor sent nothing for {self._config.silence_s:g} s")


class EditClock:
    """Measures the seconds since an editor started an edit: 0 before the start and after `stop`."""

    def __init__(self) -> None:
        self._started: float | None = None
        self.was_started = False

    def start(self) -> None:
        """Start measuring, unless it was started before."""
        self.was_started = True
        if self._started is None:
            self._started = time.monotonic()

    def stop(self) -> None:
        """Stop measuring: the seconds are charged from another source."""
        self._started = None

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started if self._started is not None else 0.0
