"""Answers to errors: status, headers, and a body in the shape of the route's group."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import Request
from fastapi.exception_handlers import http_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from serve_app.api.error_shapes import CONTRACT, ErrorShape, Fault, shape_of
from serve_app.errors import (
    ErrorDescription,
    MethodNotAllowed,
    NotFound,
    Overloaded,
    QueueFull,
    RequestTooSlow,
    ServiceError,
    ServiceUnavailable,
    StorageFailed,
    StoreUnavailable,
    TooManyRequests,
    TooManyUnfinished,
    Unauthorized,
    describe,
)
from serve_app.schemas.documented import reference_to
from serve_app.schemas.requests import MAX_FAULTS

# Headers that say what a client may do about an error, by code.
HEADERS = {
    # About as long as an edit takes; then the queue has room for the next.
    QueueFull.code: {"Retry-After": "10"},
    TooManyRequests.code: {"Retry-After": "2"},
    TooManyUnfinished.code: {"Retry-After": "10"},
    ServiceUnavailable.code: {"Retry-After": "2"},
    StoreUnavailable.code: {"Retry-After": "2"},
    StorageFailed.code: {"Retry-After": "2"},
    Overloaded.code: {"Retry-After": "5"},
    # The rest of the body is not read.
    RequestTooSlow.code: {"Connection": "close"},
    Unauthorized.code: {"WWW-Authenticate": "Bearer"},
}


def error_response(error: Exception, shape: ErrorShape = CONTRACT, headers: Mapping[str, str] = {}) -> JSONResponse:
    """The answer to any error. `headers` replace those of the error's code."""
    return described_response(describe(error), shape, headers)


def described_response(
    description: ErrorDescription, shape: ErrorShape = CONTRACT, headers: Mapping[str, str] = {}
) -> JSONResponse:
    """The answer to an error of which only the description is left, as of a request that has failed."""
    headers = {**HEADERS.get(description.code, {}), **headers}
    if "retry_after_s" in description.details:
        headers["Retry-After"] = str(description.details["retry_after_s"])
    return JSONResponse(shape.body(description), status_code=description.status, headers=headers)


async def answer_http_error(request: Request, error: Exception) -> Response:
    """The answer to an error of the router: an unknown path, or a method that the path's route does not take."""
    assert isinstance(error, HTTPException)
    shape = shape_of(request.scope)
    if error.status_code == NotFound.status:
        return error_response(NotFound("there is no such route; GET /docs lists the routes"), shape)
    if error.status_code == MethodNotAllowed.status:
        methods = {method.strip() for method in (error.headers or {}).get("Allow", "").split(",")}
        allowed = ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))
        refusal = MethodNotAllowed(f"this route does not take {request.method}; it takes {allowed}")
        return error_response(refusal, shape, {"Allow": allowed})
    return await http_exception_handler(request, error)


async def answer_faults(request: Request, error: Exception) -> JSONResponse:
    """The answer to a body, query or header of the wrong shape."""
    assert isinstance(error, RequestValidationError)
    faults = [_public_fault(fault) for fault in error.errors()[:MAX_FAULTS]]
    shape = shape_of(request.scope)
    return JSONResponse(shape.faults_body(faults), status_code=shape.faults_status)


def _public_fault(fault: Fault) -> Fault:
    """A fault without `input` and `ctx`, which would echo the body and the token in it."""
    shown = {key: fault[key] for key in ("type", "loc", "msg")}
    if fault["type"] == "json_invalid":
        # FastAPI keeps the reason, which quotes nothing of the body, only in `ctx`.
        shown["msg"] = f"{fault['msg']}: {fault['ctx']['error']}"
    return shown


def error_docs(*kinds: type[ServiceError], shape: ErrorShape = CONTRACT) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's `responses` for these errors, by status, with an example of each.

    A route names the errors that its own code raises. `api/openapi.py` adds those that any route may be answered with.
    """
    docs: dict[int | str, dict[str, Any]] = {}
    for kind in kinds:
        content = {"application/json": {"schema": reference_to(shape.model), "examples": {}}}
        entry = docs.setdefault(kind.status, {"description": HTTPStatus(kind.status).phrase, "content": content})
        example = shape.body(describe(kind("one sentence that says why")))
        entry["content"]["application/json"]["examples"][kind.code] = {"value": example}
    return docs
