# Generated from ../_async by `python -m tools.client_code`: change that file.
"""A sweep on the service: follow it, change it, and save what comes out of it."""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2

from edits_client import models
from edits_client._sync.clock import in_thread, sleep
from edits_client._sync.job import BROKEN_STATUSES, MAX_BROKEN_STREAMS, SILENCE_S, StreamBroken, whole_file
from edits_client._sync.transport import Transport
from edits_client.answers import answer_as, raise_for_error
from edits_client.deadline import Deadline
from edits_client.errors import ApiError, ConnectionFailed
from edits_client.events import ENDS

# How often the sweep is read while events cannot be (s).
POLL_S = 2.0
# How long the service may take for a sheet, or to send the next row of a table (s).
FILE_TIMEOUT = httpx2.Timeout(120.0)
SHEET_FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}


class Sweep:
    """A sweep by its `id`. Nothing is kept here: `client.open_sweep(id)` is the same one in another process."""

    def __init__(self, transport: Transport, sweep_id: str) -> None:
        self.id = sweep_id
        self._transport = transport
        self._path = f"/v1/sweeps/{sweep_id}"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}>"

    def status(self) -> models.Sweep:
        """The sweep with its axes and its cells, as it stands now. Raises SweepNotFound."""
        return self._transport.get(models.Sweep, self._path)

    def wait(self, timeout: float | None = None) -> models.Sweep:
        """The sweep once it has ended, however it ended. Raises WaitTimeout after `timeout` seconds."""
        with closing(self.changes(timeout)) as changes:
            for _ in changes:
                pass
        return self.status()

    def changes(self, timeout: float | None = None) -> Generator[models.SweepCell]:
        """Each cell whenever its status changes, first as all cells are now, until the sweep has ended.

        A connection that breaks is made again; where streams do not get through at all, the sweep is read every two
        seconds. Raises WaitTimeout about `timeout` seconds after the start.
        """
        deadline = Deadline(self.id, timeout)
        known: dict[int, models.SweepCell] = {}
        seen, broken = "", 0
        while broken < MAX_BROKEN_STREAMS:
            came = False
            try:
                with closing(self._stream(seen, deadline)) as stream:
                    for event_id, cell in stream:
                        seen, came = event_id or seen, True
                        if cell is None:
                            return
                        if known.get(cell.cell) != cell:
                            known[cell.cell] = cell
                            yield cell
                        deadline.check()
            except StreamBroken:
                broken = 0 if came else broken + 1
            deadline.check()
            sleep(0.1)
        with closing(self._polled(known, deadline)) as polled:
            for cell in polled:
                yield cell

    def _stream(self, seen: str, deadline: Deadline) -> Generator[tuple[str, models.SweepCell | None]]:
        """One connection: cells with the ids of their events, None at the end. Raises StreamBroken."""
        headers = {"Last-Event-ID": seen} if seen else {}
        timeout = httpx2.Timeout(deadline.at_most(SILENCE_S))
        try:
            with self._transport.http.sse(
                f"{self._path}/events", headers=headers, timeout=timeout, max_event_size=None
            ) as source:
                if not source.response.is_success:
                    source.response.read()
                    raise_for_error(source.response)
                if source.response.status_code == 204:
                    yield "", None
                    return
                for message in source:
                    if message.event in ENDS:
                        yield message.id, None
                        return
                    if message.event == "cell":
                        yield message.id, answer_as(models.SweepCell, json.loads(message.data))
        except ApiError as error:
            if error.status not in BROKEN_STATUSES:
                raise
            raise StreamBroken from error
        except (httpx2.TransportError, httpx2.DecodingError, json.JSONDecodeError, ConnectionFailed) as error:
            raise StreamBroken from error

    def _polled(self, known: dict[int, models.SweepCell], deadline: Deadline) -> Generator[models.SweepCell]:
        while True:
            sweep = self.status()
            for cell in sweep.grid:
                if known.get(cell.cell) != cell:
                    known[cell.cell] = cell
                    yield cell
            if sweep.status in ENDS:
                return
            deadline.check(POLL_S)
            sleep(POLL_S)

    def image(self, cell: models.SweepCell) -> bytes:
        """The file of a finished cell's image. Raises ValueError for a cell that has none."""
        if cell.url is None:
            raise ValueError(f"cell {cell.cell} is {cell.status}: it has no image")
        return self._transport.call("GET", f"/v1/requests/{cell.request_id}/images/0", whole_file)

    def sheet(
        self,
        *,
        page: int = 1,
        format: str = "png",
        rows: str | None = None,
        columns: str | None = None,
        cell: int | None = None,
        rows_per_page: int | None = None,
        columns_per_page: int | None = None,
    ) -> bytes:
        """A page of the contact sheet, also before the sweep has ended.

        `rows` and `columns` name axes, such as `prompts,seeds`; `cell` is the size of an image on the sheet (pixels).
        """
        given = {"rows": rows, "columns": columns, "cell": cell}
        given |= {"rows_per_page": rows_per_page, "columns_per_page": columns_per_page}
        params = {name: value for name, value in given.items() if value is not None}
        return (self._sheet({"page": page, "format": format, **params}))[0]

    def _sheet(self, params: Mapping[str, Any]) -> tuple[bytes, int]:
        """A page, and how many there are."""
        return self._transport.call(
            "GET",
            f"{self._path}/sheet",
            lambda answer: (answer.content, int(answer.headers.get("x-pages", "1"))),
            params=params,
            timeout=FILE_TIMEOUT,
        )

    def save_sheet(self, path: str | os.PathLike[str], **options: Any) -> list[Path]:
        """Write all pages of the contact sheet as PNG, JPEG or WebP; those after the first get a number.

        The options are those of `sheet`. Raises ValueError for another suffix.
        """
        target = _target(path)
        if target.suffix.lower() not in SHEET_FORMATS:
            raise ValueError(f"{target.name}: a sheet's name must end with {', '.join(SHEET_FORMATS)}")
        params = {"format": SHEET_FORMATS[target.suffix.lower()], **options}
        written: list[Path] = []
        pages = 1
        while len(written) < pages:
            number = len(written) + 1
            data, pages = self._sheet({**params, "page": number})
            file = target if number == 1 else target.with_name(f"{target.stem}-{number}{target.suffix}")
            in_thread(lambda file=file, data=data: file.write_bytes(data))  # type: ignore[misc]
            written.append(file)
        return written

    def save_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write the table: parameters, seconds, and how far each image is from others. Comparing takes its time."""
        return self._save("cells.csv", path)

    def save_archive(self, path: str | os.PathLike[str]) -> Path:
        """Write a ZIP of all finished images with the table."""
        return self._save("archive", path)

    def _save(self, name: str, path: str | os.PathLike[str]) -> Path:
        """Write a file of the sweep as it arrives. A file that breaks off is not left behind."""
        target = _target(path)
        part = target.with_name(f"{target.name}.part")
        try:
            with part.open("wb") as file:
                for chunk in self._chunks(name):
                    file.write(chunk)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
        return target

    def _chunks(self, name: str) -> Iterator[bytes]:
        try:
            with self._transport.http.stream("GET", f"{self._path}/{name}", timeout=FILE_TIMEOUT) as response:
                if not response.is_success:
                    response.read()
                    raise_for_error(response)
                for chunk in response.iter_bytes():
                    yield chunk
        except httpx2.TransportError as error:
            raise ConnectionFailed(f"the file {name} of sweep {self.id} broke off; try again: {error}") from error

    def cancel(self, *, purge: bool = False) -> models.SweepSummary:
        """Cancel the cells that have not ended. With `purge` all images are deleted for good."""
        params = {"purge": "true"} if purge else None
        return self._transport.delete(models.SweepSummary, self._path, params)

    def resume(self) -> models.SweepSummary:
        """Make the cells anew that were cancelled or failed. Raises SweepPurged."""
        return self._transport.post(models.SweepSummary, f"{self._path}/resume", {})

    def extend(
        self, axes: Mapping[str, Any] | models.SweepAxes, *, max_cells: int | None = None, dry_run: bool = False
    ) -> models.SweepCreated:
        """Add values to the axes; only the cells that are new are made. Raises ApiError."""
        return self._transport.post(
            models.SweepCreated, f"{self._path}/extend", sweep_body(None, axes, max_cells, dry_run=dry_run)
        )


def _target(path: str | os.PathLike[str]) -> Path:
    return Path(path).expanduser()


def sweep_body(
    base: Mapping[str, Any] | models.InferenceRequest | None,
    axes: Mapping[str, Any] | models.SweepAxes,
    max_cells: int | None,
    *,
    dry_run: bool,
) -> dict[str, Any]:
    """The JSON body of a sweep, or without a base of its extension."""
    body: dict[str, Any] = {"axes": _as_json(axes), "dry_run": dry_run}
    if base is not None:
        body["base"] = _as_json(base)
    if max_cells is not None:
        body["max_cells"] = max_cells
    return body


def _as_json(part: Any) -> dict[str, Any]:
    if isinstance(part, Mapping):
        return dict(part)
    dumped: dict[str, Any] = part.model_dump(mode="json", exclude_unset=True)
    return dumped
