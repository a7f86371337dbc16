"""Rows of sweeps and their cells, as they are inserted and read."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pydantic import TypeAdapter

from serve_app.jobs.records import NewImage, NewRequest, WebhookTarget
from serve_app.jobs.sweeps.records import CellImage, CellRecord, Measures, NewCell, SweepDefinition, request_id_of
from serve_app.policy.sweep_order import Place
from serve_app.tasks import EditDone, EditPlan, Priority, Status

definitions = TypeAdapter(SweepDefinition)
plans, _results = TypeAdapter(EditPlan), TypeAdapter(EditDone)
_measures, _webhooks = TypeAdapter(dict[str, Measures]), TypeAdapter(WebhookTarget)


def cell_record(row: Any) -> CellRecord:
    """The cell in a row of `queries.cells`."""
    status = Status(row.status)
    return CellRecord(
        number=row.number,
        place=Place(*row.place),
        request_id=row.request_id if row.submitted else None,
        status=status,
        error=row.error,
        error_code=row.error_code,
        has_image=status == Status.SUCCEEDED and not row.purged,
        changed_at=row.changed_at,
    )


def cell_image(row: Any) -> CellImage:
    """The image in a row of `queries.images`."""
    return CellImage(
        row.number,
        Place(*row.place),
        plans.validate_python(row.plan),
        _results.validate_python(row.result),
        _measures.validate_python(row.measures or {}),
    )


def needs_new_attempt(row: Any) -> bool:
    """Whether a submitted cell has ended without an image, or its image was deleted."""
    return row.status in (Status.FAILED, Status.CANCELED) or (row.status == Status.SUCCEEDED and row.purged)


def cell_rows(sweep_id: str, cells: Sequence[NewCell], first: int) -> list[dict[str, Any]]:
    """The rows of new cells, whose numbers start with `first`."""
    return [
        {
            "sweep_id": sweep_id,
            "number": number,
            "place": list(cell.place),
            "request_id": request_id_of(sweep_id, cell.place, 0),
            "attempt": 0,
            "submitted": False,
            "plan": asdict(cell.plan),
            "work": cell.work,
            "files": dict(cell.files),
        }
        for number, cell in enumerate(cells, first)
    ]


def request_of(sweep: Any, cell: Any) -> NewRequest:
    """The request of a cell. It cannot be inserted twice, since its id is given."""
    ignored = definitions.validate_python(sweep.definition).ignored
    return NewRequest(
        id=cell.request_id,
        tenant=sweep.tenant,
        model=sweep.model,
        images=(NewImage(plans.validate_python(cell.plan), cell.work),),
        deadline_s=sweep.deadline_s,
        priority=Priority.BULK,
        notes={"ignored": ignored} if ignored else {},
        files=cell.files,
        webhook=_webhooks.validate_python(sweep.webhook) if sweep.webhook else None,
        traceparent=sweep.traceparent,
    )
