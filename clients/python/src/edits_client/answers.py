"""Answers of the service, read. Pure: every function takes an answer that has arrived."""

from __future__ import annotations

import json
from typing import Any

import httpx2

from edits_client import models
from edits_client.errors import ApiError, ConnectionFailed, EditCanceled, EditFailed, ValidationFailed

# The longest piece of an answer that is not ours that an error quotes.
MAX_QUOTED = 200


class Incomplete(ConnectionFailed):
    """An answer that broke off, or that did not come from the service itself. The call is made again."""


def json_of(response: httpx2.Response) -> Any:
    """The JSON of an answer. Raises Incomplete if it is none: then it broke off, or a proxy wrote it."""
    try:
        return response.json()
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise Incomplete(f"the answer to {response.request.url.path} is not JSON: {_quoted(response)}") from error


def raise_for_error(response: httpx2.Response) -> None:
    """Raise the ApiError that an answer describes; Incomplete if it does not come from the service itself."""
    if response.is_success:
        return
    try:
        detail = response.json()["detail"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise Incomplete(
            f"{response.request.url.path} was answered {response.status_code}: {_quoted(response)}"
        ) from error
    call_id = response.headers.get("x-request-id")
    if isinstance(detail, list):
        raise ValidationFailed(
            "; ".join(map(_fault_text, detail)),
            details={"faults": detail},
            status=response.status_code,
            call_id=call_id,
        )
    facts = detail["error"]
    kind = ApiError.by_code.get(facts["code"], ApiError)
    raise kind(
        facts["message"], code=facts["code"], details=facts["details"], status=response.status_code, call_id=call_id
    )


def failure_of(record: models.RequestResult) -> ApiError:
    """The error for a request that ended without its images."""
    code, message = record.error_code, record.error or "the request failed"
    if record.status == "canceled":
        code, message = code or EditCanceled.code, record.error or "the request was cancelled"
    kind = ApiError.by_code.get(code or "", EditFailed)
    details = record.error_details.model_dump(mode="json") if record.error_details else {}
    return kind(message, code=code or "", details=details, job_id=record.request_id)


def _fault_text(fault: dict[str, Any]) -> str:
    place = ".".join(str(part) for part in fault["loc"] if part != "body")
    return f"{place}: {fault['msg']}" if place else str(fault["msg"])


def _quoted(response: httpx2.Response) -> str:
    return repr(response.text[:MAX_QUOTED])
