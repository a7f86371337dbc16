"""Answers of the service, read. Pure: every function takes an answer that has arrived."""

from __future__ import annotations

import json
from typing import Any, TypeVar

import httpx2
from pydantic import BaseModel, ValidationError

from edits_client import models
from edits_client.errors import (
    ApiError,
    ConnectionFailed,
    EditCanceled,
    EditFailed,
    UnexpectedAnswer,
    ValidationFailed,
)
from edits_client.retries import RETRIED_STATUSES

# The longest piece of an answer that is not ours that an error quotes.
MAX_QUOTED = 200
# The statuses of answers that do not come from the service itself and that may pass. Others stay the same, such as a
# login page or a redirect. Ray Serve answers 404 and 500 in plain text while the application starts.
PASSING_STATUSES = RETRIED_STATUSES | {404, 500}

M = TypeVar("M", bound=BaseModel)


class Incomplete(ConnectionFailed):
    """An answer that broke off, or that did not come from the service itself. The call is made again."""


def json_of(response: httpx2.Response) -> Any:
    """The JSON of an answer. Raises Incomplete if it is none: then it broke off, or a proxy wrote it."""
    try:
        return response.json()
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise Incomplete(f"the answer to {response.request.url.path} is not JSON: {_quoted(response)}") from error


def answer_as(kind: type[M], answer: Any) -> M:
    """The JSON of an answer as a model. Raises UnexpectedAnswer."""
    try:
        return kind.model_validate(answer)
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"])) or "the whole answer"
        raise UnexpectedAnswer(
            f"the answer is not the {kind.__name__} that this version of edits-client expects ({place}: "
            f"{fault['msg']}); update the client, and check the service's URL"
        ) from error


def raise_for_error(response: httpx2.Response) -> None:
    """Raise the ApiError that an answer describes.

    Raises ConnectionFailed if the answer does not come from the service itself, Incomplete if that may pass.
    """
    if response.is_success:
        return
    call_id = response.headers.get("x-request-id")
    try:
        detail = response.json()["detail"]
        if isinstance(detail, list):
            error: ApiError = ValidationFailed("; ".join(map(_fault_text, detail)), details={"faults": detail})
        else:
            facts = detail["error"]
            kind = ApiError.by_code.get(facts["code"], ApiError)
            error = kind(facts["message"], code=facts["code"], details=facts["details"])
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as fault:
        raise _foreign(response) from fault
    error.status, error.call_id = response.status_code, call_id
    raise error


def _foreign(response: httpx2.Response) -> ConnectionFailed:
    """The error for an answer that something else gave in place of the service."""
    is_json = response.headers.get("content-type", "").startswith("application/json")
    passes = response.status_code in (RETRIED_STATUSES if is_json else PASSING_STATUSES)
    target = f", a redirect to {response.headers['location']}" if response.has_redirect_location else ""
    text = f"{response.request.url} was answered {response.status_code}{target}: {_quoted(response)}"
    return Incomplete(text) if passes else ConnectionFailed(text)


def failure_of(record: models.RequestResult) -> ApiError:
    """The error for a request that ended without its images."""
    code, message = record.error_code, record.error or "the request failed"
    if record.status == "canceled":
        code, message = code or EditCanceled.code, record.error or "the request was canceled"
    kind = ApiError.by_code.get(code or "", EditFailed)
    details = record.error_details.model_dump(mode="json") if record.error_details else {}
    return kind(message, code=code or "", details=details, job_id=record.request_id)


def _fault_text(fault: dict[str, Any]) -> str:
    place = ".".join(str(part) for part in fault["loc"] if part != "body")
    return f"{place}: {fault['msg']}" if place else str(fault["msg"])


def _quoted(response: httpx2.Response) -> str:
    return repr(response.text[:MAX_QUOTED])
