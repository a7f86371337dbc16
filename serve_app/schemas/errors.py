"""The bodies of errors in the shape of the contract."""

from typing import Any

from pydantic import BaseModel, ConfigDict


class ErrorFacts(BaseModel):
    code: str
    message: str
    details: dict[str, Any]


class ErrorDetail(BaseModel):
    error: ErrorFacts


class ErrorBody(BaseModel):
    """The reference server nests an error under `detail`; so do we."""

    detail: ErrorDetail


class ShapeError(BaseModel):
    """One thing that is wrong with the shape of a body."""

    type: str
    loc: list[str | int]
    msg: str


class ShapeErrors(BaseModel):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"detail": [{"type": "missing", "loc": ["body", "model"], "msg": "Field required"}]}]
        }
    )

    detail: list[ShapeError]
