"""Rate limits on the way to the routes: each request of a tenant is counted before anything of its body is read."""

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.api.error_answers import error_response
from serve_app.api.error_shapes import shape_of
from serve_app.errors import RateLimited
from serve_app.intake.callers.rates import RateKind, RateLimits, Spent, limit_header, policy_header
from serve_app.intake.tenants import Scope as KeyScope

LIMIT, POLICY = "RateLimit", "RateLimit-Policy"


class LimitRates:
    """Answers 429 to a request beyond the limit of its caller's tenant, and tells others what is left.

    `Authenticate` has found the caller and the scope that the request needs. A path without a route counts as a read.
    """

    def __init__(self, app: ASGIApp, limits: RateLimits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = scope.get("state", {})
        caller = state.get("caller")
        if scope["type"] != "http" or caller is None:
            await self._app(scope, receive, send)
            return
        is_read = state.get("needed_scope") in (KeyScope.READ, None)
        spent = await self._limits.spend(caller, RateKind.READ if is_read else RateKind.SUBMIT)
        if spent is None:
            await self._app(scope, receive, send)
            return

        async def send_with_limits(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update({LIMIT: limit_header(spent), POLICY: policy_header(spent)})
            await send(message)

        if spent.is_allowed:
            await self._app(scope, receive, send_with_limits)
        else:
            await error_response(_refusal(spent), shape_of(scope))(scope, receive, send_with_limits)


def _refusal(spent: Spent) -> RateLimited:
    kinds = {RateKind.SUBMIT: "submits", RateKind.READ: "reads"}
    pause = max(1, spent.reset_s)
    return RateLimited(
        f"your keys may make {spent.limit} {kinds[spent.kind]} per minute; send this again in {pause} s",
        {"kind": spent.kind, "limit": spent.limit, "retry_after_s": pause},
    )
