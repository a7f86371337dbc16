"""Events of a sweep: its cells as they change, and its end.

The id of an event is the time of the change in milliseconds, by the database's clock. A watcher that comes again gets
each cell that has changed since, in its newest state, and perhaps some that it knows: see `OVERLAP_MS`.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
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


class SweepEvents:
    """Streams of events, fed from the database."""

    def __init__(self, store: JobStore) -> None:
        self._sweeps = store.sweeps

    async def stream(self, record: SweepRecord, since: int, links: Links) -> AsyncIterator[Happened]:
        """The events of a sweep after the one with the id `since` (-1: all), until it ends or `STREAM_S` are over."""
        until = time.monotonic() + STREAM_S
        known: dict[int, CellRecord] = {}
        while True:
            try:
                # The sweep first: if it has ended, its cells no longer change.
                record = await self._sweeps.get(record.id)
                cells = await self._sweeps.cells(record.id)
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
