"""The body for a sample, checked as every request's."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from serve_app.errors import InvalidParameter
from serve_app.schemas.requests import InferenceRequest
from serve_app.training.samples import Sample


def request_of(sample: Sample, body: Mapping[str, Any]) -> InferenceRequest:
    """The request that the body is. Raises InvalidParameter for settings beyond this service's limits."""
    try:
        return InferenceRequest.model_validate(body)
    except ValidationError as error:
        fault = error.errors(include_input=False, include_url=False)[0]
        field = ".".join(str(part) for part in fault["loc"])
        raise InvalidParameter(
            f"sample {sample.number} is beyond what this service takes: {field}: {fault['msg']}; choose other samples",
            {"sample": sample.number},
        ) from None
