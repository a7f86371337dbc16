"""The audit log of HTTP requests: everything that is done with an operator's key."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.errors import describe
from serve_app.intake.callers.audited import record_call


class AuditOperators:
    """Records each request of an operator with the status of its answer. `Authenticate` has found out who calls."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        caller = scope.get("state", {}).get("caller")
        if scope["type"] != "http" or caller is None or not caller.is_operator:
            await self._app(scope, receive, send)
            return
        target = scope["path"]
        # Other queries may have texts to search for.
        if scope["method"] == "DELETE" and scope["query_string"]:
            target += "?" + scope["query_string"].decode("ascii", "replace")

        async def send_and_record(message: Message) -> None:
            if message["type"] == "http.response.start":
                record_call(caller, scope["method"], target, message["status"])
            await send(message)

        try:
            await self._app(scope, receive, send_and_record)
        except Exception as error:
            record_call(caller, scope["method"], target, describe(error).status)
            raise
