"""Error shapes: how a group of routes writes its errors.

A group chooses its shape with the `error_shape` of its route class. Every error on the way to a route of the group,
also one that middleware raises, is answered in that shape. A path without a route is answered in the shape of the
contract, or in OpenAI's below the path of its API.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from starlette._utils import get_route_path
from starlette.types import Scope

from serve_app import errors
from serve_app.api.scopes import routes_at
from serve_app.errors import ErrorDescription
from serve_app.intake.openai.images import parameter_of
from serve_app.schemas.errors import ErrorBody, ShapeErrors
from serve_app.schemas.openai import OpenAIErrorBody

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

# OpenAI's names of kinds of errors, by status. Other 4xx are INVALID_REQUEST.
OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
INVALID_REQUEST, SERVER_ERROR = "invalid_request_error", "server_error"
# The field that an error is about, by its code, where its details do not say.
OPENAI_PARAMS = {
    errors.ModelNotFound.code: "model",
    errors.ControlImageRequired.code: "image",
    errors.ControlImageInvalid.code: "image",
    errors.TooManyControlImages.code: "image",
    errors.PresetNotFound.code: "model",
    errors.PresetBroken.code: "model",
    errors.QualityUnavailable.code: "quality",
    errors.MoeFormatNotSupported.code: "loras",
    errors.SingleLoraOnly.code: "loras",
    errors.TooManyLoras.code: "loras",
}


def _openai_body(description: ErrorDescription) -> dict[str, Any]:
    status, code = description.status, description.code
    kind = OPENAI_TYPES.get(status, SERVER_ERROR if status >= 500 else INVALID_REQUEST)
    param = parameter_of(description.details) or OPENAI_PARAMS.get(code)
    if param is None and code.startswith("LORA_"):
        param = "loras"
    return {"error": {"message": description.message, "type": kind, "param": param, "code": code}}


def _openai_faults(faults: Sequence[Fault]) -> dict[str, Any]:
    # The first part of a fault's place says where it was sent: in the body, a header or the query.
    places = [[str(part) for part in fault["loc"][1:]] for fault in faults]
    texts = [f"{'.'.join(place)}: {fault['msg']}" for place, fault in zip(places, faults, strict=True)]
    name = places[0][0] if places and places[0] else ""
    param = None if name.isdigit() or not name else name
    message = "; ".join(texts) if param else "; ".join(fault["msg"] for fault in faults)
    code = errors.InvalidParameter.code
    return {"error": {"message": message, "type": INVALID_REQUEST, "param": param, "code": code}}


OPENAI = ErrorShape(OpenAIErrorBody, _openai_body, _openai_faults, faults_status=400)
# Below this path, even unknown paths are answered as OpenAI's clients read it.
OPENAI_PREFIX = "/v1/images/"


def shape_of(scope: Scope) -> ErrorShape:
    """The error shape of the group that has a route with the path of this request, whatever the method.

    Middleware calls it too, before the route is known.
    """
    for route in routes_at(scope):
        shape: ErrorShape = getattr(route, "error_shape", CONTRACT)
        return shape
    return OPENAI if get_route_path(scope).startswith(OPENAI_PREFIX) else CONTRACT
