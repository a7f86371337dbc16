"""The bodies of errors in the shape of the contract."""

from typing import Any

from pydantic import ConfigDict, Field

from serve_app.schemas.documented import Answer


class ErrorFacts(Answer):
    """An error."""

    code: str = Field(description="The kind of error, for programs.")
    message: str = Field(description="What is wrong, for people.")
    details: dict[str, Any] = Field(description="Facts about the error; which ones depends on the code.")


class ErrorDetail(Answer):
    """The wrapping of an error."""

    error: ErrorFacts = Field(description="The error.")


class ErrorBody(Answer):
    """An error. The reference server nests it under `detail`; so do we."""

    detail: ErrorDetail = Field(description="The error.")


class ShapeError(Answer):
    """One thing that is wrong with the shape of a request."""

    type: str = Field(description="The kind of fault, as pydantic names it.")
    loc: list[str | int] = Field(description="Where it is: the part of the request, then fields and indices.")
    msg: str = Field(description="What is wrong, for people.")


class ShapeErrors(Answer):
    """What is wrong with the shape of a request: of its body, its parameters or its headers."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"detail": [{"type": "missing", "loc": ["body", "model"], "msg": "Field required"}]}]
        }
    )

    detail: list[ShapeError] = Field(description="The first faults.")
