"""OpenAI's images API, for clients that speak it: their base URL is this service's with `/v1` behind it."""

import json
from collections.abc import AsyncIterator, Iterator, Mapping
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi.sse import format_sse_event
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from serve_app import errors
from serve_app.api.bodies.images_bodies import ImagesReader, ImagesRoute, form_docs
from serve_app.api.caller import KEYS_IN_DOCS, CallerOfRequest, links_of
from serve_app.api.error_answers import described_response, error_docs
from serve_app.api.error_shapes import OPENAI
from serve_app.api.image_text import with_image, without_end
from serve_app.api.routes.inference import SUBMIT_ERRORS
from serve_app.errors import ErrorDescription
from serve_app.intake.answers.bodies import Links, output_of
from serve_app.intake.openai.answers import answer_of, failure_of, finished_images
from serve_app.intake.openai.calls import Call, ClientGone
from serve_app.intake.openai.images import EDITS, GENERATIONS
from serve_app.intake.openai.stream import OpenAIStream, SignOfLife, StreamItem
from serve_app.intake.service import Service
from serve_app.intake.tenants import Caller
from serve_app.jobs.records import RequestRecord, WaitingClient
from serve_app.schemas.documented import event_stream
from serve_app.schemas.openai import (
    EDIT_EVENTS,
    GENERATION_EVENTS,
    ImageData,
    ImagesAnswer,
    ImagesCall,
    ImagesEdit,
    ImagesGeneration,
)
from serve_app.tasks import Status

EVENT_STREAM = "text/event-stream"
ERRORS = (
    *(error for error in SUBMIT_ERRORS if error is not errors.IdempotencyConflict),
    errors.RequestNotFound,
    errors.ImageNotFound,
    errors.RequestCanceled,
    # How an edit may fail.
    errors.LoraChanged,
    errors.EditError,
    errors.DeadlineExceeded,
    errors.OutOfMemory,
    errors.UnusableResult,
    errors.DeviceLost,
    errors.EditorLost,
    errors.EditorUnavailable,
    errors.NoAnswer,
)
# OpenAI's clients repeat calls that fail with 409 or 5xx. A request that has failed would fail again.
FAILED_FOR_GOOD = {"X-Should-Retry": "false"}
# The status of an answer that nobody reads, as nginx logs it.
CLIENT_CLOSED_REQUEST = 499
# nginx would keep events until it has a buffer full of them.
STREAM_HEADERS = {"X-Accel-Buffering": "no"}
RetryCount = Annotated[
    str | None,
    Header(
        alias="x-stainless-retry-count",
        description="Set by OpenAI's clients. Above 0, the call is a repeat: it is answered with the request that the "
        "same call has made before, if that is under way or has succeeded within the last 30 minutes.",
    ),
]


def router(service: Service) -> APIRouter:
    routes = APIRouter(tags=["openai"], dependencies=KEYS_IN_DOCS, route_class=ImagesRoute)
    LinksOfRequest = Depends(links_of(service))

    @routes.post(
        "/v1/images/edits",
        operation_id="edit_images",
        response_model=None,
        responses=_answers(EDIT_EVENTS),
        openapi_extra=form_docs(ImagesEdit),
    )
    async def edits(
        request: Request,
        fields: ImagesEdit,
        caller: CallerOfRequest,
        links: Annotated[Links, LinksOfRequest],
        retry_count: RetryCount = None,
    ) -> Response:
        """Edit an image, or several together, and wait for the result.

        The fields are those of OpenAI's images API, and LoRAs, seed and steps as further fields. `model` is the id of a
        model or the name of a preset. A request whose client hangs up is cancelled after 30 s, unless the client
        repeats the call.
        """
        return await _answered(service, request, EDITS, fields, caller, links)

    @routes.post(
        "/v1/images/generations",
        operation_id="generate_images",
        response_model=None,
        responses=_answers(GENERATION_EVENTS),
        openapi_extra=form_docs(ImagesGeneration),
    )
    async def generations(
        request: Request,
        fields: ImagesGeneration,
        caller: CallerOfRequest,
        links: Annotated[Links, LinksOfRequest],
        retry_count: RetryCount = None,
    ) -> Response:
        """Make an image from text alone, with a text-to-image model, and wait for the result."""
        return await _answered(service, request, GENERATIONS, fields, caller, links)

    return routes


def _answers(events: Mapping[str, type[BaseModel]]) -> dict[int | str, dict[str, Any]]:
    """The answers in the OpenAPI document; `events` are those of a stream."""
    found = {"model": ImagesAnswer, "description": "The images.", "content": {EVENT_STREAM: event_stream(events)}}
    return {200: found} | error_docs(*ERRORS, shape=OPENAI)


async def _answered(
    service: Service, request: Request, route: str, fields: ImagesCall, caller: Caller, links: Links
) -> Response:
    """The answer to a call, once its request has ended; or a stream until it does."""
    assert isinstance(request, ImagesReader)
    call = Call(route, fields, request.state.parts, request.state.repeatable)
    record, client = await service.openai_calls.submit(call, caller, links.base_url)
    await request.release(fields)
    if fields.stream:
        stream = OpenAIStream(service.queries, service.previews, route, record, fields.partial_images)
        return CallStream(service, client, stream)
    try:
        record = await service.openai_calls.ended(record, client, _client_gone(request))
    except ClientGone:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    return await _finished(service, record, fields, links)


async def _client_gone(request: Request) -> None:
    """Return when the client has closed its connection. Its body was read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _finished(service: Service, record: RequestRecord, call: ImagesCall, links: Links) -> Response:
    """The answer to a call whose request has ended. Raises ImageNotFound."""
    if record.status != Status.SUCCEEDED:
        return described_response(failure_of(record), OPENAI, FAILED_FOR_GOOD)
    answer = answer_of(record, call)
    if call.response_format == "url":
        outputs = [output_of(record, image, links) for image in record.images]
        data = [ImageData(url=output.url, seed=output.seed).model_dump() for output in outputs if output is not None]
        return JSONResponse(answer | {"data": data})
    # What is wrong with the first image still decides the status.
    first = await service.queries.image_file(record.id, 0, finished_images(record)[0])
    return StreamingResponse(_with_images(service, answer, record, first), media_type="application/json")


async def _with_images(
    service: Service, answer: dict[str, Any], record: RequestRecord, first: bytes
) -> AsyncIterator[bytes]:
    yield without_end(answer) + b', "data": ['
    for index, done in enumerate(finished_images(record)):
        image = first if index == 0 else await service.queries.image_file(record.id, index, done)
        if index:
            yield b", "
        for piece in with_image({"seed": done.seed, "url": None}, image):
            yield piece
    yield b"]}"


class CallStream(StreamingResponse):
    """Server-sent events of a call. A client that closes its connection before the last one has hung up."""

    def __init__(self, service: Service, client: WaitingClient, stream: OpenAIStream) -> None:
        self._leave = partial(service.openai_calls.leave, client, hung_up=True)
        self._is_complete = False
        super().__init__(self._text(stream), media_type=EVENT_STREAM, headers=STREAM_HEADERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            if not self._is_complete:
                await self._leave()

    async def _text(self, stream: OpenAIStream) -> AsyncIterator[bytes]:
        async for item in stream.items():
            for piece in _event_text(item):
                yield piece
        self._is_complete = True


def _event_text(item: StreamItem) -> Iterator[bytes]:
    """One server-sent event."""
    if isinstance(item, SignOfLife):
        yield format_sse_event(comment="the request is under way")
    elif isinstance(item, ErrorDescription):
        # OpenAI's clients raise what is in `error`, whatever the event's name.
        yield format_sse_event(event="error", data_str=json.dumps({"type": "error"} | OPENAI.body(item)))
    else:
        yield f"event: {item.facts['type']}\ndata: ".encode()
        yield from with_image(item.facts, item.image)
        yield b"\n\n"
