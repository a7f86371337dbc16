"""What an error looks like on the wire."""

import logging
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from serve_app import tracing
from serve_app.errors import (
    ErrorDescription,
    QueueFull,
    RequestError,
    ServiceUnavailable,
    StorageFailed,
    StoreUnavailable,
    TooManyRequests,
    Unauthorized,
    describe,
)
from serve_app.schemas import ErrorBody

logger = logging.getLogger(__name__)

# What a client may do about it, by code.
HEADERS = {
    # About what an edit takes, after which there is room for the next.
    QueueFull.code: {"Retry-After": "10"},
    TooManyRequests.code: {"Retry-After": "2"},
    ServiceUnavailable.code: {"Retry-After": "2"},
    StoreUnavailable.code: {"Retry-After": "2"},
    StorageFailed.code: {"Retry-After": "2"},
    Unauthorized.code: {"WWW-Authenticate": "Bearer"},
}


def error_response(error: Exception) -> JSONResponse:
    description = describe(error)
    return JSONResponse(_body(description), status_code=description.status, headers=HEADERS.get(description.code))


async def answer_error(request: Request, error: Exception) -> JSONResponse:
    response = error_response(error)
    if response.status_code >= 500:
        # What nobody foresaw gets here from outside of all middleware.
        with tracing.about_http(request.url.path, request.headers):
            logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return response


async def answer_shape_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    # Without `input` and `ctx`, which would echo the body and the token in it.
    faults = [{key: fault[key] for key in ("type", "loc", "msg")} for fault in error.errors()]
    return JSONResponse({"detail": faults}, status_code=422)


def error_docs(*kinds: type[RequestError]) -> dict[int | str, dict[str, Any]]:
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
