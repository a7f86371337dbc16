"""HAProxy's files: its configuration (front.cfg, front.lua) and the answers that it gives without the service."""

import resource
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from string import Template

from serve_app.api.error_answers import error_response
from serve_app.api.error_shapes import CONTRACT, OPENAI
from serve_app.config import FrontConfig
from serve_app.errors import (
    HeadersTooLarge,
    NoAnswer,
    RequestTooSlow,
    ServiceError,
    ServiceUnavailable,
    TooManyRequests,
)
from serve_app.intake.openai.calls import MAX_WAIT_S

BUFFER_BYTES, REWRITE_BYTES = 32_768, 1024
MAX_HEAD_BYTES = BUFFER_BYTES - REWRITE_BYTES
MAX_CONNECTIONS = 1_000_000
# How long the service may be silent before it answers a call of OpenAI's images API (s): longer than it waits itself.
OPENAI_TIMEOUT_S = int(MAX_WAIT_S) + 40

UNAVAILABLE = ServiceUnavailable("the service is starting or stopping, or all its processes are busy; try again soon")
TOO_LARGE = HeadersTooLarge(f"the request line and headers are larger than {MAX_HEAD_BYTES} bytes; send smaller ones")
# The key is the status under which HAProxy looks up the answer.
ERRORS: Mapping[int, ServiceError] = {
    408: RequestTooSlow("the request did not arrive in time; send it again without pauses"),
    429: TooManyRequests("too many requests from your address are in progress; wait until some of them finish"),
    431: TOO_LARGE,
    500: UNAVAILABLE,
    502: UNAVAILABLE,
    503: UNAVAILABLE,
    504: NoAnswer("the service took too long to answer; ask for the request's status"),
}
BOTH_SHAPES = replace(CONTRACT, body=lambda description: CONTRACT.body(description) | OPENAI.body(description))
REASONS = {
    408: "Request Timeout",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}


@dataclass(frozen=True)
class FrontSettings:
    """The settings of a front. `serve_port` is the loopback port of Serve's proxy; `base_path` as in ConfigFile."""

    limits: FrontConfig
    cors_origins: tuple[str, ...]
    base_path: str
    serve_port: int


def write_files(settings: FrontSettings, listener: int, folder: Path) -> Path:
    """Write the configuration and its answers to `folder`, and return the path of the configuration.

    `listener` is the number of the listening socket that HAProxy inherits.
    """
    for status, error in ERRORS.items():
        (folder / f"{status}.http").write_bytes(answer(error, any_origin="*" in settings.cors_origins))
    path = folder / "haproxy.cfg"
    path.write_text(render(settings, listener, folder))
    return path


def answer(error: ServiceError, *, any_origin: bool) -> bytes:
    """A complete HTTP response.

    HAProxy applies no rules to its answer to an incomplete request, so this contains the headers for browsers. The
    front does not know which route was meant: the body is the contract's and OpenAI's in one.
    """
    response = error_response(error, BOTH_SHAPES)
    headers = {**response.headers, "cache-control": "no-store", "access-control-expose-headers": "Retry-After"}
    if any_origin:
        headers["access-control-allow-origin"] = "*"
    lines = [f"HTTP/1.1 {error.status} {REASONS[error.status]}", *(f"{k}: {v}" for k, v in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + bytes(response.body)


def render(settings: FrontSettings, listener: int, folder: Path) -> str:
    limits, package = settings.limits, files("serve_app.commands")
    connections = min(limits.max_connections, affordable_connections())
    return Template((package / "front.cfg").read_text()).substitute(
        max_connections=connections,
        twice_max_connections=2 * connections,
        max_per_proxy=connections // 2,
        max_per_address=limits.max_requests_per_address,
        # HAProxy does not accept an empty list. No client connects from the broadcast address.
        trusted_proxies=" ".join(map(str, limits.trusted_proxies)) or "255.255.255.255",
        buffer_bytes=BUFFER_BYTES,
        rewrite_bytes=REWRITE_BYTES,
        max_head_bytes=MAX_HEAD_BYTES,
        folder=quoted(str(folder)),
        script=quoted(str(package / "front.lua")),
        # front.lua answers 431.
        errorfiles="\n".join(
            f"    errorfile {status} {quoted(str(folder))}/{status}.http" for status in ERRORS if status != 431
        ),
        listener=listener,
        base_path=settings.base_path,
        openai_timeout=OPENAI_TIMEOUT_S,
        cors_rules="\n".join(f"    {rule}" for rule in cors_rules(settings.cors_origins)),
        serve=f"127.0.0.1:{settings.serve_port}",
    )


def affordable_connections() -> int:
    """How many connections the limit of open files allows. Each connection takes four files in HAProxy."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (most - 200) // 4 if most != resource.RLIM_INFINITY else MAX_CONNECTIONS


def cors_rules(origins: tuple[str, ...]) -> list[str]:
    """HAProxy rules that let the allowed origins read every answer, including the front's own."""
    missing = "!{ res.hdr(access-control-allow-origin) -m found }"
    if "*" in origins:
        return [f"http-after-response set-header Access-Control-Allow-Origin * if {missing}"]
    if not origins:
        return []
    allowed = " ".join(quoted(origin) for origin in origins)
    known = "{ var(txn.origin) -m found }"
    return [
        f"http-request set-var(txn.origin) req.hdr(origin) if {{ req.hdr(origin) -m str {allowed} }}",
        f"http-after-response set-header Access-Control-Allow-Origin %[var(txn.origin)] if {known} {missing}",
    ]


def quoted(word: str) -> str:
    """`word` as one word of HAProxy's language."""
    return "'" + word.replace("'", "'\\''") + "'"
