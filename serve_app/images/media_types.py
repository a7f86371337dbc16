"""The media types of image files that clients have sent, told from the files' first bytes."""

import re

# Browsers show nothing of this type, and run nothing.
UNKNOWN = "application/octet-stream"
# How a file of each type begins. These are the formats that are accepted as control images: see `decode`.
_BEGINNINGS = {
    "image/png": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "image/jpeg": re.compile(rb"\xff\xd8\xff"),
    "image/webp": re.compile(rb"RIFF.{4}WEBP", re.DOTALL),
    "image/gif": re.compile(rb"GIF8[79]a"),
    "image/bmp": re.compile(rb"BM"),
    "image/tiff": re.compile(rb"MM\0[*+]|II[*+]\0|MM\*\0|II\0\*"),
    "image/avif": re.compile(rb".{4}ftyp(avif|avis|mif1|msf1)", re.DOTALL),
}
MEDIA_TYPES = frozenset(_BEGINNINGS)


def media_type_of(data: bytes) -> str:
    """The media type of an image's file, UNKNOWN if it is none of `MEDIA_TYPES`."""
    return next((name for name, beginning in _BEGINNINGS.items() if beginning.match(data)), UNKNOWN)
