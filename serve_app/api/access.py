"""Who may reach a route: checks of the Host header, and of the caller's API key with its scopes, or of a signed URL.

Both look only at a request's head, before anything of its body is read.
"""

import re
from collections.abc import Callable, Collection, Sequence
from fnmatch import fnmatchcase
from urllib.parse import urlsplit

from starlette._utils import get_route_path
from starlette.datastructures import Headers, QueryParams
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.api.routes import docs
from serve_app.api.scopes import required_scope
from serve_app.config import is_loopback
from serve_app.errors import HostNotAllowed, ImageNotFound, InsufficientScope, RequestNotFound
from serve_app.intake.signed_urls import PARAMETER, SignedUrls
from serve_app.intake.tenants import Caller

# Kubernetes and load balancers send these to a pod's address, so any Host header is accepted.
PROBES = frozenset(("/health", "/ready"))
# A GET of these paths needs no key, and of the playground's neither. Everything else does, so that a new route is
# protected from the start.
PUBLIC_PATHS = PROBES | docs.PATHS
# Headers of proxies: those that only proxies send, and those that list the addresses of callers.
PROXIES_ONLY = ("forwarded", "via")
CALLERS = ("x-forwarded-for", "x-real-ip")
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
    """Puts the Caller into the request's state, where routes read it. Raises Unauthorized and InsufficientScope.

    The caller is found by a key in the headers, or for `GET` of an image by the token of a signed URL.
    """

    def __init__(
        self,
        app: ASGIApp,
        caller_of: Callable[[str | None, str | None], Caller],
        signed_urls: SignedUrls,
        public_paths: Collection[str] = PUBLIC_PATHS,
    ) -> None:
        """`caller_of` takes the values of the headers Authorization and X-API-Key, and raises Unauthorized."""
        self._app = app
        self._public_paths = public_paths
        self._caller_of = caller_of
        self._signed_urls = signed_urls

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (scope["method"] == "GET" and get_route_path(scope) in self._public_paths):
            await self._app(scope, receive, send)
            return
        caller = self._caller_by_token(scope)
        if caller is None:
            await self._app(_called_by(self._caller_by_key(scope), scope), receive, send)
            return
        try:
            await self._app(_called_by(caller, scope), receive, send)
        except (RequestNotFound, ImageNotFound):
            # A token of an image that was deleted tells no more than no token.
            self._caller_by_key(scope)
            raise

    def _caller_by_key(self, scope: Scope) -> Caller:
        headers = Headers(scope=scope)
        caller = self._caller_of(headers.get("authorization"), headers.get("x-api-key"))
        needed = required_scope(scope)
        if needed is not None and needed not in caller.scopes:
            raise InsufficientScope(
                f"this API key may not do this: it lacks the scope {str(needed)!r}; use a key that has it",
                {"needed": needed, "scopes": sorted(caller.scopes)},
            )
        return caller

    def _caller_by_token(self, scope: Scope) -> Caller | None:
        """The caller of a signed URL. It may see nothing but the image at this path."""
        if scope["method"] != "GET":
            return None
        tokens = QueryParams(scope["query_string"]).getlist(PARAMETER)
        if len(tokens) != 1:
            return None
        tenant = self._signed_urls.tenant_of(get_route_path(scope), tokens[0])
        return None if tenant is None else Caller(tenant)


def _called_by(caller: Caller, scope: Scope) -> Scope:
    state = {"caller": caller, "needed_scope": required_scope(scope)}
    return {**scope, "state": {**scope.get("state", {}), **state}}


def is_from_this_machine(headers: Headers) -> bool:
    """Whether a request names this machine as its host, comes from no page of another origin, and through no proxy.

    Any page that somebody opens in a browser on this machine can send requests to loopback. It names its own host if
    that host's name leads to loopback, and says its origin otherwise. A proxy on this machine may name loopback as the
    host for callers from anywhere; most say in a header for whom they ask. HTTP front and Serve's proxy, which are on
    this machine, say loopback for a program on it.
    """
    if any(name in headers for name in PROXIES_ONLY):
        return False
    callers = [each.strip() for name in CALLERS for header in headers.getlist(name) for each in header.split(",")]
    if not all(map(is_loopback, callers)):
        return False
    host, origin = headers.get("host", ""), headers.get("origin")
    try:
        if not is_loopback(urlsplit(f"//{host}").hostname or ""):
            return False
        if origin is not None and urlsplit(origin).netloc != host:
            return False
    except ValueError:
        # Brackets without an IPv6 address between them.
        return False
    # What a browser says where it sends no Origin.
    return headers.get("sec-fetch-site", "none") in ("none", "same-origin")
