"""Middleware that every HTTP request and every answer passes, whatever the route."""

import logging
import uuid

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.api.error_answers import error_response
from serve_app.api.error_shapes import shape_of
from serve_app.telemetry import tracing

logger = logging.getLogger(__name__)

# Headers that Ray Serve itself obeys: a client must not steer its routing or time-outs.
RAY_HEADERS = frozenset(
    (b"x-request-timeout-seconds", b"x-request-disconnect-disabled", b"x-session-id", b"serve-multiplexed-model-id")
)


class DropRayHeaders:
    """Removes the headers that Ray Serve obeys from every request, in any spelling.

    Nothing behind this middleware sees them. Serve's proxy has already read them, which affects this one HTTP request
    only: jobs are dispatched outside of any HTTP request.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            kept = [(k, v) for k, v in scope["headers"] if k.lower().replace(b"_", b"-") not in RAY_HEADERS]
            scope = {**scope, "headers": kept}
        await self._app(scope, receive, send)


class TraceRequest:
    """Attaches log lines and spans to the request that the path names, and to the client's trace."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with tracing.for_http_request(scope["path"], Headers(scope=scope)):
            await self._app(scope, receive, send)


class SecurityHeaders:
    """Sets headers that make browsers trust the media type, and forbid caches to store the answer.

    Links in the answer do not tell other hosts its address, which may have a token. A `Cache-Control: private` that a
    route has set stays.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def protected(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "no-referrer"
                if "private" not in headers.get("Cache-Control", ""):
                    headers["Cache-Control"] = "private, no-store"
            await send(message)

        await self._app(scope, receive, protected)


class AddRequestId:
    """Gives an answer the header X-Request-ID, by which its sender can name it, unless a server in front does so.

    Ray Serve does: it puts the id into the request as well.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-ID"] = uuid.uuid4().hex
            await send(message)

        is_added = scope["type"] == "http" and "x-request-id" not in Headers(scope=scope)
        await self._app(scope, receive, send_with_id if is_added else send)


class AnswerHead:
    """Answers HEAD as GET without the body, for every route that takes GET."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        with anyio.CancelScope() as answering:

            async def without_body(message: Message) -> None:
                if message["type"] != "http.response.body":
                    await send(message)
                    return
                await send({"type": "http.response.body"})
                if message.get("more_body", False):
                    # The rest of a stream may take long, and none of it is sent.
                    answering.cancel()

            await self._app({**scope, "method": "GET"}, receive, without_body)


class AnswerErrors:
    """Answers any error in the shape of the route's group, and logs those that are the service's own.

    It is inside the CORS middleware, so that a browser may read the answer. FastAPI's handler for `Exception` is
    outside all middleware.

    A client that leaves an event stream while FastAPI hands an event over makes FastAPI raise: that is no error.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = left = False

        async def watched_send(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        async def watched_receive() -> Message:
            nonlocal left
            message = await receive()
            left = left or message["type"] == "http.disconnect"
            return message

        try:
            await self._app(scope, watched_receive, watched_send)
        except Exception as error:
            if left and _client_left_stream(error):
                return
            if started or scope["type"] != "http":
                # The server cuts off the answer, so that no client takes it for complete.
                raise
            response = error_response(error, shape_of(scope))
            if response.status_code == 500:
                logger.error("%s %s failed", scope["method"], scope["path"], exc_info=error)
            elif response.status_code > 500:
                # An expected error, often many at once when something is away or busy: tracebacks would add nothing.
                logger.warning("%s %s: %s", scope["method"], scope["path"], error)
            await response(scope, receive, send)


def _client_left_stream(error: Exception) -> bool:
    """Whether the only error is that the client has left the stream."""
    return isinstance(error, ExceptionGroup) and error.split(anyio.BrokenResourceError)[1] is None
