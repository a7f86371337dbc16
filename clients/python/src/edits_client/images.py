"""Finished images."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edits_client import models

if TYPE_CHECKING:
    import PIL.Image

# The suffixes under which each format may be saved.
SUFFIXES = {"png": (".png",), "jpeg": (".jpg", ".jpeg"), "jpg": (".jpg", ".jpeg"), "webp": (".webp",)}


@dataclass(frozen=True)
class Image:
    """One finished image.

    `data` is the encoded file, byte for byte as the service stored it. `index` is the image's number in its request,
    from 0. `gpu_seconds` is what the whole request used. `effective` is the record of every effective value, and
    `notes` are the service's remarks, such as that the control image was stretched.
    """

    data: bytes = field(repr=False)
    format: str
    width: int
    height: int
    seed: int
    url: str
    index: int
    request_id: str
    gpu_seconds: float
    effective: models.StoredEffectiveRecord = field(repr=False)
    notes: list[str] = field(repr=False)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the file and return its path. Raises ValueError if the suffix is that of another format."""
        target = Path(path).expanduser()
        expected = SUFFIXES.get(self.format, (f".{self.format}",))
        if target.suffix.lower() not in expected:
            raise ValueError(
                f"{target.name}: the image is {self.format}, so its name must end with {' or '.join(expected)}; ask "
                f"for another output_format, or convert image.pil()"
            )
        target.write_bytes(self.data)
        return target

    def pil(self) -> PIL.Image.Image:
        """The image as a PIL image. Needs the extra `edits-client[pil]`."""
        try:
            import PIL.Image
        except ImportError as error:
            raise ImportError("Pillow is missing: pip install 'edits-client[pil]'") from error
        image = PIL.Image.open(io.BytesIO(self.data))
        image.load()
        return image
