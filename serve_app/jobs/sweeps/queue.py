"""Cells of sweeps become requests: a few at a time, within the limits of the queue."""

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from serve_app.jobs import tables
from serve_app.jobs.database import Database, transaction
from serve_app.jobs.limits.quotas import Quotas, Stored, fitting, stored_before
from serve_app.jobs.requests import Requests
from serve_app.jobs.state_changes import UNFINISHED, WAITING
from serve_app.jobs.sweeps import queries
from serve_app.jobs.sweeps.rows import request_of
from serve_app.policy.sweep_order import room_for_cells

# How many images of a tenant may wait, and its quotas.
LimitsOf = Callable[[str], tuple[int | None, Quotas]]

_sweeps, _cells, _requests, _images = tables.sweeps.c, tables.sweep_cells.c, tables.requests.c, tables.images.c


class SweepQueue:
    """Every public method is one transaction."""

    def __init__(self, database: Database, requests: Requests) -> None:
        self._database = database
        self._requests = requests

    @transaction
    async def due(self) -> list[str]:
        """The sweeps that have cells to submit: of each tenant and model the oldest."""
        async with self._database.reading() as connection:
            rows = (await connection.execute(queries.due)).all()
        first: dict[tuple[str, str], str] = {}
        for row in rows:
            first.setdefault((row.tenant, row.model), row.id)
        return list(first.values())

    @transaction
    async def submit(self, sweep_id: str, max_waiting: int, limits_of: LimitsOf) -> int:
        """Put the next cells of a sweep into the queue: as many as may wait there. Returns their number.

        At most `max_waiting` of them wait, and the limits of the queue and of the tenant apply. A tenant without GPU
        seconds for today waits until tomorrow, and one that keeps as many bytes as it may until it deletes some.
        """
        before = await self._stored(sweep_id, limits_of)
        async with self._database.writing() as connection:
            await self._database.lock_file_references(connection)
            locked = tables.sweeps.select().where(_sweeps.id == sweep_id).with_for_update()
            row = (await connection.execute(locked)).one_or_none()
            if row is None or row.canceled or row.purged:
                return 0
            tenant_max, quotas = limits_of(row.tenant)
            await self._database.lock_quotas(connection, row.tenant)
            room = await self._room(connection, row, max_waiting, tenant_max)
            waiting = tables.sweep_cells.select().where(_cells.sweep_id == sweep_id, sa.not_(_cells.submitted))
            cells = (await connection.execute(waiting.order_by(_cells.number).limit(room))).all() if room else []
            requests = [request_of(row, cell) for cell in cells]
            count = await fitting(connection, row.tenant, quotas, requests, before)
            if count:
                await self._requests.add(connection, requests[:count])
                these = _cells.number.in_([cell.number for cell in cells[:count]])
                of_sweep = tables.sweep_cells.update().where(_cells.sweep_id == sweep_id, these)
                await connection.execute(of_sweep.values(submitted=True))
        return count

    @transaction
    async def record_ends(self) -> int:
        """Record the end of the sweeps whose cells have all ended. Returns how many sweeps have not ended."""
        async with self._database.reading() as connection:
            rows = (await connection.execute(queries.unended)).all()
        ended = [row.id for row in rows if not row.goes_on]
        for sweep_id in ended:
            async with self._database.writing() as connection:
                # It may have been extended or resumed since: the condition counts at this moment.
                goes_on = sa.exists().where(_cells.sweep_id == sweep_id, sa.not_(_cells.submitted))
                live = sa.exists().where(
                    _cells.sweep_id == sweep_id, _requests.id == _cells.request_id, _requests.status.in_(UNFINISHED)
                )
                await connection.execute(
                    tables.sweeps.update()
                    .where(_sweeps.id == sweep_id, _sweeps.ended_at.is_(None), sa.not_(live))
                    .where(sa.or_(_sweeps.canceled, sa.not_(goes_on)))
                    .values(ended_at=tables.now())
                )
        return len(rows) - len(ended)

    async def _stored(self, sweep_id: str, limits_of: LimitsOf) -> Stored | None:
        """What the tenant's requests keep. Outside the transaction that writes: the sum takes long."""
        async with self._database.reading() as connection:
            tenant = (await connection.execute(sa.select(_sweeps.tenant).where(_sweeps.id == sweep_id))).scalar()
            return None if tenant is None else await stored_before(connection, tenant, limits_of(tenant)[1])

    async def _room(
        self, connection: AsyncConnection, sweep: sa.Row[Any], max_waiting: int, tenant_max: int | None
    ) -> int:
        waits = sa.select(sa.func.count()).select_from(tables.images).where(_images.state == WAITING)
        of_sweep = sa.select(_cells.request_id).where(_cells.sweep_id == sweep.id, _cells.submitted)
        here = (await connection.execute(waits.where(_images.request_id.in_(of_sweep)))).scalar_one()
        queues = [(self._requests.max_queued, (await connection.execute(waits)).scalar_one())]
        if tenant_max is not None:
            of_tenant = waits.where(_images.tenant == sweep.tenant)
            queues.append((tenant_max, (await connection.execute(of_tenant)).scalar_one()))
        return room_for_cells(max_waiting, here, queues)
