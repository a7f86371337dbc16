"""The queue: who works on which image, and what becomes of it.

A dispatcher claims an image for as long as it renews its lease. Every write of a claimed image carries the
claim's generation and is refused once the claim is lost: to a newer one, to a cancellation or to a deadline.
"""

import functools
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import asdict
from typing import Any, ParamSpec

import sqlalchemy as sa
from pydantic import TypeAdapter
from sqlalchemy.ext.asyncio import AsyncConnection

from serve_app.config import JobsConfig
from serve_app.errors import DeadlineExceeded, EditorLost, ErrorDescription, describe
from serve_app.jobs import statements, tables, transitions
from serve_app.jobs.database import Database, IsStored, transaction
from serve_app.jobs.records import Claim
from serve_app.jobs.transitions import CLAIMED, ENDED, FREE, UNFINISHED, WAITING
from serve_app.policy.fair_turns import take_turns
from serve_app.policy.routing import UNMEASURED_WORK_S
from serve_app.policy.scaling import Backlog
from serve_app.tasks import EditDone, EditPlan, EditTask, ImageStage, Priority, Status, WebhookEvent

P = ParamSpec("P")

_plans = TypeAdapter(EditPlan)
_images = tables.images.c
_KEY = sa.tuple_(_images.request_id, _images.image_index)
# A claim whose owner has not been heard of.
_IS_LOST = sa.and_(_images.state == CLAIMED, _images.lease_until < tables.now())
# How much the newest measurement of a model's speed counts.
NEWEST = 0.2

LOST = "its dispatcher was lost"


class ClaimLost(Exception):
    """Undoes the transaction that finds out."""


def unless_lost(method: Callable[P, Awaitable[Status]]) -> Callable[P, Coroutine[Any, Any, Status | None]]:
    """Make a method that writes a claimed image answer None, with nothing written, if the claim no longer held."""

    @functools.wraps(method)
    async def call(*args: P.args, **kwargs: P.kwargs) -> Status | None:
        try:
            return await method(*args, **kwargs)
        except ClaimLost:
            return None

    return call


class Queue:
    """Every method is one transaction. Those that write a claimed image say how its request stands then."""

    def __init__(self, database: Database, config: JobsConfig) -> None:
        self._database = database
        self._config = config

    @transaction
    async def claim(self, owner: str, model: str, capacity: int, limit: int, take_over: bool = True) -> list[Claim]:
        """Take up to `limit` images of `model` for `owner`, in the order of the queue.

        Whoever claims, no more than `capacity` are claimed at a time. Those of an owner that was lost come first, if
        they are to be taken over; one that had begun has lost an attempt.
        """
        async with self._database.reading() as connection:
            if not await self._is_anything_to_do(connection, model):
                return []
        async with self._database.writing() as connection:
            lines = tables.lines.c
            line = (
                await connection.execute(sa.select(tables.lines).where(lines.model == model).with_for_update())
            ).one()
            held = sa.select(sa.func.count()).where(_images.model == model, _images.state == CLAIMED)
            if take_over:
                held = held.where(_images.lease_until >= tables.now())
            room = min(limit, capacity - (await connection.execute(held)).scalar_one())
            if room <= 0:
                return []
            to_take_over = await self._lost(connection, model, room) if take_over else []
            lost = [await self._take_over(connection, owner, row) for row in to_take_over]
            rows = lost + await self._take_next(connection, owner, line, room - len(lost))
            requests = tables.requests.c
            ids = {row.request_id for row in rows}
            traces = sa.select(requests.id, requests.traceparent).where(requests.id.in_(ids))
            traceparents = {row.id: row.traceparent for row in await connection.execute(traces)}
        return [
            Claim(
                EditTask(
                    row.request_id,
                    row.image_index,
                    _plans.validate_python(row.plan),
                    traceparents[row.request_id],
                ),
                row.tenant,
                row.generation,
                tuple(row.reasons),
                row.work,
                row.waited_s,
                place < len(lost),
            )
            for place, row in enumerate(rows)
        ]

    async def _is_anything_to_do(self, connection: AsyncConnection, model: str) -> bool:
        some = sa.select(sa.literal(1)).where(_images.model == model, sa.or_(_images.state == WAITING, _IS_LOST))
        return (await connection.execute(some.limit(1))).first() is not None

    async def _lost(self, connection: AsyncConnection, model: str, room: int) -> Sequence[sa.Row[Any]]:
        lost: sa.Select[Any] = (
            sa.select(_images.request_id, _images.image_index, _images.status, _images.reasons)
            .where(_images.model == model, _IS_LOST)
            .order_by(_images.created_at, _images.image_index)
            .limit(room)
            # Its owner may be there after all, and writing.
            .with_for_update(skip_locked=True)
        )
        return (await connection.execute(lost)).all()

    async def _take_over(self, connection: AsyncConnection, owner: str, row: sa.Row[Any]) -> sa.Row[Any]:
        begun = row.status == Status.IN_PROGRESS
        taken = await self._take(
            connection,
            owner,
            [(row.request_id, row.image_index)],
            reasons=[*row.reasons, LOST] if begun else row.reasons,
        )
        return taken[0]

    async def _take_next(
        self, connection: AsyncConnection, owner: str, line: sa.Row[Any], room: int
    ) -> list[sa.Row[Any]]:
        if room <= 0:
            return []
        heads = {
            priority: (
                await connection.execute(
                    sa.select(_images.request_id, _images.image_index, _images.turn, _images.priority)
                    .where(_images.model == line.model, _images.state == WAITING, _images.priority == priority)
                    .order_by(_images.turn, _images.created_at, _images.image_index)
                    .limit(room)
                )
            ).all()
            for priority in Priority
        }
        next_, passed_over = take_turns(heads[Priority.INTERACTIVE], heads[Priority.BULK], room, line.passed_over)
        served: dict[str, Any] = {f"{row.priority}_turn": row.turn for row in next_}
        await connection.execute(
            tables.lines.update().where(tables.lines.c.model == line.model).values(passed_over=passed_over, **served)
        )
        keys = [(row.request_id, row.image_index) for row in next_]
        taken = {(row.request_id, row.image_index): row for row in await self._take(connection, owner, keys)}
        # One that was cancelled in between is not among them.
        return [taken[key] for key in keys if key in taken]

    async def _take(
        self, connection: AsyncConnection, owner: str, keys: list[tuple[str, int]], **values: Any
    ) -> Sequence[sa.Row[Any]]:
        take = (
            tables.images.update()
            .where(_KEY.in_(keys), _images.state != ENDED)
            .values(
                state=CLAIMED,
                stage=ImageStage.PREPARING,
                # Each attempt begins with the first step.
                step=0,
                owner=owner,
                generation=_images.generation + 1,
                lease_until=tables.now() + self._config.lease_s,
                **values,
            )
            .returning(*_images, (tables.now() - _images.created_at).label("waited_s"))
        )
        return (await connection.execute(take)).all()

    @transaction
    async def backlogs(self) -> dict[str, Backlog]:
        """What there is to do, by model, where there is something."""
        async with self._database.reading() as connection:
            return {row.model: _backlog(row) for row in await connection.execute(statements.backlogs)}

    @transaction
    async def renew(self, owner: str, tasks: Sequence[EditTask]) -> None:
        """Put off the end of the leases that `owner` holds on `tasks`."""
        if not tasks:
            return
        keys = [(task.request_id, task.index) for task in tasks]
        mine = sa.select(_images.request_id, _images.image_index).where(_images.owner == owner, _KEY.in_(keys))
        async with self._database.writing() as connection:
            # One that somebody writes at this moment is renewed by that, or next time.
            free = (await connection.execute(mine.with_for_update(skip_locked=True))).all()
            await connection.execute(
                tables.images.update()
                .where(_KEY.in_([tuple(row) for row in free]))
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
        """Give back all that `owner` holds, unfinished and without an attempt counted."""
        async with self._database.writing() as connection:
            await connection.execute(
                tables.images.update().where(_images.owner == owner, _images.state == CLAIMED).values(step=0, **FREE)
            )

    @transaction
    @unless_lost
    async def progress(self, claim: Claim, step: int) -> Status:
        """Note that `step` steps are done (0: an editor has begun). None if the claim is lost."""
        stage = ImageStage.DECODING if step >= claim.task.plan.steps else ImageStage.DENOISING
        async with self._database.writing() as connection:
            request = await transitions.start(connection, claim.task.request_id)
            lease_until = tables.now() + self._config.lease_s
            values = {"status": Status.IN_PROGRESS, "step": step, "stage": stage, "lease_until": lease_until}
            return await self._write(connection, claim, request, **values)

    @transaction
    @unless_lost
    async def reach(self, claim: Claim, stage: ImageStage) -> Status:
        """Note what is being done for the image now. None if the claim is lost."""
        async with self._database.writing() as connection:
            request = await transitions.advance(connection, claim.task.request_id)
            return await self._write(connection, claim, request, stage=stage)

    @transaction
    @unless_lost
    async def retry(self, claim: Claim, reasons: Sequence[str], gpu_seconds: float) -> Status:
        """Give the image back; `reasons` say how each try so far ended. None if the claim is lost."""
        async with self._database.writing() as connection:
            request = await transitions.advance(connection, claim.task.request_id)
            status = await self._write(connection, claim, request, reasons=list(reasons), step=0, **FREE)
            await self._charge(connection, claim, gpu_seconds)
            return status

    @transaction
    @unless_lost
    async def succeed(self, claim: Claim, done: EditDone, is_stored: IsStored) -> Status:
        """Record a finished image, and the request's end with the last one. None if the claim is lost.

        Raises EditorLost if the image is not stored: the same one was made before and purged meanwhile.
        """
        async with self._database.writing() as connection:
            await self._database.about_to_refer_to_files(connection)
            if not await self._database.ask_storage(functools.partial(is_stored, done.key)):
                raise EditorLost("its image is no longer stored")
            request = await transitions.start(connection, claim.task.request_id)
            await self._write(
                connection,
                claim,
                request,
                status=Status.SUCCEEDED,
                step=claim.task.plan.steps,
                result=(result := asdict(done)),
                **FREE | {"state": ENDED},
            )
            assert request is not None
            await transitions.grow(connection, claim.task.request_id, statements.json_bytes(result))
            await connection.execute(
                self._database.insert(tables.request_files)
                .values(request_id=claim.task.request_id, key=done.key, size_bytes=done.size_bytes)
                # Two images of one request may be equal.
                .on_conflict_do_nothing()
            )
            await self._charge(connection, claim, done.timings.get("generate", 0.0), images=1)
            await self._measure(connection, claim, done)
            await transitions.announce(connection, request, WebhookEvent.IMAGE, claim.task.index)
            return await transitions.end_if_done(connection, claim.task.request_id)

    @transaction
    @unless_lost
    async def fail(self, claim: Claim, error: ErrorDescription, gpu_seconds: float) -> Status:
        """Record that an image cannot be made, and the request's end with the last one. None if the claim is lost."""
        async with self._database.writing() as connection:
            # Its editor may have refused it before the first step; the request has a start all the same.
            request = await transitions.start(connection, claim.task.request_id)
            ended = {"status": Status.FAILED} | FREE | {"state": ENDED}
            failure = transitions.failure(error)
            await self._write(connection, claim, request, **failure, **ended)
            await transitions.grow(connection, claim.task.request_id, statements.json_bytes(failure))
            await self._charge(connection, claim, gpu_seconds)
            return await transitions.end_if_done(connection, claim.task.request_id)

    @transaction
    async def charge(self, claim: Claim, gpu_seconds: float) -> None:
        """Book what was used for a claim that is lost."""
        async with self._database.writing() as connection:
            await self._charge(connection, claim, gpu_seconds)

    @transaction
    async def expire(self) -> list[str]:
        """Fail every request that is past its deadline; the model of each."""
        requests = tables.requests.c
        past = sa.select(
            requests.id, requests.model, (requests.deadline_at - requests.created_at).label("seconds")
        ).where(requests.status.in_(UNFINISHED), requests.deadline_at < tables.now())
        async with self._database.reading() as connection:
            rows = (await connection.execute(past)).all()
        models = []
        for row in rows:
            async with self._database.writing() as connection:
                error = DeadlineExceeded(
                    f"it was not finished within its deadline of {row.seconds:g} s", {"deadline_s": row.seconds}
                )
                if await transitions.stop(connection, row.id, Status.FAILED, describe(error)):
                    models.append(row.model)
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
        await transitions.charge(self._database, connection, request_id, tenant, seconds, images)

    async def _measure(self, connection: AsyncConnection, claim: Claim, done: EditDone) -> None:
        """Learn from a finished edit how fast its model's editors are, and what they do other than steps."""
        seconds = done.timings.get("generate", 0.0)
        if seconds <= 0.0 or claim.work <= 0.0:
            return
        measured = {"flops_per_s": claim.work / seconds, "other_share": other_share(done.timings)}
        new = self._database.insert(tables.speeds).values(model=claim.task.plan.model, **measured)
        known = tables.speeds.c
        mixed = {
            name: (1 - NEWEST) * sa.func.coalesce(known[name], new.excluded[name]) + NEWEST * new.excluded[name]
            for name in measured
        }
        await connection.execute(new.on_conflict_do_update(index_elements=["model"], set_=mixed))


def other_share(timings: Mapping[str, float]) -> float:
    """The part of an edit's time that comes after its last step: for decoding and storing.

    `generate` contains decoding and what comes before the first step.
    """
    generate, save = timings.get("generate", 0.0), timings.get("save", 0.0)
    decode = min(timings.get("decode", 0.0), generate)
    return (decode + save) / (generate + save)


def _backlog(row: sa.Row[Any]) -> Backlog:
    """In seconds: by the speed that finished edits had, or before the first by the number of images."""
    waiting = row.interactive + row.bulk
    waiting_s, running_s = (
        (row.work_waiting / row.speed, row.work_running / row.speed)
        if row.speed
        else (waiting * UNMEASURED_WORK_S, (row.images - waiting) * UNMEASURED_WORK_S)
    )
    return Backlog(waiting_s, running_s, row.images, max(0.0, row.oldest_s), row.interactive, row.bulk)
