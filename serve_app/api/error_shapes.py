"""Error shapes: how a group of routes writes its errors.

A group chooses its shape with the `error_shape` of its route class. Every error on the way to a route of the group,
also one that middleware raises, is answered in that shape. A path without a route is answered in the shape of the
contract.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from starlette.routing import Match
from starlette.types import Scope

from serve_app.errors import ErrorDescription
from serve_app.schemas.errors import ErrorBody, ShapeErrors

# One thing that is wrong with the shape of a body: pydantic's type, loc and msg.
Fault = Mapping[str, Any]


@dataclass(frozen=True)
class ErrorShape:
    """`body` writes an error, and `model` documents it.

    `faults_body` writes the faults of a request of the wrong shape, which is answered with `faults_status`, and
    `faults_model` documents it; None: it is the model of errors.
    """

    model: type[BaseModel]
    body: Callable[[ErrorDescription], dict[str, Any]]
    faults_body: Callable[[Sequence[Fault]], dict[str, Any]]
    faults_status: int = 422
    faults_model: type[BaseModel] | None = None


def _contract_body(description: ErrorDescription) -> dict[str, Any]:
    facts = {"code": description.code, "message": description.message, "details": description.details}
    return {"detail": {"error": facts}}


def _contract_faults(faults: Sequence[Fault]) -> dict[str, Any]:
    return {"detail": [dict(fault) for fault in faults]}


CONTRACT = ErrorShape(ErrorBody, _contract_body, _contract_faults, faults_model=ShapeErrors)


def shape_of(scope: Scope) -> ErrorShape:
    """The error shape of the group that has a route with the path of this request, whatever the method.

    Middleware calls it too, before the route is known.
    """
    app = scope.get("app")
    if app is not None:
        for router in app.state.routers:
            for route in router.routes:
                match, _ = route.matches(scope)
                if match is not Match.NONE:
                    shape: ErrorShape = getattr(route, "error_shape", CONTRACT)
                    return shape
    return CONTRACT
