"""JSON with images in base64, made in pieces: ten large images would take more memory than an ingress has."""

import base64
import json
from collections.abc import Iterator, Mapping
from typing import Any

# Bytes of an image that are encoded together: a multiple of 3, so that the pieces join to one text of base64.
PIECE_BYTES = 3 * 2**18


def with_image(facts: Mapping[str, Any], image: bytes) -> Iterator[bytes]:
    """The JSON of `facts` and of `b64_json`, which is the image."""
    yield without_end(facts) + b', "b64_json": "'
    for start in range(0, len(image), PIECE_BYTES):
        yield base64.b64encode(image[start : start + PIECE_BYTES])
    yield b'"}'


def without_end(facts: Mapping[str, Any]) -> bytes:
    """The JSON of an object with at least one key, without its last brace: more keys may follow."""
    return json.dumps(facts).encode()[:-1]
