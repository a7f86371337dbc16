"""Notes that the drill's engines write about each step, at the moment they make it.

The name of an image is in its negative prompt, which changes no pixel without guidance.
"""

import os
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from serve_app.engine.protocol import MakePreview, OnStep
from serve_app.errors import EditCanceled
from serve_app.tasks import EditPlan

# The prompt that asks for steps of a fixed duration (s): a third of a real step at one megapixel on an H200.
TIMED, TIMED_STEP_S = "timed", 0.3
# The same with a shorter step, for many edits in a short time.
QUICK, QUICK_STEP_S = "quick", 0.05
# The negative prompt of the cells of a sweep.
SWEEP = "sweep"
# The folder where each editor leaves a file with its process id.
EDITOR_FILES = "editors"
# A note counts as an editor's current work for this long.
FRESH_S = 1.0


def name_of(plan: EditPlan) -> str:
    """The name of the image that a plan makes. The cells of a sweep share their negative prompt."""
    if plan.negative_prompt != SWEEP:
        return plan.negative_prompt
    return cell_name(plan.prompt, plan.seed, plan.adapters[0].scale)


def cell_name(prompt: str, seed: int, multiplier: float) -> str:
    """The name of a cell of the drill's sweep."""
    return f"{SWEEP}-{multiplier:g}-{prompt}-{seed}"


def register_editor(folder: Path) -> None:
    """Register this process as an editor."""
    files = folder / EDITOR_FILES
    files.mkdir(exist_ok=True)
    (files / str(os.getpid())).touch()


@dataclass(frozen=True)
class Note:
    """What a process did for an image. `what` is step (0: begun), made or stopped; `at` is seconds since the epoch."""

    at: float
    pid: int
    what: str
    image: str
    step: int
    steps: int


class Notes:
    """A file with one note per line: every engine appends to it, and the drill reads it."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._read = 0
        self._latest: dict[int, Note] = {}
        self._of_image: dict[str, list[Note]] = {}

    def write(self, what: str, plan: EditPlan, step: int) -> None:
        # One short write to a file that is opened for appending, so that lines of several processes do not mix.
        line = f"{time.time()} {os.getpid()} {what} {name_of(plan)} {step} {plan.steps}\n"
        with self._file.open("a") as file:
            file.write(line)

    def of_steps(self, plan: EditPlan, on_step: OnStep) -> OnStep:
        """An `on_step` that notes each step before it calls the given one."""

        def noted(step: int, preview: MakePreview | None) -> None:
            self.write("step", plan, step)
            on_step(step, preview)

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
        """The latest note of each process."""
        self._refresh()
        return self._latest

    def at_work(self, running: Container[str]) -> list[Note]:
        """The latest notes of processes that are working on one of these images and are not at its last step."""
        return [
            note
            for note in self.latest().values()
            if note.what == "step"
            and note.step < note.steps
            and note.at > time.time() - FRESH_S
            and note.image in running
        ]

    def of_image(self) -> Mapping[str, Sequence[Note]]:
        """The notes on each image, in order of time."""
        self._refresh()
        return self._of_image

    def _refresh(self) -> None:
        if not self._file.exists():
            return
        with self._file.open("rb") as file:
            file.seek(self._read)
            new = file.read()
        # An incomplete line is read next time.
        whole = new[: new.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.decode().splitlines():
            at, pid, what, image, step, steps = line.split()
            note = Note(float(at), int(pid), what, image, int(step), int(steps))
            self._latest[note.pid] = note
            self._of_image.setdefault(image, []).append(note)
