"""SELECTs about sweeps: the status of their cells, which follows from those of their requests."""

from typing import Any

import sqlalchemy as sa

from serve_app.jobs import tables
from serve_app.jobs.state_changes import UNFINISHED
from serve_app.tasks import Status

_requests, _images = tables.requests.c, tables.images.c
_sweeps, _cells = tables.sweeps.c, tables.sweep_cells.c

# A cell that is not submitted waits, unless its sweep is cancelled. A request that is gone was deleted.
status_of_cell = sa.case(
    (sa.not_(_cells.submitted), sa.case((_sweeps.canceled, Status.CANCELED), else_=Status.IN_QUEUE)),
    (_requests.id.is_(None), Status.CANCELED),
    else_=_requests.status,
)
is_unfinished = status_of_cell.in_(UNFINISHED)
_with_request = tables.sweep_cells.join(tables.sweeps, _sweeps.id == _cells.sweep_id).join(
    tables.requests, _requests.id == _cells.request_id, isouter=True
)
_changed_at = sa.case(
    (_cells.submitted, sa.func.coalesce(_requests.finished_at, _requests.started_at, _requests.created_at)),
    else_=None,
)

cells = (
    sa.select(
        _cells.number,
        _cells.place,
        _cells.request_id,
        _cells.submitted,
        status_of_cell.label("status"),
        _requests.error,
        _requests.error_code,
        sa.func.coalesce(_requests.purged, sa.true()).label("purged"),
        sa.func.coalesce(_changed_at, _sweeps.changed_at).label("changed_at"),
    )
    .select_from(_with_request)
    .where(_cells.sweep_id == sa.bindparam("sweep_id"))
    .order_by(_cells.number)
)
# The finished images of a sweep.
images = (
    sa.select(_cells.number, _cells.place, _cells.plan, _cells.measures, _images.result)
    .select_from(tables.sweep_cells.join(tables.images, _images.request_id == _cells.request_id))
    .where(_cells.sweep_id == sa.bindparam("sweep_id"), _images.result.is_not(None))
    .order_by(_cells.number)
)
# The ids of sweeps that have not ended, and whether they have a cell that has not.
unended = (
    sa.select(
        _sweeps.id,
        sa.exists(
            sa.select(1)
            .select_from(tables.sweep_cells.join(tables.requests, _requests.id == _cells.request_id, isouter=True))
            .where(_cells.sweep_id == _sweeps.id, is_unfinished)
            .correlate(tables.sweeps)
        ).label("goes_on"),
    )
    .where(_sweeps.ended_at.is_(None))
    .order_by(_sweeps.created_at)
)
# Sweeps that have cells to submit, the oldest first.
due = (
    sa.select(_sweeps.id, _sweeps.tenant, _sweeps.model)
    .where(
        sa.not_(_sweeps.canceled),
        _sweeps.ended_at.is_(None),
        sa.exists().where(_cells.sweep_id == _sweeps.id, sa.not_(_cells.submitted)),
    )
    .order_by(_sweeps.created_at, _sweeps.id)
)


def counts(sweep_ids: list[str]) -> sa.Select[Any]:
    """How many cells of each sweep have which status."""
    status = status_of_cell.label("status")
    return (
        sa.select(_cells.sweep_id, status, sa.func.count().label("cells"))
        .select_from(_with_request)
        .where(_cells.sweep_id.in_(sweep_ids))
        .group_by(_cells.sweep_id, status)
    )


def history(tenant: str | None, before: tuple[float, str] | None, limit: int) -> sa.Select[Any]:
    """A page of sweeps, newest first."""
    page = tables.sweeps.select().order_by(_sweeps.created_at.desc(), _sweeps.id.desc()).limit(limit)
    if tenant is not None:
        page = page.where(_sweeps.tenant == tenant)
    if before is not None:
        page = page.where(sa.tuple_(_sweeps.created_at, _sweeps.id) < sa.tuple_(*map(sa.literal, before)))
    return page
