"""The measured losses of tiers, and the calibrations that are under way through the queue."""

import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import sqlalchemy as sa
from pydantic import TypeAdapter
from sqlalchemy.exc import SQLAlchemyError

from serve_app.jobs import tables
from serve_app.jobs.database import Database, transaction
from serve_app.jobs.idempotency import id_by_key
from serve_app.tasks import Loss

logger = logging.getLogger(__name__)

# Ended runs that are kept and listed, the newest first.
MAX_ENDED_RUNS = 20
# How old the time at which a loss was last current may become before it is written again (s).
MARK_S = 3600.0

_calibrations, _runs = tables.calibrations.c, tables.calibration_runs.c
_KEY = ("model", "tier", "settings", "checkpoint", "adapters")


@dataclass(frozen=True)
class CalibrationKey:
    """What a measured loss holds for: another tier setting, checkpoint or set of adapters has another loss.

    `settings` is `TierConfig.digest`; `checkpoint` is a digest of the checkpoint's name, and `adapters` one of the ids
    of the request's adapters: see `digest_of`. `content` is `checkpoint_content`, None if it is not known here.
    """

    model: str
    tier: str
    settings: str
    checkpoint: str
    adapters: str
    content: str | None = None


def digest_of(names: Iterable[str]) -> str:
    """A SHA-256 (hex) of a set of names, whatever their order."""
    return hashlib.sha256("\0".join(sorted(set(names))).encode()).hexdigest()


@dataclass(frozen=True)
class Calibration:
    """A measured loss. `details` says what the digests of the key stand for, for people."""

    key: CalibrationKey
    loss: Loss
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """A tier that a run measures for one set of adapters: the requests of the exact images and of the tier's."""

    key: CalibrationKey
    details: dict[str, Any]
    exact_request: str
    tier_request: str


@dataclass(frozen=True)
class CalibrationRun:
    """A calibration that goes through the queue. `ended_at` is None while it is under way.

    `problem` says why it could not measure everything. Until `submitting_until`, its requests may still be submitted;
    None once they all are. A call with the same `idempotency_key` and `body_sha256` is a repeat of this one.
    """

    id: str
    tenant: str
    model: str
    comparisons: tuple[Comparison, ...]
    created_at: float
    ended_at: float | None = None
    problem: str | None = None
    submitting_until: float | None = None
    idempotency_key: str | None = None
    body_sha256: str | None = None


_losses = TypeAdapter(Loss)
_comparisons = TypeAdapter(tuple[Comparison, ...])


class Calibrations:
    """Every public method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @transaction
    async def record(self, calibration: Calibration) -> None:
        """Keep a measured loss, in place of an earlier one with the same key."""
        key, loss = calibration.key, calibration.loss
        values = {"loss": _losses.dump_python(loss, mode="json"), "details": calibration.details}
        values |= {"measured_at": loss.measured_at, "content": key.content, "current_at": tables.now()}
        new = self._database.insert(tables.calibrations).values({name: getattr(key, name) for name in _KEY} | values)
        newer = {name: getattr(new.excluded, name) for name in values}
        async with self._database.writing() as connection:
            await connection.execute(new.on_conflict_do_update(index_elements=_KEY, set_=newer))

    @transaction
    async def find(self, key: CalibrationKey) -> Calibration | None:
        """What was measured for this key; None if nobody did.

        None also if the files of the checkpoint are other ones now. If they are not at hand here, or were not when it
        was measured, its name decides. A loss that is found is marked as current if the database can be written.
        """
        found = tables.calibrations.select().add_columns(_is_unmarked().label("is_unmarked")).where(_has(key))
        async with self._database.reading() as connection:
            row = (await connection.execute(found)).one_or_none()
        if row is None or (key.content and row.content and row.content != key.content):
            return None
        if row.is_unmarked:
            try:
                await self._mark([key])
            except (SQLAlchemyError, OSError) as error:
                logger.warning("a measured loss could not be marked as current: %s", type(error).__name__)
        return _calibration(row)

    @transaction
    async def mark_current(self, keys: Sequence[CalibrationKey]) -> None:
        """Record that these losses hold for the present settings, checkpoints and LoRAs."""
        await self._mark(keys)

    @transaction
    async def delete_outdated(self, seconds: float) -> int:
        """Delete losses that were last current more than `seconds` ago. Returns their number.

        For a loss that was never marked, the time starts now: a process of the version before has written it.
        """
        unmarked = tables.calibrations.update().where(_calibrations.current_at.is_(None))
        old = tables.calibrations.delete().where(_calibrations.current_at < tables.now() - seconds)
        async with self._database.writing() as connection:
            await connection.execute(unmarked.values(current_at=tables.now()))
            return len((await connection.execute(old.returning(_calibrations.model))).all())

    @transaction
    async def all(self, model: str | None = None) -> list[Calibration]:
        """Everything that was measured, of one model or of all, the newest first."""
        rows = tables.calibrations.select().order_by(
            _calibrations.measured_at.desc(), *(_calibrations[n] for n in _KEY)
        )
        if model is not None:
            rows = rows.where(_calibrations.model == model)
        async with self._database.reading() as connection:
            return [_calibration(row) for row in await connection.execute(rows)]

    @transaction
    async def start(self, run: CalibrationRun, submit_s: float | None = None) -> CalibrationRun:
        """Keep a new run, whose requests are submitted within `submit_s` seconds; None if they all are.

        Repeating it changes nothing. Returns the earlier run if its idempotency key was used for the same body. Raises
        IdempotencyConflict if that was another body.
        """
        values = asdict(run) | {"comparisons": _comparisons.dump_python(run.comparisons, mode="json")}
        values |= {"created_at": tables.now()}
        if submit_s is not None:
            values |= {"submitting_until": tables.now() + submit_s}
        new = self._database.insert(tables.calibration_runs).values(values).on_conflict_do_nothing()
        while True:
            async with self._database.writing() as connection:
                is_new = (await connection.execute(new.returning(_runs.id))).one_or_none() is not None
            if is_new or run.idempotency_key is None or run.body_sha256 is None:
                return run
            if earlier := await self._by_key(run.tenant, run.idempotency_key, run.body_sha256):
                return earlier
            # The earlier run was refused between the two statements, and its key is free again.

    @transaction
    async def earlier(self, tenant: str, idempotency_key: str, body_sha256: str) -> CalibrationRun | None:
        """The run that was sent with this idempotency key, if any. Raises IdempotencyConflict for another body."""
        return await self._by_key(tenant, idempotency_key, body_sha256)

    @transaction
    async def extend(self, run_id: str, comparisons: Sequence[Comparison], submit_s: float) -> bool:
        """Keep all comparisons submitted so far, and give `submit_s` more seconds for others.

        Returns whether the run is still under way.
        """
        values = {"comparisons": _comparisons.dump_python(tuple(comparisons), mode="json")}
        return await self._update(run_id, values | {"submitting_until": tables.now() + submit_s}) is not None

    @transaction
    async def submitted(self, run_id: str) -> CalibrationRun | None:
        """Record that all its requests are submitted. Returns the run; None if it is no longer under way."""
        return await self._update(run_id, {"submitting_until": None})

    @transaction
    async def refuse(self, run_id: str, problem: str) -> None:
        """Delete a run that is under way. If it has an idempotency key, end it with `problem` and free the key instead.

        A repeat may have been given the run meanwhile.
        """
        refused = {"ended_at": tables.now(), "problem": problem, "idempotency_key": None, "body_sha256": None}
        end = tables.calibration_runs.update().where(_under_way(run_id), _runs.idempotency_key.is_not(None))
        async with self._database.writing() as connection:
            await connection.execute(end.values(refused))
            await connection.execute(tables.calibration_runs.delete().where(_under_way(run_id)))

    @transaction
    async def unfinished(self) -> list[CalibrationRun]:
        """The runs that are under way, the oldest first."""
        rows = tables.calibration_runs.select().where(_runs.ended_at.is_(None)).order_by(_runs.created_at)
        async with self._database.reading() as connection:
            return [_run(row) for row in await connection.execute(rows)]

    @transaction
    async def submitted_ids(self) -> list[str]:
        """The ids of the runs under way to which no requests are added any more, the oldest first.

        Including those whose time to submit is over, because their process died.
        """
        complete = sa.or_(_runs.submitting_until.is_(None), _runs.submitting_until < tables.now())
        ids = sa.select(_runs.id).where(_runs.ended_at.is_(None), complete).order_by(_runs.created_at)
        async with self._database.reading() as connection:
            return list((await connection.execute(ids)).scalars())

    @transaction
    async def under_way(self, run_id: str) -> CalibrationRun | None:
        """The run; None if it has ended."""
        async with self._database.reading() as connection:
            row = (await connection.execute(tables.calibration_runs.select().where(_under_way(run_id)))).one_or_none()
        return None if row is None else _run(row)

    @transaction
    async def ended(self) -> list[CalibrationRun]:
        """The newest runs that have ended."""
        rows = tables.calibration_runs.select().where(_runs.ended_at.is_not(None))
        rows = rows.order_by(_runs.ended_at.desc(), _runs.id)
        async with self._database.reading() as connection:
            return [_run(row) for row in await connection.execute(rows.limit(MAX_ENDED_RUNS))]

    @transaction
    async def delete_old_runs(self) -> int:
        """Delete ended runs that are not listed any more. Returns their number."""
        newest = sa.select(_runs.id).where(_runs.ended_at.is_not(None)).order_by(_runs.ended_at.desc(), _runs.id)
        is_old = sa.and_(_runs.ended_at.is_not(None), _runs.id.not_in(newest.limit(MAX_ENDED_RUNS)))
        async with self._database.writing() as connection:
            deleted = await connection.execute(tables.calibration_runs.delete().where(is_old).returning(_runs.id))
            return len(deleted.all())

    @transaction
    async def end(self, run_id: str, problem: str | None = None) -> None:
        """Record that a run has ended, and why it could not measure everything."""
        await self._update(run_id, {"ended_at": tables.now(), "problem": problem})

    async def _by_key(self, tenant: str, idempotency_key: str, body_sha256: str) -> CalibrationRun | None:
        runs = tables.calibration_runs
        run_id = await id_by_key(self._database, runs, "calibration", tenant, idempotency_key, body_sha256)
        async with self._database.reading() as connection:
            row = (await connection.execute(runs.select().where(_runs.id == run_id))).one_or_none()
        return None if row is None else _run(row)

    async def _mark(self, keys: Sequence[CalibrationKey]) -> None:
        async with self._database.writing() as connection:
            for key in keys:
                mark = tables.calibrations.update().where(_has(key), _is_unmarked())
                await connection.execute(mark.values(current_at=tables.now()))

    async def _update(self, run_id: str, values: dict[str, Any]) -> CalibrationRun | None:
        """Change a run that is under way, and return it. None if there is none."""
        change = tables.calibration_runs.update().where(_under_way(run_id)).values(values)
        async with self._database.writing() as connection:
            row = (await connection.execute(change.returning(tables.calibration_runs))).one_or_none()
        return None if row is None else _run(row)


def _has(key: CalibrationKey) -> sa.ColumnElement[bool]:
    return sa.and_(*(getattr(_calibrations, name) == getattr(key, name) for name in _KEY))


def _is_unmarked() -> sa.ColumnElement[bool]:
    """Whether a loss was not marked as current lately."""
    return sa.func.coalesce(_calibrations.current_at, 0.0) < tables.now() - MARK_S


def _under_way(run_id: str) -> sa.ColumnElement[bool]:
    return sa.and_(_runs.id == run_id, _runs.ended_at.is_(None))


def _calibration(row: sa.Row[Any]) -> Calibration:
    key = CalibrationKey(**{name: getattr(row, name) for name in (*_KEY, "content")})
    return Calibration(key, _losses.validate_python(row.loss), row.details)


def _run(row: sa.Row[Any]) -> CalibrationRun:
    return CalibrationRun(**dict(row._mapping) | {"comparisons": _comparisons.validate_python(row.comparisons)})
