"""The progress of a sweep in the terminal: a grid with one character for each cell."""

from __future__ import annotations

from collections import Counter

from rich.live import Live
from rich.text import Text

from edits_client import models
from edits_client.cli.context import err

MARKS = {
    "in_queue": ("·", "dim"),
    "in_progress": ("▸", "yellow"),
    "succeeded": ("■", "green"),
    "failed": ("✗", "red"),
    "canceled": ("-", "dim"),
}
# Rows and columns that are shown; sheets have the others.
MAX_ROWS, MAX_COLUMNS = 30, 100
MAX_LABEL = 32


class SweepView:
    """A live view: checkpoints are columns, everything else rows."""

    def __init__(self, sweep: models.Sweep) -> None:
        self._id = sweep.sweep_id
        self._cells = {cell.cell: cell for cell in sweep.grid}
        self._labels = [_label(checkpoint) for checkpoint in sweep.axes.checkpoints]
        rows = {_row(cell): None for cell in sweep.grid}
        # Cells without a LoRA have no multiplier: they are in the first row of their prompt and seed.
        self._rows = sorted(rows, key=lambda row: tuple(-1 if index is None else index for index in row))
        self._live = Live(self._view(), console=err, transient=True, auto_refresh=False)

    def __enter__(self) -> SweepView:
        if err.is_terminal:
            self._live.start(refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        if err.is_terminal:
            self._live.stop()

    def update(self, cell: models.SweepCell) -> None:
        """Show what has happened to a cell."""
        self._cells[cell.cell] = cell
        if err.is_terminal:
            self._live.update(self._view(), refresh=True)

    def _view(self) -> Text:
        counts = Counter(str(cell.status) for cell in self._cells.values())
        done = counts["succeeded"]
        text = Text(f"sweep {self._id}: {done} of {len(self._cells)} images")
        for status in ("in_progress", "failed", "canceled"):
            if counts[status]:
                text.append(f", {counts[status]} {status.replace('_', ' ')}")
        text.append("\n")
        if len(self._labels) > 1:
            text.append(f"columns: {self._labels[0]} to {self._labels[-1]}\n", style="dim")
        places = {(_row(cell), cell.place.checkpoint): cell for cell in self._cells.values()}
        for row in self._rows[:MAX_ROWS]:
            for column in range(min(len(self._labels), MAX_COLUMNS)):
                found = places.get((row, column))
                mark, style = (" ", "") if found is None else MARKS.get(str(found.status), ("?", ""))
                text.append(f"{mark} ", style=style)
            text.append("\n")
        if len(self._rows) > MAX_ROWS:
            text.append(f"and {len(self._rows) - MAX_ROWS} more rows\n", style="dim")
        return text


def _row(cell: models.SweepCell) -> tuple[int | None, ...]:
    """What the cells of a row share: everything but the checkpoint."""
    place = cell.place
    return (place.control_image, place.prompt, place.seed, place.profile, place.quality, place.multiplier)


def _label(checkpoint: models.SweepCheckpoint) -> str:
    if checkpoint.path is None:
        return "no LoRA"
    return f"step {checkpoint.step}" if checkpoint.step is not None else checkpoint.path[-MAX_LABEL:]
