"""Changes of a request's state: each gives it a new version, queues its webhooks and counts its usage.

Every change locks the request's row first and its images' rows after that, so that no two changes wait for each other.
"""

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from serve_app.errors import ErrorDescription
from serve_app.jobs import tables
from serve_app.jobs.database import Database
from serve_app.schemas.text import escaped
from serve_app.tasks import Status, WebhookEvent

UNFINISHED = (Status.IN_QUEUE, Status.IN_PROGRESS)
WAITING, CLAIMED, ENDED = "waiting", "claimed", "ended"
# How many failed prompts the error of a request lists, and how long each text in an error may be (characters): every
# answer to a poll of the request's status contains the error.
MAX_LISTED_PROMPTS, MAX_TEXT_CHARS = 20, 1_000
# The values of an image that no dispatcher works on.
UNCLAIMED: dict[str, Any] = {"state": WAITING, "owner": None, "lease_until": None, "stage": None}
ENDS = {
    Status.SUCCEEDED: WebhookEvent.SUCCEEDED,
    Status.FAILED: WebhookEvent.FAILED,
    Status.CANCELED: WebhookEvent.CANCELED,
}


async def advance(connection: AsyncConnection, request_id: str, **values: Any) -> sa.Row[Any] | None:
    """Give an unfinished request its next version and these values. Returns its new row, or None if it has ended."""
    return (
        await connection.execute(
            tables.requests.update()
            .where(tables.requests.c.id == request_id, tables.requests.c.status.in_(UNFINISHED))
            .values(version=tables.requests.c.version + 1, **values)
            .returning(*tables.requests.c)
        )
    ).one_or_none()


async def start(connection: AsyncConnection, request_id: str) -> sa.Row[Any] | None:
    """`advance` a request to "in progress". With the first image that starts, queue the webhook of the start."""
    row = await advance(
        connection,
        request_id,
        status=Status.IN_PROGRESS,
        started_at=sa.func.coalesce(tables.requests.c.started_at, tables.now()),
        started_version=sa.func.coalesce(tables.requests.c.started_version, tables.requests.c.version + 1),
    )
    if row is not None and row.started_version == row.version:
        await queue_webhook(connection, row, WebhookEvent.STARTED)
    return row


async def end_if_done(connection: AsyncConnection, request_id: str) -> Status:
    """End the request if all of its images have ended. Returns its status."""
    images = tables.images.c
    columns = (images.image_index, images.status, images.error, images.error_code, images.error_details, images.state)
    of_request: sa.Select[Any] = sa.select(*columns).where(images.request_id == request_id).order_by(images.image_index)
    rows = (await connection.execute(of_request)).all()
    if any(row.state != ENDED for row in rows):
        return Status.IN_PROGRESS
    failed = [row for row in rows if row.status == Status.FAILED]
    status = Status.FAILED if failed else Status.SUCCEEDED
    await _end(connection, request_id, status, _failure_of_request(failed))
    return status


def _failure_of_request(failed: Sequence[sa.Row[Any]]) -> dict[str, Any]:
    """The error of a request whose images failed: the text of the first few, the code and details of the first."""
    if not failed:
        return {}
    first = failed[0]
    details = None
    if first.error_code is not None:
        details = {"prompt_index": first.image_index} | (first.error_details or {})
    texts = [f"prompt {row.image_index}: {row.error}" for row in failed[:MAX_LISTED_PROMPTS]]
    if len(failed) > MAX_LISTED_PROMPTS:
        texts.append(f"and {len(failed) - MAX_LISTED_PROMPTS} more")
    text = "; ".join(texts)
    return {"error": text, "error_code": first.error_code, "error_details": details}


def failure(error: ErrorDescription) -> dict[str, Any]:
    """The values of the columns that say how an image or a request failed."""
    return {
        "error": storable(error.message),
        "error_code": error.code,
        "error_details": storable(error.details) or None,
    }


async def _end(
    connection: AsyncConnection, request_id: str, status: Status, failed: Mapping[str, Any]
) -> sa.Row[Any] | None:
    """End an unfinished request. Returns its new row, or None if it had ended before.

    A request that was cancelled or expired before an editor started it has no start time.
    """
    row = await advance(connection, request_id, status=status, finished_at=tables.now(), **failed)
    if row is not None:
        await queue_webhook(connection, row, ENDS[status])
    return row


async def end_unfinished(
    connection: AsyncConnection, request_id: str, status: Status, error: ErrorDescription | None = None
) -> bool:
    """End an unfinished request and its unfinished images, claimed ones too. Returns False if it had ended before.

    A dispatcher that works on one of the images finds that its claim is lost.
    """
    failed = failure(error) if error else {}
    row = await _end(connection, request_id, status, failed)
    if row is None:
        return False
    await connection.execute(
        tables.images.update()
        .where(tables.images.c.request_id == request_id, tables.images.c.state != ENDED)
        .values(status=status, version=row.version, **failed, **UNCLAIMED | {"state": ENDED})
    )
    return True


def storable(value: Any) -> Any:
    """A text, or JSON made of texts, as every database accepts it: errors quote clients, who may send NUL."""
    if isinstance(value, str):
        return escaped(value, MAX_TEXT_CHARS)
    if isinstance(value, Mapping):
        return {storable(key): storable(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [storable(each) for each in value]
    return value


async def queue_webhook(
    connection: AsyncConnection, request: sa.Row[Any], event: WebhookEvent, image_index: int | None = None
) -> None:
    """Queue a webhook for this event, if the request asked for one."""
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


async def add_row_bytes(connection: AsyncConnection, request_id: str, size_bytes: int) -> None:
    """Add to the size of a request's rows (bytes); a negative number makes it smaller."""
    grown = sa.func.coalesce(tables.requests.c.row_bytes, 0) + size_bytes
    # Requests that an earlier version of the service created have no size.
    size = sa.case((grown > 0, grown), else_=0)
    await connection.execute(tables.requests.update().where(tables.requests.c.id == request_id).values(row_bytes=size))


async def add_usage(
    database: Database, connection: AsyncConnection, request_id: str, tenant: str, gpu_seconds: float, images: int
) -> None:
    """Add GPU seconds and images to the usage of the request and of its tenant."""
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
