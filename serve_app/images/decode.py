"""Decoding the control images that clients send, within limits."""

import hashlib
import io
import sys
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

# Pillow recognises a format by name only after its plugin is loaded. `PIL.Image.init` would load the plugins of all its
# formats, which takes longer than the rest of a decoder process's start.
import PIL.AvifImagePlugin
import PIL.BmpImagePlugin
import PIL.GifImagePlugin
import PIL.Image
import PIL.ImageOps
import PIL.JpegImagePlugin
import PIL.PngImagePlugin
import PIL.TiffImagePlugin
import PIL.WebPImagePlugin

from serve_app.errors import ControlImageInvalid
from serve_app.images.colour_profiles import foreign_profile
from serve_app.images.containers import check_container, check_frames
from serve_app.images.sizes import Size, fits_encoder

# Formats that are accepted, whatever the sender called the file. Formats that run programs or read other files
# (EPS, PDF, WMF) are not among them.
INPUT_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")

EXIF_ORIENTATION = 0x0112

# Pillow's raw modes of 16-bit grey, with the place of the high byte in each pair of bytes.
HIGH_BYTE = {"I;16": 1, "I;16L": 1, "I;16B": 0, "I;16N": 1 if sys.byteorder == "little" else 0}


@dataclass(frozen=True)
class ImageFacts:
    """What is known about a control image's file besides its RGB pixels.

    `size` is in pixels, after `exif: apply`. `exif_orientation` is the tag's value, 2..8, if the file asks to be
    rotated or mirrored, otherwise None. `conversions` names what decoding to RGB changed; it is empty for plain RGB.
    `format` is the name of the file's format in lower case.
    """

    size: Size
    exif_orientation: int | None = None
    conversions: tuple[str, ...] = ()
    format: str = ""


@dataclass(frozen=True)
class DecodedImage:
    """A control image, decoded to RGB."""

    image: PIL.Image.Image
    facts: ImageFacts

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the size and the RGB pixels: equal for equal pixels, whatever file they came from."""
        return hashlib.sha256(f"{self.image.size}".encode() + self.image.tobytes()).hexdigest()


def decode(data: bytes, exif: Literal["ignore", "apply"], max_pixels: int | None = None) -> DecodedImage:
    """The image in `data` as the trainer and the reference server read it: `convert("RGB")`, not rotated.

    `exif: apply` first rotates the image as its EXIF orientation says (Pillow always does this for a TIFF).
    Conversions: an animation gives its first frame; colour profiles are not applied; a palette becomes its colours;
    alpha is dropped and the colour below it kept; 16-bit grey keeps its high byte, as Pillow does for 16-bit colour
    (`convert` alone would clip it to white).

    Raises ControlImageInvalid unless it is a whole image that can be edited. The message gives the reason only; the
    caller names the image.
    """
    counted = check_container(data)
    try:
        # Only the header is read here: the size is known before a single pixel is decoded.
        with PIL.Image.open(io.BytesIO(data), formats=INPUT_FORMATS) as image:
            _check_size(image.size, max_pixels)
            # Pillow counts the frames of a GIF and of a TIFF by reading all of them.
            frames: int = getattr(image, "n_frames", 1) if counted is None else counted
            check_frames(frames)
            # Pillow rotates a TIFF while it loads it, and drops the tag. The orientation of a PNG must not be read
            # before `load`: its `getexif` loads the image, and after an error a second `load` would succeed with the
            # part of the pixels that was decoded.
            rotated_by_pillow = _orientation(image) if image.format == "TIFF" else None
            image.load()
            conversions = _conversions(image, frames)
            if rotated_by_pillow:
                conversions += ("turned as its TIFF tag says, as Pillow always does",)
            orientation = None if rotated_by_pillow else _orientation(image)
            rgb = _as_rgb(PIL.ImageOps.exif_transpose(image) if exif == "apply" and orientation else image)
    except (ControlImageInvalid, MemoryError):
        raise
    except PIL.UnidentifiedImageError as error:
        raise ControlImageInvalid(f"its bytes are not an image ({', '.join(INPUT_FORMATS)})") from error
    except PIL.Image.DecompressionBombError as error:
        raise ControlImageInvalid("it has too many pixels") from error
    except Exception as error:
        # PIL's decoders raise OSError, SyntaxError, ValueError, struct.error and more for a broken file.
        raise ControlImageInvalid("it is broken or truncated") from error
    return DecodedImage(rgb, ImageFacts(rgb.size, orientation, conversions, _format_name(image)))


def _format_name(image: PIL.Image.Image) -> str:
    # Pillow calls a JPEG with several frames, as some cameras write it, an MPO.
    return "jpeg" if image.format == "MPO" else (image.format or "").lower()


def _orientation(image: PIL.Image.Image) -> int | None:
    """The EXIF orientation, 2..8; None if the image is upright or its EXIF data cannot be read.

    Nothing is decoded here, so no decoder's error is lost.
    """
    try:
        found = image.getexif().get(EXIF_ORIENTATION, 1)
        return int(found) if found in range(2, 9) else None
    except Exception:
        # Broken EXIF data next to intact pixels raises SyntaxError, ValueError, struct.error and more.
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
    if image.mode in HIGH_BYTE:
        found.append("16-bit grey to its high byte")
    elif image.mode == "P":
        found.append("palette to RGB")
    elif image.mode not in ("RGB", "RGBA"):
        without_profile = " without a colour profile" if image.mode == "CMYK" else ""
        found.append(f"{image.mode} to RGB{without_profile}")
    if image.has_transparency_data:
        found.append("alpha dropped")
    profile = foreign_profile(image.info.get("icc_profile"))
    if profile is not None:
        found.append(f"colour profile {profile} not applied")
    return tuple(found)


def _as_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    if image.mode in ("I", "F"):
        raise ControlImageInvalid("its grey levels have 32 bits, and nothing says which of them are black and white")
    if image.mode in HIGH_BYTE:
        # By hand rather than with numpy, which would double the time that a decoder process takes to start.
        high_bytes = image.tobytes()[HIGH_BYTE[image.mode] :: 2]
        return PIL.Image.frombytes("L", image.size, high_bytes).convert("RGB")
    return image.convert("RGB")
