"""Whether answers are what the OpenAPI document says: their status, the code of an error, and the body's schema."""

import json
import re
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import jsonschema
from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

JSON, EVENTS = "application/json", "text/event-stream"
Operation = dict[str, Any]
# Answers with these have no body, whatever their headers say.
NO_BODY = (204, 304)


class Document:
    """The OpenAPI document of an application, with validators of what it describes."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self._validators: dict[str, jsonschema.Draft202012Validator] = {}

    @cached_property
    def content(self) -> dict[str, Any]:
        return self._app.openapi()

    @cached_property
    def _paths(self) -> list[tuple[re.Pattern[str], str]]:
        # A path with more fixed parts goes first: /v1/loras before /v1/loras/{path}.
        paths = sorted(self.content["paths"], key=lambda path: (path.count("{") - path.count("/"), -len(path)))
        # A LoRA's path and a training job's name have slashes.
        return [(re.compile(re.sub(r"{(\w+)}", _values, path.replace(".", r"\."))), path) for path in paths]

    def operation(self, method: str, path: str) -> Operation | None:
        """The operation that answers a request, None if there is none."""
        name = "get" if method == "HEAD" else method.lower()
        for pattern, of_path in self._paths:
            if pattern.fullmatch(path) and name in self.content["paths"][of_path]:
                return dict(self.content["paths"][of_path][name])
        return None

    def problems(self, schema: dict[str, Any], value: Any) -> Iterator[str]:
        """What is wrong with a value by a schema of the document."""
        key = json.dumps(schema, sort_keys=True)
        if key not in self._validators:
            # References in a schema are relative to the whole document.
            whole = {**schema, "components": self.content["components"]}
            self._validators[key] = jsonschema.Draft202012Validator(whole)
        for error in self._validators[key].iter_errors(value):
            yield f"{error.json_path}: {error.message[:300]}"

    def problems_of_answer(self, operation: Operation, status: int, media_type: str, body: bytes) -> Iterator[str]:
        """What of an answer the document does not say. The body is not looked at if it is empty."""
        described = operation["responses"].get(str(status))
        if described is None:
            yield f"the status {status} is not listed"
        elif status in NO_BODY:
            return
        elif media_type and media_type not in described.get("content", {}):
            yield f"the media type {media_type} of the status {status} is not listed"
        elif body and media_type == JSON:
            yield from self._problems_of_json(described["content"][JSON], json.loads(body))
        elif media_type == EVENTS:
            for event in events(body.decode()):
                yield from self.problems(data_schema(described["content"][EVENTS], event["event"]), event["data"])

    def _problems_of_json(self, content: dict[str, Any], value: Any) -> Iterator[str]:
        yield from self.problems(content["schema"], value)
        code = code_of(value)
        if code is not None and code not in content.get("examples", {}):
            yield f"the error {code} is not listed"


def _values(parameter: re.Match[str]) -> str:
    return ".+" if parameter[1] in ("path", "name") else "[^/]+"


def code_of(value: Any) -> str | None:
    """The code of an error's body, in any of the shapes that routes have."""
    inner = value.get("detail", value) if isinstance(value, dict) else None
    error = inner.get("error") if isinstance(inner, dict) else None
    return error.get("code") if isinstance(error, dict) else None


def events(text: str) -> Iterator[dict[str, Any]]:
    """The events of a stream, with their data read."""
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
        if "event" in fields:
            yield fields | {"data": json.loads(fields["data"])}


def data_schema(content: dict[str, Any], event: str) -> dict[str, Any]:
    """The schema of the data of an event; none accepts anything of an event that is not listed."""
    for kind in content["itemSchema"]["oneOf"]:
        if kind["properties"]["event"]["const"] == event:
            return dict(kind["properties"]["data"]["contentSchema"])
    return {"not": {}, "description": f"the event {event} is not listed"}


class Conformity:
    """Middleware for tests: fails on an answer that the document does not describe.

    An answer that is cut off is not looked at, and neither are paths and methods without an operation.
    """

    def __init__(self, app: ASGIApp, document: Document) -> None:
        self._app = app
        self._document = document

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        operation = self._document.operation(scope["method"], scope["path"]) if scope["type"] == "http" else None
        if operation is None:
            await self._app(scope, receive, send)
            return
        start: Message = {}
        body = bytearray()
        ended = False

        async def watched(message: Message) -> None:
            nonlocal start, ended
            if message["type"] == "http.response.start":
                start = message
            elif message["type"] == "http.response.body":
                body.extend(message.get("body", b""))
                ended = not message.get("more_body", False)
            await send(message)

        await self._app(scope, receive, watched)
        if ended:
            media_type = Headers(raw=start["headers"]).get("content-type", "").partition(";")[0]
            problems = self._document.problems_of_answer(operation, start["status"], media_type, bytes(body))
            assert not (found := list(problems)), f"{operation['operationId']}: {found}"
