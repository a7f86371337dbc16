"""Which images a dispatcher gets next: lost ones first, then those that wait, in the order of the queue."""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from pydantic import TypeAdapter
from sqlalchemy.ext.asyncio import AsyncConnection

from serve_app.jobs import tables
from serve_app.jobs.records import Claim
from serve_app.jobs.state_changes import CLAIMED, ENDED, WAITING
from serve_app.policy.fair_queue import next_images
from serve_app.tasks import EditPlan, EditTask, ImageStage, Priority, Status

_plans = TypeAdapter(EditPlan)
_images = tables.images.c
_key = sa.tuple_(_images.request_id, _images.image_index)
# A claim whose lease ran out: its owner did not renew it.
_is_lost = sa.and_(_images.state == CLAIMED, _images.lease_until < tables.now())

LOST = "its dispatcher was lost"


async def has_work(connection: AsyncConnection, editor_group: str) -> bool:
    """Whether an image that the editor group can make waits or is lost."""
    claimable = sa.or_(_images.state == WAITING, _is_lost)
    some = sa.select(sa.literal(1)).where(_images.editor_group == editor_group, claimable)
    return (await connection.execute(some.limit(1))).first() is not None


class Claiming:
    """One transaction in which `owner` claims images, with leases of `lease_s`."""

    def __init__(self, connection: AsyncConnection, owner: str, lease_s: float) -> None:
        self._connection = connection
        self._owner = owner
        self._lease_s = lease_s

    async def claim(self, editor_group: str, capacity: int, limit: int, take_over: bool) -> list[Claim]:
        """Claim up to `limit` images of the editor group, as long as no more than `capacity` are claimed by all owners.

        With `take_over`, lost images come first, and count as not claimed.
        """
        locked = sa.select(tables.queues).where(tables.queues.c.editor_group == editor_group).with_for_update()
        queue_row = (await self._connection.execute(locked)).one()
        claimed = sa.select(sa.func.count()).where(_images.editor_group == editor_group, _images.state == CLAIMED)
        if take_over:
            claimed = claimed.where(_images.lease_until >= tables.now())
        room = min(limit, capacity - (await self._connection.execute(claimed)).scalar_one())
        if room <= 0:
            return []
        to_take_over = await self._lost(editor_group, room) if take_over else []
        lost = [await self._take_over(row) for row in to_take_over]
        waiting = await self._take_next(queue_row, room - len(lost))
        traceparents = await self._traceparents([*lost, *waiting])
        return [
            *(_claim(row, traceparents, was_lost=True) for row in lost),
            *(_claim(row, traceparents, was_lost=False) for row in waiting),
        ]

    async def _lost(self, editor_group: str, room: int) -> Sequence[sa.Row[Any]]:
        lost: sa.Select[Any] = (
            sa.select(_images.request_id, _images.image_index, _images.status, _images.reasons)
            .where(_images.editor_group == editor_group, _is_lost)
            .order_by(_images.created_at, _images.image_index)
            .limit(room)
            # Its owner may be alive after all, and writing.
            .with_for_update(skip_locked=True)
        )
        return (await self._connection.execute(lost)).all()

    async def _take_over(self, row: sa.Row[Any]) -> sa.Row[Any]:
        """Claim a lost image. If its edit had started, that was an attempt."""
        had_started = row.status == Status.IN_PROGRESS
        reasons = [*row.reasons, LOST] if had_started else row.reasons
        taken = await self._take([(row.request_id, row.image_index)], reasons=reasons)
        return taken[0]

    async def _take_next(self, queue: sa.Row[Any], room: int) -> list[sa.Row[Any]]:
        """Claim the next images that wait, and record in the queue's row how far it was served."""
        if room <= 0:
            return []
        heads = {priority: await self._head(queue.editor_group, priority, room) for priority in Priority}
        chosen, passed_over = next_images(heads[Priority.INTERACTIVE], heads[Priority.BULK], room, queue.passed_over)
        served: dict[str, Any] = {f"{row.priority}_turn": row.turn for row in chosen}
        of_group = tables.queues.update().where(tables.queues.c.editor_group == queue.editor_group)
        await self._connection.execute(of_group.values(passed_over=passed_over, **served))
        keys = [(row.request_id, row.image_index) for row in chosen]
        taken = {(row.request_id, row.image_index): row for row in await self._take(keys)}
        # An image that was cancelled in between is not among them.
        return [taken[key] for key in keys if key in taken]

    async def _head(self, editor_group: str, priority: Priority, count: int) -> Sequence[sa.Row[Any]]:
        """The first `count` waiting images of one priority."""
        first: sa.Select[Any] = (
            sa.select(_images.request_id, _images.image_index, _images.turn, _images.priority)
            .where(_images.editor_group == editor_group, _images.state == WAITING, _images.priority == priority)
            .order_by(_images.turn, _images.created_at, _images.image_index)
            .limit(count)
        )
        return (await self._connection.execute(first)).all()

    async def _take(self, keys: list[tuple[str, int]], **values: Any) -> Sequence[sa.Row[Any]]:
        take = (
            tables.images.update()
            .where(_key.in_(keys), _images.state != ENDED)
            .values(
                state=CLAIMED,
                stage=ImageStage.PREPARING,
                # Each attempt starts with the first step.
                step=0,
                owner=self._owner,
                generation=_images.generation + 1,
                lease_until=tables.now() + self._lease_s,
                **values,
            )
            .returning(*_images, (tables.now() - _images.created_at).label("waited_s"))
        )
        return (await self._connection.execute(take)).all()

    async def _traceparents(self, rows: Sequence[sa.Row[Any]]) -> dict[str, str | None]:
        """The `traceparent` of each image's request, by request id."""
        requests = tables.requests.c
        ids = {row.request_id for row in rows}
        traces = sa.select(requests.id, requests.traceparent).where(requests.id.in_(ids))
        return {row.id: row.traceparent for row in await self._connection.execute(traces)}


def _claim(row: sa.Row[Any], traceparents: dict[str, str | None], *, was_lost: bool) -> Claim:
    plan = _plans.validate_python(row.plan)
    return Claim(
        EditTask(row.request_id, row.image_index, plan, traceparents[row.request_id]),
        row.tenant,
        row.generation,
        tuple(row.reasons),
        row.work,
        row.waited_s,
        was_lost,
    )
