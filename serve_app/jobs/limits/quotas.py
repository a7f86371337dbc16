"""Quotas: requests of a tenant that have not ended, what its requests keep, and what it uses per UTC day."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from serve_app.errors import GpuQuotaExceeded, StorageQuotaExceeded, SweepQuotaExceeded, TooManyUnfinished
from serve_app.jobs import tables
from serve_app.jobs.database import Database
from serve_app.jobs.records import NewImage
from serve_app.jobs.state_changes import ENDED

DAY_S = 86_400
_images, _days, _cells = tables.images.c, tables.daily_usage.c, tables.sweep_cells.c
_requests, _files = tables.requests.c, tables.request_files.c


@dataclass(frozen=True)
class Quotas:
    """What one tenant may have at a time, and use per UTC day. None: no limit."""

    max_unfinished: int | None = None
    gpu_seconds_per_day: float | None = None
    sweep_cells_per_day: int | None = None
    max_stored_bytes: int | None = None


NO_QUOTAS = Quotas()


async def add_day(
    database: Database, connection: AsyncConnection, tenant: str, *, gpu_seconds: float = 0.0, sweep_cells: int = 0
) -> None:
    """Add to what a tenant has used today."""
    values = {"tenant": tenant, "day": tables.today(), "gpu_seconds": gpu_seconds, "sweep_cells": sweep_cells}
    new = database.insert(tables.daily_usage).values(values)
    grown = {name: getattr(_days, name) + getattr(new.excluded, name) for name in ("gpu_seconds", "sweep_cells")}
    await connection.execute(new.on_conflict_do_update(index_elements=["tenant", "day"], set_=grown))


async def refuse_request(
    connection: AsyncConnection, tenant: str, quotas: Quotas, editor_group: str = "", images: Sequence[NewImage] = ()
) -> None:
    """Raise TooManyUnfinished or GpuQuotaExceeded if the tenant may send no request now, or not one of these images."""
    if quotas.max_unfinished is not None:
        await _refuse_unfinished(connection, tenant, quotas.max_unfinished)
    if quotas.gpu_seconds_per_day is not None:
        await _refuse_seconds(
            connection, tenant, quotas.gpu_seconds_per_day, {editor_group: sum(each.work for each in images)}
        )


async def refuse_stored(connection: AsyncConnection, tenant: str, quotas: Quotas) -> None:
    """Raise StorageQuotaExceeded if the tenant's requests keep as many bytes as they may.

    Not repeated when a request is committed: it reads the size of every file, and meanwhile others could not write.
    Requests that are checked at the same time may exceed the limit together.
    """
    limit = quotas.max_stored_bytes
    if limit is None:
        return
    stored = await _stored_bytes(connection, tenant)
    if stored >= limit:
        raise StorageQuotaExceeded(
            f"your requests keep {stored} bytes, and the limit is {limit}: delete requests that you no longer need, "
            "with DELETE /v1/requests/{id}?purge=true and a key that has the scope operate",
            {"stored": stored, "limit": limit},
        )


async def is_full(connection: AsyncConnection, tenant: str, quotas: Quotas) -> bool:
    """Whether `refuse_stored` would refuse: cells of the tenant's sweeps have to wait for space."""
    limit = quotas.max_stored_bytes
    return limit is not None and await _stored_bytes(connection, tenant) >= limit


async def is_out_of_seconds(connection: AsyncConnection, tenant: str, quotas: Quotas) -> bool:
    """Whether the tenant's GPU seconds of today are used, or will be by images that have not ended.

    Cells of its sweeps then wait for another day.
    """
    if quotas.gpu_seconds_per_day is None:
        return False
    used, pending, _ = await _seconds(connection, tenant, {})
    return used + pending >= quotas.gpu_seconds_per_day


async def count_cells(
    database: Database, connection: AsyncConnection, tenant: str, cells: int, limit: int | None
) -> None:
    """Count new cells of sweeps. Raises SweepQuotaExceeded if they are more than the tenant may have today."""
    if limit is not None:
        used = sa.select(_days.sweep_cells, tables.now()).where(_days.tenant == tenant, _days.day == tables.today())
        row = (await connection.execute(used)).one_or_none()
        made, now = (0, None) if row is None else row
        if made + cells > limit:
            now = now or (await connection.execute(sa.select(tables.now()))).scalar_one()
            raise SweepQuotaExceeded(
                f"your sweeps have {made} cells today, this one adds {cells}, and the limit is {limit} per UTC day: "
                "send a smaller sweep, or send it tomorrow",
                {"used": made, "sent": cells, "limit": limit, "retry_after_s": _until_tomorrow(now)},
            )
    await add_day(database, connection, tenant, sweep_cells=cells)


async def _refuse_unfinished(connection: AsyncConnection, tenant: str, limit: int) -> None:
    of_sweep = sa.exists().where(_cells.request_id == _images.request_id)
    unfinished = sa.select(sa.func.count(_images.request_id.distinct())).where(
        _images.tenant == tenant, _images.state != ENDED, sa.not_(of_sweep)
    )
    count = (await connection.execute(unfinished)).scalar_one()
    if count >= limit:
        raise TooManyUnfinished(
            f"{count} of your requests have not ended, and at most {limit} may be under way; wait until one has ended",
            {"unfinished": count, "limit": limit},
        )


async def _refuse_seconds(
    connection: AsyncConnection, tenant: str, limit: float, new_work: Mapping[str, float]
) -> None:
    used, pending, new = await _seconds(connection, tenant, new_work)
    if used + pending < limit and used + pending + new <= limit:
        return
    now = (await connection.execute(sa.select(tables.now()))).scalar_one()
    raise GpuQuotaExceeded(
        f"you have used {used:.0f} GPU seconds today, your waiting images need about {pending:.0f} and this request "
        f"about {new:.0f}, and the limit is {limit:g} per UTC day: send fewer or smaller images, or send it tomorrow",
        {
            "used": round(used, 1),
            "pending": round(pending, 1),
            "sent": round(new, 1),
            "limit": limit,
            "retry_after_s": _until_tomorrow(now),
        },
    )


async def _seconds(
    connection: AsyncConnection, tenant: str, new_work: Mapping[str, float]
) -> tuple[float, float, float]:
    """GPU seconds: used today, predicted for images that have not ended, and predicted for new work.

    `new_work` is in FLOP, by editor group. The work of a group whose speed is not known yet counts as nothing.
    """
    used = sa.select(_days.gpu_seconds).where(_days.tenant == tenant, _days.day == tables.today())
    speeds = tables.speeds.c
    pending = (
        sa.select(sa.func.sum(_images.work / speeds.flops_per_s))
        .join(tables.speeds, speeds.editor_group == _images.editor_group)
        .where(_images.tenant == tenant, _images.state != ENDED)
    )
    # One statement: a request is checked twice, and waits for each answer.
    new = [sa.select(work / speeds.flops_per_s).where(speeds.editor_group == group) for group, work in new_work.items()]
    parts = [sa.func.coalesce(part.scalar_subquery(), 0.0) for part in (used, pending, *new)]
    row = (await connection.execute(sa.select(*parts))).one()
    return float(row[0]), float(row[1]), float(sum(row[2:]))


async def _stored_bytes(connection: AsyncConnection, tenant: str) -> int:
    """The size of the files that the tenant's requests need, each counted once, and of rows that a purge can free."""
    each = (
        sa.select(sa.func.max(_files.size_bytes).label("size"))
        .join(tables.requests, _requests.id == _files.request_id)
        .where(_requests.tenant == tenant)
        .group_by(_files.key)
        .subquery()
    )
    of_files = sa.select(sa.func.coalesce(sa.func.sum(each.c.size), 0)).scalar_subquery()
    kept = sa.and_(_requests.tenant == tenant, sa.not_(_requests.purged))
    rows = sa.select(sa.func.coalesce(sa.func.sum(_requests.row_bytes), 0)).where(kept)
    return int((await connection.execute(sa.select(of_files + rows.scalar_subquery()))).scalar_one())


def _until_tomorrow(now: float) -> int:
    """Seconds until the next UTC day, rounded up."""
    return int(DAY_S - now % DAY_S) + 1
