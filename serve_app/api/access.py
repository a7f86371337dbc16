"""Who may reach a route: checks of the Host header and of the caller's API key.

Both look only at a request's headers, before anything of its body is read.
"""

import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

from starlette._utils import get_route_path
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.api.routes import docs
from serve_app.errors import HostNotAllowed
from serve_app.intake.tenants import Caller

# Kubernetes and load balancers send these to a pod's address, so any Host header is accepted.
PROBES = frozenset(("/health", "/ready"))
# A GET of these paths needs no key. Everything else does, so that a new route is protected from the start.
PUBLIC_PATHS = PROBES | docs.PATHS
# A name, an IPv4 address or an IPv6 address in brackets, with or without a port.
HOST = re.compile(r"(?P<name>[a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?", re.IGNORECASE)


class CheckHost:
    """Raises HostNotAllowed for a Host header that is malformed or matches none of `allowed_hosts`.

    A missing header is refused as well, except where `allowed_hosts` is `*`: HTTP/1.0 has none. The header matters
    because answers contain URLs that start with it.
    """

    def __init__(self, app: ASGIApp, allowed_hosts: Sequence[str]) -> None:
        self._app = app
        self._allowed = [pattern.lower() for pattern in allowed_hosts]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and get_route_path(scope) not in PROBES:
            self._check(Headers(scope=scope).getlist("host"))
        await self._app(scope, receive, send)

    def _check(self, hosts: list[str]) -> None:
        if not hosts and self._allowed != ["*"]:
            raise HostNotAllowed("there is no Host header, and this service answers only under its own names")
        for host in hosts:
            parts = HOST.fullmatch(host)
            if parts is None or len(hosts) > 1:
                raise HostNotAllowed("the Host header is not one host name or address with an optional port")
            name = parts["name"].lower().strip("[]")
            if not any(fnmatchcase(name, pattern) for pattern in self._allowed):
                raise HostNotAllowed("this service does not answer under the name in the Host header")


class Authenticate:
    """Puts the Caller into the request's state, where routes read it. Raises Unauthorized."""

    def __init__(self, app: ASGIApp, caller_of: Callable[[str | None, str | None], Caller]) -> None:
        """`caller_of` takes the values of the headers Authorization and X-API-Key, and raises Unauthorized."""
        self._app = app
        self._caller_of = caller_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not (scope["method"] == "GET" and get_route_path(scope) in PUBLIC_PATHS):
            headers = Headers(scope=scope)
            caller = self._caller_of(headers.get("authorization"), headers.get("x-api-key"))
            scope = {**scope, "state": {**scope.get("state", {}), "caller": caller}}
        await self._app(scope, receive, send)
