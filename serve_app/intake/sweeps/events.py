"""Events of a sweep: its cells as they change, and its end.

The id of an event is the time of the change in milliseconds, by the database's clock. A watcher that comes again gets
each cell that has changed since, in its newest state, and perhaps some that it knows: see `OVERLAP_MS`.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from serve_app.errors import SweepNotFound
from serve_app.intake.answers.bodies import Links
from serve_app.intake.answers.events import STREAM_S
from serve_app.intake.sweeps.answers import cell_of, summary_of
from serve_app.jobs.store import JobStore
from serve_app.jobs.sweeps.records import CellRecord, SweepRecord

# How often a stream looks for changes (s).
POLL_S = 0.5
# How long a sweep that nobody watches stays in memory (s).
FORGOTTEN_S = 10.0
# A transaction that commits later can carry an earlier time. Whoever resumes gets this much again (ms).
OVERLAP_MS = 5_000


class SweepEvent(StrEnum):
    """The name of a server-sent event of a sweep."""

    CELL = "cell"  # the status of a cell has changed
    # The ends of a sweep. Their names are those of `Status`.
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"


@dataclass(frozen=True)
class Happened:
    """An event, with its id."""

    event: SweepEvent
    id: int
    data: dict[str, Any]


@dataclass
class _View:
    """A sweep as it was read at `read_at`, for those who watch it."""

    read_at: float
    content: tuple[SweepRecord, list[CellRecord]] | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class SweepEvents:
    """Streams of events, fed from the database."""

    def __init__(self, store: JobStore) -> None:
        self._sweeps = store.sweeps
        # What was read last of each watched sweep, for all of its watchers.
        self._views: dict[str, _View] = {}

    async def stream(self, record: SweepRecord, since: int, links: Links) -> AsyncIterator[Happened]:
        """The events of a sweep after the one with the id `since` (-1: all), until it ends or `STREAM_S` are over."""
        until = time.monotonic() + STREAM_S
        known: dict[int, CellRecord] = {}
        while True:
            try:
                record, cells = await self._read(record)
            except SweepNotFound:
                return
            for cell in changed(cells, known, since):
                yield Happened(SweepEvent.CELL, milliseconds(cell.changed_at), _json(cell_of(record, cell, links)))
            known = {cell.number: cell for cell in cells}
            if record.status.ended:
                yield Happened(SweepEvent(record.status), last_change(record, cells), _json(summary_of(record, links)))
                return
            if time.monotonic() > until:
                return
            await asyncio.sleep(POLL_S)

    async def _read(self, known: SweepRecord) -> tuple[SweepRecord, list[CellRecord]]:
        """The sweep and its cells, not older than `POLL_S` nor than what the watcher knows.

        All watchers of this process share one reading.
        """
        sweep_id = known.id
        now = time.monotonic()
        self._views = {id_: view for id_, view in self._views.items() if now - view.read_at < FORGOTTEN_S}
        view = self._views.setdefault(sweep_id, _View(now))
        async with view.lock:
            is_old = view.content is None or view.content[0].changed_at < known.changed_at
            if view.content is None or is_old or time.monotonic() - view.read_at >= POLL_S:
                # The sweep first: if it has ended, its cells no longer change.
                record = await self._sweeps.get(sweep_id)
                view.content = record, await self._sweeps.cells(record)
                view.read_at = time.monotonic()
            return view.content


def changed(cells: list[CellRecord], known: dict[int, CellRecord], since: int) -> list[CellRecord]:
    """The cells that a watcher does not know in this state, the latest change last."""
    if known:
        new = [cell for cell in cells if known.get(cell.number) != cell]
    else:
        new = [cell for cell in cells if since < 0 or milliseconds(cell.changed_at) > since - OVERLAP_MS]
    return sorted(new, key=lambda cell: (cell.changed_at, cell.number))


def last_change(record: SweepRecord, cells: list[CellRecord]) -> int:
    """The id of the end of a sweep: that of its last change."""
    return milliseconds(max([record.changed_at, *(cell.changed_at for cell in cells)]))


def milliseconds(seconds: float) -> int:
    return int(seconds * 1000)


def _json(body: Any) -> dict[str, Any]:
    dumped: dict[str, Any] = body.model_dump(mode="json")
    return dumped
