"""What each change of a request's state takes with it: its version, its webhooks, its end, what it has used.

Every change takes the request's row first and its pictures' after, so that no two wait for each other.
"""

import uuid
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from serve_app.jobs import tables
from serve_app.jobs.database import Database
from serve_app.tasks import Event, Status

UNFINISHED = (Status.IN_QUEUE, Status.IN_PROGRESS)
WAITING, CLAIMED, ENDED = "waiting", "claimed", "ended"
ENDS = {
    Status.SUCCEEDED: Event.SUCCEEDED,
    Status.FAILED: Event.FAILED,
    Status.CANCELED: Event.CANCELED,
}


async def advance(connection: AsyncConnection, request_id: str, **values: Any) -> sa.Row[Any] | None:
    """Give an unfinished request its next version, and these values; the row as it is now. None if it has ended."""
    return (
        await connection.execute(
            tables.requests.update()
            .where(tables.requests.c.id == request_id, tables.requests.c.status.in_(UNFINISHED))
            .values(version=tables.requests.c.version + 1, **values)
            .returning(*tables.requests.c)
        )
    ).one_or_none()


async def start(connection: AsyncConnection, request_id: str) -> sa.Row[Any] | None:
    """`advance`, and say that the request is in progress, if it is news."""
    row = await advance(
        connection,
        request_id,
        status=Status.IN_PROGRESS,
        started_at=sa.func.coalesce(tables.requests.c.started_at, tables.now()),
        started_version=sa.func.coalesce(tables.requests.c.started_version, tables.requests.c.version + 1),
    )
    if row is not None and row.started_version == row.version:
        await announce(connection, row, Event.STARTED)
    return row


async def end_if_done(connection: AsyncConnection, request_id: str) -> Status:
    """Give the request its end if each of its pictures has one; its status as it is now."""
    images = tables.images.c
    rows = (
        await connection.execute(
            sa.select(images.image_index, images.status, images.error, images.state)
            .where(images.request_id == request_id)
            .order_by(images.image_index)
        )
    ).all()
    if any(row.state != ENDED for row in rows):
        return Status.IN_PROGRESS
    failed = [f"prompt {row.image_index}: {row.error}" for row in rows if row.status == Status.FAILED]
    status = Status.FAILED if failed else Status.SUCCEEDED
    await end(connection, request_id, status, "; ".join(failed) or None)
    return status


async def end(connection: AsyncConnection, request_id: str, status: Status, error: str | None) -> sa.Row[Any] | None:
    """End an unfinished request; the row as it is now. None if it has ended before."""
    row = await advance(
        connection,
        request_id,
        status=status,
        error=storable(error),
        # So that what has an end has a start, even where it failed before one.
        started_at=sa.func.coalesce(tables.requests.c.started_at, tables.now()),
        finished_at=tables.now(),
    )
    if row is not None:
        await announce(connection, row, ENDS[status])
    return row


async def stop(connection: AsyncConnection, request_id: str, status: Status, error: str | None) -> bool:
    """End an unfinished request and all of its pictures that have no end, claimed ones too. False if it has ended.

    Whoever works on one finds its claim lost.
    """
    row = await end(connection, request_id, status, error)
    if row is None:
        return False
    await connection.execute(
        tables.images.update()
        .where(tables.images.c.request_id == request_id, tables.images.c.state != ENDED)
        .values(state=ENDED, status=status, error=storable(error), version=row.version, owner=None, lease_until=None)
    )
    return True


def storable(text: str | None) -> str | None:
    """`text` as every database takes it: errors quote what clients sent, and PostgreSQL takes no NUL."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0") if text else text


async def announce(
    connection: AsyncConnection, request: sa.Row[Any], event: Event, image_index: int | None = None
) -> None:
    """Have the request's owner told, if that was asked for."""
    if request.webhook is None or event not in request.webhook["events"]:
        return
    await connection.execute(
        tables.deliveries.insert().values(
            id=uuid.uuid4().hex,
            request_id=request.id,
            event=event,
            image_index=image_index,
            created_at=tables.now(),
            attempts=0,
            due_at=tables.now(),
        )
    )


async def charge(
    database: Database, connection: AsyncConnection, request_id: str, tenant: str, gpu_seconds: float, images: int
) -> None:
    """Book what was used on the request and its tenant."""
    if gpu_seconds <= 0.0 and images == 0:
        return
    await connection.execute(
        tables.requests.update()
        .where(tables.requests.c.id == request_id)
        .values(gpu_seconds=tables.requests.c.gpu_seconds + gpu_seconds)
    )
    new = database.insert(tables.usage).values(tenant=tenant, gpu_seconds=gpu_seconds, images=images)
    await connection.execute(
        new.on_conflict_do_update(
            index_elements=["tenant"],
            set_={
                "gpu_seconds": tables.usage.c.gpu_seconds + new.excluded.gpu_seconds,
                "images": tables.usage.c.images + new.excluded.images,
            },
        )
    )
