"""Routes about sweeps: start one, follow it, change it, and what comes out of it."""

import re
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Query
from fastapi.sse import EventSourceResponse, ServerSentEvent

from serve_app import errors
from serve_app.api.bodies.json_bodies import JsonRoute
from serve_app.api.caller import KEYS_IN_DOCS, CallerOfRequest, links_of, reader_of
from serve_app.api.error_answers import error_docs
from serve_app.api.routes import sweep_files
from serve_app.api.routes.inference import EXPLAIN_ERRORS, IdempotencyKey
from serve_app.api.routes.models import DEFAULT_PAGE, Cursor, Limit
from serve_app.api.routes.requests import NOTHING_SEEN, LastEventId, cursor_after, read_cursor
from serve_app.api.routes.sweep_files import SweepId
from serve_app.intake.answers.bodies import Links
from serve_app.intake.service import Service
from serve_app.intake.sweeps.answers import created_of, summary_of, sweep_of
from serve_app.intake.sweeps.events import SweepEvent, last_change
from serve_app.intake.tenants import Caller
from serve_app.jobs.sweeps.records import SweepRecord
from serve_app.schemas.sweeps import (
    SWEEP_EVENT_DATA,
    Sweep,
    SweepCreated,
    SweepExtension,
    SweepList,
    SweepRequest,
    SweepSummary,
)

# An event's id: milliseconds since the epoch.
EVENT_ID = re.compile(r"[0-9]{1,15}")
CREATE_ERRORS = (*EXPLAIN_ERRORS, errors.IdempotencyConflict, errors.SweepQuotaExceeded)
OF_PRESETS = (errors.PresetNotFound, errors.PresetBroken)
EXTEND_ERRORS = (
    *(kind for kind in EXPLAIN_ERRORS if kind not in OF_PRESETS),
    errors.SweepNotFound,
    errors.SweepCanceled,
    errors.SweepPurged,
    errors.SweepQuotaExceeded,
)
NOT_FOUND = error_docs(errors.SweepNotFound, errors.StoreUnavailable)


def router(service: Service) -> APIRouter:
    bodies = APIRouter(tags=["sweeps"], dependencies=KEYS_IN_DOCS, route_class=JsonRoute)
    routes = APIRouter(tags=["sweeps"], dependencies=KEYS_IN_DOCS)
    _add_creating(bodies, service)
    _add_views(routes, service)
    _add_changes(routes, service)
    _add_events(routes, service)
    sweep_files.add_routes(routes, service)
    routes.routes.extend(bodies.routes)
    return routes


def _add_creating(routes: APIRouter, service: Service) -> None:
    LinksOfRequest = Depends(links_of(service))

    @routes.post("/v1/sweeps", responses=error_docs(*CREATE_ERRORS))
    async def create_sweep(
        body: SweepRequest,
        caller: CallerOfRequest,
        links: Annotated[Links, LinksOfRequest],
        idempotency_key: IdempotencyKey = None,
    ) -> SweepCreated:
        """Make one image for each combination of the axes' values. Every cell is checked before the first one starts.

        Each cell is an ordinary request of priority bulk, with the same pixels as if it was sent alone. Cells are put
        into the queue a few at a time. With `dry_run` nothing is started.
        """
        return created_of(await service.sweeps.create(body, caller, links.base_url, idempotency_key), links)

    @routes.post("/v1/sweeps/{sweep_id}/extend", responses=error_docs(*EXTEND_ERRORS))
    async def extend_sweep(
        sweep_id: SweepId, body: SweepExtension, caller: CallerOfRequest, links: Annotated[Links, LinksOfRequest]
    ) -> SweepCreated:
        """Add values to the axes of a sweep. Only the cells that are new are made."""
        return created_of(await service.sweeps.extend(sweep_id, body, caller), links)


def _add_views(routes: APIRouter, service: Service) -> None:
    LinksOfRequest = Depends(links_of(service))

    @routes.get(
        "/v1/sweeps", responses=error_docs(errors.HistoryUnavailable, errors.InvalidParameter, errors.StoreUnavailable)
    )
    async def sweeps(
        caller: Annotated[Caller, Depends(reader_of(service))],
        links: Annotated[Links, LinksOfRequest],
        cursor: Cursor = "",
        limit: Limit = DEFAULT_PAGE,
    ) -> SweepList:
        """Sweeps of the key's tenant, newest first.

        Without API keys there is a list only with `history_without_keys`, as of requests: 403.
        """
        rows = await service.sweeps.history(read_cursor(cursor) if cursor else None, limit + 1, caller)
        more = cursor_after(rows[limit - 1].created_at, rows[limit - 1].id) if len(rows) > limit else None
        return SweepList(sweeps=[summary_of(row, links) for row in rows[:limit]], next_cursor=more)

    @routes.get("/v1/sweeps/{sweep_id}", responses=NOT_FOUND)
    async def get_sweep(sweep_id: SweepId, caller: CallerOfRequest, links: Annotated[Links, LinksOfRequest]) -> Sweep:
        """A sweep with its cells."""
        record = await service.sweeps.get(sweep_id, caller)
        return sweep_of(record, await service.sweeps.cells(record), links)


def _add_changes(routes: APIRouter, service: Service) -> None:
    LinksOfRequest = Depends(links_of(service))

    async def summary(sweep_id: str, caller: Caller, links: Links) -> SweepSummary:
        return summary_of(await service.sweeps.get(sweep_id, caller), links)

    @routes.delete(
        "/v1/sweeps/{sweep_id}",
        responses=error_docs(errors.SweepNotFound, errors.StoreUnavailable, errors.StorageFailed),
    )
    async def delete_sweep(
        sweep_id: SweepId,
        caller: CallerOfRequest,
        links: Annotated[Links, LinksOfRequest],
        purge: Annotated[bool, Query(description="Whether the images and control images are deleted, too.")] = False,
    ) -> SweepSummary:
        """Cancel a sweep that has not ended: its waiting cells at once, running ones at their next step.

        With `purge` its images and control images are deleted for good, and it cannot go on. Repeating it does no harm.
        """
        await service.sweeps.cancel(await service.sweeps.get(sweep_id, caller), purge=purge)
        return await summary(sweep_id, caller, links)

    @routes.post("/v1/sweeps/{sweep_id}/cancel", responses=NOT_FOUND)
    async def cancel_sweep(
        sweep_id: SweepId, caller: CallerOfRequest, links: Annotated[Links, LinksOfRequest]
    ) -> SweepSummary:
        """The same as DELETE."""
        await service.sweeps.cancel(await service.sweeps.get(sweep_id, caller))
        return await summary(sweep_id, caller, links)

    @routes.post(
        "/v1/sweeps/{sweep_id}/resume",
        responses=error_docs(errors.SweepNotFound, errors.SweepPurged, errors.StoreUnavailable),
    )
    async def resume_sweep(
        sweep_id: SweepId, caller: CallerOfRequest, links: Annotated[Links, LinksOfRequest]
    ) -> SweepSummary:
        """Go on with a sweep: make the cells that were cancelled, failed or deleted. Finished cells stay."""
        await service.sweeps.resume(await service.sweeps.get(sweep_id, caller))
        return await summary(sweep_id, caller, links)


def _add_events(routes: APIRouter, service: Service) -> None:
    async def watched(
        sweep_id: SweepId, caller: CallerOfRequest, last_event_id: LastEventId = None
    ) -> tuple[SweepRecord, int]:
        """The sweep, and the id of the last event that its watcher has. Read before the answer starts."""
        record = await service.sweeps.get(sweep_id, caller)
        event_id = EVENT_ID.fullmatch(last_event_id or "")
        since = int(event_id[0]) if event_id else NOTHING_SEEN
        if record.status.ended and since >= last_change(record, await service.sweeps.cells(record)):
            # This status makes an EventSource stop reconnecting.
            raise HTTPException(204)
        return record, since

    @routes.get(
        "/v1/sweeps/{sweep_id}/events",
        responses=NOT_FOUND | {204: {"description": "The sweep has ended, and `Last-Event-ID` names its end"}},
        response_class=EventSourceResponse,
        description=f"What happens to the cells of a sweep, as server-sent events: {', '.join(SweepEvent)}. The last "
        "one is the sweep's end. The data of each event is JSON: "
        + ", ".join(f"`{event}` {data.__name__}" for event, data in SWEEP_EVENT_DATA.items())
        + ".\n\n`Last-Event-ID` resumes after an event, on any ingress; some cells may come again.",
    )
    async def sweep_events(
        watched: Annotated[tuple[SweepRecord, int], Depends(watched)],
        links: Annotated[Links, Depends(links_of(service))],
    ) -> AsyncIterator[ServerSentEvent]:
        record, since = watched
        async for event in service.sweep_events.stream(record, since, links):
            yield ServerSentEvent(data=event.data, event=event.event, id=str(event.id))
