"""The drill's engines, which note what they do at the moment they do it, and the applications around them.

The failure drill runs the real miniature, the drill of cancelling a declared timed one. What an image is called
stands in its negative prompt: without guidance that decides no pixel.
"""

# No `from __future__ import annotations` here: Serve reads the annotation of a builder to validate the args.

import os
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import PIL.Image
from ray import serve

from serve_app.app import build_application
from serve_app.config import AppConfig, ModelConfig
from serve_app.editor import load_engine
from serve_app.errors import EditCanceled
from serve_app.tasks import EditPlan

if TYPE_CHECKING:
    # Ingresses read this module too, and never import torch.
    from serve_app.engine import Edited, Engine, Prepared

# A third of a real step at a megapixel on one H200.
TIMED_STEP_S = 0.3


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
        self.all: list[Note] = []

    def write(self, what: str, plan: EditPlan, step: int) -> None:
        # One short write to a file opened for appending: lines of several processes do not mix.
        line = f"{time.time()} {os.getpid()} {what} {plan.negative_prompt} {step} {plan.steps}\n"
        with self._file.open("a") as file:
            file.write(line)

    def refresh(self) -> None:
        """Read what was written since."""
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
            self.all.append(Note(float(at), int(pid), what, image, int(step), int(steps)))

    def latest(self) -> dict[int, Note]:
        """The last note of each process."""
        self.refresh()
        return {note.pid: note for note in self.all}

    def of_image(self) -> dict[str, list[Note]]:
        self.refresh()
        notes = defaultdict(list)
        for note in self.all:
            notes[note.image].append(note)
        return notes


class WatchedEngine:
    """`Engine`'s interface around the real one."""

    def __init__(self, engine: "Engine", notes: Notes) -> None:
        self._engine = engine
        self._notes = notes

    @property
    def alive(self) -> bool:
        return self._engine.alive

    def prepare(self, plan: EditPlan, control_images: Sequence[bytes]) -> "Prepared":
        return self._engine.prepare(plan, control_images)

    def run(self, prepared: "Prepared", on_step: Callable[[int], None], should_stop: Callable[[], bool]) -> "Edited":
        def noted(step: int) -> None:
            self._notes.write("step", prepared.plan, step)
            on_step(step)

        edited = self._engine.run(prepared, noted, should_stop)
        self._notes.write("made", prepared.plan, prepared.plan.steps)
        return edited


class TimedEngine:
    """`Engine`'s interface without a model: steps of a fixed time, a picture of one colour, by the seed."""

    alive = True

    def __init__(self, notes: Notes) -> None:
        self._notes = notes

    def prepare(self, plan: EditPlan, control_images: Sequence[bytes]) -> "Prepared":
        import torch

        from serve_app.engine import Prepared, Stopwatch

        return Prepared(plan, (), (), Stopwatch(torch.device("cpu")))

    def run(self, prepared: "Prepared", on_step: Callable[[int], None], should_stop: Callable[[], bool]) -> "Edited":
        from serve_app.engine import Edited

        plan = prepared.plan
        if should_stop():
            raise EditCanceled("stopped before its first step")
        for step in range(plan.steps + 1):
            if step:
                time.sleep(TIMED_STEP_S)
            self._notes.write("step", plan, step)
            on_step(step)
            if should_stop():
                self._notes.write("stopped", plan, step)
                raise EditCanceled(f"stopped after step {step} of {plan.steps}")
        self._notes.write("made", plan, plan.steps)
        picture = PIL.Image.new("RGB", (plan.width, plan.height), (plan.seed % 256, 0, 0))
        return Edited(picture, {"generate": plan.steps * TIMED_STEP_S, "load_control_images": 0.0}, {}, {})


def notes_of(config: AppConfig) -> Notes:
    """The notes of a service lie beside its artifacts."""
    return Notes(Path(config.artifacts_url).parent / "notes")


def load_watched(config: ModelConfig, notes: Notes) -> WatchedEngine:
    return WatchedEngine(load_engine(config), notes)


def load_timed(config: ModelConfig, notes: Notes) -> TimedEngine:
    return TimedEngine(notes)


def build(args: AppConfig) -> serve.Application:
    """`serve_app.app:build` with the real engine, watched. Paths in the args are absolute."""
    return build_application(args, partial(load_watched, notes=notes_of(args)))


def build_timed(args: AppConfig) -> serve.Application:
    return build_application(args, partial(load_timed, notes=notes_of(args)))
