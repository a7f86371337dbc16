"""Sweeps: a grid of requests is checked as a whole, stored, extended, cancelled and resumed."""

import asyncio
import hashlib
import json
import logging
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from serve_app.adapters.lora_root import LoraRoot
from serve_app.config import AppConfig
from serve_app.errors import FilesGone, InvalidParameter, SweepNotFound
from serve_app.images.output_formats import OUTPUT_FORMATS
from serve_app.intake.admission.admission import Admission
from serve_app.intake.admission.new_files import MAX_TRIES, discarding_new_files
from serve_app.intake.answers.queries import visible_to
from serve_app.intake.callers.audited import record_adapters
from serve_app.intake.presets import Presets, blaming_preset
from serve_app.intake.resources import Resources
from serve_app.intake.submission import digest_of, webhook_of
from serve_app.intake.sweeps import axes as sweep_axes
from serve_app.intake.sweeps.axes import Files
from serve_app.intake.sweeps.plan import PlannedSweep, SweepPlanner
from serve_app.intake.tenants import Caller
from serve_app.intake.training.files import TrainingFiles
from serve_app.jobs.records import HistoryFilter
from serve_app.jobs.sweeps.records import CellRecord, NewSweep, SweepRecord
from serve_app.schemas.requests import InferenceRequest
from serve_app.schemas.sweeps import SweepAxes, SweepExtension, SweepRequest
from serve_app.storage import artifact_keys
from serve_app.telemetry import tracing
from serve_app.workers.dispatcher import Dispatcher
from serve_app.workers.sweep_cells import SweepCells
from serve_app.workers.sweeper import Sweeper

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """The answer to a sweep that was sent: `record` is None after a dry run of a new one.

    `plan` is what is new, None if the same sweep was sent before.
    """

    record: SweepRecord | None
    is_new: bool
    plan: PlannedSweep | None = None
    dry_run: bool = False


class Sweeps:
    """Takes sweeps in, and changes them."""

    def __init__(
        self,
        config: AppConfig,
        resources: Resources,
        admission: Admission,
        presets: Presets,
        lora_root: LoraRoot,
        files: TrainingFiles,
        dispatcher: Dispatcher,
        sweeper: Sweeper,
        cells: SweepCells,
    ) -> None:
        self._config = config
        self._presets = presets
        self._planner = SweepPlanner(resources, admission, lora_root, files)
        self._store = resources.store
        self._artifacts = resources.artifacts
        self._dispatcher = dispatcher
        self._sweeper = sweeper
        self._cells = cells

    async def create(
        self, sent: SweepRequest, caller: Caller, base_url: str, idempotency_key: str | None = None
    ) -> Outcome:
        """Check a sweep with all its cells, and store it unless it is a dry run.

        With an idempotency key that was used for the same body, the earlier sweep is returned. Raises RequestError,
        Overloaded, StoreUnavailable and StorageFailed.
        """
        digest = None
        if idempotency_key is not None and not sent.dry_run:
            digest = await asyncio.to_thread(digest_of_sweep, sent)
            earlier = await self._store.sweeps.earlier(caller.tenant, idempotency_key, digest)
            if earlier is not None:
                return Outcome(earlier, is_new=False)
        base = base_of(sent.base)
        with blaming_preset(sent.base):
            base = sweep_axes.with_quality(with_defaults(self._presets.apply(base, caller)), sent.axes)
            limit = self._limit(sent.max_cells)
            sweep_axes.check_cells(sweep_axes.lengths_of(_with_base(sent.axes, base)).cells, limit)
            files = await self._planner.files(sent.axes, caller)
            axes = sweep_axes.axes_of(base, sent.axes, files)
            sweep_axes.check_axes(sent.axes, axes)
            sweep_axes.check_cells(axes.lengths.cells, limit)
            for tries in range(1, MAX_TRIES + 1):
                try:
                    plan = partial(self._planner.plan, base, axes, caller, notes=files.notes)
                    return await self._plan_and_store(sent, base, plan, caller, base_url, (idempotency_key, digest))
                except FilesGone:
                    if tries == MAX_TRIES:
                        raise
        raise AssertionError("unreachable")

    async def _plan_and_store(
        self,
        sent: SweepRequest,
        base: InferenceRequest,
        make_plan: Callable[[], Awaitable[PlannedSweep]],
        caller: Caller,
        base_url: str,
        key: tuple[str | None, str | None],
    ) -> Outcome:
        async with discarding_new_files(self._artifacts, self._sweeper) as new_files:
            plan = await make_plan()
            if sent.dry_run:
                return Outcome(None, is_new=True, plan=plan, dry_run=True)
            new = NewSweep(
                id=uuid.uuid4().hex,
                tenant=caller.tenant,
                model=base.model,
                definition=plan.definition,
                cells=plan.cells,
                deadline_s=base.deadline_s or self._config.jobs.deadline_s,
                webhook=webhook_of(base, base_url),
                traceparent=tracing.traceparent(),
                idempotency_key=key[0],
                body_sha256=key[1],
            )
            record = await self._store.sweeps.create(new, self._artifacts.exists, caller.limits.sweep_cells_per_day)
            is_new = record.id == new.id
            if is_new:
                new_files.clear()
                record_adapters(caller, "sweep", record.id, (cell.plan.adapters for cell in plan.cells))
        self._cells.wake()
        logger.info("sweep %s: %s cells", record.id, record.cells)
        return Outcome(record, is_new, plan)

    async def extend(self, sweep_id: str, sent: SweepExtension, caller: Caller) -> Outcome:
        """Add values to the axes of a sweep. The cells that it has stay as they are.

        Raises SweepNotFound, SweepPurged, SweepCanceled, RequestError, Overloaded, StoreUnavailable and StorageFailed.
        """
        files = await self._planner.files(sent.axes, caller)
        for tries in range(1, MAX_TRIES + 1):
            old = await self.get(sweep_id, caller)
            try:
                outcome = await self._extend(old, sent, files, caller)
            except FilesGone:
                if tries == MAX_TRIES:
                    raise
                continue
            if outcome is not None:
                return outcome
        raise FilesGone("the sweep is being extended by others; try again")

    async def _extend(self, old: SweepRecord, sent: SweepExtension, files: Files, caller: Caller) -> Outcome | None:
        """None if another caller has extended the sweep meanwhile."""
        base = sweep_axes.with_quality(InferenceRequest.model_validate(old.definition.base), sent.axes)
        before = old.definition.axes
        axes = sweep_axes.extended(before, base, sent.axes, files)
        sweep_axes.check_axes(sent.axes, axes)
        sweep_axes.check_cells(axes.lengths.cells, self._limit(sent.max_cells))
        known = {cell.place for cell in await self._store.sweeps.cells(old)}
        async with discarding_new_files(self._artifacts, self._sweeper) as new_files:
            plan = await self._planner.plan(base, axes, caller, known, len(before.control_images), files.notes)
            definition = replace(old.definition, axes=plan.definition.axes)
            if not sent.dry_run and plan.cells:
                most = caller.limits.sweep_cells_per_day
                if not await self._store.sweeps.extend(old, definition, plan.cells, self._artifacts.exists, most):
                    return None
                new_files.clear()
                record_adapters(caller, "sweep.extend", old.id, (cell.plan.adapters for cell in plan.cells))
        self._cells.wake()
        record = await self._store.sweeps.get(old.id)
        return Outcome(record, is_new=True, plan=plan, dry_run=sent.dry_run)

    async def get(self, sweep_id: str, caller: Caller) -> SweepRecord:
        """Raises SweepNotFound, also for another tenant's sweep."""
        record = await self._store.sweeps.get(sweep_id)
        if record.tenant != caller.tenant and not caller.is_operator:
            raise SweepNotFound(f"there is no sweep {sweep_id!r}", {"sweep_id": sweep_id})
        return record

    async def cells(self, record: SweepRecord) -> list[CellRecord]:
        """The cells of a sweep, in the order in which they are made."""
        return await self._store.sweeps.cells(record)

    async def history(self, before: tuple[float, str] | None, limit: int, caller: Caller) -> list[SweepRecord]:
        """Sweeps, newest first: the caller's own, or all for an operator. Raises HistoryUnavailable."""
        return await self._store.sweeps.history(visible_to(caller, HistoryFilter()).tenant, before, limit)

    async def cancel(self, record: SweepRecord, *, purge: bool = False) -> None:
        """End the cells that have not ended, and with `purge` delete all images and what they were made from."""
        await self._store.sweeps.cancel(record.id, purge=purge)
        self._dispatcher.wake()
        if purge:
            for request_id in await self._store.sweeps.all_requests(record.id):
                await self._store.retention.purge(request_id, self._artifacts.delete)
                await asyncio.to_thread(self._artifacts.delete, [artifact_keys.record(request_id, 0)])
            await self._store.retention.purge_sweep(record.id, self._artifacts.delete)

    async def resume(self, record: SweepRecord) -> None:
        """Make the cells anew that were cancelled, failed or deleted. Raises SweepPurged."""
        await self._store.sweeps.resume(record.id)
        self._cells.wake()

    def _limit(self, max_cells: int | None) -> int:
        limit = self._config.sweeps.max_cells
        return limit if max_cells is None else min(limit, max_cells)


def base_of(base: InferenceRequest) -> InferenceRequest:
    """The base of a sweep. Raises InvalidParameter unless it has one prompt."""
    if len(base.prompts) != 1:
        raise InvalidParameter(
            f"base.prompts has {len(base.prompts)} prompts; send one, and the others in axes.prompts",
            {"parameter": "prompts"},
        )
    return base


def with_defaults(base: InferenceRequest) -> InferenceRequest:
    """The base with PNG as its format, unless it or its preset names one."""
    if "output_format" in base.model_fields_set:
        return base
    return base.model_copy(update={"output_format": OUTPUT_FORMATS["png"].name})


def _with_base(axes: SweepAxes, base: InferenceRequest) -> SweepAxes:
    """The axes for counting: without checkpoints and LoRAs there is one cell without a LoRA."""
    if axes.checkpoints is None and not base.loras:
        return axes.model_copy(update={"checkpoints": [None]})
    return axes


def digest_of_sweep(sent: SweepRequest) -> str:
    """The SHA-256 (hex) of everything that a sweep asks for."""
    asked: dict[str, Any] = {"base": digest_of(sent.base), "max_cells": sent.max_cells}
    asked["axes"] = sent.axes.model_dump(mode="json", exclude_unset=True)
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
