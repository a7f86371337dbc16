"""Routes about requests that were taken in: their status, result, images and events, cancelling, and the history."""

import base64
import binascii
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, HTTPException, Path, Query, Request, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import WithJsonSchema

from serve_app import errors
from serve_app.api.caller import KEYS_IN_DOCS, TOKEN_IN_DOCS, CallerOfRequest, links_of, reader_of
from serve_app.api.error_answers import error_docs
from serve_app.api.image_answers import image_answer, image_docs
from serve_app.api.routes.models import DEFAULT_PAGE, Cursor, Limit
from serve_app.images.media_types import MEDIA_TYPES, media_type_of
from serve_app.images.output_formats import OUTPUT_FORMATS
from serve_app.intake.answers.bodies import Links, result_of, status_of
from serve_app.intake.answers.events import Event
from serve_app.intake.service import Service
from serve_app.intake.tenants import Caller
from serve_app.jobs.records import HistoryFilter, RequestRecord
from serve_app.jobs.requests import check_request_id
from serve_app.schemas.answers import History, HistoryEntry, RequestResult, RequestStatus, TenantUsage, UsageList
from serve_app.schemas.events import EVENT_DATA
from serve_app.schemas.text import LookupText
from serve_app.tasks import Status

# The version of a watcher that has seen nothing yet.
NOTHING_SEEN = -1
# An event's id: a version, which the database counts in 32 bits.
EVENT_ID = re.compile(r"[0-9]{1,10}")
PREVIEW_HEADERS = {
    "X-Step": {"description": "The step that the preview was made after, from 1.", "schema": {"type": "integer"}},
    "X-Steps": {"description": "The number of steps of the edit.", "schema": {"type": "integer"}},
}
NOT_MODIFIED: dict[int | str, dict[str, Any]] = {304: {"description": "`If-None-Match` names the image's ETag"}}
NOT_FOUND = error_docs(errors.RequestNotFound, errors.StoreUnavailable)

RequestId = Annotated[str, Path(description="The id of the request.")]
# A negative number is answered as an image that does not exist, like one that is too large.
ImageNumber = Annotated[
    int, Path(description="The number of the image, from 0, in prompt order.", json_schema_extra={"minimum": 0})
]
ControlImageNumber = Annotated[
    int, Path(description="The number of the control image, from 0.", json_schema_extra={"minimum": 0})
]
LastEventId = Annotated[
    str | None, Header(description="The id of the last event that the client has: the stream continues after it.")
]
IfNoneMatch = Annotated[
    list[str] | None,
    Header(description="ETags of images that the client has: if the image's is one of them, the answer is 304."),
    # As HTTP sends a list in a header: with commas.
    WithJsonSchema({"type": "string"}),
]


def router(service: Service) -> APIRouter:
    routes = APIRouter(tags=["requests"], dependencies=KEYS_IN_DOCS)
    _add_views(routes, service)
    _add_images(routes, service)
    _add_control_images(routes, service)
    _add_cancelling(routes, service)
    _add_events(routes, service)
    _add_history(routes, service)
    return routes


def _add_views(routes: APIRouter, service: Service) -> None:
    LinksOfRequest = Depends(links_of(service))

    @routes.get("/v1/requests/{request_id}/status", responses=NOT_FOUND)
    async def get_status(
        request_id: RequestId, caller: CallerOfRequest, links: Annotated[Links, LinksOfRequest]
    ) -> RequestStatus:
        """The status and progress of a request."""
        return status_of(*await service.queries.state(request_id, caller), links)

    @routes.get("/v1/requests/{request_id}/result", responses=NOT_FOUND)
    async def get_result(
        request_id: RequestId, caller: CallerOfRequest, links: Annotated[Links, LinksOfRequest]
    ) -> RequestResult:
        """The result of a request; `outputs` is null until it has succeeded."""
        return result_of(await service.queries.request(request_id, caller), links)


def _add_images(routes: APIRouter, service: Service) -> None:
    @routes.get(
        "/v1/requests/{request_id}/images/{n}",
        response_class=Response,
        dependencies=TOKEN_IN_DOCS,
        responses=error_docs(
            errors.RequestNotFound, errors.ImageNotFound, errors.StoreUnavailable, errors.StorageFailed
        )
        | image_docs([row.mime_type for row in OUTPUT_FORMATS.values()])
        | NOT_MODIFIED,
    )
    async def get_image(
        request: Request,
        request_id: RequestId,
        n: ImageNumber,
        caller: CallerOfRequest,
        if_none_match: IfNoneMatch = None,
    ) -> Response:
        """The image number `n` (from 0, in prompt order), as soon as it is finished."""
        done = await service.queries.image(request_id, n, caller)
        headers = image_headers(done.sha256)
        if names_etag(if_none_match or [], headers["ETag"]):
            return Response(status_code=304, headers=headers)
        data = await service.queries.image_file(request_id, n, done)
        return image_answer(request, data, OUTPUT_FORMATS[done.format].mime_type, headers)

    @routes.get(
        "/v1/requests/{request_id}/images/{n}/preview",
        response_class=Response,
        dependencies=TOKEN_IN_DOCS,
        responses=error_docs(
            errors.RequestNotFound,
            errors.ImageNotFound,
            errors.PreviewNotReady,
            errors.StoreUnavailable,
            errors.StorageFailed,
        )
        | image_docs(["image/jpeg"], PREVIEW_HEADERS),
    )
    async def get_preview(request: Request, request_id: RequestId, n: ImageNumber, caller: CallerOfRequest) -> Response:
        """The newest step preview of the image number `n` (from 0), while an editor makes it: a small JPEG.

        Previews are made every few steps, and only while somebody watches: who asks counts as watching for 10 s. Before
        the first one, and once the image has ended, the answer is 404 `PREVIEW_NOT_READY`, whose details have the
        image's `status`.
        """
        found, steps = await service.queries.preview(request_id, n, caller)
        return image_answer(request, found.jpeg, "image/jpeg", {"X-Step": str(found.step), "X-Steps": str(steps)})


def _add_control_images(routes: APIRouter, service: Service) -> None:
    @routes.get(
        "/v1/requests/{request_id}/control-images/{n}",
        response_class=Response,
        dependencies=TOKEN_IN_DOCS,
        responses=error_docs(
            errors.RequestNotFound, errors.ImageNotFound, errors.StoreUnavailable, errors.StorageFailed
        )
        | image_docs(sorted(MEDIA_TYPES))
        | NOT_MODIFIED,
    )
    async def get_control_image(
        request: Request,
        request_id: RequestId,
        n: ControlImageNumber,
        caller: CallerOfRequest,
        if_none_match: IfNoneMatch = None,
    ) -> Response:
        """The control image number `n` (from 0) of a request, as its sender sent it.

        Each is numbered where the prompts first name it, so an image that all prompts share is there once. A result's
        `metadata.control_images` lists them.
        """
        sha256 = await service.queries.control_image(request_id, n, caller)
        headers = image_headers(sha256)
        if names_etag(if_none_match or [], headers["ETag"]):
            return Response(status_code=304, headers=headers)
        data = await service.queries.control_image_file(request_id, n, sha256)
        return image_answer(request, data, media_type_of(data), headers)


def _add_cancelling(routes: APIRouter, service: Service) -> None:
    LinksOfRequest = Depends(links_of(service))

    async def cancelled(request_id: str, caller: Caller, links: Links, *, purge: bool) -> RequestStatus:
        record = await service.queries.request(request_id, caller)
        await service.submissions.cancel(record, purge=purge)
        return status_of(*await service.queries.state(request_id, caller), links)

    @routes.delete(
        "/v1/requests/{request_id}",
        responses=error_docs(errors.RequestNotFound, errors.StoreUnavailable, errors.StorageFailed),
    )
    async def delete(
        request_id: RequestId,
        caller: CallerOfRequest,
        links: Annotated[Links, LinksOfRequest],
        purge: Annotated[bool, Query(description="Whether the images and control images are deleted, too.")] = False,
    ) -> RequestStatus:
        """Cancel a request that has not ended. Waiting images stop at once, a running one at its next step.

        With `purge` its images and control images are deleted for good. Repeating it does no harm.
        """
        return await cancelled(request_id, caller, links, purge=purge)

    @routes.post("/v1/requests/{request_id}/cancel", responses=NOT_FOUND)
    async def cancel(
        request_id: RequestId, caller: CallerOfRequest, links: Annotated[Links, LinksOfRequest]
    ) -> RequestStatus:
        """The same as DELETE."""
        return await cancelled(request_id, caller, links, purge=False)


def _add_events(routes: APIRouter, service: Service) -> None:
    async def watched(
        request_id: RequestId,
        caller: CallerOfRequest,
        last_event_id: LastEventId = None,
    ) -> tuple[RequestRecord, int]:
        """The request, and the version that its watcher has seen. Read before the answer starts, so that an error
        still decides its status."""
        record = await service.queries.request(request_id, caller)
        event_id = EVENT_ID.fullmatch(last_event_id or "")
        since = int(event_id[0]) if event_id else NOTHING_SEEN
        if record.status.ended and since >= record.version:
            # This status makes an EventSource stop reconnecting.
            raise HTTPException(204)
        return record, since

    @routes.get(
        "/v1/requests/{request_id}/events",
        responses=NOT_FOUND | {204: {"description": "The request has ended, and `Last-Event-ID` names its end"}},
        response_class=EventSourceResponse,
        description=f"What happens to a request, as server-sent events: {', '.join(Event)}. The last one is its end "
        "and carries the result. The data of each event is JSON: "
        + ", ".join(f"`{event}` {data.__name__}" for event, data in EVENT_DATA.items())
        + ".\n\n`Last-Event-ID` resumes after an event, on any ingress.\n\nWhile the stream is open, the request "
        "counts as watched: `preview` events have a small JPEG of what an image will be.",
    )
    async def events(
        watched: Annotated[tuple[RequestRecord, int], Depends(watched)],
        links: Annotated[Links, Depends(links_of(service))],
        previews: Annotated[
            bool, Query(description="Whether the stream has step previews; they are made only for those who want them.")
        ] = True,
    ) -> AsyncIterator[ServerSentEvent]:
        record, since = watched
        async for event in service.events.stream(record, since, links, with_previews=previews):
            version = None if event.version is None else str(event.version)
            yield ServerSentEvent(data=event.data, event=event.event, id=version)


def _add_history(routes: APIRouter, service: Service) -> None:
    Reader = Depends(reader_of(service))

    @routes.get(
        "/v1/requests",
        responses=error_docs(errors.HistoryUnavailable, errors.InvalidParameter, errors.StoreUnavailable),
    )
    async def history(
        caller: Annotated[Caller, Reader],
        status: Annotated[Status | None, Query(description="The status of the requests.")] = None,
        model: Annotated[LookupText | None, Query(description="The id of the requests' model.")] = None,
        lora: Annotated[LookupText | None, Query(description="A `loras[].path` of the request.")] = None,
        tenant: Annotated[LookupText | None, Query(description="For operators; others see their own.")] = None,
        since: Annotated[
            datetime | None, Query(description="The earliest creation time, in UTC unless it names a time zone.")
        ] = None,
        until: Annotated[
            datetime | None, Query(description="Creation times before this one, in UTC unless it names a time zone.")
        ] = None,
        cursor: Cursor = "",
        limit: Limit = DEFAULT_PAGE,
    ) -> History:
        """Requests of the key's tenant, newest first.

        Without API keys there is a history only with `history_without_keys`, for programs on the service's machine and
        for its own pages; otherwise 403.
        """
        filter_ = HistoryFilter(tenant, status, model, lora, _seconds(since), _seconds(until))
        before = read_cursor(cursor) if cursor else None
        rows = await service.queries.history(filter_, before, limit + 1, caller)
        page = [HistoryEntry.model_validate(row, from_attributes=True) for row in rows[:limit]]
        more = cursor_after(rows[limit - 1].created_at, rows[limit - 1].request_id) if len(rows) > limit else None
        return History(requests=page, next_cursor=more)

    @routes.get("/v1/usage", responses=error_docs(errors.HistoryUnavailable, errors.StoreUnavailable))
    async def usage(caller: Annotated[Caller, Reader]) -> UsageList:
        """GPU seconds and images of the key's tenant, since the database was created.

        Without API keys it is shown to those who see the history.
        """
        rows = await service.queries.usage(caller)
        return UsageList(usage=[TenantUsage.model_validate(row, from_attributes=True) for row in rows])


def image_headers(sha256: str) -> dict[str, str]:
    """A browser keeps the image, but asks again each time: the request may have been purged meanwhile."""
    return {"ETag": f'"{sha256}"', "Cache-Control": "private, no-cache"}


def names_etag(if_none_match: list[str], etag: str) -> bool:
    """Whether one of these headers names `etag`, by weak comparison (RFC 9110, 13.1.2)."""
    named = [tag.strip() for header in if_none_match for tag in header.split(",")]
    return any(tag == "*" or tag.removeprefix("W/") == etag for tag in named)


def _seconds(moment: datetime | None) -> float | None:
    """Seconds since the epoch. A time without a time zone is UTC: local time cannot be computed for the year 1."""
    if moment is None:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def cursor_after(created_at: float, id_: str) -> str:
    """The cursor of the page after an entry of a list, newest first."""
    return base64.urlsafe_b64encode(f"{created_at!r} {id_}".encode()).decode()


def read_cursor(cursor: str) -> tuple[float, str]:
    """The creation time and id in a cursor. Raises InvalidParameter."""
    try:
        created_at, request_id = base64.urlsafe_b64decode(cursor).decode().split(" ")
        check_request_id(request_id)
        return float(created_at), request_id
    except (binascii.Error, ValueError, errors.RequestNotFound) as error:
        raise errors.InvalidParameter("cursor: send the next_cursor of a page unchanged") from error
