"""The longer statements about requests, and their rows as they are first written."""

import json
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa

from serve_app.jobs import tables
from serve_app.jobs.records import HistoryFilter, NewRequest
from serve_app.jobs.transitions import CLAIMED, WAITING
from serve_app.tasks import Priority, Status

MAX_PATH = 500

_requests, _images, _files = tables.requests.c, tables.images.c, tables.request_files.c
_waits = _images.state == WAITING
# What is left of an image that an editor works on (FLOP). When all steps are done, the share of decoding and storing
# is still to come; what comes before the first step counts with the steps.
_of_steps = 1.0 - sa.func.coalesce(tables.speeds.c.other_share, 0.0)
_remaining = _images.work * (1.0 - _of_steps * _images.step / _images.steps)

_claimed = tables.images.alias("claimed")
# Of the request's images that somebody works on, the first one's.
_stage = (
    sa.select(_claimed.c.stage)
    .where(_claimed.c.request_id == _requests.id, _claimed.c.state == CLAIMED)
    .order_by(_claimed.c.image_index)
    .limit(1)
    .scalar_subquery()
)

# One row for a poll; what the queue ahead means costs another statement, and only those who wait need it.
standing = (
    sa.select(
        _requests.id.label("request_id"),
        _requests.tenant,
        _requests.model,
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
        # They are worked on at the same time.
        sa.func.coalesce(sa.func.max(sa.case((_images.state == CLAIMED, _remaining))), 0.0).label("work_running"),
        sa.func.min(tables.speeds.c.flops_per_s).label("speed"),
        _stage.label("stage"),
    )
    .join(tables.images, _images.request_id == _requests.id)
    .join(tables.speeds, tables.speeds.c.model == _requests.model, isouter=True)
    .where(_requests.id == sa.bindparam("request_id"))
    .group_by(_requests.id)
)


def _ahead_of(turn: str) -> sa.ColumnElement[bool]:
    """Whether a waiting image is taken before one of `turn` in its class; interactive ones before all bulk."""
    before = sa.tuple_(_images.turn, _images.created_at) < sa.tuple_(sa.bindparam(turn), sa.bindparam("created_at"))
    urgent = sa.bindparam("urgent", type_=sa.Boolean)
    return sa.or_(
        sa.and_(_images.priority == Priority.INTERACTIVE, sa.or_(sa.not_(urgent), before)),
        sa.and_(_images.priority == Priority.BULK, sa.not_(urgent), before),
    )


# For a request whose images wait from turn `first` to turn `last`: how many are ahead of the first, and the work
# up to and with the last, what is being worked on included.
line = sa.select(
    sa.select(sa.func.count())
    .where(_images.model == sa.bindparam("model"), _waits, _ahead_of("first"))
    .scalar_subquery()
    .label("position"),
    (
        sa.select(sa.func.coalesce(sa.func.sum(_images.work), 0.0))
        .where(
            _images.model == sa.bindparam("model"),
            _waits,
            sa.or_(
                _ahead_of("last"),
                sa.and_(_images.turn == sa.bindparam("last"), _images.created_at == sa.bindparam("created_at")),
            ),
        )
        .scalar_subquery()
        + sa.select(sa.func.coalesce(sa.func.sum(_remaining), 0.0))
        .select_from(tables.images.join(tables.speeds, tables.speeds.c.model == _images.model, isouter=True))
        .where(_images.model == sa.bindparam("model"), _images.state == CLAIMED)
        .scalar_subquery()
    ).label("work"),
)


# What there is to do of each model that has something: images and FLOP, by whether somebody works on them.
backlogs: sa.Select[Any] = (
    sa.select(
        _images.model,
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
    .join(tables.speeds, tables.speeds.c.model == _images.model, isouter=True)
    .where(_images.state.in_((WAITING, CLAIMED)))
    .group_by(_images.model)
)


def history(which: HistoryFilter, before: tuple[float, str] | None, limit: int) -> sa.Select[Any]:
    """The rows of a page of the history, newest first."""
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


def json_bytes(value: Any) -> int:
    """How long a value is as JSON (bytes), as the rows keep it."""
    return len(json.dumps(value))


def request_row(new: NewRequest, now: float) -> dict[str, Any]:
    return {
        "id": new.id,
        "tenant": new.tenant,
        "model": new.model,
        "priority": new.priority,
        "status": Status.IN_QUEUE,
        "version": 0,
        "notes": new.notes,
        "created_at": now,
        "deadline_at": now + new.deadline_s,
        "gpu_seconds": 0.0,
        "idempotency_key": new.idempotency_key,
        "body_sha256": new.body_sha256,
        "webhook": asdict(new.webhook) if new.webhook else None,
        "purged": False,
        "traceparent": new.traceparent,
        "row_bytes": sum(json_bytes(asdict(image.plan)) for image in new.images),
    }


def image_rows(new: NewRequest, now: float, turn: int) -> list[dict[str, Any]]:
    return [
        {
            "request_id": new.id,
            "image_index": index,
            "model": new.model,
            "tenant": new.tenant,
            "priority": new.priority,
            "created_at": now,
            "plan": asdict(image.plan),
            "work": image.work,
            "status": Status.IN_QUEUE,
            "state": WAITING,
            "turn": turn + index,
            "reasons": [],
            "step": 0,
            "steps": image.plan.steps,
            "version": 0,
            "generation": 0,
        }
        for index, image in enumerate(new.images)
    ]
