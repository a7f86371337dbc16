"""What an error looks like on the wire."""

from collections.abc import Mapping
from typing import Any

from fastapi import Request
from fastapi.exception_handlers import http_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

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
    Unauthorized,
    describe,
)
from serve_app.schemas import MAX_FAULTS, ErrorBody

# What a client may do about it, by code.
HEADERS = {
    # About what an edit takes, after which there is room for the next.
    QueueFull.code: {"Retry-After": "10"},
    TooManyRequests.code: {"Retry-After": "2"},
    ServiceUnavailable.code: {"Retry-After": "2"},
    StoreUnavailable.code: {"Retry-After": "2"},
    StorageFailed.code: {"Retry-After": "2"},
    Overloaded.code: {"Retry-After": "5"},
    # The rest of the body is not waited for.
    RequestTooSlow.code: {"Connection": "close"},
    Unauthorized.code: {"WWW-Authenticate": "Bearer"},
}


def error_response(error: Exception, headers: Mapping[str, str] = {}) -> JSONResponse:
    description = describe(error)
    headers = {**HEADERS.get(description.code, {}), **headers}
    return JSONResponse(_body(description), status_code=description.status, headers=headers)


async def answer_http_error(request: Request, error: Exception) -> Response:
    """An error of the router in the contract's shape."""
    assert isinstance(error, HTTPException)
    if error.status_code == NotFound.status:
        return error_response(NotFound("there is no such route; GET /docs lists the routes"))
    if error.status_code == MethodNotAllowed.status:
        methods = {method.strip() for method in (error.headers or {}).get("Allow", "").split(",")}
        allowed = ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))
        refusal = MethodNotAllowed(f"this route does not take {request.method}; it takes {allowed}")
        return error_response(refusal, {"Allow": allowed})
    return await http_exception_handler(request, error)


async def answer_shape_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return JSONResponse({"detail": [_fault(fault) for fault in error.errors()[:MAX_FAULTS]]}, status_code=422)


def _fault(fault: Mapping[str, Any]) -> dict[str, Any]:
    """What a client sees of a fault: not `input` and `ctx`, which would echo the body and the token in it."""
    shown = {key: fault[key] for key in ("type", "loc", "msg")}
    if fault["type"] == "json_invalid":
        # FastAPI keeps the reason, which quotes nothing, in `ctx` alone.
        shown["msg"] = f"{fault['msg']}: {fault['ctx']['error']}"
    return shown


def error_docs(*kinds: type[ServiceError]) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's `responses` for these errors, by status, with an example each."""
    docs: dict[int | str, dict[str, Any]] = {}
    for kind in kinds:
        entry = docs.setdefault(kind.status, {"model": ErrorBody, "content": {"application/json": {"examples": {}}}})
        example = _body(describe(kind("one sentence that says why")))
        entry["content"]["application/json"]["examples"][kind.code] = {"value": example}
    return docs


def _body(description: ErrorDescription) -> dict[str, Any]:
    facts = {"code": description.code, "message": description.message, "details": description.details}
    return {"detail": {"error": facts}}
