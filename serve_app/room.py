"""Memory for request bodies: counted before a body is read, and shared fairly by tenants."""

from collections.abc import Callable

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.budget import Budget, Hold
from serve_app.errors import Overloaded
from serve_app.schemas import InferenceRequest
from serve_app.wire import error_response

# A body is in memory as the bytes that came, as the text while it is parsed, and as its strings; control images in it
# also decoded, by when the text is gone.
COPIES = 3


class HoldBody:
    """Holds memory for a request's body until the request is answered, or `release` says that most of it is free.

    A body of unknown length counts as the longest one until it is here. Whoever waits too long is answered 503
    before any of the body is read.
    """

    def __init__(self, app: ASGIApp, memory: Budget, max_bytes: int, tenant_of: Callable[[Scope], str]) -> None:
        self._app = app
        self._memory = memory
        self._max_bytes = max_bytes
        self._tenant_of = tenant_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        expected = self._expected(scope) if scope["type"] == "http" else 0
        if not expected:
            await self._app(scope, receive, send)
            return
        with self._memory.hold(self._tenant_of(scope)) as hold:
            try:
                await hold.take(COPIES * expected)
            except Overloaded as error:
                await error_response(error)(scope, receive, send)
                return
            scope = {**scope, "state": {**scope.get("state", {}), "body": hold}}
            await self._app(scope, counting(receive, hold), send)

    def _expected(self, scope: Scope) -> int:
        """The body's length; 0 for none, and for one that is refused for its length."""
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"")
        if length.isdigit():
            # Longer numbers than any limit are not converted.
            return int(length) if len(length) < 20 and int(length) <= self._max_bytes else 0
        return self._max_bytes if b"transfer-encoding" in headers else 0


def counting(receive: Receive, hold: Hold) -> Receive:
    """`receive`, which gives back what a body does not need once all of it is here."""
    received = 0

    async def counted() -> Message:
        nonlocal received
        message = await receive()
        if message["type"] == "http.request":
            received += len(message.get("body", b""))
            if not message.get("more_body", False):
                hold.keep(COPIES * received)
        return message

    return counted


async def release(request: Request, body: InferenceRequest) -> None:
    """Free what a body was parsed to, for a request that is answered much later; FastAPI keeps the bytes.

    `body` is empty after that.
    """
    body.prompts.clear()
    (body.model_extra or {}).clear()
    parsed = await request.json()
    if isinstance(parsed, dict):
        parsed.clear()
    hold: Hold | None = getattr(request.state, "body", None)
    if hold is not None:
        hold.keep(hold.amount // COPIES)
