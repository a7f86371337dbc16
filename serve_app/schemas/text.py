"""Which text clients may send: the rules for every string of a body, a query or a header.

Every text is eventually stored, echoed or read by the tokenizer, and all of these need UTF-8.
"""

import json
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field, GetJsonSchemaHandler, SecretStr, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

# Characters of names (of a model, a sampler, a token), and of paths and URLs. Signed URLs have about 2,000.
MAX_NAME_CHARS, MAX_URL_CHARS = 1_000, 8_000


def is_text(text: str) -> bool:
    """Whether UTF-8 can encode `text`. JSON may contain half of a surrogate pair, as of an emoji cut in two."""
    try:
        # Long texts are mostly base64, and `isascii` takes no time: Python stores whether a string is ASCII.
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def escaped(text: str, most: int) -> str:
    """At most `most` characters of an untrusted text, in a form that UTF-8 and every database accept."""
    whole = text if is_text(text) else text.encode("utf-8", "backslashreplace").decode()
    whole = whole.replace("\0", "\\0")
    return whole if len(whole) <= most else f"{whole[: most - 3]}..."


def check_text(value: Any) -> Any:
    if isinstance(value, str) and not is_text(value):
        raise PydanticCustomError(
            "text_not_unicode",
            "The text has half of a surrogate pair, which UTF-8 cannot encode: send whole characters",
        )
    return value


Text = Annotated[str, BeforeValidator(check_text)]
Name = Annotated[Text, Field(max_length=MAX_NAME_CHARS)]
Url = Annotated[Text, Field(max_length=MAX_URL_CHARS)]
# A text that the database is searched for. PostgreSQL accepts no NUL.
LookupText = Annotated[Url, Field(pattern=r"^[^\x00]*$")]


def check_image_url(text: str) -> str:
    """Limit the length of a control image's URL. Base64 is a whole image, and has other limits."""
    if text.startswith("http") and len(text) > MAX_URL_CHARS:
        raise PydanticCustomError("string_too_long", "A URL has at most {most} characters", {"most": MAX_URL_CHARS})
    return text


def check_token(token: SecretStr) -> SecretStr:
    """Refuse a token that cannot be sent in a header, where a line break would start another header."""
    if not (secret := token.get_secret_value()).isprintable() or not is_text(secret):
        raise PydanticCustomError("token_not_printable", "The token has characters that a header cannot contain")
    return token


class Nullable(BaseModel):
    """A body in which null for an optional field means that the field was not sent, whatever its default is."""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        # A name that UTF-8 cannot encode is no field's, and pydantic would refuse the whole body because of it.
        return {name: value for name, value in data.items() if is_text(name) and not cls._is_absent(name, value)}

    @classmethod
    def _is_absent(cls, name: str, value: Any) -> bool:
        return value is None and name in cls.model_fields and not cls.model_fields[name].is_required()

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """The schema, in which each optional field also accepts null."""
        found = handler(schema)
        described = handler.resolve_ref_schema(found)
        for name, field in described["properties"].items():
            if name not in described.get("required", ()):
                described["properties"][name] = _optional(field)
        return found


def _optional(field: dict[str, Any]) -> dict[str, Any]:
    """The schema of an optional field.

    Its default is that of the alternative which is not null. Generated clients take a default of the whole field for
    a value that is always sent.
    """
    default = field.pop("default", None)
    description = {key: field.pop(key) for key in ("title", "description") if key in field}
    alternatives = field.pop("anyOf", None) or [field, {"type": "null"}]
    if {"type": "null"} not in alternatives:
        alternatives.append({"type": "null"})
    if default is not None:
        alternatives[0] |= {"default": default}
        text = description.get("description", "")
        if "Default: " not in text:
            description["description"] = f"{text} Default: {json.dumps(default)}.".lstrip()
    return description | {"anyOf": alternatives}
