"""Pictures: decoding what clients send, with limits, and encoding what they get."""

import io

import PIL.Image

from serve_app.errors import ControlImageInvalid
from serve_app.geometry import fits_encoder

# What the bytes may be, whatever the sender called them. Formats that run programs or read other files
# (EPS, PDF, WMF) are not among them.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")

JPEG_QUALITY = 95

# PIL knows a format by name only once its plugin is loaded.
PIL.Image.init()


def check_control_image(data: bytes, max_pixels: int) -> None:
    """Raise ControlImageInvalid, with the reason alone, unless `data` is a whole picture that can be edited."""
    try:
        # Only the header is read here: the size is known before a single pixel is decoded.
        with PIL.Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise ControlImageInvalid(f"it has {width}x{height} pixels, and at most {max_pixels} are accepted")
            if not fits_encoder(width, height):
                raise ControlImageInvalid(f"its sides, {width}x{height} pixels, are too unequal to be edited")
            image.load()
    except ControlImageInvalid:
        raise
    except PIL.UnidentifiedImageError as error:
        raise ControlImageInvalid(f"its bytes are not a picture ({', '.join(FORMATS)})") from error
    except PIL.Image.DecompressionBombError as error:
        raise ControlImageInvalid(f"it has too many pixels: at most {max_pixels} are accepted") from error
    except Exception as error:
        # PIL's decoders raise OSError, SyntaxError, ValueError, struct.error and more for a broken file.
        raise ControlImageInvalid("it is broken or truncated") from error


def decode(data: bytes) -> PIL.Image.Image:
    """The picture as RGB, the way the reference server reads it: no EXIF rotation, alpha dropped."""
    with PIL.Image.open(io.BytesIO(data), formats=FORMATS) as image:
        return image.convert("RGB")


def encode(image: PIL.Image.Image, output_format: str) -> bytes:
    """The picture as a file. `jpeg` is written as the reference server does: quality 95, else PIL's defaults."""
    buffer = io.BytesIO()
    if output_format == "jpeg":
        image.save(buffer, format="JPEG", quality=JPEG_QUALITY)
    else:
        image.save(buffer, format=output_format.upper(), **({"lossless": True} if output_format == "webp" else {}))
    return buffer.getvalue()
