"""The longer SELECTs of the job store: the state of a request, the queue ahead of it, backlogs, the history."""

from typing import Any

import sqlalchemy as sa

from serve_app.jobs import tables
from serve_app.jobs.records import HistoryFilter
from serve_app.jobs.state_changes import CLAIMED, WAITING
from serve_app.schemas.answers import MAX_FINISHED_IMAGES
from serve_app.tasks import Priority, Status

_requests, _images = tables.requests.c, tables.images.c
_waits = _images.state == WAITING
# The remaining work of an image that an editor works on (FLOP). After all steps, decoding and storing remain. The work
# before the first step counts as part of the steps.
_steps_share = 1.0 - sa.func.coalesce(tables.speeds.c.other_share, 0.0)
_remaining = _images.work * (1.0 - _steps_share * _images.step / _images.steps)

# The speed of the editors of an image.
_measured = tables.speeds.c.editor_group == _images.editor_group

_claimed = tables.images.alias("claimed")


def _of_current(column: sa.Column[Any]) -> sa.ScalarSelect[Any]:
    """A column of the first image of the request that an editor works on."""
    first = sa.select(column).where(_claimed.c.request_id == _requests.id, _claimed.c.state == CLAIMED)
    return first.order_by(_claimed.c.image_index).limit(1).scalar_subquery()


# The row that a poll reads. For waiting requests, a second query (`queue_ahead`) gives position and work ahead.
request_state = (
    sa.select(
        _requests.id.label("request_id"),
        _requests.tenant,
        _requests.model,
        # All images of a request have one.
        sa.func.min(_images.editor_group).label("editor_group"),
        _requests.priority,
        _requests.status,
        _requests.error,
        _requests.error_code,
        _requests.error_details,
        _requests.created_at,
        _requests.started_at,
        _requests.finished_at,
        _requests.version,
        sa.func.sum(sa.case((_images.status == Status.SUCCEEDED, 1), else_=0)).label("images_done"),
        sa.func.count().label("images"),
        sa.func.sum(_images.step).label("steps_done"),
        sa.func.sum(_images.steps).label("steps"),
        sa.func.min(sa.case((_waits, _images.turn))).label("first_turn"),
        sa.func.max(sa.case((_waits, _images.turn))).label("last_turn"),
        # Editors work on the images in parallel, so the longest one counts.
        sa.func.coalesce(sa.func.max(sa.case((_images.state == CLAIMED, _remaining))), 0.0).label("work_running"),
        sa.func.min(tables.speeds.c.flops_per_s).label("speed"),
        _of_current(_claimed.c.stage).label("stage"),
        _of_current(_claimed.c.image_index).label("current"),
        _requests.purged,
    )
    .join(tables.images, _images.request_id == _requests.id)
    .join(tables.speeds, _measured, isouter=True)
    .where(_requests.id == sa.bindparam("request_id"))
    .group_by(_requests.id)
)

# The first finished images of a request, which a poll reads if some are finished and others not.
finished_images = (
    sa.select(_images.image_index)
    .where(_images.request_id == sa.bindparam("request_id"), _images.status == Status.SUCCEEDED)
    .order_by(_images.image_index)
    .limit(MAX_FINISHED_IMAGES)
)


def _ahead_of(turn: str) -> sa.ColumnElement[bool]:
    """Whether a waiting image is claimed before one of `turn` with the same priority; interactive precedes bulk."""
    before = sa.tuple_(_images.turn, _images.created_at) < sa.tuple_(sa.bindparam(turn), sa.bindparam("created_at"))
    urgent = sa.bindparam("urgent", type_=sa.Boolean)
    return sa.or_(
        sa.and_(_images.priority == Priority.INTERACTIVE, sa.or_(sa.not_(urgent), before)),
        sa.and_(_images.priority == Priority.BULK, sa.not_(urgent), before),
    )


# For a request whose images wait from turn `first` to turn `last`: how many images are ahead of the first, and the work
# (FLOP) until the last one is made, including what editors work on now.
queue_ahead = sa.select(
    sa.select(sa.func.count())
    .where(_images.editor_group == sa.bindparam("editor_group"), _waits, _ahead_of("first"))
    .scalar_subquery()
    .label("position"),
    (
        sa.select(sa.func.coalesce(sa.func.sum(_images.work), 0.0))
        .where(
            _images.editor_group == sa.bindparam("editor_group"),
            _waits,
            sa.or_(
                _ahead_of("last"),
                sa.and_(_images.turn == sa.bindparam("last"), _images.created_at == sa.bindparam("created_at")),
            ),
        )
        .scalar_subquery()
        + sa.select(sa.func.coalesce(sa.func.sum(_remaining), 0.0))
        .select_from(tables.images.join(tables.speeds, _measured, isouter=True))
        .where(_images.editor_group == sa.bindparam("editor_group"), _images.state == CLAIMED)
        .scalar_subquery()
    ).label("work"),
)


# The unfinished images of each editor group, and their work (FLOP): those that wait and those that editors work on.
backlogs: sa.Select[Any] = (
    sa.select(
        _images.editor_group,
        sa.func.sum(sa.case((_waits, _images.work), else_=0.0)).label("work_waiting"),
        sa.func.sum(sa.case((_waits, 0.0), else_=_remaining)).label("work_running"),
        *(
            sa.func.sum(sa.case((sa.and_(_waits, _images.priority == priority), 1), else_=0)).label(priority)
            for priority in Priority
        ),
        sa.func.count().label("images"),
        sa.func.coalesce(tables.now() - sa.func.min(sa.case((_waits, _images.created_at))), 0.0).label("oldest_s"),
        sa.func.min(tables.speeds.c.flops_per_s).label("speed"),
    )
    .join(tables.speeds, _measured, isouter=True)
    .where(_images.state.in_((WAITING, CLAIMED)))
    .group_by(_images.editor_group)
)


def unfinished(tenant: str | None) -> sa.Select[Any]:
    """How many images of each editor group wait and are claimed: those of a tenant, or all if `tenant` is None."""
    counts = (
        sa.select(
            _images.editor_group,
            sa.func.sum(sa.case((_waits, 1), else_=0)).label("waiting"),
            sa.func.sum(sa.case((_waits, 0), else_=1)).label("claimed"),
        )
        .where(_images.state.in_((WAITING, CLAIMED)))
        .group_by(_images.editor_group)
    )
    return counts if tenant is None else counts.where(_images.tenant == tenant)


def history(which: HistoryFilter, before: tuple[float, str] | None, limit: int) -> sa.Select[Any]:
    """A page of the history, newest first."""
    conditions = _conditions(which)
    if before is not None:
        conditions.append(sa.tuple_(_requests.created_at, _requests.id) < sa.tuple_(*map(sa.literal, before)))
    of_request = _images.request_id == _requests.id
    return (
        sa.select(
            _requests.id.label("request_id"),
            _requests.tenant,
            _requests.model,
            _requests.priority,
            _requests.status,
            _requests.created_at,
            _requests.started_at,
            _requests.finished_at,
            _requests.gpu_seconds,
            _requests.error,
            _requests.error_code,
            _requests.error_details,
            sa.select(sa.func.count()).where(of_request).scalar_subquery().label("images"),
            sa.select(sa.func.count())
            .where(of_request, _images.status == Status.SUCCEEDED)
            .scalar_subquery()
            .label("images_done"),
        )
        .where(*conditions)
        .order_by(_requests.created_at.desc(), _requests.id.desc())
        .limit(limit)
    )


def _conditions(which: HistoryFilter) -> list[sa.ColumnElement[bool]]:
    conditions = [
        column == value
        for column, value in (
            (_requests.tenant, which.tenant),
            (_requests.status, which.status),
            (_requests.model, which.model),
        )
        if value is not None
    ]
    if which.lora is not None:
        named = sa.select(tables.request_loras.c.request_id).where(tables.request_loras.c.path == which.lora)
        conditions.append(_requests.id.in_(named))
    if which.since is not None:
        conditions.append(_requests.created_at >= which.since)
    if which.until is not None:
        conditions.append(_requests.created_at < which.until)
    return conditions
