"""One HTTP request to an ASGI application, as a server would hand it over, and the answer."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field, replace
from urllib.parse import unquote

from starlette.types import ASGIApp, Message

# A stream that goes on is left after this time (s), as by a client that closes its connection.
STREAM_S = 0.1
# A request that is not answered by then hangs (s). The machine may be busy.
HANGS_S = 60.0

Headers = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True)
class HttpRequest:
    """A request. `path` is percent-encoded, as on the wire; `operation` is the one that it is made from."""

    operation: str
    method: str
    path: str
    query: str = ""
    headers: Headers = ()
    body: bytes = b""
    # How many parts the body comes in.
    parts: int = 1

    def with_header(self, name: bytes, value: bytes) -> "HttpRequest":
        kept = tuple(each for each in self.headers if each[0] != name)
        return replace(self, headers=(*kept, (name, value)))

    def __str__(self) -> str:
        headers = b", ".join(name + b": " + value for name, value in self.headers)
        return f"{self.operation}: {self.method} {self.path}?{self.query} {headers!r} {self.body[:3000]!r}"


@dataclass
class Answer:
    """The answer. `ended` is False if the client went away first, or if the application cut it off."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    ended: bool = False

    @property
    def media_type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0]


async def send(app: ASGIApp, request: HttpRequest) -> Answer:
    """The application's answer. Raises what the application raises, and TimeoutError if it does not answer."""
    answer = Answer()
    messages = _body_messages(request)
    begun, over = asyncio.Event(), asyncio.Event()

    async def receive() -> Message:
        if messages:
            return messages.pop(0)
        await begun.wait()
        with suppress(TimeoutError):
            async with asyncio.timeout(STREAM_S):
                await over.wait()
        return {"type": "http.disconnect"}

    async def collect(message: Message) -> None:
        if message["type"] == "http.response.start":
            begun.set()
            answer.status = message["status"]
            answer.headers = {
                name.decode("latin-1").lower(): value.decode("latin-1") for name, value in message["headers"]
            }
        elif message["type"] == "http.response.body":
            answer.body += message.get("body", b"")
            answer.ended = not message.get("more_body", False)
            if answer.ended:
                over.set()

    async with asyncio.timeout(HANGS_S):
        await app(_scope(request), receive, collect)
    return answer


def _scope(request: HttpRequest) -> dict[str, object]:
    raw = request.path.encode("ascii", "replace")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": "http",
        "path": unquote(raw.decode("ascii")),
        "raw_path": raw,
        "root_path": "",
        "query_string": request.query.encode("ascii", "replace"),
        "headers": list(request.headers),
        "client": ("127.0.0.1", 50_000),
        "server": ("127.0.0.1", 8_000),
        "state": {},
    }


def _body_messages(request: HttpRequest) -> list[Message]:
    size = max(1, -(-len(request.body) // request.parts))
    parts = [request.body[at : at + size] for at in range(0, len(request.body), size)] or [b""]
    return [
        {"type": "http.request", "body": part, "more_body": number < len(parts) - 1}
        for number, part in enumerate(parts)
    ]
