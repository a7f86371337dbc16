"""Control images inside a request: every way of writing base64 that means one thing, and none that means two."""

import base64
import re
import textwrap
from urllib.parse import quote, quote_from_bytes

import pytest

from serve_app.errors import ControlImageInvalid
from serve_app.images.data_urls import decode_inline

# Its base64 has both characters in which the alphabets differ, and needs padding.
CONTENT = bytes(range(256)) * 3 + b"\xfb\xef\xbe\xff"
STANDARD = base64.b64encode(CONTENT).decode()
URL_SAFE = base64.urlsafe_b64encode(CONTENT).decode()


@pytest.mark.parametrize(
    "text",
    [
        STANDARD,
        URL_SAFE,
        STANDARD.rstrip("="),
        URL_SAFE.rstrip("="),
        f" {STANDARD}\n",
        base64.encodebytes(CONTENT).decode(),
        base64.encodebytes(CONTENT).decode().replace("\n", "\r\n"),
        textwrap.indent(base64.encodebytes(CONTENT).decode(), "    "),
        f"data:image/png;base64,{STANDARD}",
        f"DATA:image/PNG;BASE64,{STANDARD}",
        f"data:;base64,{URL_SAFE}",
        f"data:image/png;name=a%20b;base64,{STANDARD}",
        f"data:image/png;base64,{quote(STANDARD, safe='')}",
        f"data:image/png;base64,{quote(STANDARD, safe='').replace('%2B', '%2b')}",
        f"data:image/png,{quote_from_bytes(CONTENT)}",
    ],
)
def test_every_way_of_writing_it_is_the_same_bytes(text):
    assert decode_inline(text, 100_000) == CONTENT


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (STANDARD + "!", "neither an http(s) URL nor base64"),
        (STANDARD[:40] + "\0" + STANDARD[40:], "neither an http(s) URL nor base64"),
        (STANDARD[:40] + "é" + STANDARD[40:], "neither an http(s) URL nor base64"),
        (STANDARD[:41].rstrip("="), "neither an http(s) URL nor base64"),
        (STANDARD + "==", "neither an http(s) URL nor base64"),
        ("aGFsZg==" + STANDARD, "neither an http(s) URL nor base64"),
        (STANDARD.replace("+", "-"), "mixes the standard alphabet"),
        (STANDARD.replace("+", " "), "holds spaces"),
        (f"data:image/png;base64{STANDARD}", "neither an http(s) URL nor base64"),
        (f"data:image/png;base64,{STANDARD}%4", "not followed by two hexadecimal digits"),
        ("data:image/png," + "%00" * 2_000, "too many percent-encoded characters"),
        ("data:image/png;base64," + "%2B" * 2_000, "too many percent-encoded characters"),
        ("\n ".join("ab" * 10_000), "too many line breaks"),
        (f"data:image/png;base64,{STANDARD[:40]}%252B{STANDARD[40:]}", "neither an http(s) URL nor base64"),
        ("A" * 14_000, "larger than 10000 bytes"),
        ("photos/cat.PNG", "looks like a path"),
    ],
)
def test_what_could_mean_another_image_is_refused(text, reason):
    assert {"+", "/"} <= set(STANDARD)
    with pytest.raises(ControlImageInvalid, match=re.escape(reason)):
        decode_inline(text, 10_000)
