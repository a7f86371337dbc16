"""Encoding a finished image, or a step preview, as a file."""

import io
import json
from collections.abc import Mapping
from typing import Any

import PIL.Image
from PIL.PngImagePlugin import PngInfo

from serve_app.images.output_formats import OutputFormat

# The longest side of a step preview (pixels), and the quality of its JPEG: so that it has a few KB, at most about 60.
PREVIEW_SIDE, PREVIEW_QUALITY = 256, 80


def encode(image: PIL.Image.Image, output_format: OutputFormat, text: Mapping[str, Any]) -> bytes:
    """The bytes of `image` as a file.

    A format that carries text holds each value of `text` as JSON under its key; other formats leave `text` out.
    """
    options = dict(output_format.pillow_options)
    if output_format.carries_text:
        options["pnginfo"] = _text_chunks(text)
    buffer = io.BytesIO()
    image.save(buffer, format=output_format.pillow_format, **options)
    return buffer.getvalue()


def encode_preview(image: PIL.Image.Image) -> bytes:
    """A step preview as JPEG, made smaller if it is larger than `PREVIEW_SIDE`."""
    image.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=PREVIEW_QUALITY)
    return buffer.getvalue()


def _text_chunks(text: Mapping[str, Any]) -> PngInfo:
    chunks = PngInfo()
    for key, value in text.items():
        chunks.add_text(key, json.dumps(value))
    return chunks
