"""What waits, counted: for whoever watches the queue, not for whoever works on it."""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from serve_app.jobs import tables
from serve_app.jobs.changes import CLAIMED, WAITING
from serve_app.jobs.database import Database, transaction
from serve_app.jobs.records import Backlog
from serve_app.tasks import Priority

_images = tables.images.c
_speed = sa.select(tables.speeds.c.flops_per_s).where(tables.speeds.c.model == _images.model).scalar_subquery()
# All that is read of a picture stands in the index `images_in_line`.
_held = (
    sa.select(
        _images.model,
        _images.state,
        _images.priority,
        sa.func.count().label("images"),
        sa.func.sum(_images.work).label("work"),
        (tables.now() - sa.func.min(_images.created_at)).label("oldest_s"),
        _speed.label("speed"),
    )
    .where(_images.model == sa.bindparam("model"), _images.state.in_((WAITING, CLAIMED)))
    .group_by(_images.model, _images.state, _images.priority)
)


class Backlogs:
    def __init__(self, database: Database) -> None:
        self._database = database

    @transaction
    async def of(self, model: str) -> Backlog:
        """What the queue of a model holds now."""
        async with self._database.reading() as connection:
            rows = (await connection.execute(_held, {"model": model})).all()
        waiting = [row for row in rows if row.state == WAITING]
        return Backlog(
            dict.fromkeys(Priority, 0) | {Priority(row.priority): row.images for row in waiting},
            sum(row.images for row in rows if row.state == CLAIMED),
            _seconds(waiting),
            max((row.oldest_s for row in waiting), default=0.0),
        )


def _seconds(waiting: Sequence[sa.Row[Any]]) -> float | None:
    if any(row.speed is None for row in waiting):
        return None
    return sum(row.work / row.speed for row in waiting)
