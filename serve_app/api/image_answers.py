"""Answers that are the file of an image."""

from collections.abc import Collection, Mapping
from typing import Any

from fastapi import Request, Response

# For programs that know no media types of images, such as clients that are generated from the OpenAPI document.
BYTES = "application/octet-stream"
BINARY = {"schema": {"type": "string", "format": "binary"}}


def image_docs(media_types: Collection[str], headers: Mapping[str, Any] = {}) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's `responses` for images of these media types, with these headers."""
    return {
        200: {
            "description": "The image. With `Accept: application/octet-stream` it has that type.",
            "content": dict.fromkeys((*media_types, BYTES), BINARY),
            "headers": headers,
        }
    }


def image_answer(request: Request, data: bytes, media_type: str, headers: dict[str, str]) -> Response:
    """The answer with an image's file. A client that accepts only plain bytes gets it as such."""
    return Response(data, media_type=sent_type(request, media_type), headers=headers | {"Vary": "Accept"})


def sent_type(request: Request, media_type: str) -> str:
    """The media type of a file in its answer: plain bytes for a client that accepts nothing else."""
    accepted = [accept.partition(";")[0].strip() for accept in request.headers.get("accept", "").split(",")]
    return BYTES if accepted == [BYTES] else media_type
