"""The OpenAPI document is complete: clients can be generated from it, and people can read it instead of the code.

Each test names the operations and fields that are not as they should be. That answers are what the document says is
checked in every test over HTTP: see `tests/conformity.py`.
"""

import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from pydantic import BaseModel

from serve_app import errors
from serve_app.api.openapi import TAGS
from serve_app.errors import ServiceError
from serve_app.intake.answers.events import Event
from serve_app.schemas.documented import Record
from serve_app.schemas.events import EVENT_DATA
from serve_app.schemas.openai import StreamedImage
from serve_app.schemas.text import Nullable
from serve_app.tasks import WebhookEvent
from tests.conformity import EVENTS, JSON
from tests.unit.conftest import SHARES_AN_APPLICATION
from tests.unit.test_errors import every_error
from tools.openapi import openapi_document

pytestmark = SHARES_AN_APPLICATION

SNAKE_CASE = re.compile("[a-z]+(_[a-z]+)*")
MAX_OPERATION_ID = 24
# Fields that are any JSON by their nature.
OPEN_FIELDS = {"ErrorFacts.details", "Outputs.videos"}
# Errors that stop a command, or that only parts of the service tell each other: no operation is answered with them.
NEVER_ANSWERED = {
    "CHECKPOINT_REFUSED",
    "CONFIG_REFUSED",
    "EDIT_CANCELED",
    "FETCH_FAILED",
    "FRONT_FAILED",
    "KEYS_REFUSED",
    "START_FAILED",
    "STORAGE_REFUSED",
    # Answers to paths and methods that no operation has.
    "METHOD_NOT_ALLOWED",
    "NOT_FOUND",
}

Json = dict[str, Any]


@pytest.fixture(scope="module")
def document() -> Json:
    return openapi_document()


def operations(document: Json) -> Iterator[tuple[str, Json]]:
    """Each operation of the service, by its name for people."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def parameters(document: Json) -> Iterator[tuple[str, Json]]:
    for name, operation in operations(document):
        for parameter in operation.get("parameters", []):
            yield f"{name}: {parameter['in']} {parameter['name']}", parameter


def fields(document: Json) -> Iterator[tuple[str, Json]]:
    """Each field of each body, as `Body.field`."""
    for body, schema in document["components"]["schemas"].items():
        for field, described in schema.get("properties", {}).items():
            yield f"{body}.{field}", described


def alternatives(schema: Json) -> list[Json]:
    """What a value may be, apart from null."""
    found = schema.get("anyOf", schema.get("oneOf", [schema]))
    return [choice for choice in found if choice.get("type") != "null"]


def body_of(document: Json, reference: Json) -> Json:
    return document["components"]["schemas"][reference["$ref"].rpartition("/")[2]]


def parts(node: Any, place: str = "#") -> Iterator[tuple[str, Json]]:
    """Each object of the document that is not part of an example, and where it stands."""
    if isinstance(node, list):
        for index, inner in enumerate(node):
            yield from parts(inner, f"{place}/{index}")
    elif isinstance(node, dict):
        yield place, node
        for key, inner in node.items():
            if key not in ("examples", "example"):
                yield from parts(inner, f"{place}/{key}")


def examples(document: Json) -> Iterator[tuple[str, Json, Any]]:
    """Each example: where it stands, its schema, and itself."""
    for place, node in parts(document):
        # Media types and parameters have a schema next to their examples; a schema has examples of itself.
        schema = node.get("schema", node)
        given = node.get("examples", [])
        if isinstance(given, dict):
            given = [example["value"] for example in given.values()]
        for example in [*given, *([node["example"]] if "example" in node else [])]:
            yield place, schema, example


def test_every_operation_has_a_short_name_of_its_own(document):
    names = {place: operation["operationId"] for place, operation in operations(document)}
    wrong = {
        place: name
        for place, name in names.items()
        if not SNAKE_CASE.fullmatch(name) or len(name) > MAX_OPERATION_ID or list(names.values()).count(name) > 1
    }
    assert wrong == {}


def test_the_names_that_clients_use_stay(document):
    names = {operation["operationId"] for _, operation in operations(document)}
    assert names >= {
        *("submit", "explain", "get_status", "get_result", "get_image", "cancel", "delete", "events", "history"),
        *("usage", "models", "loras", "lora", "health", "ready"),
    }


def test_every_operation_says_what_it_does(document):
    silent = [place for place, operation in operations(document) if not operation.get("description")]
    assert silent == []
    assert {tag for _, operation in operations(document) for tag in operation["tags"]} <= set(TAGS)


def test_every_parameter_has_a_description(document):
    assert [place for place, parameter in parameters(document) if not parameter.get("description")] == []


def test_every_body_and_every_field_has_a_description(document):
    bodies = document["components"]["schemas"]
    # The values of an enum are described where it is used.
    assert [name for name, schema in bodies.items() if "enum" not in schema and not schema.get("description")] == []
    silent = []
    for place, field in fields(document):
        described = field.get("description") or ("$ref" in field and body_of(document, field).get("description"))
        if not described:
            silent.append(place)
    assert silent == []


def test_every_number_that_a_client_sends_has_a_range(document):
    numbers = [(place, field) for place, field in fields(document) if place.partition(".")[0] in names_of(Nullable)]
    numbers += [(place, parameter["schema"]) for place, parameter in parameters(document)]
    without = [
        place
        for place, schema in numbers
        for choice in alternatives(schema)
        if choice.get("type") in ("integer", "number")
        and not ({"minimum", "exclusiveMinimum"} & choice.keys() and {"maximum", "exclusiveMaximum"} & choice.keys())
    ]
    # An image has no largest number.
    assert [place for place in without if not place.endswith("path n")] == []


def test_the_bounds_of_large_numbers_are_exact(document):
    [seed] = alternatives(document["components"]["schemas"]["Prompt"]["properties"]["seed"])
    assert (seed["minimum"], seed["maximum"]) == (-1, 2**63 - 1)
    assert all(isinstance(bound, int) for bound in (seed["minimum"], seed["maximum"]))


def test_every_default_of_a_request_is_stated_and_none_is_of_the_whole_field(document):
    """Generated clients send a default of the whole field, which would win over a preset's value."""
    wrong = []
    sent = [kind for kind in every_model(Nullable) if kind.__name__ in document["components"]["schemas"]]
    assert len(sent) >= 3
    for kind in sent:
        for name, field in kind.model_fields.items():
            schema = document["components"]["schemas"][kind.__name__]["properties"][name]
            text = schema.get("description", "")
            states = "Default: " in text or "Required " in text
            if "default" in schema or (not field.is_required() and field.default is not None and not states):
                wrong.append(f"{kind.__name__}.{name}")
    assert wrong == []


def test_every_field_of_an_answer_is_always_there(document):
    """Generated clients need not ask whether a field was sent. Records of other versions may lack fields."""
    optional = []
    for body, schema in document["components"]["schemas"].items():
        if body not in names_of(Record) | names_of(Nullable):
            missing = schema.get("properties", {}).keys() - set(schema.get("required", ()))
            optional += [f"{body}.{field}" for field in missing]
    assert optional == []


def every_model(kind: type[BaseModel]) -> list[type[BaseModel]]:
    return [kind] + [found for child in kind.__subclasses__() for found in every_model(child)]


def names_of(kind: type[BaseModel]) -> set[str]:
    return {model.__name__ for model in every_model(kind)}


def test_every_moment_is_a_date_time(document):
    moments = [(place, field) for place, field in fields(document) if place.endswith(("_at", ".timestamp"))]
    # OpenAI's API counts seconds.
    moments = [(place, field) for place, field in moments if place.partition(".")[0] not in names_of(StreamedImage)]
    assert len(moments) > 8
    plain = [place for place, field in moments for choice in alternatives(field) if choice.get("format") != "date-time"]
    assert plain == []


def test_every_object_has_typed_fields(document):
    def is_open(schema: Json) -> bool:
        """Whether the schema, or that of its items, accepts objects of any fields."""
        if "items" in schema:
            return is_open(schema["items"])
        accepts_all = schema.get("type") == "object" and schema.get("additionalProperties") is True
        return (accepts_all and "properties" not in schema) or not schema.keys() - {"title", "description"}

    found = {place for place, field in fields(document) for choice in alternatives(field) if is_open(choice)}
    assert found == OPEN_FIELDS


def test_unions_have_no_texts_next_to_enums(document):
    """Generated clients read only the first kind of such a union."""
    mixed = []
    for place, field in fields(document):
        kinds = [body_of(document, choice) if "$ref" in choice else choice for choice in alternatives(field)]
        if len(kinds) > 1 and any("enum" in kind or "const" in kind for kind in kinds):
            mixed.append(place)
    assert mixed == []


def test_every_reference_has_its_body_and_every_body_is_referred_to(document):
    named = {node["$ref"].removeprefix("#/components/schemas/") for _, node in parts(document) if "$ref" in node}
    assert named == document["components"]["schemas"].keys()


def test_examples_are_valid_by_their_own_schema(document):
    found = list(examples(document))
    assert len(found) > 50
    problems = []
    for place, schema, example in found:
        # References in a schema are relative to the whole document.
        validator = jsonschema.Draft202012Validator({**schema, "components": document["components"]})
        problems += [f"{place}: {error.json_path}: {error.message}" for error in validator.iter_errors(example)]
    assert problems == []


def test_examples_that_clients_copy_are_there(document):
    places = {place for place, _, _ in examples(document)}
    for name in (
        "InferenceRequest",
        "Submitted",
        "RequestStatus",
        "RequestResult",
        "ModelInfo",
        "LoraInfo",
        "Readiness",
        "ShapeErrors",
    ):
        assert f"#/components/schemas/{name}" in places


def test_every_error_that_a_client_can_get_is_listed_by_an_operation(document):
    listed = {
        code
        for _, operation in operations(document)
        for response in operation["responses"].values()
        for code in response.get("content", {}).get(JSON, {}).get("examples", {})
    }
    raised = {kind.code for kind in every_error()}
    assert raised - listed == NEVER_ANSWERED
    assert listed <= raised


def test_every_operation_lists_what_may_happen_on_the_way(document):
    def codes(operation: Json, status: int) -> set[str]:
        content = operation["responses"].get(str(status), {}).get("content", {})
        return set(content.get(JSON, {}).get("examples", {}))

    missing = []
    for place, operation in operations(document):
        on_the_way: list[type[ServiceError]] = [errors.ServiceUnavailable, errors.NoAnswer, ServiceError]
        on_the_way += [errors.TooManyRequests, errors.HeadersTooLarge, errors.RequestTooSlow]
        if place not in ("GET /health", "GET /ready"):
            on_the_way += [errors.HostNotAllowed, errors.Unauthorized]
        if place.startswith("POST"):
            on_the_way += [errors.BodyTooLarge, errors.Overloaded]
        missing += [f"{place}: {kind.code}" for kind in on_the_way if kind.code not in codes(operation, kind.status)]
    assert missing == []


def test_every_event_of_a_stream_has_its_schema(document):
    [operation] = [operation for _, operation in operations(document) if operation["operationId"] == "events"]
    stream = operation["responses"]["200"]["content"][EVENTS]
    described = [kind["properties"]["event"]["const"] for kind in stream["itemSchema"]["oneOf"]]
    assert described == list(EVENT_DATA)
    assert set(described) == set(Event)


def test_every_webhook_has_its_schema(document):
    bodies = [
        body_of(document, webhook["post"]["requestBody"]["content"][JSON]["schema"])
        for webhook in document["webhooks"].values()
    ]
    types = [body["properties"]["type"] for body in bodies]
    named = {name for kind in types for name in kind.get("enum", [kind.get("const")])}
    assert named == {f"request.{event}" for event in WebhookEvent}
