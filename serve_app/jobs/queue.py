"""The job queue: images are claimed, worked on, and succeed, fail or are given back.

A dispatcher (the `owner`) keeps a claim for as long as it renews its lease. Every write of a claimed image carries the
claim's generation. It is refused once the claim is lost: to a newer claim, a cancellation or a deadline.
"""

import functools
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import asdict
from typing import Any, ParamSpec

import sqlalchemy as sa
from pydantic import TypeAdapter
from sqlalchemy.ext.asyncio import AsyncConnection

from serve_app.config import JobsConfig
from serve_app.errors import DeadlineExceeded, EditorLost, ErrorDescription, describe
from serve_app.jobs import new_rows, queries, state_changes, tables
from serve_app.jobs.claiming import Claiming, has_work
from serve_app.jobs.database import Database, IsStored, transaction
from serve_app.jobs.limits.quotas import add_day
from serve_app.jobs.records import Claim
from serve_app.jobs.speeds import backlog_of, measure
from serve_app.jobs.state_changes import CLAIMED, ENDED, UNCLAIMED, UNFINISHED
from serve_app.policy.scaling import Backlog
from serve_app.tasks import EditDone, EditPlan, EditTask, ImageStage, Status, WebhookEvent

P = ParamSpec("P")

_plans = TypeAdapter(EditPlan)
_images = tables.images.c
_key = sa.tuple_(_images.request_id, _images.image_index)


class ClaimLost(Exception):
    """The claim is no longer valid. Rolls back the transaction that finds this out."""


def unless_lost(method: Callable[P, Awaitable[Status]]) -> Callable[P, Coroutine[Any, Any, Status | None]]:
    """Make a method that writes a claimed image return None, with nothing written, if the claim is lost."""

    @functools.wraps(method)
    async def call(*args: P.args, **kwargs: P.kwargs) -> Status | None:
        try:
            return await method(*args, **kwargs)
        except ClaimLost:
            return None

    return call


class Queue:
    """Every method is one transaction. Those that write a claimed image return the status of its request afterwards."""

    def __init__(self, database: Database, config: JobsConfig) -> None:
        self._database = database
        self._config = config

    @transaction
    async def claim(
        self, owner: str, editor_group: str, capacity: int, limit: int, take_over: bool = True
    ) -> list[Claim]:
        """Claim up to `limit` images that `editor_group` can make for `owner`, in the order of the queue.

        All owners together claim no more than `capacity` images at a time. With `take_over`, the images of an owner
        that was lost come first; if an edit had started, that counts as an attempt.
        """
        async with self._database.reading() as connection:
            if not await has_work(connection, editor_group):
                return []
        async with self._database.writing() as connection:
            claiming = Claiming(connection, owner, self._config.lease_s)
            return await claiming.claim(editor_group, capacity, limit, take_over)

    @transaction
    async def backlogs(self) -> dict[str, Backlog]:
        """The backlog of each editor group that has unfinished images."""
        async with self._database.reading() as connection:
            return {row.editor_group: backlog_of(row) for row in await connection.execute(queries.backlogs)}

    @transaction
    async def counts(self, tenant: str | None) -> dict[str, tuple[int, int]]:
        """For each editor group with unfinished images, how many wait and how many editors work on.

        Only images of `tenant` count, or all if it is None.
        """
        async with self._database.reading() as connection:
            rows = await connection.execute(queries.unfinished(tenant))
            return {row.editor_group: (row.waiting, row.claimed) for row in rows}

    @transaction
    async def measured_groups(self) -> frozenset[str]:
        """The editor groups of which the speed of an edit was measured."""
        async with self._database.reading() as connection:
            return frozenset((await connection.execute(sa.select(tables.speeds.c.editor_group))).scalars())

    @transaction
    async def renew(self, owner: str, tasks: Sequence[EditTask]) -> None:
        """Extend the leases that `owner` holds on `tasks`."""
        if not tasks:
            return
        keys = [(task.request_id, task.index) for task in tasks]
        mine = sa.select(_images.request_id, _images.image_index).where(_images.owner == owner, _key.in_(keys))
        async with self._database.writing() as connection:
            # An image that another transaction writes right now is renewed by that, or by the next call.
            free = (await connection.execute(mine.with_for_update(skip_locked=True))).all()
            await connection.execute(
                tables.images.update()
                .where(_key.in_([tuple(row) for row in free]))
                .values(lease_until=tables.now() + self._config.lease_s)
            )

    @transaction
    async def held(self, owner: str) -> set[tuple[str, int, int]]:
        """The request, index and generation of each image that `owner` holds."""
        mine = sa.select(_images.request_id, _images.image_index, _images.generation).where(_images.owner == owner)
        async with self._database.reading() as connection:
            return {(row[0], row[1], row[2]) for row in await connection.execute(mine)}

    @transaction
    async def release(self, owner: str) -> None:
        """Give back all images that `owner` holds, without counting an attempt."""
        async with self._database.writing() as connection:
            await connection.execute(
                tables.images.update()
                .where(_images.owner == owner, _images.state == CLAIMED)
                .values(step=0, **UNCLAIMED)
            )

    @transaction
    @unless_lost
    async def progress(self, claim: Claim, step: int) -> Status:
        """Record that `step` steps are done (0: an editor has started). Returns None if the claim is lost."""
        stage = ImageStage.DECODING if step >= claim.task.plan.steps else ImageStage.DENOISING
        async with self._database.writing() as connection:
            request = await state_changes.start(connection, claim.task.request_id)
            lease_until = tables.now() + self._config.lease_s
            values = {"status": Status.IN_PROGRESS, "step": step, "stage": stage, "lease_until": lease_until}
            return await self._write(connection, claim, request, **values)

    @transaction
    @unless_lost
    async def reach(self, claim: Claim, stage: ImageStage) -> Status:
        """Record which stage the image has reached. Returns None if the claim is lost."""
        async with self._database.writing() as connection:
            request = await state_changes.advance(connection, claim.task.request_id)
            return await self._write(connection, claim, request, stage=stage)

    @transaction
    @unless_lost
    async def retry(self, claim: Claim, reasons: Sequence[str], gpu_seconds: float) -> Status:
        """Give the image back; `reasons` say how each attempt so far ended. Returns None if the claim is lost."""
        async with self._database.writing() as connection:
            request = await state_changes.advance(connection, claim.task.request_id)
            status = await self._write(connection, claim, request, reasons=list(reasons), step=0, **UNCLAIMED)
            await self._charge(connection, claim, gpu_seconds)
            return status

    @transaction
    @unless_lost
    async def succeed(self, claim: Claim, done: EditDone, is_stored: IsStored) -> Status:
        """Record a finished image, and with the last one the end of the request. Returns None if the claim is lost.

        Raises EditorLost if its file is not stored: the same image was made earlier and purged since.
        """
        async with self._database.writing() as connection:
            await self._database.lock_file_references(connection)
            if not await self._database.read_storage(functools.partial(is_stored, done.key)):
                raise EditorLost("its image is no longer stored")
            request = await state_changes.start(connection, claim.task.request_id)
            result = asdict(done)
            await self._write(
                connection,
                claim,
                request,
                status=Status.SUCCEEDED,
                step=claim.task.plan.steps,
                result=result,
                **UNCLAIMED | {"state": ENDED},
            )
            assert request is not None
            await state_changes.add_row_bytes(connection, claim.task.request_id, new_rows.json_bytes(result))
            await connection.execute(
                self._database.insert(tables.request_files)
                .values(request_id=claim.task.request_id, key=done.key, size_bytes=done.size_bytes)
                # Two images of one request may be equal.
                .on_conflict_do_nothing()
            )
            await self._charge(connection, claim, done.timings.get("generate", 0.0), images=1)
            await measure(self._database, connection, claim, done)
            await state_changes.queue_webhook(connection, request, WebhookEvent.IMAGE, claim.task.index)
            return await state_changes.end_if_done(connection, claim.task.request_id)

    @transaction
    @unless_lost
    async def fail(self, claim: Claim, error: ErrorDescription, gpu_seconds: float) -> Status:
        """Record that an image cannot be made, and with the last one the end of the request.

        Returns None if the claim is lost.
        """
        async with self._database.writing() as connection:
            # The editor may have refused it before the first step. The request has a start nevertheless.
            request = await state_changes.start(connection, claim.task.request_id)
            ended = {"status": Status.FAILED} | UNCLAIMED | {"state": ENDED}
            failure = state_changes.failure(error)
            await self._write(connection, claim, request, **failure, **ended)
            await state_changes.add_row_bytes(connection, claim.task.request_id, new_rows.json_bytes(failure))
            await self._charge(connection, claim, gpu_seconds)
            return await state_changes.end_if_done(connection, claim.task.request_id)

    @transaction
    async def prediction(self, request_id: str) -> tuple[float, float] | None:
        """How long a request that has ended was predicted to take, and how long it took (s).

        None if nothing was predicted, or if it was deleted.
        """
        requests = tables.requests.c
        times = sa.select(requests.predicted_s, requests.finished_at - requests.created_at).where(
            requests.id == request_id, requests.predicted_s.is_not(None), requests.finished_at.is_not(None)
        )
        async with self._database.reading() as connection:
            row = (await connection.execute(times)).one_or_none()
        return None if row is None else (row[0], row[1])

    @transaction
    async def charge(self, claim: Claim, gpu_seconds: float) -> None:
        """Charge the GPU seconds of a claim that is lost."""
        async with self._database.writing() as connection:
            await self._charge(connection, claim, gpu_seconds)

    @transaction
    async def expire(self) -> dict[str, str]:
        """Fail every request that is past its deadline. Returns the model of each, by id."""
        requests = tables.requests.c
        expired = sa.select(
            requests.id, requests.model, (requests.deadline_at - requests.created_at).label("seconds")
        ).where(requests.status.in_(UNFINISHED), requests.deadline_at < tables.now())
        async with self._database.reading() as connection:
            rows = (await connection.execute(expired)).all()
        models = {}
        for row in rows:
            async with self._database.writing() as connection:
                error = DeadlineExceeded(
                    f"it was not finished within its deadline of {row.seconds:g} s", {"deadline_s": row.seconds}
                )
                if await state_changes.end_unfinished(connection, row.id, Status.FAILED, describe(error)):
                    models[row.id] = row.model
        return models

    async def _write(
        self, connection: AsyncConnection, claim: Claim, request: sa.Row[Any] | None, **values: Any
    ) -> Status:
        """Update the claimed image of a request that was just advanced. Raises ClaimLost."""
        mine = sa.and_(
            _images.request_id == claim.task.request_id,
            _images.image_index == claim.task.index,
            _images.generation == claim.generation,
            _images.state == CLAIMED,
        )
        if request is None:
            raise ClaimLost
        written = await connection.execute(tables.images.update().where(mine).values(version=request.version, **values))
        if not written.rowcount:
            raise ClaimLost
        return Status(request.status)

    async def _charge(self, connection: AsyncConnection, claim: Claim, seconds: float, images: int = 0) -> None:
        request_id, tenant = claim.task.request_id, claim.tenant
        await state_changes.add_usage(self._database, connection, request_id, tenant, seconds, images)
        if seconds > 0.0:
            await add_day(self._database, connection, tenant, gpu_seconds=seconds)
