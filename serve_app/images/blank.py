"""Recognising images that show nothing."""

import PIL.Image


def is_blank(image: PIL.Image.Image) -> bool:
    """Whether every pixel of an RGB image has the same colour."""
    return all(lowest == highest for lowest, highest in image.getextrema())  # type: ignore[misc]
