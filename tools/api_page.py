"""The page of the HTTP API: the application's OpenAPI document as Markdown."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

JsonObject = Mapping[str, Any]
# Statuses and codes.
Errors = frozenset[tuple[str, str]]

HEAD = """# API

This page is made from the application's own OpenAPI document, [`openapi.json`](openapi.json). A running service has
the same document at `/openapi.json` and interactive docs at `/docs`. [HTTP](http.md) describes what all routes share:
keys, limits of bodies, CORS, caching and the shape of errors. [Clients](how-to/clients.md#generated-clients) can be
generated from the document.
"""

KIND_OF_SCHEMA = {"integer": "integer", "number": "number", "string": "text", "boolean": "true or false"}
BOUNDS = {"minimum": "≥", "maximum": "≤", "exclusiveMinimum": ">", "exclusiveMaximum": "<"}


def api_page(document: JsonObject) -> str:
    """The page, with a section for each route and for each body."""
    everywhere = _errors_of_all(document)
    answers = ", ".join(f"{status} `{code}`" for status, code in sorted(everywhere))
    lines = [HEAD, "## Routes\n", f"Any route may be answered with {answers}; these are not repeated below.\n"]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            lines += _route(method, path, operation, everywhere)
    lines.append("## Webhooks\n")
    for webhook in document.get("webhooks", {}).values():
        lines += _webhook(webhook["post"])
    lines.append("## Bodies\n")
    for name, schema in sorted(document["components"]["schemas"].items()):
        lines += _body(name, schema)
    return "\n".join(lines)


def _errors_of_all(document: JsonObject) -> Errors:
    """The errors, by status and code, that every operation lists."""
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    listed = [
        {(status, code) for status, response in operation["responses"].items() for code in _codes(response)}
        for operation in operations
    ]
    return frozenset.intersection(*map(frozenset, listed))


def _codes(response: JsonObject) -> list[str]:
    return [code for content in response.get("content", {}).values() for code in content.get("examples", {})]


def _has_other_body(response: JsonObject) -> bool:
    return any("anyOf" in content.get("schema", {}) for content in response.get("content", {}).values())


def _webhook(operation: JsonObject) -> Iterator[str]:
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    yield f"### {operation['operationId']}\n"
    yield f"{operation['summary']} {operation['description']}\n"
    yield f"Body: {_type(schema)}\n"


def _route(method: str, path: str, operation: JsonObject, everywhere: Errors) -> Iterator[str]:
    yield f"### {method.upper()} {path}\n"
    yield operation.get("description", "") + "\n"
    if "security" not in operation:
        yield "Needs no key.\n"
    parameters = operation.get("parameters", [])
    if parameters:
        yield "| parameter | in | type | default | meaning |\n|---|---|---|---|---|"
        for parameter in parameters:
            yield _parameter(parameter)
        yield ""
    if "requestBody" in operation:
        yield from _request_body(operation["requestBody"]["content"])
    yield "| answer | body | codes |\n|---|---|---|"
    for status, response in sorted(operation["responses"].items()):
        listed = _codes(response)
        codes = [code for code in listed if (status, code) not in everywhere]
        # Left out: what has only errors that every route has, and no other body.
        if codes or not listed or _has_other_body(response):
            yield _answer(status, response, codes)
    yield ""


def _request_body(content: JsonObject) -> Iterator[str]:
    yield "| format of the body | content |\n|---|---|"
    for media_type, described in content.items():
        schema = described["schema"]
        parts = [f"part `{name}`: {_type(part)}" for name, part in schema.get("properties", {}).items()]
        if "additionalProperties" in schema:
            parts.append(f"any other part: {_type(schema['additionalProperties'])}")
        yield _row((f"`{media_type}`", "; ".join(parts) or _type(schema)))
    yield ""


def _parameter(parameter: JsonObject) -> str:
    schema = parameter["schema"]
    meaning = parameter.get("description", schema.get("description", ""))
    cells = (f"`{parameter['name']}`", parameter["in"], _type(schema), _default(schema, parameter["required"]), meaning)
    return _row(cells)


def _answer(status: str, response: JsonObject, codes: list[str]) -> str:
    bodies = []
    for media_type, content in response.get("content", {}).items():
        if media_type != "application/json":
            bodies.append(f"`{media_type}`")
        elif content.get("schema"):
            bodies.append(_type(content["schema"]))
    if not bodies:
        bodies.append(response["description"])
    return _row((status, ", ".join(bodies), ", ".join(f"`{code}`" for code in codes)))


def _body(name: str, schema: JsonObject) -> Iterator[str]:
    yield f"### {name}\n"
    if "description" in schema:
        yield schema["description"] + "\n"
    if "enum" in schema:
        yield "One of " + ", ".join(f"`{value}`" for value in schema["enum"]) + ".\n"
    if "properties" in schema:
        required = schema.get("required", [])
        yield "| field | type | default | meaning |\n|---|---|---|---|"
        for field, inner in schema["properties"].items():
            default = _default(inner, field in required)
            yield _row((f"`{field}`", _type(inner), default, inner.get("description", "")))
        yield ""
    for example in schema.get("examples", []):
        yield f"```json\n{json.dumps(example, indent=2)}\n```\n"


def _type(schema: JsonObject) -> str:
    """A schema in a few words; a body by its name, as a link to its section."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    choices = schema.get("anyOf", schema.get("allOf"))
    if choices:
        return " or ".join(_type(choice) for choice in choices)
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    kind = schema.get("type")
    if kind == "array":
        return f"list of {_type(schema.get('items', {}))}"
    if kind == "null":
        return "null"
    if schema.get("format") == "binary":
        return "a file"
    words = [KIND_OF_SCHEMA.get(str(kind), "object" if kind == "object" else "anything")]
    words += [f"{sign} {schema[key]:,}" for key, sign in BOUNDS.items() if key in schema]
    if "maxLength" in schema:
        words.append(f"at most {schema['maxLength']:,} characters")
    return ", ".join(words)


def _default(schema: JsonObject, required: bool) -> str:
    if required:
        return "required"
    # The default of an optional field is that of the alternative which is not null.
    defaults = [choice["default"] for choice in (schema, *schema.get("anyOf", ())) if "default" in choice]
    return f"`{json.dumps(defaults[0])}`" if defaults else ""


def _row(cells: tuple[str, ...]) -> str:
    texts = (cell.replace("|", "\\|").replace("\n", " ") for cell in cells)
    return "| " + " | ".join(texts) + " |"
