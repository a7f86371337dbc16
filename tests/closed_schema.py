"""Compares values with models that accept more fields than they describe: every field has to be described."""

from typing import Any

import jsonschema
from pydantic import BaseModel


def problems(model: type[BaseModel], value: Any) -> list[str]:
    """What is wrong with a value by the model, and the fields that the model does not describe."""
    validator = jsonschema.Draft202012Validator(_closed(model.model_json_schema()))
    return [f"{error.json_path}: {error.message[:300]}" for error in validator.iter_errors(value)]


def _closed(node: Any) -> Any:
    """A schema in which objects with described fields have no others. Bodies of requests may have any."""
    if isinstance(node, list):
        return [_closed(inner) for inner in node]
    if not isinstance(node, dict):
        return node
    closed = {key: _closed(inner) for key, inner in node.items()}
    if isinstance(node.get("properties"), dict):
        closed["additionalProperties"] = False
    return closed
