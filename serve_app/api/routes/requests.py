"""Requests are looked at, watched, cancelled and listed."""

import base64
import binascii
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Header, HTTPException, Query, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent

from serve_app import errors
from serve_app.api.caller import KEYS_IN_DOCS, CallerOfRequest, base_url_of
from serve_app.api.error_answers import error_docs
from serve_app.api.routes.models import DEFAULT_PAGE, MAX_PAGE
from serve_app.images.output_formats import OUTPUT_FORMATS
from serve_app.intake.answers import result_of, status_of
from serve_app.intake.service import Service
from serve_app.jobs.records import HistoryFilter, RequestRecord, Summary
from serve_app.jobs.requests import refuse_malformed
from serve_app.schemas import History, HistoryEntry, RequestResult, RequestStatus, TenantUsage, UsageList
from serve_app.schemas.text import Question, Url
from serve_app.tasks import Status

# A watcher who has seen nothing yet.
NOTHING_SEEN = -1
# An event's id: a version, which the database counts in 32 bits.
EVENT_ID = re.compile(r"[0-9]{1,10}")
NOT_FOUND = error_docs(errors.HostNotAllowed, errors.Unauthorized, errors.RequestNotFound)


def router(service: Service) -> APIRouter:
    routes = APIRouter(tags=["requests"], dependencies=KEYS_IN_DOCS)
    _add_views(routes, service)
    _add_events(routes, service)
    _add_history(routes, service)
    return routes


def _add_views(routes: APIRouter, service: Service) -> None:
    BaseUrl = Depends(base_url_of(service))

    @routes.get("/v1/requests/{request_id}/status", responses=NOT_FOUND)
    async def status(request_id: str, caller: CallerOfRequest) -> RequestStatus:
        """Where a request stands."""
        return status_of(*await service.standing(request_id, caller))

    @routes.get("/v1/requests/{request_id}/result", responses=NOT_FOUND)
    async def result(request_id: str, caller: CallerOfRequest, base_url: Annotated[str, BaseUrl]) -> RequestResult:
        """What came of a request; `outputs` is null until it succeeded."""
        return result_of(await service.request(request_id, caller), service.place(base_url))

    @routes.get(
        "/v1/requests/{request_id}/images/{n}",
        response_class=Response,
        responses=error_docs(errors.HostNotAllowed, errors.Unauthorized, errors.RequestNotFound, errors.ImageNotFound)
        | {200: {"content": {row.mime_type: {} for row in OUTPUT_FORMATS.values()}}}
        | {304: {"description": "`If-None-Match` names the image's ETag"}},
    )
    async def image(
        request_id: str, n: int, caller: CallerOfRequest, if_none_match: Annotated[list[str] | None, Header()] = None
    ) -> Response:
        """The image number `n` (from 0, in prompt order), as soon as it is finished."""
        done = await service.image(request_id, n, caller)
        # A browser keeps the image, but asks again each time: the request may have been purged meanwhile.
        headers = {"ETag": f'"{done.sha256}"', "Cache-Control": "private, no-cache"}
        if names_etag(if_none_match or [], headers["ETag"]):
            return Response(status_code=304, headers=headers)
        data = await service.image_file(request_id, n, done)
        return Response(data, media_type=OUTPUT_FORMATS[done.format].mime_type, headers=headers)

    @routes.delete("/v1/requests/{request_id}", responses=NOT_FOUND)
    async def delete(request_id: str, caller: CallerOfRequest, purge: bool = False) -> RequestStatus:
        """Cancel a request, if it has not ended: what waits at once, what runs at its next step.

        With `purge` its images and control images are deleted for good. Doing it twice does no harm.
        """
        return status_of(*await service.cancel(request_id, caller, purge=purge))

    @routes.post("/v1/requests/{request_id}/cancel", responses=NOT_FOUND)
    async def cancel(request_id: str, caller: CallerOfRequest) -> RequestStatus:
        """The same as DELETE."""
        return status_of(*await service.cancel(request_id, caller, purge=False))


def _add_events(routes: APIRouter, service: Service) -> None:
    async def watched(
        request_id: str,
        caller: CallerOfRequest,
        last_event_id: Annotated[str | None, Header()] = None,
    ) -> tuple[RequestRecord, int]:
        """The request, and what its watcher has seen. Before the answer begins, so that errors have their status."""
        record = await service.request(request_id, caller)
        event_id = EVENT_ID.fullmatch(last_event_id or "")
        since = int(event_id[0]) if event_id else NOTHING_SEEN
        if record.status.ended and since >= record.version:
            # Tells an EventSource not to come again.
            raise HTTPException(204)
        return record, since

    @routes.get("/v1/requests/{request_id}/events", responses=NOT_FOUND, response_class=EventSourceResponse)
    async def events(
        watched: Annotated[tuple[RequestRecord, int], Depends(watched)],
        base_url: Annotated[str, Depends(base_url_of(service))],
    ) -> AsyncIterator[ServerSentEvent]:
        """What happens to a request, as server-sent events: queued, started, step, image, and its end, the result.

        `Last-Event-ID` resumes after an event, on any ingress.
        """
        record, since = watched
        async for event in service.events(record, since, base_url):
            version = None if event.version is None else str(event.version)
            yield ServerSentEvent(data=event.data, event=event.event, id=version)


def _add_history(routes: APIRouter, service: Service) -> None:
    responses = error_docs(
        errors.HostNotAllowed, errors.Unauthorized, errors.HistoryUnavailable, errors.InvalidParameter
    )

    @routes.get("/v1/requests", responses=responses)
    async def history(
        caller: CallerOfRequest,
        status: Status | None = None,
        model: Question | None = None,
        lora: Annotated[Question | None, Query(description="A `loras[].path`.")] = None,
        tenant: Annotated[Question | None, Query(description="For operators; others see their own.")] = None,
        since: Annotated[datetime | None, Query(description="In UTC, unless it says otherwise.")] = None,
        until: Annotated[datetime | None, Query(description="In UTC, unless it says otherwise.")] = None,
        cursor: Url | None = None,
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = DEFAULT_PAGE,
    ) -> History:
        """Requests of the key's tenant, newest first. Without API keys nobody sees a history: 403."""
        which = HistoryFilter(tenant, status, model, lora, _seconds(since), _seconds(until))
        before = _read_cursor(cursor) if cursor else None
        rows = await service.history(which, before, limit + 1, caller)
        page = [HistoryEntry.model_validate(row, from_attributes=True) for row in rows[:limit]]
        return History(requests=page, next_cursor=_cursor_after(rows[limit - 1]) if len(rows) > limit else None)

    @routes.get("/v1/usage", responses=responses)
    async def usage(caller: CallerOfRequest) -> UsageList:
        """GPU seconds and images of the key's tenant, since the beginning. Without API keys: 403."""
        rows = await service.usage(caller)
        return UsageList(usage=[TenantUsage.model_validate(row, from_attributes=True) for row in rows])


def names_etag(if_none_match: list[str], etag: str) -> bool:
    """Whether one of these headers names `etag`, by weak comparison (RFC 9110, 13.1.2)."""
    named = [tag.strip() for header in if_none_match for tag in header.split(",")]
    return any(tag == "*" or tag.removeprefix("W/") == etag for tag in named)


def _seconds(moment: datetime | None) -> float | None:
    """Seconds since the epoch. A time without a zone is UTC: this machine's zone has no year 1."""
    if moment is None:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _cursor_after(row: Summary) -> str:
    return base64.urlsafe_b64encode(f"{row.created_at!r} {row.request_id}".encode()).decode()


def _read_cursor(cursor: str) -> tuple[float, str]:
    try:
        created_at, request_id = base64.urlsafe_b64decode(cursor).decode().split(" ")
        refuse_malformed(request_id)
        return float(created_at), request_id
    except (binascii.Error, ValueError, errors.RequestNotFound) as error:
        raise errors.InvalidParameter("cursor: send the next_cursor of a page as it was") from error
