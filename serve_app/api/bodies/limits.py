"""Limits on request bodies: their size, how long they may take to arrive, how many are read at a time, and the memory
that they take, which tenants share."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.concurrency.budget import Budget, Hold
from serve_app.errors import BodyTooLarge, Overloaded, RequestTooSlow

# The methods whose routes read a body. A body that comes with any other method is never waited for.
METHODS_WITH_BODY = frozenset(("POST", "PUT", "PATCH"))
# A body must arrive at this average rate, once GRACE_S have passed.
MIN_BYTES_PER_S = 4096
GRACE_S = 10.0
# How many bodies one ingress reads at a time. Serve hands an ingress at most `max_ongoing_requests` requests (app.py);
# the rest of those must stay free for requests without a body.
MAX_BODIES = 400
# How many digits of a Content-Length are read. A longer one is too large for any limit.
MAX_LENGTH_DIGITS = 18
# Where all callers are one tenant, bodies larger than SMALL_BODY leave one part in SPARE_PARTS of the memory free for
# smaller ones.
SMALL_BODY, SPARE_PARTS = 1_000_000, 4
# A body is in memory as the bytes that came, as text while it is parsed, and as the strings in it; a form as the bytes
# that came, its parts, and one part on its way to a decoder. Base64 is decoded only after the text is gone.
COPIES = 3


def announced(scope: Scope) -> int | None:
    """The length of the body according to its headers: 0 if no route reads a body, None if it is unknown."""
    if scope["type"] != "http" or scope["method"] not in METHODS_WITH_BODY:
        return 0
    headers = dict(scope["headers"])
    length = headers.get(b"content-length", b"")
    if b"transfer-encoding" in headers or (length and not length.isdigit()):
        return None
    # Python refuses to convert numbers of thousands of digits.
    return int(length[:MAX_LENGTH_DIGITS] or 0)


class BodySlots:
    """Counts the bodies that are being read: MAX_BODIES in all, and of each tenant at most `share`."""

    def __init__(self, share: int) -> None:
        self._share = share
        self._taken: Counter[str] = Counter()

    @contextmanager
    def one(self, tenant: str) -> Iterator[None]:
        """Hold a slot for one body of `tenant`. Raises Overloaded if none is free.

        It does not wait for a slot: Serve would receive the body during that time and keep it in memory.
        """
        if self._taken[tenant] >= self._share or self._taken.total() >= MAX_BODIES:
            raise Overloaded("this service is receiving as many request bodies as it can; send the request again later")
        self._taken[tenant] += 1
        try:
            yield
        finally:
            self._taken[tenant] -= 1
            if not self._taken[tenant]:
                del self._taken[tenant]


class BodyMemory:
    """The memory that one body takes: its bytes, and what its reader makes of them."""

    def __init__(self, hold: Hold, total: int, spare: int) -> None:
        """A large body leaves `spare` of the `total` free (bytes)."""
        self._hold = hold
        self._total = total
        self._spare = spare
        self.taken = 0

    def take(self, amount: int) -> None:
        """Hold `amount`, or as much as one body may have if that is less. Raises Overloaded."""
        spare = 0 if amount <= COPIES * SMALL_BODY else self._spare
        self._hold.take_now(min(amount, self._total - spare), spare)
        self.taken = amount

    def take_more(self, amount: int) -> None:
        """Hold `amount` in addition. Raises Overloaded."""
        self.take(self.taken + amount)

    def release(self) -> None:
        """Free everything: what the body took is gone."""
        self._hold.shrink_to(0)


def _without_body(receive: Receive) -> Receive:
    """Receive of a request without a body. Whatever a server hands over nevertheless has no memory held for it."""

    async def without_body() -> Message:
        message = await receive()
        return {**message, "body": b""} if message["type"] == "http.request" else message

    return without_body


class BodyLimit:
    """Reads the body before its route does, and holds memory for it until the request is answered.

    Raises BodyTooLarge, RequestTooSlow or Overloaded. Nothing waits here for a slot or for memory: Serve would receive
    the body during that time and keep all of it.

    A route that takes a body parses the whole of it, so reading it later would gain nothing. And FastAPI would report
    an error that is raised while it reads a body as a body that it cannot parse.
    """

    def __init__(self, app: ASGIApp, memory: Budget, max_bytes: int, timeout_s: float) -> None:
        """`memory` is for all bodies (bytes). A tenant gets the same share of the slots as of the memory."""
        self._app = app
        self._memory = memory
        # Where tenants have shares, large bodies of one tenant leave the rest of the memory to others anyway.
        self._spare = memory.total // SPARE_PARTS if memory.share == memory.total else 0
        self._slots = BodySlots(MAX_BODIES * memory.share // memory.total)
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        length = announced(scope)
        if length == 0:
            await self._app(scope, _without_body(receive), send)
            return
        if length is not None and length > self._max_bytes:
            self._refuse_large()
        tenant = scope["state"]["caller"].tenant
        with self._memory.hold(tenant) as hold:
            memory = BodyMemory(hold, self._memory.total, self._spare)
            with self._slots.one(tenant):
                body = await self._read(receive, memory, length)
            messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
            # Only the message refers to the body now, so its memory is free once the route has parsed it.
            del body

            async def replay() -> Message:
                return messages.pop() if messages else await receive()

            state = {**scope["state"], "memory": memory}
            await self._app({**scope, "state": state}, replay, send)

    def _refuse_large(self) -> None:
        raise BodyTooLarge(f"the body is larger than {self._max_bytes} bytes; send large images as URLs")

    async def _read(self, receive: Receive, memory: "BodyMemory", length: int | None) -> bytes:
        """The whole body."""
        # A body of unknown length gets memory as it arrives.
        memory.take(COPIES * (min(SMALL_BODY, self._max_bytes) if length is None else length))
        body = bytearray()
        started = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout_at(started + self._seconds_for(0, length)) as limit:
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise RequestTooSlow("the connection ended before the whole body had arrived")
                    body += message.get("body", b"")
                    if len(body) > self._max_bytes:
                        self._refuse_large()
                    if length is None and COPIES * len(body) > memory.taken:
                        memory.take(COPIES * min(2 * len(body), self._max_bytes))
                    more = message.get("more_body", False)
                    limit.reschedule(started + self._seconds_for(len(body), length))
        except TimeoutError as error:
            raise RequestTooSlow(
                f"the body arrives too slowly: all of it must arrive within {self._timeout_s:g} s, and after the first "
                f"{GRACE_S:g} s at least {MIN_BYTES_PER_S} bytes per second, more if it is too large for this rate"
            ) from error
        memory.take(COPIES * len(body))
        return bytes(body)

    def _seconds_for(self, received: int, length: int | None) -> float:
        """The time by which the next part of a body must arrive (s after its start), once `received` bytes are there.

        A large body takes much memory, so it has to arrive fast enough to be complete in time.
        """
        rate = max(MIN_BYTES_PER_S, (length or 0) / self._timeout_s)
        return min(self._timeout_s, GRACE_S + received / rate)
