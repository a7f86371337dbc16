"""How bodies describe themselves in the OpenAPI document, so that clients generated from it have exact types."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidatorFunctionWrapHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

# What a reference to a body looks like in the document.
REFERENCES = "#/components/schemas/{model}"


def reference_to(model: type[BaseModel]) -> dict[str, str]:
    """The schema that stands for a body."""
    return {"$ref": REFERENCES.format(model=model.__name__)}


def event_stream(data: Mapping[str, type[BaseModel]]) -> dict[str, Any]:
    """The media type of a stream of events: one schema for each kind of event, of the fields of a server-sent event.

    `data` is the body of each event's data, by the event's name.
    """
    kinds = []
    for event, body in data.items():
        content = {"type": "string", "contentMediaType": "application/json", "contentSchema": reference_to(body)}
        fields = {"event": {"const": event}, "data": content, "id": {"type": "string"}}
        kinds.append({"type": "object", "required": ["event", "data"], "properties": fields})
    return {"schema": {"type": "string"}, "itemSchema": {"oneOf": kinds}}


class Answer(BaseModel):
    """A body that the service sends, or a part of one. Every field is always there, also one that has a default."""

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        found = handler(schema)
        described = handler.resolve_ref_schema(found)
        described["required"] = list(described["properties"])
        for field in described["properties"].values():
            # A default says what happens to a field that is not sent.
            field.pop("default", None)
        return found


class Record(BaseModel):
    """JSON that was written at another time than it is read: another version may have other fields.

    A Record describes such JSON and is not used to read it (`DescribedBy`): what an old version stored is sent to
    clients as it is. `Field(default_factory=absent)` marks a field that may be absent.
    """

    model_config = ConfigDict(extra="allow")


def absent() -> Any:
    """The value of a field of a Record that is not there."""
    return None


@dataclass(frozen=True)
class DescribedBy:
    """Describes a value by a model that does not validate it: `Annotated[dict[str, Any], DescribedBy(Metadata)]`."""

    model: type[BaseModel]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_wrap_validator_function(
            _unchanged,
            handler.generate_schema(self.model),
            serialization=core_schema.plain_serializer_function_ser_schema(_as_it_is),
        )


def _unchanged(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    return value


def _as_it_is(value: Any) -> Any:
    return value


def with_optional_fields(schema: dict[str, Any]) -> None:
    """For `json_schema_extra`: every field may be absent."""
    schema.pop("required", None)
