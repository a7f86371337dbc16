"""The connection between an edit that runs in an editor and the caller who reads its events."""

import asyncio

from serve_app.tasks import EditEvent, EditTask, Heartbeat, Stage, StepDone

# How often an editor repeats that the edit is alive (s). `silence_s` is at least three times as long.
ALIVE_S = 2.0


class EditProgress:
    """Passes the events of one edit to its caller, and the caller's order to stop to the edit.

    Create it on the event loop. `step` and `should_stop` may be called in any thread.
    """

    def __init__(self, task: EditTask) -> None:
        self._task = task
        self._loop = asyncio.get_running_loop()
        self._latest = Heartbeat(Stage.PREPARING)
        self._events: asyncio.Queue[EditEvent | None] = asyncio.Queue()
        self._events.put_nowait(self._latest)
        self._stop = asyncio.Event()

    def step(self, step: int) -> None:
        """Report that a denoising step is done; 0 says that the first one begins."""
        self._loop.call_soon_threadsafe(self._events.put_nowait, StepDone(step, self._task.plan.steps))

    def stage(self, stage: Stage) -> None:
        """Report that a stage begins."""
        self._events.put_nowait(Heartbeat(stage))

    def end(self) -> None:
        """Report that there are no more events."""
        self._events.put_nowait(None)

    async def next_event(self) -> EditEvent | None:
        """The next event, or the latest `Heartbeat` again if there was none for `ALIVE_S`. None: the edit has ended."""
        try:
            async with asyncio.timeout(ALIVE_S):
                event = await self._events.get()
        except TimeoutError:
            return self._latest
        if isinstance(event, Heartbeat):
            self._latest = event
        return event

    def stop(self) -> None:
        """Have the edit stop at its next step."""
        self._stop.set()

    def should_stop(self) -> bool:
        return self._stop.is_set()
