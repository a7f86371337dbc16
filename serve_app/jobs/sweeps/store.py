"""Sweeps in the job database: they are stored with the plans of their cells, changed and read."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from serve_app.errors import FilesGone, SweepCanceled, SweepNotFound, SweepPurged
from serve_app.jobs import state_changes, tables
from serve_app.jobs.database import Database, IsStored, transaction
from serve_app.jobs.idempotency import id_by_key
from serve_app.jobs.limits.quotas import count_cells
from serve_app.jobs.requests import ID
from serve_app.jobs.state_changes import UNFINISHED
from serve_app.jobs.sweeps import queries as sweep_queries
from serve_app.jobs.sweeps.records import (
    CellImage,
    CellRecord,
    Measures,
    NewCell,
    NewSweep,
    SweepDefinition,
    SweepRecord,
    request_id_of,
)
from serve_app.jobs.sweeps.rows import cell_image, cell_record, cell_rows, definitions, needs_new_attempt, plans
from serve_app.policy.sweep_order import Place
from serve_app.tasks import EditPlan, Status

_sweeps, _cells, _requests, _images = tables.sweeps.c, tables.sweep_cells.c, tables.requests.c, tables.images.c
# How many ids one statement names: databases limit its parameters.
IDS_AT_ONCE = 500


class Sweeps:
    """Every public method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @transaction
    async def create(self, new: NewSweep, is_stored: IsStored, cells_per_day: int | None = None) -> SweepRecord:
        """Commit a new sweep. Returns the earlier one if its idempotency key was used for the same body.

        A tenant may have `cells_per_day` new cells. Raises SweepQuotaExceeded; IdempotencyConflict; FilesGone if a file
        was deleted before the commit; StorageFailed.
        """
        try:
            async with self._database.writing() as connection:
                await self._insert(connection, new, is_stored)
                await self._count_cells(connection, new.tenant, len(new.cells), cells_per_day)
        except IntegrityError:
            # Its key was used before, or an earlier try of this commit succeeded and its answer was lost.
            if new.idempotency_key is None:
                return await self._get(new.id)
            earlier = await self._by_key(new.tenant, new.idempotency_key, new.body_sha256)
            if earlier is None:
                raise
            return earlier
        return await self._get(new.id)

    @transaction
    async def earlier(self, tenant: str, idempotency_key: str, body_sha256: str) -> SweepRecord | None:
        """The sweep that was sent with this idempotency key, if any. Raises IdempotencyConflict for another body."""
        return await self._by_key(tenant, idempotency_key, body_sha256)

    @transaction
    async def get(self, sweep_id: str) -> SweepRecord:
        """Raises SweepNotFound."""
        return await self._get(sweep_id)

    @transaction
    async def cells(self, sweep: SweepRecord) -> list[CellRecord]:
        """The cells of a sweep, in the order in which they are made; none of a sweep that does not exist.

        Cells on axes that are longer now, because the sweep was extended since it was read, are left out.
        """
        lengths = sweep.definition.axes.lengths
        async with self._database.reading() as connection:
            rows = await connection.execute(sweep_queries.cells, {"sweep_id": sweep.id})
            return [cell for row in rows if lengths.has((cell := cell_record(row)).place)]

    @transaction
    async def images(self, sweep: SweepRecord) -> list[CellImage]:
        """The finished images of a sweep that are still stored, in the order in which they are made.

        As with `cells`, only those on the axes as they were read.
        """
        lengths = sweep.definition.axes.lengths
        async with self._database.reading() as connection:
            rows = await connection.execute(sweep_queries.images, {"sweep_id": sweep.id})
            return [image for row in rows if lengths.has((image := cell_image(row)).place)]

    @transaction
    async def sample(self, sweep_id: str) -> EditPlan:
        """The plan of the first cell. Raises SweepNotFound."""
        first = sa.select(_cells.plan).where(_cells.sweep_id == sweep_id).order_by(_cells.number).limit(1)
        async with self._database.reading() as connection:
            plan = (await connection.execute(first)).scalar_one_or_none()
        if plan is None:
            raise _not_found(sweep_id)
        return plans.validate_python(plan)

    @transaction
    async def history(self, tenant: str | None, before: tuple[float, str] | None, limit: int) -> list[SweepRecord]:
        """A page of at most `limit` sweeps, newest first, after the creation time and id `before`."""
        async with self._database.reading() as connection:
            rows = (await connection.execute(sweep_queries.history(tenant, before, limit))).all()
            return await _records(connection, rows)

    @transaction
    async def speeds(self) -> dict[str, float]:
        """The measured speed of each editor group (FLOP/s). A group is missing before its first edit."""
        async with self._database.reading() as connection:
            rows = await connection.execute(tables.speeds.select())
            return {row.editor_group: row.flops_per_s for row in rows}

    @transaction
    async def extend(
        self,
        old: SweepRecord,
        definition: SweepDefinition,
        cells: Sequence[NewCell],
        is_stored: IsStored,
        cells_per_day: int | None = None,
    ) -> bool:
        """Add cells to a sweep, and replace its definition. False if it was extended by another caller meanwhile.

        Raises SweepQuotaExceeded, SweepNotFound, SweepPurged, FilesGone and StorageFailed.
        """
        async with self._database.writing() as connection:
            await self._database.lock_file_references(connection)
            row = await _locked(connection, old.id)
            if row.canceled:
                raise SweepCanceled(
                    f"sweep {old.id!r} was cancelled: resume it before you extend it", {"sweep_id": old.id}
                )
            if definitions.validate_python(row.definition).axes != old.definition.axes:
                return False
            await self._count_cells(connection, old.tenant, len(cells), cells_per_day)
            await self._need_files(connection, old.id, cells, is_stored)
            last = sa.select(sa.func.max(_cells.number)).where(_cells.sweep_id == old.id)
            first = (await connection.execute(last)).scalar_one() + 1
            await connection.execute(tables.sweep_cells.insert(), cell_rows(old.id, cells, first))
            await _change(connection, old.id, definition=asdict(definition), ended_at=None)
        return True

    @transaction
    async def cancel(self, sweep_id: str, *, purge: bool = False) -> list[str]:
        """Cancel a sweep and its requests that have not ended, whose ids are returned. Raises SweepNotFound.

        With `purge` it can no longer go on: the caller deletes its files.
        """
        async with self._database.writing() as connection:
            row = await _locked(connection, sweep_id, purged_too=True)
            live = (
                sa.select(_requests.id)
                .join(tables.sweep_cells, _cells.request_id == _requests.id)
                .where(_cells.sweep_id == sweep_id, _requests.status.in_(UNFINISHED))
                .order_by(_requests.id)
            )
            ids = list((await connection.execute(live)).scalars())
            for request_id in ids:
                await state_changes.end_unfinished(connection, request_id, Status.CANCELED)
            if not row.canceled or (purge and not row.purged):
                await _change(connection, sweep_id, canceled=True, purged=row.purged or purge)
        return ids

    @transaction
    async def resume(self, sweep_id: str) -> int:
        """Go on with a sweep: its cells that were cancelled, failed or deleted are made anew. Returns their number.

        Raises SweepNotFound and SweepPurged.
        """
        async with self._database.writing() as connection:
            sweep = await _locked(connection, sweep_id)
            rows = (await connection.execute(sweep_queries.cells, {"sweep_id": sweep_id})).all()
            again = [row for row in rows if row.submitted and needs_new_attempt(row)]
            for row in again:
                await self._make_anew(connection, sweep_id, row)
            if again or sweep.canceled:
                await _change(connection, sweep_id, canceled=False, ended_at=None)
        return len(again)

    @transaction
    async def ended_before(self, seconds: float, limit: int) -> list[str]:
        """The ids of up to `limit` sweeps that ended more than `seconds` ago, the oldest first."""
        old = sa.select(_sweeps.id).where(_sweeps.ended_at < tables.now() - seconds)
        async with self._database.reading() as connection:
            return list((await connection.execute(old.order_by(_sweeps.ended_at).limit(limit))).scalars())

    @transaction
    async def all_requests(self, sweep_id: str) -> list[str]:
        """The ids of the stored requests of a sweep, those of earlier attempts at its cells included."""
        async with self._database.reading() as connection:
            return await requests_of(connection, sweep_id)

    @transaction
    async def keep_measures(self, sweep_id: str, measured: Mapping[int, Mapping[str, Measures]]) -> None:
        """Remember what was measured on the images of cells, by their numbers."""
        async with self._database.writing() as connection:
            for number, measures in measured.items():
                values = {name: asdict(each) for name, each in measures.items()}
                of_cell = tables.sweep_cells.update().where(_cells.sweep_id == sweep_id, _cells.number == number)
                await connection.execute(of_cell.values(measures=values))

    async def _insert(self, connection: AsyncConnection, new: NewSweep, is_stored: IsStored) -> None:
        await self._database.lock_file_references(connection)
        now = (await connection.execute(sa.select(tables.now()))).scalar_one()
        values = {name: getattr(new, name) for name in ("id", "tenant", "model", "deadline_s", "traceparent")}
        values |= {"definition": asdict(new.definition), "created_at": now, "changed_at": now}
        values |= {"canceled": False, "purged": False, "webhook": new.webhook and asdict(new.webhook)}
        values |= {"idempotency_key": new.idempotency_key, "body_sha256": new.body_sha256}
        await connection.execute(tables.sweeps.insert().values(values))
        await self._need_files(connection, new.id, new.cells, is_stored)
        await connection.execute(tables.sweep_cells.insert(), cell_rows(new.id, new.cells, 0))

    async def _count_cells(self, connection: AsyncConnection, tenant: str, cells: int, limit: int | None) -> None:
        await self._database.lock_quotas(connection, tenant)
        await count_cells(self._database, connection, tenant, cells, limit)

    async def _need_files(
        self, connection: AsyncConnection, sweep_id: str, cells: Sequence[NewCell], is_stored: IsStored
    ) -> None:
        """Keep the files of these cells. Raises FilesGone if one is not stored any more."""
        keys = sorted({key for cell in cells for key in cell.files})
        if not await self._database.read_storage(lambda: all(map(is_stored, keys))):
            raise FilesGone("a file of this sweep was deleted meanwhile; send it again")
        for key in keys:
            needed = self._database.insert(tables.sweep_files).values(sweep_id=sweep_id, key=key)
            await connection.execute(needed.on_conflict_do_nothing())

    async def _make_anew(self, connection: AsyncConnection, sweep_id: str, cell: Any) -> None:
        """Give a cell its next request, which is submitted later."""
        of_cell = sa.and_(_cells.sweep_id == sweep_id, _cells.number == cell.number)
        attempt = (await connection.execute(sa.select(_cells.attempt).where(of_cell))).scalar_one() + 1
        request_id = request_id_of(sweep_id, Place(*cell.place), attempt)
        values = {"attempt": attempt, "request_id": request_id, "submitted": False, "measures": None}
        await connection.execute(tables.sweep_cells.update().where(of_cell).values(values))

    async def _by_key(self, tenant: str, key: str, body_sha256: str | None) -> SweepRecord | None:
        found = await id_by_key(self._database, tables.sweeps, "sweep", tenant, key, body_sha256)
        return None if found is None else await self._get(found)

    async def _get(self, sweep_id: str) -> SweepRecord:
        check_sweep_id(sweep_id)
        async with self._database.reading() as connection:
            row = await _row(connection, sweep_id)
            if row is None:
                raise _not_found(sweep_id)
            return (await _records(connection, [row]))[0]


async def requests_of(connection: AsyncConnection, sweep_id: str) -> list[str]:
    """The ids of the stored requests of a sweep, those of earlier attempts at its cells included."""
    of_sweep = sa.select(_cells.place, _cells.attempt).where(_cells.sweep_id == sweep_id)
    rows = (await connection.execute(of_sweep)).all()
    ids = [request_id_of(sweep_id, Place(*row.place), attempt) for row in rows for attempt in range(row.attempt + 1)]
    found: list[str] = []
    for start in range(0, len(ids), IDS_AT_ONCE):
        stored = sa.select(_requests.id).where(_requests.id.in_(ids[start : start + IDS_AT_ONCE]))
        found += (await connection.execute(stored)).scalars()
    return found


async def _row(connection: AsyncConnection, sweep_id: str, *, for_update: bool = False) -> sa.Row[Any] | None:
    found = tables.sweeps.select().where(_sweeps.id == sweep_id)
    return (await connection.execute(found.with_for_update() if for_update else found)).one_or_none()


async def _locked(connection: AsyncConnection, sweep_id: str, *, purged_too: bool = False) -> sa.Row[Any]:
    """The row of a sweep, locked until the transaction ends. Raises SweepNotFound, and SweepPurged if it was purged."""
    check_sweep_id(sweep_id)
    row = await _row(connection, sweep_id, for_update=True)
    if row is None:
        raise _not_found(sweep_id)
    if row.purged and not purged_too:
        raise SweepPurged(f"the images of sweep {sweep_id!r} were deleted: start a new one", {"sweep_id": sweep_id})
    return row


async def _change(connection: AsyncConnection, sweep_id: str, **values: Any) -> None:
    changed = tables.sweeps.update().where(_sweeps.id == sweep_id)
    await connection.execute(changed.values(changed_at=tables.now(), **values))


async def _records(connection: AsyncConnection, rows: Sequence[sa.Row[Any]]) -> list[SweepRecord]:
    counts: dict[str, dict[Status, int]] = {row.id: {} for row in rows}
    for counted in await connection.execute(sweep_queries.counts(list(counts))):
        counts[counted.sweep_id][Status(counted.status)] = counted.cells
    names = ("id", "tenant", "model", "created_at", "changed_at", "ended_at", "canceled", "purged", "deadline_s")
    return [
        SweepRecord(
            **{name: getattr(row, name) for name in names},
            definition=definitions.validate_python(row.definition),
            counts=counts[row.id],
        )
        for row in rows
    ]


def check_sweep_id(sweep_id: str) -> None:
    """Raise SweepNotFound if this cannot be an id. PostgreSQL refuses some strings, such as those with NUL."""
    if not ID.fullmatch(sweep_id):
        raise _not_found(sweep_id)


def _not_found(sweep_id: str) -> SweepNotFound:
    return SweepNotFound(f"there is no sweep {sweep_id!r}", {"sweep_id": sweep_id})
