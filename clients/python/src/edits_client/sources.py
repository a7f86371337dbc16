"""Control images as callers have them: paths, bytes, open files, PIL images, URLs."""

from __future__ import annotations

import base64
import hashlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Union

from edits_client.images import Image

if TYPE_CHECKING:
    import PIL.Image

ImageSource = Union[str, "os.PathLike[str]", bytes, IO[bytes], Image, "PIL.Image.Image"]
# What a string may start with that names an image for the service, and is no path.
REFERENCES = ("http://", "https://", "upload:", "sha256:")
DATA_URL = "data:"


@dataclass(frozen=True)
class LocalImage:
    """An image whose bytes are here. It is uploaded once; `sha256` (hex) is how the service names it."""

    data: bytes

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


def read_source(source: ImageSource) -> LocalImage | str:
    """The image's bytes, or the reference that the service understands as it is.

    A string is a URL, an `upload:` or `sha256:` reference, a `data:` URL, or the path of a file. A PIL image is sent
    as PNG, which keeps its pixels, and an Image of an earlier request as the file that it is. Raises FileNotFoundError
    and other OSErrors for a path.
    """
    if isinstance(source, bytes):
        return LocalImage(source)
    if isinstance(source, str):
        if source.startswith(REFERENCES):
            return source
        if source.startswith(DATA_URL):
            return LocalImage(base64.b64decode(source.partition(",")[2]))
        return LocalImage(Path(source).expanduser().read_bytes())
    if isinstance(source, os.PathLike):
        return LocalImage(Path(source).expanduser().read_bytes())
    if isinstance(source, Image):
        return LocalImage(source.data)
    if hasattr(source, "save"):
        buffer = io.BytesIO()
        source.save(buffer, "PNG")
        return LocalImage(buffer.getvalue())
    return LocalImage(source.read())


def as_sources(images: ImageSource | Sequence[ImageSource]) -> list[ImageSource]:
    """One control image or several, as a list."""
    return list(images) if isinstance(images, (list, tuple)) else [images]  # type: ignore[list-item]
