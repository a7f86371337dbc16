"""What must be true of every answer, whatever was sent."""

import json
import logging
from collections.abc import Iterator
from urllib.parse import unquote

from tests.conformity import JSON, Document, code_of
from tests.fuzzing.asgi import Answer, HttpRequest
from tests.fuzzing.recipes import TOKEN

# Errors of the service that a client may see because the service protects itself, with the time to come back.
BACK_PRESSURE = {"OVERLOADED"}
# The logger of attempts that are repeated.
ATTEMPTS = "serve_app.workers.outcomes"


def problems(document: Document, request: HttpRequest, answer: Answer) -> Iterator[str]:
    """What is wrong with an answer."""
    if not answer.status:
        yield "no answer"
        return
    if TOKEN.encode() in answer.body:
        yield "the answer repeats a token"
    if answer.status == 429 and "retry-after" not in answer.headers:
        yield "429 without Retry-After"
    code = _code(answer)
    if answer.status >= 500 and not (code in BACK_PRESSURE and "retry-after" in answer.headers):
        yield f"an error of the service: {answer.status} {code}"
    # Methods are written in capitals: RFC 9110, 9.1.
    operation = document.operation(request.method, unquote(request.path)) if request.method.isupper() else None
    if operation is not None and answer.ended:
        body = b"" if request.method == "HEAD" else bytes(answer.body)
        yield from document.problems_of_answer(operation, answer.status, answer.media_type, body)


def _code(answer: Answer) -> str | None:
    # A client that left has a part of the body only.
    is_complete = answer.media_type == JSON and answer.ended and answer.body
    return code_of(json.loads(answer.body)) if is_complete else None


class LoggedErrors(logging.Handler):
    """Collects what the service logs as an error, and every exception that something logs.

    Errors of tasks that nobody waited for are among them: asyncio logs these.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        # The stand-in editors make the same file for all. If one request is purged while another ends, the other's
        # attempt is repeated, and its log says so.
        is_repeated = record.name == ATTEMPTS and record.levelno == logging.WARNING
        if record.levelno >= logging.ERROR or (record.exc_info and not is_repeated):
            self.found.append(logging.Formatter().format(record)[-1_500:])

    def __enter__(self) -> "LoggedErrors":
        logging.getLogger().addHandler(self)
        return self

    def __exit__(self, *error: object) -> None:
        logging.getLogger().removeHandler(self)
