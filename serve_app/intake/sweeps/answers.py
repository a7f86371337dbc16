"""Stored sweeps as the bodies of the HTTP API."""

from typing import Any

from serve_app.intake.answers.bodies import Links
from serve_app.intake.sweeps.axes import step_of_path
from serve_app.intake.sweeps.sweeps import Outcome
from serve_app.jobs.sweeps.records import Axes, CellRecord, SweepRecord
from serve_app.schemas.sweeps import (
    CellCounts,
    CellPlace,
    Sweep,
    SweepCell,
    SweepCheckpoint,
    SweepCreated,
    SweepSummary,
    SweepValues,
)
from serve_app.tasks import Status


def created_of(outcome: Outcome, links: Links) -> SweepCreated:
    """The answer to a sweep that was sent, or to its extension."""
    record, plan = outcome.record, outcome.plan
    definition = record.definition if plan is None and record else plan.definition if plan else None
    cells = plan.definition.axes.lengths.cells if plan else record.cells if record else 0
    return SweepCreated(
        sweep_id=record and record.id,
        status=_created_status(outcome),
        cells=cells,
        predicted_gpu_seconds=plan.new_seconds if plan else None,
        status_url=record and url_of(record, links),
        notes=definition.notes if definition else [],
        ignored=definition.ignored if definition else [],
    )


def _created_status(outcome: Outcome) -> Any:
    if outcome.dry_run:
        return "dry_run"
    return "queued" if outcome.is_new or outcome.record is None else outcome.record.status.value


def url_of(record: SweepRecord, links: Links) -> str:
    return f"{links.base_url}/v1/sweeps/{record.id}"


def summary_of(record: SweepRecord, links: Links) -> SweepSummary:
    """A sweep without its cells."""
    return SweepSummary(**_summary(record, links))


def sweep_of(record: SweepRecord, cells: list[CellRecord], links: Links) -> Sweep:
    """A sweep with its cells."""
    definition = record.definition
    return Sweep(
        **_summary(record, links),
        axes=values_of(definition.axes),
        base=definition.base,
        notes=definition.notes,
        ignored=definition.ignored,
        grid=[cell_of(record, cell, links) for cell in cells],
    )


def _summary(record: SweepRecord, links: Links) -> dict[str, Any]:
    return {
        "sweep_id": record.id,
        "tenant": record.tenant,
        "model": record.model,
        "status": record.status,
        "created_at": record.created_at,
        "cells": record.cells,
        "counts": CellCounts(**{status.value: record.counts.get(status, 0) for status in Status}),
        "purged": record.purged,
        "status_url": url_of(record, links),
    }


def values_of(axes: Axes) -> SweepValues:
    """The values of all axes."""
    return SweepValues(
        checkpoints=[SweepCheckpoint(path=path, step=step_of_path(path)) for path in axes.checkpoints],
        multipliers=list(axes.multipliers),
        prompts=list(axes.prompts),
        seeds=list(axes.seeds),
        control_images=[list(images) for images in axes.control_images],
        profiles=list(axes.profiles),
        qualities=list(axes.qualities),
    )


def cell_of(record: SweepRecord, cell: CellRecord, links: Links) -> SweepCell:
    """A cell of a sweep."""
    url = None
    if cell.has_image and cell.request_id is not None:
        url = links.image(record.tenant, cell.request_id, 0)
    return SweepCell(
        cell=cell.number,
        place=CellPlace(**cell.place._asdict()),
        request_id=cell.request_id,
        status=cell.status,
        error=cell.error,
        error_code=cell.error_code,
        url=url,
    )
