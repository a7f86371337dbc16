"""Creates, reads, cancels and lists requests."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sa
from pydantic import TypeAdapter
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from serve_app.config import JobsConfig
from serve_app.errors import FilesGone, QueueFull, RequestNotFound
from serve_app.jobs import new_rows, queries, state_changes, tables
from serve_app.jobs.database import Database, IsStored, transaction
from serve_app.jobs.idempotency import id_by_key
from serve_app.jobs.limits.quotas import NO_QUOTAS, Quotas, Stored, refuse_early, refuse_request
from serve_app.jobs.records import HistoryFilter, ImageRecord, NewRequest, RequestRecord, RequestState, Summary, Usage
from serve_app.jobs.state_changes import WAITING
from serve_app.policy.fair_queue import first_turn
from serve_app.schemas.answers import MAX_FINISHED_IMAGES
from serve_app.tasks import AdapterUse, EditDone, EditPlan, ImageStage, Priority, Status

# The form of a request id: a UUID in hex.
ID = re.compile("[0-9a-f]{32}")

_plans = TypeAdapter(EditPlan)
_results = TypeAdapter(EditDone)
_requests, _images = tables.requests.c, tables.images.c


class Requests:
    """The requests in the job database. Every public method is one transaction."""

    def __init__(self, database: Database, config: JobsConfig) -> None:
        self._database = database
        # How many images of all tenants together may wait. It may be changed while the service runs.
        self.max_queued = config.max_queued

    @transaction
    async def create(
        self,
        new: NewRequest,
        is_stored: IsStored,
        tenant_max: int | None = None,
        quotas: Quotas = NO_QUOTAS,
        stored: Stored | None = None,
    ) -> RequestRecord:
        """Commit a new request. Returns the earlier one if its idempotency key was used for the same body.

        Including its images, at most `tenant_max` images of its tenant may wait. None means that only `max_queued`
        applies. `stored` is what `refuse_when_full` has returned. Raises QueueFull, TooManyUnfinished, GpuQuotaExceeded
        and StorageQuotaExceeded; IdempotencyConflict if the key was used for another body; FilesGone if one of its
        files was deleted before the commit, when no request needed it yet; StorageFailed if artifact storage does not
        answer.
        """
        try:
            async with self._database.writing() as connection:
                await self._database.lock_file_references(connection)
                if not await self._database.read_storage(lambda: all(map(is_stored, new.files))):
                    raise FilesGone("a file of this request was deleted meanwhile; send it again")
                # The tenant first: its requests for several models count together.
                await self._database.lock_quotas(connection, new.tenant)
                queue = await self._lock_queue(connection, new.editor_group)
                await self._refuse_when_full(connection, new.tenant, len(new.images), tenant_max)
                await refuse_request(connection, new, quotas, stored)
                await self._insert(connection, [new], await self._first_turn(connection, queue, new))
        except IntegrityError:
            # Its key was used before, or an earlier try of this commit succeeded and its answer was lost.
            earlier = await self._committed_before(new)
            if earlier is None:
                raise
            return earlier
        return await self._get(new.id)

    @transaction
    async def refuse_when_full(
        self, tenant: str, sent: int, tenant_max: int | None = None, quotas: Quotas = NO_QUOTAS
    ) -> Stored | None:
        """Raise QueueFull or the error of a quota if `create` would raise it now for any request.

        To be called before anything is fetched for the request. Returns what `create` has to know.

        `sent` is its number of images. A request that is larger than the limit itself is refused elsewhere, since
        trying again later would not help its sender.
        """
        most = self.max_queued if tenant_max is None else min(tenant_max, self.max_queued)
        async with self._database.reading() as connection:
            await self._refuse_when_full(connection, tenant, min(sent, most), tenant_max)
            return await refuse_early(connection, tenant, quotas)

    @transaction
    async def earlier(self, tenant: str, idempotency_key: str, body_sha256: str) -> RequestRecord | None:
        """The request that was sent with this idempotency key, if any.

        Raises IdempotencyConflict if its body was another one.
        """
        return await self._by_key(tenant, idempotency_key, body_sha256)

    @transaction
    async def get(self, request_id: str) -> RequestRecord:
        """The request with all its images. Raises RequestNotFound."""
        return await self._get(request_id)

    @transaction
    async def state(self, request_id: str) -> RequestState:
        """The status and progress of the request. Raises RequestNotFound."""
        check_request_id(request_id)
        async with self._database.reading() as connection:
            row = (await connection.execute(queries.request_state, {"request_id": request_id})).one_or_none()
            if row is None:
                raise _not_found(request_id)
            values = dict(row._mapping) | {"status": Status(row.status), "stage": _stage(row.stage)}
            if values.pop("purged"):
                values["finished"] = ()
            else:
                values["finished"] = await _finished(connection, request_id, row.images_done, row.images)
            first, last = values.pop("first_turn"), values.pop("last_turn")
            priority, work_left = values.pop("priority"), values.pop("work_running")
            position = None
            if first is not None:
                place = {"editor_group": row.editor_group, "created_at": row.created_at, "first": first, "last": last}
                urgent = {"urgent": priority == Priority.INTERACTIVE}
                ahead = (await connection.execute(queries.queue_ahead, place | urgent)).one()
                position, work_left = ahead.position, ahead.work
        return RequestState(**values, queue_position=position, work_left=work_left)

    @transaction
    async def versions(self, request_ids: Iterable[str]) -> dict[str, int]:
        """The version of each of these requests, by id. Requests that do not exist are left out."""
        of_these = sa.select(_requests.id, _requests.version).where(_requests.id.in_(list(request_ids)))
        async with self._database.reading() as connection:
            return {row[0]: row[1] for row in await connection.execute(of_these)}

    @transaction
    async def need(self, key: str, tenant: str | None) -> bool:
        """Whether a stored request or sweep needs the file `key`. With a `tenant`, only its own count."""
        files, sweeps, sweep_files = tables.request_files.c, tables.sweeps.c, tables.sweep_files.c
        of_request = sa.select(_requests.id).join(tables.request_files, files.request_id == _requests.id)
        of_sweep = sa.select(sweeps.id).join(tables.sweep_files, sweep_files.sweep_id == sweeps.id)
        of_request, of_sweep = of_request.where(files.key == key), of_sweep.where(sweep_files.key == key)
        if tenant is not None:
            of_request = of_request.where(_requests.tenant == tenant)
            of_sweep = of_sweep.where(sweeps.tenant == tenant)
        async with self._database.reading() as connection:
            return (await connection.execute(of_request.union(of_sweep).limit(1))).first() is not None

    @transaction
    async def cancel(self, request_id: str) -> bool:
        """Cancel a request. Returns False if it had ended already. Dispatchers that work on it lose their claims."""
        async with self._database.writing() as connection:
            return await state_changes.end_unfinished(connection, request_id, Status.CANCELED)

    @transaction
    async def recent_adapters(self, model: str, images: int) -> list[tuple[AdapterUse, ...]]:
        """The adapters of the newest images of a model, one tuple per image, newest first."""
        newest = (
            sa.select(_images.plan)
            .join(tables.requests, _requests.id == _images.request_id)
            .where(_requests.model == model)
            .order_by(_requests.created_at.desc(), _requests.id.desc())
            .limit(images)
        )
        async with self._database.reading() as connection:
            return [_plans.validate_python(row.plan).adapters for row in await connection.execute(newest)]

    @transaction
    async def history(self, which: HistoryFilter, before: tuple[float, str] | None, limit: int) -> list[Summary]:
        """A page of at most `limit` requests, newest first, that starts after the creation time and id `before`."""
        page = queries.history(which, before, limit)
        async with self._database.reading() as connection:
            rows = (await connection.execute(page)).all()
        return [
            Summary(**dict(row._mapping) | {"status": Status(row.status), "priority": Priority(row.priority)})
            for row in rows
        ]

    @transaction
    async def usage(self, tenant: str | None) -> list[Usage]:
        """What a tenant has used, or each tenant if `tenant` is None."""
        whose = sa.select(tables.usage).order_by(tables.usage.c.tenant)
        if tenant is not None:
            whose = whose.where(tables.usage.c.tenant == tenant)
        async with self._database.reading() as connection:
            return [Usage(row.tenant, row.gpu_seconds, row.images) for row in await connection.execute(whose)]

    async def add(self, connection: AsyncConnection, new: Sequence[NewRequest]) -> None:
        """Insert requests of one tenant and priority within a transaction of the store, in their order.

        The caller has made sure that their files are needed already, and that the queue has room.
        """
        # In one order everywhere, so that no two transactions wait for each other.
        for editor_group in sorted({each.editor_group for each in new}):
            these = [each for each in new if each.editor_group == editor_group]
            queue = await self._lock_queue(connection, editor_group)
            await self._insert(connection, these, await self._first_turn(connection, queue, these[0]))

    async def _lock_queue(self, connection: AsyncConnection, editor_group: str) -> sa.Row[Any]:
        """The queue's row of an editor group, locked until the transaction ends."""
        new = self._database.insert(tables.queues).values(editor_group=editor_group)
        await connection.execute(new.on_conflict_do_nothing())
        locked = sa.select(tables.queues).where(tables.queues.c.editor_group == editor_group).with_for_update()
        return (await connection.execute(locked)).one()

    async def _refuse_when_full(
        self, connection: AsyncConnection, tenant: str, sent: int, tenant_max: int | None
    ) -> None:
        waiting = sa.select(sa.func.count()).where(_images.state == WAITING)
        limits = [(self.max_queued, waiting, "the queue is")]
        if tenant_max is not None:
            limits.insert(0, (tenant_max, waiting.where(_images.tenant == tenant), "your queue is"))
        for limit, count, whose in limits:
            queued = (await connection.execute(count)).scalar_one()
            if queued + sent > limit:
                details = {"queued": queued, "limit": limit, "sent": sent}
                raise QueueFull(f"{whose} full: {queued} images wait, at most {limit} may; try again later", details)

    async def _first_turn(self, connection: AsyncConnection, queue: sa.Row[Any], new: NewRequest) -> int:
        last = sa.select(sa.func.max(_images.turn)).where(
            _images.editor_group == new.editor_group, _images.priority == new.priority, _images.tenant == new.tenant
        )
        served = getattr(queue, f"{new.priority}_turn")
        return first_turn(served, (await connection.execute(last)).scalar_one())

    async def _insert(self, connection: AsyncConnection, requests: Sequence[NewRequest], turn: int) -> None:
        """Insert requests whose images follow each other in the queue, from `turn` on."""
        now = (await connection.execute(sa.select(tables.now()))).scalar_one()
        rows: dict[sa.Table, list[dict[str, Any]]] = {}
        for new in requests:
            predicted_s = await self._predicted_s(connection, new, turn, now)
            images = new_rows.image_rows(new, now, turn)
            turn += len(images)
            rows.setdefault(tables.requests, []).append(new_rows.request_row(new, now, predicted_s))
            rows.setdefault(tables.images, []).extend(images)
            rows.setdefault(tables.request_loras, []).extend(new_rows.lora_rows(new))
            rows.setdefault(tables.request_files, []).extend(new_rows.file_rows(new))
        for table, values in rows.items():
            if values:
                await connection.execute(table.insert(), values)

    async def _predicted_s(self, connection: AsyncConnection, new: NewRequest, turn: int, now: float) -> float | None:
        """How long a request is predicted to take that is inserted now: the first `eta_s` that it will have."""
        if not new.editors:
            return None
        measured = tables.speeds.c.editor_group == new.editor_group
        speed = sa.select(tables.speeds.c.flops_per_s).where(measured).scalar_subquery()
        place = {"editor_group": new.editor_group, "urgent": new.priority == Priority.INTERACTIVE, "created_at": now}
        turns = {"first": turn, "last": turn + len(new.images) - 1}
        ahead = queries.queue_ahead.add_columns(speed.label("speed"))
        row = (await connection.execute(ahead, place | turns)).one()
        own_work = sum(image.work for image in new.images)
        return (row.work + own_work) / row.speed / new.editors if row.speed else None

    async def _committed_before(self, new: NewRequest) -> RequestRecord | None:
        if new.idempotency_key is not None:
            return await self._by_key(new.tenant, new.idempotency_key, new.body_sha256)
        try:
            return await self._get(new.id)
        except RequestNotFound:
            return None

    async def _by_key(self, tenant: str, key: str, body_sha256: str | None) -> RequestRecord | None:
        found = await id_by_key(self._database, tables.requests, "request", tenant, key, body_sha256)
        return None if found is None else await self._get(found)

    async def _get(self, request_id: str) -> RequestRecord:
        check_request_id(request_id)
        async with self._database.reading() as connection:
            # The request is read before its images: if it has ended, its images no longer change.
            request = (
                await connection.execute(tables.requests.select().where(_requests.id == request_id))
            ).one_or_none()
            if request is None:
                raise _not_found(request_id)
            of_request = tables.images.select().where(_images.request_id == request_id).order_by(_images.image_index)
            rows = (await connection.execute(of_request)).all()
        return _record(request, rows)


def _stage(name: str | None) -> ImageStage | None:
    return None if name is None else ImageStage(name)


def _record(request: sa.Row[Any], images: Sequence[sa.Row[Any]]) -> RequestRecord:
    return RequestRecord(
        id=request.id,
        tenant=request.tenant,
        model=request.model,
        priority=Priority(request.priority),
        status=Status(request.status),
        error=request.error,
        error_code=request.error_code,
        error_details=request.error_details,
        notes=request.notes,
        created_at=request.created_at,
        started_at=request.started_at,
        finished_at=request.finished_at,
        version=request.version,
        started_version=request.started_version,
        gpu_seconds=request.gpu_seconds,
        purged=request.purged,
        images=tuple(
            ImageRecord(
                row.image_index,
                _plans.validate_python(row.plan),
                Status(row.status),
                row.step,
                _stage(row.stage),
                row.error,
                row.error_code,
                row.error_details,
                _results.validate_python(row.result) if row.result else None,
                row.version,
                tuple(row.reasons),
            )
            for row in images
        ),
    )


async def _finished(connection: AsyncConnection, request_id: str, done: int, images: int) -> tuple[int, ...]:
    """The first finished images of a request. A query is needed only if others are not finished."""
    if done in (0, images):
        return tuple(range(min(done, MAX_FINISHED_IMAGES)))
    rows = await connection.execute(queries.finished_images, {"request_id": request_id})
    return tuple(row.image_index for row in rows)


def check_request_id(request_id: str) -> None:
    """Raise RequestNotFound if this cannot be a request id. PostgreSQL refuses some strings, such as those with NUL."""
    if not ID.fullmatch(request_id):
        raise _not_found(request_id)


def _not_found(request_id: str) -> RequestNotFound:
    return RequestNotFound(f"there is no request {request_id!r}", {"request_id": request_id})
