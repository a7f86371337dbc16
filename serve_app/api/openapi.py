"""The OpenAPI document: what FastAPI derives from the routes, completed so that clients can be generated from it.

For every route, this adds the errors of the HTTP front and of the middleware, which no route has to name. The bodies
are replaced by what their models say, because FastAPI's copies lose nulls and round large numbers.
"""

from collections.abc import Iterable, Iterator
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from serve_app import errors, schemas
from serve_app.api.access import PROBES, PUBLIC_PATHS
from serve_app.api.bodies.limits import METHODS_WITH_BODY
from serve_app.api.error_answers import error_docs
from serve_app.api.error_shapes import CONTRACT, ErrorShape
from serve_app.schemas import events, sweeps
from serve_app.schemas.documented import REFERENCES, event_stream, reference_to

JsonObject = dict[str, Any]

# The modules whose models are bodies: all of `schemas`.
BODIES: tuple[ModuleType, ...] = tuple(
    import_module(f"{schemas.__name__}.{module.name}") for module in iter_modules(schemas.__path__)
)
TAGS = {
    "inference": "Submit requests.",
    "requests": "Follow, cancel and list requests, and download their images.",
    "sweeps": "Grids of requests: checkpoints, strengths, prompts, seeds; a contact sheet and a table of them.",
    "openai": "OpenAI's images API, for clients that speak it.",
    "uploads": "Send control images once, for many requests.",
    "models": "What requests can name.",
    "training": "Training jobs of ai-toolkit, and their previews made again.",
    "calibrations": "How far the images of each tier are from the exact ones.",
    "operation": "Probes, and how the service is doing.",
    "webhooks": "What the service posts to a request's `webhook_url`.",
}
# Any request may be answered with these: by the HTTP front, or by a fault of the service.
ERRORS_OF_ALL = (
    errors.RequestTooSlow,
    errors.TooManyRequests,
    errors.HeadersTooLarge,
    errors.ServiceError,
    errors.ServiceUnavailable,
    errors.NoAnswer,
)
ERRORS_OF_BODIES = (errors.BodyTooLarge, errors.RequestTooSlow, errors.Overloaded)
EVENT_STREAM = "text/event-stream"
# What `TraceRequest` reads. It is of use where work begins. Without an optional parameter, openapi-python-client 0.29
# generates modules that cannot be imported for operations with two types of bodies.
TRACEPARENT = {
    "name": "traceparent",
    "in": "header",
    "required": False,
    "schema": {"type": "string"},
    "description": "The client's span (W3C Trace Context), whose trace this request joins.",
}
# The routes that stream events, with the data of each kind.
EVENT_ROUTES = {"events": events.EVENT_DATA, "sweep_events": sweeps.SWEEP_EVENT_DATA}


class Application(FastAPI):
    """FastAPI with the completed document."""

    def openapi(self) -> JsonObject:
        if self.openapi_schema is None:
            document = super().openapi()
            shapes = set()
            for route in self.routes_in_document():
                shapes.add(shape := _shape_of(route))
                for method in route.methods or ():
                    _complete(document["paths"][route.path_format][method.lower()], route, method, shape)
            document["webhooks"] = {name: {"post": _webhook(name, kind)} for name, kind in events.WEBHOOKS.items()}
            document["components"]["schemas"] = _bodies_of(document, shapes)
            _drop_titles(document)
        return self.openapi_schema or {}

    def routes_in_document(self) -> Iterator[APIRoute]:
        for route in self.routes:
            if isinstance(route, APIRoute) and route.include_in_schema:
                yield route


def errors_on_the_way(route: APIRoute, method: str) -> Iterator[type[errors.ServiceError]]:
    """The errors that a request can meet before or after its route, whatever the route does."""
    yield from ERRORS_OF_ALL
    if route.path not in PROBES:
        yield errors.HostNotAllowed
    if route.path not in PUBLIC_PATHS:
        yield errors.Unauthorized
        yield errors.InsufficientScope
        yield errors.RateLimited
    if method in METHODS_WITH_BODY:
        yield from ERRORS_OF_BODIES


def _shape_of(route: APIRoute) -> ErrorShape:
    shape: ErrorShape = getattr(route, "error_shape", CONTRACT)
    return shape


def _complete(operation: JsonObject, route: APIRoute, method: str, shape: ErrorShape) -> None:
    """Complete the document of one operation."""
    # The name of the route's function: clients that are generated from the document call it so.
    operation["operationId"] = route.operation_id or route.name
    if "requestBody" in operation:
        operation.setdefault("parameters", []).append(TRACEPARENT)
    responses = operation["responses"]
    _restore_nulls(responses, shape)
    _describe_faults(responses, shape)
    for status, docs in error_docs(*errors_on_the_way(route, method), shape=shape).items():
        _merge(responses.setdefault(str(status), {}), docs)
    if route.name in EVENT_ROUTES:
        responses["200"]["content"] = {EVENT_STREAM: event_stream(EVENT_ROUTES[route.name])}
    operation["responses"] = {status: responses[status] for status in sorted(responses)}


def _restore_nulls(responses: JsonObject, shape: ErrorShape) -> None:
    """Give the examples of errors the nulls that FastAPI has dropped from them."""
    for response in responses.values():
        for example in response.get("content", {}).get("application/json", {}).get("examples", {}).values():
            example["value"] = shape.model.model_validate(example["value"]).model_dump()


def _describe_faults(responses: JsonObject, shape: ErrorShape) -> None:
    """Replace what FastAPI says about requests of the wrong shape, where it says something."""
    fastapis = {"schema": {"$ref": REFERENCES.format(model="HTTPValidationError")}}
    if responses.get("422", {}).get("content") != {"application/json": fastapis}:
        return
    del responses["422"]
    content = {"application/json": {"schema": reference_to(shape.faults_model or shape.model)}}
    docs = {"description": "The request has the wrong shape", "content": content}
    _merge(responses.setdefault(str(shape.faults_status), {}), docs)


def _webhook(name: str, kind: type[BaseModel]) -> JsonObject:
    """The document of a webhook, which the service posts and a receiver answers."""
    return {
        "tags": ["webhooks"],
        "operationId": name,
        "summary": kind.__doc__,
        "description": "Posted to a request's `webhook_url`, signed as Standard Webhooks specify.",
        "requestBody": {"required": True, "content": {"application/json": {"schema": reference_to(kind)}}},
        "responses": {"2XX": {"description": "Received; any other answer makes the service try again later"}},
    }


def _merge(response: JsonObject, docs: JsonObject) -> None:
    """Add what `docs` say to what is known of the answers with one status."""
    response.setdefault("description", docs["description"])
    for media_type, added in docs["content"].items():
        content = response.setdefault("content", {}).setdefault(media_type, {})
        content["schema"] = _either(content.get("schema"), added["schema"])
        if "examples" in added:
            content["examples"] = content.get("examples", {}) | added["examples"]


def _either(one: JsonObject | None, other: JsonObject) -> JsonObject:
    """The schema of a body that is one or the other."""
    if one is None or one == other:
        return other
    return {"anyOf": [one, other]}


def _bodies_of(document: JsonObject, shapes: Iterable[ErrorShape]) -> JsonObject:
    """The schema of each body that the document refers to, by name."""
    models = [kind for module in BODIES for kind in vars(module).values() if _is_body(kind)]
    models += [model for shape in shapes for model in (shape.model, shape.faults_model) if model]
    _, found = models_json_schema([(model, "validation") for model in models], ref_template=REFERENCES)
    known = document["components"]["schemas"] | found["$defs"]
    needed: JsonObject = {}
    missing = list(_references([document["paths"], document["webhooks"]]))
    while missing:
        name = missing.pop()
        if name not in needed:
            needed[name] = known[name]
            missing += _references(known[name])
    return dict(sorted(needed.items()))


def _drop_titles(document: JsonObject) -> None:
    """Remove the titles of fields, parameters and answers, which say nothing that the names do not say."""
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    parameters = (parameter["schema"] for operation in operations for parameter in operation.get("parameters", ()))
    answers = (
        content["schema"]
        for operation in operations
        for answer in operation["responses"].values()
        for content in answer.get("content", {}).values()
    )
    bodies = document["components"]["schemas"].values()
    fields = (field for body in bodies for field in body.get("properties", {}).values())
    for described in (*parameters, *answers, *fields):
        described.pop("title", None)


def _is_body(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel) and kind is not BaseModel


def _references(node: Any) -> Iterator[str]:
    """The names of the bodies that a part of the document refers to."""
    if isinstance(node, dict):
        if "$ref" in node:
            yield node["$ref"].rpartition("/")[2]
        node = node.values()
    if isinstance(node, Iterable) and not isinstance(node, str):
        for inner in node:
            yield from _references(inner)
