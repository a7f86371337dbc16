"""The reader of multipart/form-data bodies (RFC 7578).

    if is_multipart(content_type):
        form = read_form(content_type, body)     # raises BodyInvalid, which is a 400 with one sentence
        form.texts                               # [(name, text), ...] in the order of the body; names may repeat
        form.files                               # [Part, ...] in the order of the body; names may repeat

A part is a file if its header has a file name, even an empty one, as browsers send it for a file that nobody chose.
Every other part is a text. The content type of a part is what its sender says, and decides nothing here.

The body is in memory already, read by `limits` within its limits. A part is a copy of its bytes, and nothing is written
to disk. `read_form` blocks: its time is that of a few searches through the body.
"""

import logging
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, MultipartState, parse_options_header

from serve_app.errors import BodyInvalid
from serve_app.schemas.text import escaped

FORM_DATA = "multipart/form-data"
# Parts of one body, headers of one part, and bytes of one header's line.
MAX_PARTS, MAX_HEADERS, MAX_HEADER_BYTES = 1_000, 8, 4_096
TOO_MANY_PARTS = f"the body has more than {MAX_PARTS} parts"
# Bytes of one text: a long prompt has 100,000 characters.
MAX_TEXT_BYTES = 1_000_000
# Characters of the header Content-Type, and bytes of its boundary, for which RFC 2046 allows 70.
MAX_CONTENT_TYPE_CHARS, MAX_BOUNDARY_BYTES = 1_000, 200
# How much of a part's name an error quotes (characters).
NAME_SHOWN = 60

# The parser logs a warning for each body that it refuses. The client gets the reason.
logging.getLogger("python_multipart").setLevel(logging.ERROR)


@dataclass(frozen=True)
class Part:
    """One part of a body. `filename` and `content_type` are what its sender says; None if it says nothing."""

    name: str
    filename: str | None
    content_type: str | None
    data: bytes = field(repr=False)

    @property
    def is_file(self) -> bool:
        return self.filename is not None

    @property
    def shown_name(self) -> str:
        """The name for use in an error's message."""
        return repr(escaped(self.name, NAME_SHOWN))

    def text(self) -> str:
        """The content as text. Raises BodyInvalid if it is not UTF-8."""
        try:
            return self.data.decode()
        except UnicodeDecodeError as error:
            raise BodyInvalid(f"the part {self.shown_name} is not UTF-8") from error


@dataclass(frozen=True)
class Form:
    """The parts of a body, in its order."""

    parts: tuple[Part, ...]

    @cached_property
    def texts(self) -> list[tuple[str, str]]:
        """Name and content of each text. Raises BodyInvalid if one is not UTF-8."""
        return [(part.name, part.text()) for part in self.parts if not part.is_file]

    @cached_property
    def files(self) -> list[Part]:
        return [part for part in self.parts if part.is_file]

    def named(self, name: str) -> list[Part]:
        """The parts of this name."""
        return [part for part in self.parts if part.name == name]


def is_multipart(content_type: str | None) -> bool:
    """Whether a request's Content-Type says that its body is a form of several parts."""
    return (content_type or "").partition(";")[0].strip().lower() == FORM_DATA


def read_form(content_type: str, body: bytes, long_texts: Collection[str] = ()) -> Form:
    """The parts of a body. Texts of the names `long_texts` may be longer than MAX_TEXT_BYTES.

    Raises BodyInvalid for a body that is not complete and well formed, or that exceeds a limit.
    """
    boundary = _boundary(content_type)
    # Each one costs the parser a few steps in Python, whether or not it turns out to separate two parts.
    if body.count(b"\r\n--" + boundary) > MAX_PARTS + 1:
        raise BodyInvalid(TOO_MANY_PARTS)
    parts = _Parts(long_texts)
    parser = MultipartParser(
        boundary,
        {
            "on_part_begin": parts.begin,
            "on_header_field": parts.header_name,
            "on_header_value": parts.header_value,
            "on_header_end": parts.header_end,
            "on_headers_finished": parts.headers_end,
            "on_part_data": parts.content,
            "on_part_end": parts.end,
        },
        max_header_count=MAX_HEADERS,
        max_header_size=MAX_HEADER_BYTES,
    )
    try:
        parser.write(body)
    except FormParserError as error:
        raise BodyInvalid(
            f"the body is not a form of several parts, from its byte {max(getattr(error, 'offset', 0), 0)} on: each "
            f"part starts with the boundary of the header Content-Type, and has at most {MAX_HEADERS} headers of at "
            f"most {MAX_HEADER_BYTES} bytes"
        ) from error
    if parser.state != MultipartState.END:
        raise BodyInvalid(
            "the body ends before its last boundary: it was cut off, or its Content-Type is that of another"
        )
    return Form(tuple(parts.found))


def _boundary(content_type: str) -> bytes:
    if len(content_type) > MAX_CONTENT_TYPE_CHARS:
        raise BodyInvalid(f"the header Content-Type is longer than {MAX_CONTENT_TYPE_CHARS} characters")
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if not boundary:
        raise BodyInvalid(f"the header Content-Type says {FORM_DATA} and has no boundary")
    if len(boundary) > MAX_BOUNDARY_BYTES:
        raise BodyInvalid(f"the boundary in the header Content-Type is longer than {MAX_BOUNDARY_BYTES} bytes")
    return boundary


class _Parts:
    """What the parser has found so far: its callbacks. `data[start:end]` is a piece of what each is about."""

    def __init__(self, long_texts: Collection[str]) -> None:
        self.found: list[Part] = []
        self._long_texts = long_texts
        self.begin()

    def begin(self) -> None:
        self._headers: dict[str, str] = {}
        self._name, self._value = bytearray(), bytearray()
        self._part = Part("", None, None, b"")
        self._pieces: list[bytes] = []

    def header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def header_end(self) -> None:
        self._headers[self._name.decode("latin-1").lower()] = self._value.decode("latin-1")
        self._name, self._value = bytearray(), bytearray()

    def headers_end(self) -> None:
        _, options = parse_options_header(self._headers.get("content-disposition"))
        if not options.get(b"name"):
            raise BodyInvalid("a part of the body has no name in its header Content-Disposition")
        filename = None if b"filename" not in options else options[b"filename"].decode(errors="replace")
        self._part = Part(_decoded(options[b"name"]), filename, self._headers.get("content-type"), b"")

    def content(self, data: bytes, start: int, end: int) -> None:
        part = self._part
        if end - start > MAX_TEXT_BYTES and not part.is_file and part.name not in self._long_texts:
            raise BodyInvalid(f"the part {part.shown_name} is a text of more than {MAX_TEXT_BYTES} bytes")
        self._pieces.append(data[start:end])

    def end(self) -> None:
        part = self._part
        if len(self.found) == MAX_PARTS:
            raise BodyInvalid(TOO_MANY_PARTS)
        # The parser calls for most parts once, and joining one piece copies nothing.
        self.found.append(Part(part.name, part.filename, part.content_type, b"".join(self._pieces)))


def _decoded(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError as error:
        raise BodyInvalid("the name of a part is not UTF-8") from error
