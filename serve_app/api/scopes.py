"""The scope that a key needs for each operation. A new route needs a row here; without one it needs OPERATE."""

from collections.abc import Iterator, Mapping

from starlette.routing import BaseRoute, Match
from starlette.types import Scope as ConnectionScope

from serve_app.intake.tenants import Scope

SUBMIT, READ, OPERATE = Scope.SUBMIT, Scope.READ, Scope.OPERATE
# By method and path. Operations that need no key need no scope either.
SCOPES: Mapping[str, Scope] = {
    "GET /v1/models": READ,
    "GET /v1/presets": READ,
    "GET /v1/loras": READ,
    "GET /v1/loras/{path}": READ,
    "POST /v1/inference": SUBMIT,
    # It fetches and decodes what the request names, as the request itself would.
    "POST /v1/explain": SUBMIT,
    "POST /v1/images/edits": SUBMIT,
    "POST /v1/images/generations": SUBMIT,
    "POST /v1/uploads": SUBMIT,
    "GET /v1/uploads/{upload_id}": READ,
    "DELETE /v1/uploads/{upload_id}": OPERATE,
    "GET /v1/requests": READ,
    "GET /v1/requests/{request_id}/status": READ,
    "GET /v1/requests/{request_id}/result": READ,
    "GET /v1/requests/{request_id}/images/{n}": READ,
    "GET /v1/requests/{request_id}/images/{n}/preview": READ,
    "GET /v1/requests/{request_id}/control-images/{n}": READ,
    "GET /v1/requests/{request_id}/events": READ,
    "POST /v1/requests/{request_id}/cancel": SUBMIT,
    # With `purge` it deletes images for good.
    "DELETE /v1/requests/{request_id}": OPERATE,
    "GET /v1/usage": READ,
    "POST /v1/sweeps": SUBMIT,
    "GET /v1/sweeps": READ,
    "GET /v1/sweeps/{sweep_id}": READ,
    "GET /v1/sweeps/{sweep_id}/events": READ,
    "GET /v1/sweeps/{sweep_id}/sheet": READ,
    "GET /v1/sweeps/{sweep_id}/cells.csv": READ,
    "GET /v1/sweeps/{sweep_id}/archive": READ,
    "POST /v1/sweeps/{sweep_id}/extend": SUBMIT,
    "POST /v1/sweeps/{sweep_id}/resume": SUBMIT,
    "POST /v1/sweeps/{sweep_id}/cancel": SUBMIT,
    # With `purge` it deletes images for good.
    "DELETE /v1/sweeps/{sweep_id}": OPERATE,
    "GET /v1/training-jobs": READ,
    "GET /v1/training-jobs/{name}": READ,
    "GET /v1/training-jobs/{name}/samples/{file}": READ,
    "GET /v1/training-jobs/{name}/previews/{previews_id}": READ,
    "POST /v1/training-jobs/{name}/previews": SUBMIT,
    "GET /v1/calibrations": OPERATE,
    "POST /v1/calibrations": OPERATE,
    "GET /v1/operation": READ,
}


def routes_at(connection: ConnectionScope, match: Match = Match.PARTIAL) -> Iterator[BaseRoute]:
    """The routes with the path of this HTTP request; only those that take its method if `match` is FULL.

    For middleware, which comes before the route is known.
    """
    app = connection.get("app")
    if app is None:
        return
    for route in app.routes:
        if route.matches(connection)[0].value >= match.value:
            yield route


def required_scope(connection: ConnectionScope) -> Scope | None:
    """The scope that a key needs for this HTTP request; None if no route takes it, which is answered so."""
    for route in routes_at(connection, Match.FULL):
        return SCOPES.get(f"{connection['method']} {getattr(route, 'path_format', '')}", OPERATE)
    return None
