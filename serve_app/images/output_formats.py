"""The file formats in which a request can have its images: one row for each. To add a format, add its row.

The request's schema, the encoder and the HTTP answers read this table; the suffix of an artifact's key comes from it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal


@dataclass(frozen=True)
class OutputFormat:
    """`name` is the value of a request's `output_format`.

    `pillow_format` and `pillow_options` are the arguments of `PIL.Image.Image.save`. `is_lossless` says whether the
    file decodes to exactly the pixels that were encoded. A format that `carries_text` takes named texts as PNG text
    chunks.
    """

    name: str
    mime_type: str
    suffix: str
    pillow_format: str
    is_lossless: bool
    pillow_options: Mapping[str, Any] = field(default_factory=dict)
    carries_text: bool = False


OUTPUT_FORMATS = {
    output_format.name: output_format
    for output_format in (
        # Quality 95 is what the reference server writes.
        OutputFormat("jpeg", "image/jpeg", ".jpeg", "JPEG", False, {"quality": 95}),
        OutputFormat("png", "image/png", ".png", "PNG", True, carries_text=True),
        OutputFormat("webp", "image/webp", ".webp", "WEBP", True, {"lossless": True}),
    )
}

# The format of a request that names none.
DEFAULT_OUTPUT_FORMAT = "jpeg"

# The names as a type that pydantic checks. mypy accepts only literals that are written out.
if TYPE_CHECKING:
    OutputFormatName = str
else:
    OutputFormatName = Literal[*OUTPUT_FORMATS]


def describe_output_formats() -> str:
    """One sentence for people that says what each format loses."""
    lossless = [row.name for row in OUTPUT_FORMATS.values() if row.is_lossless]
    lossy = [_with_options(row) for row in OUTPUT_FORMATS.values() if not row.is_lossless]
    return f"Lossless: {', '.join(lossless)}. Lossy: {', '.join(lossy)}."


def _with_options(row: OutputFormat) -> str:
    options = ", ".join(f"{name} {value}" for name, value in row.pillow_options.items())
    return f"{row.name} ({options})"
