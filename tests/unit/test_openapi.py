"""Every example in the OpenAPI document is valid by the schema that it stands next to."""

from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest


def examples(node: Any, place: str = "#") -> Iterator[tuple[str, dict[str, Any], Any]]:
    """Each example below a node of the document: where it stands, its schema, and itself."""
    if isinstance(node, list):
        for index, inner in enumerate(node):
            yield from examples(inner, f"{place}/{index}")
        return
    if not isinstance(node, dict):
        return
    # Media types and parameters have a schema next to their examples; a schema has examples of itself.
    schema = node.get("schema", node)
    given = node.get("examples", [])
    if isinstance(given, dict):
        given = [example["value"] for example in given.values()]
    for example in [*given, *([node["example"]] if "example" in node else [])]:
        yield place, schema, example
    for key, inner in node.items():
        if key not in ("examples", "example"):
            yield from examples(inner, f"{place}/{key}")


@pytest.fixture
def document(client) -> dict[str, Any]:
    return client.get("/openapi.json").json()


def test_examples_are_valid_by_their_own_schema(document):
    found = list(examples(document))
    assert len(found) > 50
    for place, schema, example in found:
        # References in a schema are relative to the whole document.
        validator = jsonschema.Draft202012Validator({**schema, "components": document["components"]})
        problems = [f"{place}: {error.json_path}: {error.message}" for error in validator.iter_errors(example)]
        assert not problems


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
    ):
        assert f"#/components/schemas/{name}" in places
