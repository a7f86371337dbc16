"""What the drill's engines did, noted by them at the moment they did it.

What an image is called stands in its negative prompt: without guidance that decides no pixel.
"""

import os
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from serve_app.errors import EditCanceled
from serve_app.tasks import EditPlan

# The prompt that asks for steps of a fixed time, and that time: a third of a real step at a megapixel on one H200.
TIMED, TIMED_STEP_S = "timed", 0.3
# The same for many edits in a short time.
QUICK, QUICK_STEP_S = "quick", 0.05
# The folder where each editor leaves a file with its process id.
EDITOR_FILES = "editors"
# How old an editor's word may be that it is running.
FRESH_S = 1.0


def register_editor(folder: Path) -> None:
    """Note, in an editor's own process, that it is there."""
    files = folder / EDITOR_FILES
    files.mkdir(exist_ok=True)
    (files / str(os.getpid())).touch()


@dataclass(frozen=True)
class Note:
    """What a process did for an image. `what` is step (0: begun), made or stopped; `at` seconds since the epoch."""

    at: float
    pid: int
    what: str
    image: str
    step: int
    steps: int


class Notes:
    """A file of notes, a line each: written by every engine, read by the drill."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._read = 0
        self._latest: dict[int, Note] = {}
        self._of_image: dict[str, list[Note]] = {}

    def write(self, what: str, plan: EditPlan, step: int) -> None:
        # One short write to a file opened for appending: lines of several processes do not mix.
        line = f"{time.time()} {os.getpid()} {what} {plan.negative_prompt} {step} {plan.steps}\n"
        with self._file.open("a") as file:
            file.write(line)

    def of_steps(self, plan: EditPlan, on_step: Callable[[int], None]) -> Callable[[int], None]:
        """An `on_step` that notes each step before it calls the given one."""

        def noted(step: int) -> None:
            self.write("step", plan, step)
            on_step(step)

        return noted

    @contextmanager
    def of_run(self, plan: EditPlan) -> Iterator[None]:
        """Note, at the exit, whether the edit was made or stopped."""
        try:
            yield
        except EditCanceled:
            self.write("stopped", plan, 0)
            raise
        self.write("made", plan, plan.steps)

    def latest(self) -> Mapping[int, Note]:
        """The last note of each process."""
        self._refresh()
        return self._latest

    def at_work(self, running: Container[str]) -> list[Note]:
        """What processes have just noted that are in the middle of one of these images, not at its last step."""
        return [
            note
            for note in self.latest().values()
            if note.what == "step"
            and note.step < note.steps
            and note.at > time.time() - FRESH_S
            and note.image in running
        ]

    def of_image(self) -> Mapping[str, Sequence[Note]]:
        """The notes on each image, in the order of time."""
        self._refresh()
        return self._of_image

    def _refresh(self) -> None:
        if not self._file.exists():
            return
        with self._file.open("rb") as file:
            file.seek(self._read)
            new = file.read()
        # A line that is not whole yet is read next time.
        whole = new[: new.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.decode().splitlines():
            at, pid, what, image, step, steps = line.split()
            note = Note(float(at), int(pid), what, image, int(step), int(steps))
            self._latest[note.pid] = note
            self._of_image.setdefault(image, []).append(note)
