"""Control images within a request: base64 text and `data:` URLs."""

import binascii
import re
from pathlib import PurePath
from urllib.parse import unquote_to_bytes

from serve_app.errors import ControlImageInvalid

# Recognises a path that a client sends by mistake instead of the image's content.
MAX_PATH, IMAGE_SUFFIXES = 1000, (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")

# RFC 2397, whatever the case: `data:`, a media type, perhaps `;base64`, a comma, the content.
DATA_URL = re.compile(r"data:(?P<type>[^,]{0,1000}),", re.IGNORECASE)
PERCENT_SIGN = re.compile(rb"%(?![0-9A-Fa-f]{2})")

# Lines of base64 have 76 characters in MIME, 64 in PEM. A text with many more lines is refused.
MIN_LINE = 32
# Python undoes percent-encoding slowly. A percent-encoded binary file, without base64, has one escape for
# about two bytes.
BYTES_PER_ESCAPE = 64
# In base64, three digits of a hundred are percent-encoded, and every line break.
BYTES_PER_BASE64_ESCAPE = 8

TOO_MANY_ESCAPES = "its data URL holds too many percent-encoded characters; send base64"

URL_SAFE, STANDARD = b"-_", b"+/"
# What is percent-encoded in base64. None of these can be part of another escape.
ESCAPED = b"+/=-_\r\n"


def decode_inline(text: str, max_bytes: int) -> bytes:
    """The bytes of base64 or of a `data:` URL, at most `max_bytes`. Raises ControlImageInvalid, with only the reason.

    Base64 may have the URL-safe alphabet, line breaks and no padding. Every other character is refused: a decoder that
    skips characters would make another image.
    """
    text = text.strip()
    if len(text) < MAX_PATH and PurePath(text).suffix.lower() in IMAGE_SUFFIXES:
        raise ControlImageInvalid(
            f"{text!r} looks like a path, and this service reads no paths: send base64 or an http(s) URL"
        )
    if not text.isascii():
        raise ControlImageInvalid("it is neither an http(s) URL nor base64")
    head = DATA_URL.match(text)
    if head is None:
        return _base64(text.encode(), max_bytes)
    content = _unquoted(text[head.end() :].encode(), max_bytes)
    is_base64 = head["type"].rstrip().lower().endswith(";base64")
    return _base64(content, max_bytes) if is_base64 else content


def _base64(text: bytes, max_bytes: int) -> bytes:
    if not text.isascii():
        raise ControlImageInvalid("it is neither an http(s) URL nor base64")
    digits = _without_line_breaks(text.strip())
    padding = len(digits) - len(digits := digits.rstrip(b"="))
    if len(digits) * 3 // 4 > max_bytes:
        raise ControlImageInvalid(f"it is larger than {max_bytes} bytes")
    if b" " in digits:
        raise ControlImageInvalid("its base64 holds spaces; if they were plus signs, percent-encode them as %2B")
    if any(sign in digits for sign in URL_SAFE):
        if any(sign in digits for sign in STANDARD):
            raise ControlImageInvalid(
                "its base64 mixes the standard alphabet (+ and /) with the URL-safe one (- and _)"
            )
        digits = digits.translate(bytes.maketrans(URL_SAFE, STANDARD))
    try:
        if padding > 2:
            raise binascii.Error("too much padding")
        return binascii.a2b_base64(digits + b"=" * (-len(digits) % 4), strict_mode=True)
    except binascii.Error as error:
        raise ControlImageInvalid("it is neither an http(s) URL nor base64") from error


def _without_line_breaks(text: bytes) -> bytes:
    """The lines joined, without the indentation that each may have."""
    joined = text.translate(None, b"\r\n")
    breaks = len(text) - len(joined)
    if not breaks or not (b" " in joined or b"\t" in joined):
        return joined
    if breaks > 2 * (len(text) // MIN_LINE + 1):
        raise ControlImageInvalid("its base64 has too many line breaks; send it in one line")
    return b"".join(line.strip() for line in text.splitlines())


def _unquoted(text: bytes, max_bytes: int) -> bytes:
    """The content of a URL with its percent-encoding undone."""
    escapes = text.count(b"%")
    if not escapes:
        return text
    if escapes > max_bytes // BYTES_PER_BASE64_ESCAPE:
        raise ControlImageInvalid(TOO_MANY_ESCAPES)
    for sign in ESCAPED:
        for escape in {b"%%%02X" % sign, b"%%%02x" % sign}:
            text = text.replace(escape, bytes((sign,)))
    if text.count(b"%") > max_bytes // BYTES_PER_ESCAPE:
        raise ControlImageInvalid(TOO_MANY_ESCAPES)
    if PERCENT_SIGN.search(text):
        raise ControlImageInvalid("its data URL holds a % that is not followed by two hexadecimal digits")
    return unquote_to_bytes(text)
