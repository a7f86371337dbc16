"""Request bodies: how large they may be, how long they may take to arrive, how many are read at a time, and the memory
that they take, which tenants share."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.budget import Budget, Hold
from serve_app.errors import BodyTooLarge, Overloaded, RequestTooSlow
from serve_app.schemas import InferenceRequest

# The methods whose routes read a body. A body that comes with any other method is never waited for.
METHODS_WITH_BODY = frozenset(("POST", "PUT", "PATCH"))
# A body must arrive at this rate on average, after a start of so many seconds.
MIN_BYTES_PER_S = 4096
GRACE_S = 10.0
# How many bodies one ingress reads at a time, and how many of one tenant. Serve hands an ingress at most
# `max_ongoing_requests` requests (app.py); the rest of those must stay free for requests without a body.
MAX_BODIES = 400
MAX_BODIES_PER_TENANT = 200
# A Content-Length with more digits is too large, whatever the limit is.
MAX_LENGTH_DIGITS = 18
# A body is in memory as the bytes that came, as the text while it is parsed, and as its strings; control images in it
# also decoded, by when the text is gone.
COPIES = 3


def reads_body(scope: Scope) -> bool:
    """Whether the route of this scope reads a body."""
    return scope["type"] == "http" and scope["method"] in METHODS_WITH_BODY


def exceeds(length: bytes, max_bytes: int) -> bool:
    """Whether a Content-Length, which is all digits, says more than `max_bytes`."""
    return len(length) > MAX_LENGTH_DIGITS or int(length) > max_bytes


class BodySlots:
    """How many bodies are being read, of all tenants and of each."""

    def __init__(self) -> None:
        self._taken: Counter[str] = Counter()

    @contextmanager
    def one(self, tenant: str) -> Iterator[None]:
        """Hold a slot for one body of `tenant`. Raises Overloaded if none is free.

        It does not wait for a slot: meanwhile Serve would receive the body and keep it in memory.
        """
        if self._taken[tenant] >= MAX_BODIES_PER_TENANT or self._taken.total() >= MAX_BODIES:
            raise Overloaded("this service is receiving as many request bodies as it can; send the request again later")
        self._taken[tenant] += 1
        try:
            yield
        finally:
            self._taken[tenant] -= 1
            if not self._taken[tenant]:
                del self._taken[tenant]


class BodyLimit:
    """Reads the body before its route does. Raises BodyTooLarge, RequestTooSlow or Overloaded.

    A route that takes a body parses the whole of it, so nothing is gained by reading it later; and FastAPI would
    report an error that is raised while it reads a body as a body that it cannot parse.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, timeout_s: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._slots = BodySlots()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not reads_body(scope):
            await self._app(scope, receive, send)
            return
        self._refuse_announced(dict(scope["headers"]).get(b"content-length", b""))
        with self._slots.one(scope["state"]["caller"].tenant):
            # Nothing else refers to the body: it goes once the route has parsed it.
            messages: list[Message] = [{"type": "http.request", "body": await self._read(receive), "more_body": False}]

        async def replay() -> Message:
            return messages.pop() if messages else await receive()

        await self._app(scope, replay, send)

    def _refuse_announced(self, length: bytes) -> None:
        if length.isdigit() and exceeds(length, self._max_bytes):
            self._refuse_large()

    def _refuse_large(self) -> None:
        raise BodyTooLarge(f"the body is larger than {self._max_bytes} bytes; send large images as URLs")

    async def _read(self, receive: Receive) -> bytes:
        """The whole body."""
        body = bytearray()
        started = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout_at(started + self._seconds_for(0)) as limit:
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise RequestTooSlow("the connection ended before the whole body had arrived")
                    body += message.get("body", b"")
                    if len(body) > self._max_bytes:
                        self._refuse_large()
                    more = message.get("more_body", False)
                    limit.reschedule(started + self._seconds_for(len(body)))
        except TimeoutError as error:
            raise RequestTooSlow(
                f"the body arrives too slowly: it may take {self._timeout_s:g} s in all, and must bring"
                f" {MIN_BYTES_PER_S} bytes per second after the first {GRACE_S:g} s"
            ) from error
        return bytes(body)

    def _seconds_for(self, received: int) -> float:
        """How long after the start of a body its next part may come, once so many bytes are there."""
        return min(self._timeout_s, GRACE_S + received / MIN_BYTES_PER_S)


class HoldBody:
    """Holds memory for a request's body until the request is answered, or `release` says that most of it is free.

    A body of unknown length counts as the longest one until it is here. Raises Overloaded, before any of the body is
    read, for a request that waits too long.
    """

    def __init__(self, app: ASGIApp, memory: Budget, max_bytes: int) -> None:
        self._app = app
        self._memory = memory
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        expected = self._expected(scope) if reads_body(scope) else 0
        if not expected:
            await self._app(scope, receive, send)
            return
        with self._memory.hold(scope["state"]["caller"].tenant) as hold:
            await hold.take(COPIES * expected)
            scope = {**scope, "state": {**scope.get("state", {}), "body": hold}}
            await self._app(scope, counting(receive, hold), send)

    def _expected(self, scope: Scope) -> int:
        """The body's length; 0 for none, and for one that is refused for its length."""
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"")
        if length.isdigit():
            return 0 if exceeds(length, self._max_bytes) else int(length)
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
