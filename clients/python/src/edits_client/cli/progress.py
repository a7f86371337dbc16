"""Following a request in the terminal: place in the queue, a bar per image, and the step preview."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import PIL.Image
import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from edits_client._sync.job import Job
from edits_client.cli.context import INTERRUPTED, err, say
from edits_client.events import Ended, Event, ImageFinished, Preview, Queued, Step

# How often the predicted time is asked for (s).
ETA_S = 2.0
# The width of a preview in characters. Each shows two pixels, one above the other.
PREVIEW_COLUMNS = 32


def watch(job: Job, timeout: float | None = None, label: str = "") -> Ended:
    """Show what happens to a request until it ends; nothing without a terminal. Raises WaitTimeout.

    `label` tells it from other requests of the same command.
    """
    with RequestView(job, label) as view:
        for event in job.events(previews=view.shows_previews, timeout=timeout):
            view.update(event)
            if isinstance(event, Ended):
                return event
    raise AssertionError("unreachable: the last event is an Ended")


@contextmanager
def asking_on_interrupt(jobs: Sequence[Job]) -> Iterator[None]:
    """Ctrl-C within asks once whether to cancel the requests, or leaves them alone; then the command ends."""
    try:
        yield
    except KeyboardInterrupt:
        if not jobs:
            raise
        if _wants_to_cancel(len(jobs)):
            for job in jobs:
                job.cancel()
            say("canceled")
        else:
            for job in jobs:
                say(f"request {job.id} goes on; to follow it: edits watch {job.id}")
        raise typer.Exit(INTERRUPTED) from None


def _wants_to_cancel(requests: int) -> bool:
    """What the user says. Without a terminal, and after a second Ctrl-C, it is no."""
    if not is_interactive():
        return False
    try:
        return typer.confirm("Cancel the request?" if requests == 1 else f"Cancel all {requests} requests?", err=True)
    except typer.Abort:
        say()
        return False


def is_interactive() -> bool:
    """Whether somebody can answer a question."""
    return err.is_terminal and sys.stdin.isatty()


class RequestView:
    """The live view of one request."""

    def __init__(self, job: Job, label: str = "") -> None:
        self._job = job
        self._title = f"{label}, request {job.id}" if label else f"request {job.id}"
        self._bars = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"), console=err
        )
        self._tasks: dict[int | None, TaskID] = {}
        self._line = "sent"
        self._preview: Text | None = None
        self._eta_at = 0.0
        self._eta = ""
        self.shows_previews = err.is_terminal and err.color_system == "truecolor"
        self._live = Live(self._view(), console=err, transient=True, auto_refresh=False)

    def __enter__(self) -> RequestView:
        if err.is_terminal:
            self._live.start(refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        if err.is_terminal:
            self._live.stop()

    def update(self, event: Event) -> None:
        """Show what has happened."""
        if not err.is_terminal:
            return
        if isinstance(event, Queued):
            ahead = event.queue_position
            self._line = "next in the queue" if ahead == 0 else f"in the queue behind {_images(ahead)}"
        elif isinstance(event, Step):
            self._line = "working"
            self._bar(event.image, event.step, event.steps, f"{event.step}/{event.steps} {event.stage or ''}")
        elif isinstance(event, ImageFinished):
            self._bar(event.image, 1, 1, "finished")
            self._preview = None
        elif isinstance(event, Preview) and self.shows_previews:
            self._preview = half_blocks(event.jpeg)
        self._refresh_eta()
        self._live.update(self._view(), refresh=True)

    def _bar(self, image: int | None, done: int, total: int, state: str) -> None:
        if image not in self._tasks:
            name = "all images" if image is None else f"image {image}"
            self._tasks[image] = self._bars.add_task(name, state="")
        self._bars.update(self._tasks[image], completed=done, total=total, state=state)

    def _refresh_eta(self) -> None:
        if time.monotonic() - self._eta_at < ETA_S:
            return
        eta_s = self._job.status().eta_s
        self._eta = "" if eta_s is None else f", about {eta_s:.0f} s left"
        self._eta_at = time.monotonic()

    def _view(self) -> RenderableType:
        rows: list[RenderableType] = [Text(f"{self._title}: {self._line}{self._eta}")]
        if self._tasks:
            rows.append(self._bars)
        if self._preview is not None:
            rows.append(self._preview)
        return Group(*rows)


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


def half_blocks(jpeg: bytes) -> Text:
    """An image as text: the upper and the lower half of each character have the color of one pixel."""
    image = PIL.Image.open(io.BytesIO(jpeg)).convert("RGB")
    rows = max(1, round(PREVIEW_COLUMNS * image.height / image.width / 2))
    small = image.resize((PREVIEW_COLUMNS, 2 * rows), PIL.Image.Resampling.BOX)
    data = small.tobytes()
    pixels = [(data[start], data[start + 1], data[start + 2]) for start in range(0, len(data), 3)]
    text = Text()
    for row in range(rows):
        for column in range(PREVIEW_COLUMNS):
            upper, lower = pixels[2 * row * PREVIEW_COLUMNS + column], pixels[(2 * row + 1) * PREVIEW_COLUMNS + column]
            text.append("▀", style=f"{_color(upper)} on {_color(lower)}")
        text.append("\n")
    return text


def _color(pixel: tuple[int, int, int]) -> str:
    red, green, blue = pixel
    return f"#{red:02x}{green:02x}{blue:02x}"
