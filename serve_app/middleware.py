"""What every HTTP request passes before its route."""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app import tracing
from serve_app.errors import BodyTooLarge
from serve_app.wire import error_response

# What Ray Serve takes from a request's headers: a client must not steer its routing or time-outs.
RAY_HEADERS = frozenset(
    (b"x-request-timeout-seconds", b"x-request-disconnect-disabled", b"x-session-id", b"serve-multiplexed-model-id")
)


class DropRayHeaders:
    """Takes the headers that Ray Serve itself obeys off every request, in any spelling.

    Nothing behind this sees them. Serve's proxy, in front of it, has by then read them for this one HTTP
    request; jobs are dispatched outside of any request, so none of it reaches an edit.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            kept = [(k, v) for k, v in scope["headers"] if k.lower().replace(b"_", b"-") not in RAY_HEADERS]
            scope = {**scope, "headers": kept}
        await self._app(scope, receive, send)


class NameRequest:
    """Has what happens in here belong to the request that the path names, and to the client's trace."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with tracing.about_http(scope["path"], Headers(scope=scope)):
            await self._app(scope, receive, send)


class BodyLimit:
    """Refuses a body of more than `max_bytes` with 413, by its announced length or as it comes in.

    The body is read here, whole: every route that takes one parses it whole anyway, and a refusal from
    within a route's own reading would come out as a broken body.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"")
        body = None if announced.isdigit() and int(announced) > self._max_bytes else await self._read(receive)
        if body is None:
            error = BodyTooLarge(f"the body is larger than {self._max_bytes} bytes; send large images as URLs")
            await error_response(error)(scope, receive, send)
            return
        messages: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]
        # One copy is enough: this frame stays until the request is answered.
        del body

        async def replay() -> Message:
            return messages.pop() if messages else await receive()

        await self._app(scope, replay, send)

    async def _read(self, receive: Receive) -> bytearray | None:
        """The body, None if it is too large or its sender went away."""
        body = bytearray()
        while True:
            message = await receive()
            body += message.get("body", b"")
            if len(body) > self._max_bytes or message["type"] == "http.disconnect":
                return None
            if not message.get("more_body", False):
                return body
