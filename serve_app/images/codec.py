"""Images: decoding what clients send, with limits, and encoding what they get."""

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import PIL.Image
import PIL.ImageOps
from PIL.PngImagePlugin import PngInfo

from serve_app.errors import ControlImageInvalid
from serve_app.images.colour_profiles import foreign_profile
from serve_app.images.containers import check_container, check_frames
from serve_app.images.sizes import Size, fits_encoder

# What the bytes may be, whatever the sender called them. Formats that run programs or read other files
# (EPS, PDF, WMF) are not among them.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")

JPEG_QUALITY = 95

EXIF_ORIENTATION = 0x0112

# PIL knows a format by name only once its plugin is loaded.
PIL.Image.init()


@dataclass(frozen=True)
class ControlImage:
    """The facts of a control image that its RGB pixels do not tell any more.

    `size` is in pixels, after `exif: apply`. `exif_orientation` is the tag's value, 2..8, if the file asks to
    be turned. `conversions` are sentences, empty for plain RGB.
    """

    size: Size
    exif_orientation: int | None = None
    conversions: tuple[str, ...] = ()


@dataclass(frozen=True)
class DecodedImage:
    """A control image as RGB."""

    image: PIL.Image.Image
    facts: ControlImage

    @cached_property
    def digest(self) -> str:
        """What the pixels are, however they were sent and turned."""
        return hashlib.sha256(f"{self.image.size}".encode() + self.image.tobytes()).hexdigest()


def read(data: bytes, exif: Literal["ignore", "apply"], max_pixels: int | None = None) -> DecodedImage:
    """The image in `data` as the trainer and the reference server read it: `convert("RGB")`, not rotated.

    `exif: apply` rotates it first as its EXIF orientation says (Pillow obeys a TIFF's by itself). Conversions:
    of an animation the first frame; colours as they are, without the file's colour profile; a palette to its
    colours; alpha dropped, the colour beneath it kept; 16-bit grey to its high byte, as Pillow reads 16-bit colour
    (`convert` alone would clip it to white).
    Raises ControlImageInvalid, with the reason alone, unless it is a whole image that can be edited.
    """
    counted = check_container(data)
    try:
        # Only the header is read here: the size is known before a single pixel is decoded.
        with PIL.Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image.size, max_pixels)
            # Pillow counts the frames of a GIF and of a TIFF by reading all of them.
            frames: int = getattr(image, "n_frames", 1) if counted is None else counted
            check_frames(frames)
            # Pillow turns a TIFF while it loads it, and forgets the tag. Of a PNG nothing may be asked before: its
            # `getexif` loads the image, and after an error a second `load` would succeed with what there is.
            turned = _orientation(image) if image.format == "TIFF" else None
            image.load()
            conversions = _conversions(image, frames)
            if turned:
                conversions += ("turned as its TIFF tag says, as Pillow always does",)
            orientation = None if turned else _orientation(image)
            rgb = _as_rgb(PIL.ImageOps.exif_transpose(image) if exif == "apply" and orientation else image)
    except (ControlImageInvalid, MemoryError):
        raise
    except PIL.UnidentifiedImageError as error:
        raise ControlImageInvalid(f"its bytes are not an image ({', '.join(FORMATS)})") from error
    except PIL.Image.DecompressionBombError as error:
        raise ControlImageInvalid("it has too many pixels") from error
    except Exception as error:
        # PIL's decoders raise OSError, SyntaxError, ValueError, struct.error and more for a broken file.
        raise ControlImageInvalid("it is broken or truncated") from error
    return DecodedImage(rgb, ControlImage(rgb.size, orientation, conversions))


def _orientation(image: PIL.Image.Image) -> int | None:
    """How EXIF wants the image turned, 2..8; None if it does not, or cannot be read.

    Nothing is decoded here, so no decoder's error is lost.
    """
    try:
        found = image.getexif().get(EXIF_ORIENTATION, 1)
        return int(found) if found in range(2, 9) else None
    except Exception:
        # Broken EXIF beside sound pixels raises SyntaxError, ValueError, struct.error and more.
        return None


def _check_size(size: Size, max_pixels: int | None) -> None:
    width, height = size
    if max_pixels is not None and width * height > max_pixels:
        raise ControlImageInvalid(f"it has {width}x{height} pixels, and at most {max_pixels} are accepted")
    if not fits_encoder(width, height):
        raise ControlImageInvalid(f"its sides, {width}x{height} pixels, are too unequal to be edited")


def _conversions(image: PIL.Image.Image, frames: int) -> tuple[str, ...]:
    found = []
    if frames > 1:
        found.append(f"first of {frames} frames")
    if image.mode.startswith("I;16"):
        found.append("16-bit grey to its high byte")
    elif image.mode == "P":
        found.append("palette to RGB")
    elif image.mode not in ("RGB", "RGBA"):
        found.append(f"{image.mode} to RGB" + (" without a colour profile" if image.mode == "CMYK" else ""))
    if image.has_transparency_data:
        found.append("alpha dropped")
    profile = foreign_profile(image.info.get("icc_profile"))
    if profile is not None:
        found.append(f"colour profile {profile} not applied")
    return tuple(found)


def _as_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    if image.mode in ("I", "F"):
        raise ControlImageInvalid("its grey levels have 32 bits, and nothing says which of them are black and white")
    if image.mode.startswith("I;16"):
        return PIL.Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def encode(image: PIL.Image.Image, output_format: str, text: Mapping[str, Any]) -> bytes:
    """The image as a file. `jpeg` is written as the reference server does: quality 95, else PIL's defaults.

    A PNG carries each value of `text` as JSON in a text chunk of its key.
    """
    buffer = io.BytesIO()
    if output_format == "jpeg":
        image.save(buffer, format="JPEG", quality=JPEG_QUALITY)
    elif output_format == "png":
        info = PngInfo()
        for key, value in text.items():
            info.add_text(key, json.dumps(value))
        image.save(buffer, format="PNG", pnginfo=info)
    else:
        image.save(buffer, format=output_format.upper(), lossless=True)
    return buffer.getvalue()


def is_of_one_colour(image: PIL.Image.Image) -> bool:
    """Whether every pixel of an RGB image has the same colour."""
    return all(least == most for least, most in image.getextrema())  # type: ignore[misc]
