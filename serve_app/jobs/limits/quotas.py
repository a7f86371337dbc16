"""Quotas: requests of a tenant that have not ended, what its requests keep, and what it uses per UTC day."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from serve_app.errors import GpuQuotaExceeded, StorageQuotaExceeded, SweepQuotaExceeded, TooManyUnfinished
from serve_app.jobs import tables
from serve_app.jobs.database import Database
from serve_app.jobs.new_rows import row_bytes
from serve_app.jobs.records import NewRequest
from serve_app.jobs.state_changes import ENDED

DAY_S = 86_400
_images, _days, _cells = tables.images.c, tables.daily_usage.c, tables.sweep_cells.c
_requests, _files, _speeds = tables.requests.c, tables.request_files.c, tables.speeds.c
# A transaction that has written its rows commits within this time (s).
COMMIT_S = 10.0


@dataclass(frozen=True)
class Quotas:
    """What one tenant may have at a time, and use per UTC day. None: no limit."""

    max_unfinished: int | None = None
    gpu_seconds_per_day: float | None = None
    sweep_cells_per_day: int | None = None
    max_stored_bytes: int | None = None


NO_QUOTAS = Quotas()


@dataclass(frozen=True)
class Stored:
    """How many bytes a tenant's requests kept at the time `at` (s since the epoch, by the database's clock)."""

    size_bytes: int
    at: float


async def add_day(
    database: Database, connection: AsyncConnection, tenant: str, *, gpu_seconds: float = 0.0, sweep_cells: int = 0
) -> None:
    """Add to what a tenant has used today."""
    values = {"tenant": tenant, "day": tables.today(), "gpu_seconds": gpu_seconds, "sweep_cells": sweep_cells}
    new = database.insert(tables.daily_usage).values(values)
    grown = {name: getattr(_days, name) + getattr(new.excluded, name) for name in ("gpu_seconds", "sweep_cells")}
    await connection.execute(new.on_conflict_do_update(index_elements=["tenant", "day"], set_=grown))


async def refuse_early(connection: AsyncConnection, tenant: str, quotas: Quotas) -> Stored | None:
    """Raise TooManyUnfinished, GpuQuotaExceeded or StorageQuotaExceeded if the tenant may send no request now.

    Returns what its requests keep, for `refuse_request`; None if that is not limited.
    """
    await _refuse_count_and_seconds(connection, tenant, quotas, {})
    stored = await stored_before(connection, tenant, quotas)
    if stored is not None:
        _refuse_bytes(quotas, stored.size_bytes, 0)
    return stored


async def refuse_request(
    connection: AsyncConnection, new: NewRequest, quotas: Quotas, before: Stored | None = None
) -> None:
    """Raise TooManyUnfinished, GpuQuotaExceeded or StorageQuotaExceeded if the tenant may not send this request.

    The caller holds the lock of the tenant's quotas. Summing up what all of the tenant's requests keep takes long, and
    others cannot write meanwhile. Therefore what they kept `before` counts with what came since, and all are summed up
    only if that would be too much.
    """
    work = {new.editor_group: sum(image.work for image in new.images)}
    await _refuse_count_and_seconds(connection, new.tenant, quotas, work)
    if quotas.max_stored_bytes is None:
        return
    [added] = await _added_bytes(connection, [new])
    if before is None or await _at_most(connection, new.tenant, before) + added > quotas.max_stored_bytes:
        _refuse_bytes(quotas, await _stored_bytes(connection, new.tenant), added)


async def stored_before(connection: AsyncConnection, tenant: str, quotas: Quotas) -> Stored | None:
    """What the tenant's requests keep now; None if that is not limited."""
    if quotas.max_stored_bytes is None:
        return None
    now = (await connection.execute(sa.select(tables.now()))).scalar_one()
    return Stored(await _stored_bytes(connection, tenant), now)


async def fitting(
    connection: AsyncConnection, tenant: str, quotas: Quotas, cells: Sequence[NewRequest], before: Stored | None
) -> int:
    """How many of these cells of a sweep, the first ones, fit into the tenant's GPU seconds of today and its space.

    The others wait. A cell that needs more GPU seconds than a day has is made on a day on which nothing else was. The
    caller holds the lock of the tenant's quotas. `before` is what the tenant's requests kept a moment ago.
    """
    fit = len(cells)
    if quotas.gpu_seconds_per_day is not None and cells:
        used, pending, _ = await _seconds(connection, tenant, {})
        sums = list(accumulate(await _predicted_s(connection, cells), initial=used + pending))
        fit = sum(each <= quotas.gpu_seconds_per_day for each in sums[1:])
        if used + pending >= quotas.gpu_seconds_per_day:
            fit = 0
        elif used + pending == 0:
            fit = max(fit, 1)
    if quotas.max_stored_bytes is not None and before is not None and cells:
        added = await _added_bytes(connection, cells)
        room = quotas.max_stored_bytes - await _at_most(connection, tenant, before)
        if room < added[0] <= quotas.max_stored_bytes - before.size_bytes:
            # As in `refuse_request`: requests of the last seconds may count twice.
            room = quotas.max_stored_bytes - await _stored_bytes(connection, tenant)
        fit = min(fit, sum(each <= room for each in accumulate(added)))
    return fit


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


async def _refuse_count_and_seconds(
    connection: AsyncConnection, tenant: str, quotas: Quotas, work: Mapping[str, float]
) -> None:
    if quotas.max_unfinished is not None:
        await _refuse_unfinished(connection, tenant, quotas.max_unfinished)
    if quotas.gpu_seconds_per_day is not None:
        await _refuse_seconds(connection, tenant, quotas.gpu_seconds_per_day, work)


def _refuse_bytes(quotas: Quotas, stored: int, added: int) -> None:
    limit = quotas.max_stored_bytes
    if limit is not None and stored + added > limit:
        this = f", this one has {added} without its results" if added else ""
        raise StorageQuotaExceeded(
            f"your requests keep {stored} bytes{this}, and the limit is {limit}: delete requests that you no longer "
            "need, with DELETE /v1/requests/{id}?purge=true and a key that has the scope operate",
            {"stored": stored, "sent": added, "limit": limit},
        )


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
    pending = (
        sa.select(sa.func.sum(_images.work / _speeds.flops_per_s))
        .join(tables.speeds, _speeds.editor_group == _images.editor_group)
        .where(_images.tenant == tenant, _images.state != ENDED)
    )
    # One statement: a request is checked twice, and waits for each answer.
    new = [
        sa.select(work / _speeds.flops_per_s).where(_speeds.editor_group == group) for group, work in new_work.items()
    ]
    parts = [sa.func.coalesce(part.scalar_subquery(), 0.0) for part in (used, pending, *new)]
    row = (await connection.execute(sa.select(*parts))).one()
    return float(row[0]), float(row[1]), float(sum(row[2:]))


async def _predicted_s(connection: AsyncConnection, requests: Sequence[NewRequest]) -> list[float]:
    """The predicted GPU seconds of each request, as `_seconds` predicts them."""
    groups = {each.editor_group for each in requests}
    rows = await connection.execute(tables.speeds.select().where(_speeds.editor_group.in_(groups)))
    speeds = {row.editor_group: row.flops_per_s for row in rows}
    return [
        sum(image.work for image in each.images) / speeds[each.editor_group] if each.editor_group in speeds else 0.0
        for each in requests
    ]


async def _added_bytes(connection: AsyncConnection, requests: Sequence[NewRequest]) -> list[int]:
    """How many bytes each of these requests of a tenant adds: rows, and files that none before it needs."""
    keys = {key for each in requests for key in each.files}
    needed = sa.select(_files.key).join(tables.requests, _requests.id == _files.request_id)
    these = needed.where(_requests.tenant == requests[0].tenant, _files.key.in_(keys))
    known = set((await connection.execute(these.distinct())).scalars())
    added = []
    for each in requests:
        added.append(row_bytes(each) + sum(size for key, size in each.files.items() if key not in known))
        known |= set(each.files)
    return added


async def _at_most(connection: AsyncConnection, tenant: str, before: Stored) -> int:
    """What the tenant's requests keep now at most, from what they kept before; without what editors made since."""
    return before.size_bytes + await _stored_bytes(connection, tenant, before.at - COMMIT_S)


async def _stored_bytes(connection: AsyncConnection, tenant: str, since: float = 0.0) -> int:
    """The size of the files that the tenant's requests need, each counted once, and of rows that a purge can free.

    Only requests that came after the time `since` (s since the epoch) count.
    """
    of_tenant = sa.and_(_requests.tenant == tenant, _requests.created_at > since)
    each = (
        sa.select(sa.func.max(_files.size_bytes).label("size"))
        .join(tables.requests, _requests.id == _files.request_id)
        .where(of_tenant)
        .group_by(_files.key)
        .subquery()
    )
    of_files = sa.select(sa.func.coalesce(sa.func.sum(each.c.size), 0)).scalar_subquery()
    kept = sa.and_(of_tenant, sa.not_(_requests.purged))
    rows = sa.select(sa.func.coalesce(sa.func.sum(_requests.row_bytes), 0)).where(kept)
    return int((await connection.execute(sa.select(of_files + rows.scalar_subquery()))).scalar_one())


def _until_tomorrow(now: float) -> int:
    """Seconds until the next UTC day, rounded up."""
    return int(DAY_S - now % DAY_S) + 1
