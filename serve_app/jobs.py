"""The job store: the one owner of every request's state. SQLite through SQLAlchemy's async engine.

A request is a row; each of its pictures is a row of its own, the unit of work. A dispatcher claims a picture
for as long as it renews its lease; every write of a claimed picture carries the claim's generation and is
refused once a newer claim exists. Time is the database's clock.
"""

import asyncio
import functools
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import sqlalchemy as sa
from pydantic import TypeAdapter
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from serve_app import job_tables as tables
from serve_app.config import JobsConfig
from serve_app.errors import RequestNotFound
from serve_app.tasks import EditDone, EditPlan, EditTask, Status

P = ParamSpec("P")
T = TypeVar("T")

_plans = TypeAdapter(EditPlan)
_results = TypeAdapter(EditDone)
_UNFINISHED = (Status.IN_QUEUE, Status.IN_PROGRESS)


@dataclass(frozen=True)
class ImageRecord:
    index: int
    plan: EditPlan
    status: Status
    step: int
    error: str | None
    result: EditDone | None


@dataclass(frozen=True)
class RequestRecord:
    """A request and its pictures, in prompt order. Times are seconds since the epoch."""

    id: str
    model: str
    status: Status
    error: str | None
    notes: dict[str, Any]
    created_at: float
    started_at: float | None
    finished_at: float | None
    images: tuple[ImageRecord, ...]


@dataclass(frozen=True)
class Standing:
    """Where a request stands, as one cheap row. Times are seconds since the epoch."""

    request_id: str
    status: Status
    error: str | None
    created_at: float
    started_at: float | None
    finished_at: float | None
    images_done: int
    images: int
    steps_done: int
    steps: int


@dataclass(frozen=True)
class Claim:
    """The right to work on one picture. `attempts` counts the tries before this one."""

    task: EditTask
    generation: int
    attempts: int


def _whole(method: Callable[P, Awaitable[T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """A transaction that has begun ends before a cancellation of its caller goes on.

    A connection that is left in the middle of one would keep the write lock.
    """

    @functools.wraps(method)
    async def call(*args: P.args, **kwargs: P.kwargs) -> T:
        transaction = asyncio.ensure_future(method(*args, **kwargs))
        try:
            return await asyncio.shield(transaction)
        except asyncio.CancelledError:
            await asyncio.wait([transaction])
            raise

    return call


class JobStore:
    """Every method is one transaction. Make it, `open` it, and `close` it within one event loop."""

    def __init__(self, config: JobsConfig) -> None:
        self._config = config
        url = sa.make_url(config.database_url)
        if url.database:
            Path(url.database).parent.mkdir(parents=True, exist_ok=True)
        self._writer: AsyncEngine = create_async_engine(url)
        # Polls are most of the traffic: a read is one statement, without a transaction around it.
        self._reader: AsyncEngine = create_async_engine(
            url, isolation_level="AUTOCOMMIT", skip_autocommit_rollback=True, pool_reset_on_return=None
        )
        for engine in (self._writer, self._reader):
            sa.event.listen(engine.sync_engine, "connect", tables.configure_connection)
        sa.event.listen(self._writer.sync_engine, "begin", tables.begin_writing)

    async def open(self) -> None:
        async with self._writer.begin() as connection:
            await connection.run_sync(tables.metadata.create_all)

    async def close(self) -> None:
        await self._writer.dispose()
        await self._reader.dispose()

    @_whole
    async def create(self, model: str, plans: Sequence[EditPlan], notes: dict[str, Any]) -> RequestRecord:
        """Commit a new request. `notes` becomes part of its result's metadata."""
        request_id = uuid.uuid4().hex
        async with self._writer.begin() as connection:
            created_at = (await connection.execute(sa.select(tables.now))).scalar_one()
            await connection.execute(
                tables.requests.insert().values(
                    id=request_id, model=model, status=Status.IN_QUEUE, notes=notes, created_at=created_at
                )
            )
            rows = [
                {
                    "request_id": request_id,
                    "image_index": index,
                    "plan": asdict(plan),
                    "status": Status.IN_QUEUE,
                    "created_at": created_at,
                    "steps": plan.steps,
                }
                for index, plan in enumerate(plans)
            ]
            await connection.execute(tables.images.insert(), rows)
        images = tuple(ImageRecord(i, plan, Status.IN_QUEUE, 0, None, None) for i, plan in enumerate(plans))
        return RequestRecord(request_id, model, Status.IN_QUEUE, None, notes, created_at, None, None, images)

    @_whole
    async def get(self, request_id: str) -> RequestRecord:
        """The whole request. Raises RequestNotFound."""
        async with self._reader.connect() as connection:
            # The request first: one that has ended has all that its pictures will ever have.
            by_id = tables.requests.select().where(tables.requests.c.id == request_id)
            request = (await connection.execute(by_id)).one_or_none()
            if request is None:
                raise _not_found(request_id)
            of_request = (
                tables.images.select()
                .where(tables.images.c.request_id == request_id)
                .order_by(tables.images.c.image_index)
            )
            rows = (await connection.execute(of_request)).all()
        return RequestRecord(
            request.id,
            request.model,
            Status(request.status),
            request.error,
            request.notes,
            request.created_at,
            request.started_at,
            request.finished_at,
            tuple(
                ImageRecord(
                    row.image_index,
                    _plans.validate_python(row.plan),
                    Status(row.status),
                    row.step,
                    row.error,
                    _results.validate_python(row.result) if row.result else None,
                )
                for row in rows
            ),
        )

    @_whole
    async def standing(self, request_id: str) -> Standing:
        """Where the request stands. Raises RequestNotFound."""
        async with self._reader.connect() as connection:
            row = (await connection.execute(tables.standing, {"request_id": request_id})).one_or_none()
        if row is None:
            raise _not_found(request_id)
        return Standing(row.id, Status(row.status), *row[2:])

    @_whole
    async def claim(self, owner: str, limit: int) -> list[Claim]:
        """Take up to `limit` pictures that nobody works on, oldest first, for `owner`.

        One that was in progress when its owner was lost has used up an attempt.
        """
        waiting = (
            sa.select(tables.images.c.request_id, tables.images.c.image_index)
            .where(tables.images.c.status.in_(_UNFINISHED))
            .where(sa.or_(tables.images.c.lease_until.is_(None), tables.images.c.lease_until < tables.now))
            .order_by(tables.images.c.created_at, tables.images.c.image_index)
            .limit(limit)
        )
        lost = sa.case(
            (sa.and_(tables.images.c.status == Status.IN_PROGRESS, tables.images.c.owner.is_not(None)), 1), else_=0
        )
        take = (
            tables.images.update()
            .where(sa.tuple_(tables.images.c.request_id, tables.images.c.image_index).in_(waiting))
            .values(
                owner=owner,
                generation=tables.images.c.generation + 1,
                attempts=tables.images.c.attempts + lost,
                lease_until=tables.now + self._config.lease_s,
            )
            .returning(
                tables.images.c.request_id,
                tables.images.c.image_index,
                tables.images.c.plan,
                tables.images.c.generation,
                tables.images.c.attempts,
                tables.images.c.created_at,
            )
        )
        async with self._writer.begin() as connection:
            rows = (await connection.execute(take)).all()
        return [
            Claim(
                EditTask(row.request_id, row.image_index, _plans.validate_python(row.plan)),
                row.generation,
                row.attempts,
            )
            for row in sorted(rows, key=lambda row: (row.created_at, row.request_id, row.image_index))
        ]

    @_whole
    async def renew(self, owner: str, tasks: Sequence[EditTask]) -> None:
        """Put off the end of the leases that `owner` holds on `tasks`."""
        keys = [(task.request_id, task.index) for task in tasks]
        held = sa.and_(
            tables.images.c.owner == owner, sa.tuple_(tables.images.c.request_id, tables.images.c.image_index).in_(keys)
        )
        async with self._writer.begin() as connection:
            await connection.execute(
                tables.images.update().where(held).values(lease_until=tables.now + self._config.lease_s)
            )

    @_whole
    async def release(self, owner: str) -> None:
        """Give back all that `owner` holds, unfinished and without an attempt counted."""
        held = sa.and_(tables.images.c.owner == owner, tables.images.c.status.in_(_UNFINISHED))
        async with self._writer.begin() as connection:
            await connection.execute(tables.images.update().where(held).values(owner=None, lease_until=None))

    @_whole
    async def progress(self, claim: Claim, step: int) -> bool:
        """Note that `step` steps are done (0: an editor has begun). False if the claim is lost."""
        async with self._writer.begin() as connection:
            if not await self._write(connection, claim, status=Status.IN_PROGRESS, step=step):
                return False
            begun = sa.and_(tables.requests.c.id == claim.task.request_id, tables.requests.c.status == Status.IN_QUEUE)
            await connection.execute(
                tables.requests.update()
                .where(begun)
                .values(
                    status=Status.IN_PROGRESS, started_at=sa.func.coalesce(tables.requests.c.started_at, tables.now)
                )
            )
            return True

    @_whole
    async def retry(self, claim: Claim, attempts: int, reason: str) -> bool:
        """Give the picture back for another try, after `attempts` of them. False if the claim is lost."""
        async with self._writer.begin() as connection:
            return await self._write(connection, claim, attempts=attempts, error=reason, owner=None, lease_until=None)

    @_whole
    async def succeed(self, claim: Claim, done: EditDone) -> bool:
        """Record a finished picture, and the request's end with the last one. False if the claim is lost."""
        result = asdict(done)
        async with self._writer.begin() as connection:
            if not await self._write(
                connection,
                claim,
                status=Status.SUCCEEDED,
                step=claim.task.plan.steps,
                result=result,
                error=None,
                owner=None,
            ):
                return False
            await self._end_request(connection, claim.task.request_id)
            return True

    @_whole
    async def fail(self, claim: Claim, error: str) -> bool:
        """Record that a picture cannot be made, and the request's end with the last one."""
        async with self._writer.begin() as connection:
            if not await self._write(connection, claim, status=Status.FAILED, error=error, owner=None):
                return False
            await self._end_request(connection, claim.task.request_id)
            return True

    async def _write(self, connection: AsyncConnection, claim: Claim, **values: Any) -> bool:
        """Update the claimed picture. False, with nothing written, if another claim is newer or it has ended."""
        mine = sa.and_(
            tables.images.c.request_id == claim.task.request_id,
            tables.images.c.image_index == claim.task.index,
            tables.images.c.generation == claim.generation,
            tables.images.c.status.in_(_UNFINISHED),
        )
        written = await connection.execute(tables.images.update().where(mine).values(**values))
        return bool(written.rowcount)

    async def _end_request(self, connection: AsyncConnection, request_id: str) -> None:
        """Give the request its end if each of its pictures has one."""
        of_request = (
            sa.select(tables.images.c.image_index, tables.images.c.status, tables.images.c.error)
            .where(tables.images.c.request_id == request_id)
            .order_by(tables.images.c.image_index)
        )
        rows = (await connection.execute(of_request)).all()
        if any(row.status in _UNFINISHED for row in rows):
            return
        errors = [f"prompt {row.image_index}: {row.error}" for row in rows if row.status == Status.FAILED]
        await connection.execute(
            tables.requests.update()
            .where(tables.requests.c.id == request_id)
            .values(
                status=Status.FAILED if errors else Status.SUCCEEDED,
                error="; ".join(errors) or None,
                # A picture that failed before its first step ends a request that never started.
                started_at=sa.func.coalesce(tables.requests.c.started_at, tables.now),
                finished_at=tables.now,
            )
        )


def _not_found(request_id: str) -> RequestNotFound:
    return RequestNotFound(f"there is no request {request_id!r}", {"request_id": request_id})
