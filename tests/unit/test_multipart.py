"""The reader of forms of several parts: what it finds, and what it refuses."""

import time
from contextlib import suppress

import pytest

from serve_app.api.bodies.multipart import MAX_HEADERS, MAX_PARTS, MAX_TEXT_BYTES, Part, is_multipart, read_form
from serve_app.errors import BodyInvalid

TYPE = "multipart/form-data; boundary=b"
END = b"--b--\r\n"


def part(content: bytes, disposition: bytes = b'form-data; name="a"', *headers: bytes) -> bytes:
    head = b"\r\n".join((b"Content-Disposition: " + disposition, *headers))
    return b"--b\r\n" + head + b"\r\n\r\n" + content + b"\r\n"


def refusal(body: bytes, content_type: str = TYPE) -> str:
    with pytest.raises(BodyInvalid) as error:
        read_form(content_type, body)
    return error.value.message


def test_parts_are_found_in_order_with_their_names_and_content():
    body = part(b"one") + part(b"\r\n--\xff--b", b'form-data; name="f"; filename="x.png"', b"Content-Type: image/png")
    body += part(b"two") + part("größe".encode(), 'form-data; name="ü \\"q\\""'.encode()) + END
    form = read_form(TYPE, body)
    assert form.texts == [("a", "one"), ("a", "two"), ('ü "q"', "größe")]
    assert form.files == [Part("f", "x.png", "image/png", b"\r\n--\xff--b")]
    assert [found.data for found in form.named("a")] == [b"one", b"two"]


def test_file_name_makes_a_file_whatever_the_content_type_says():
    named, unnamed = b'form-data; name="f"; filename=""', b'form-data; name="t"'
    body = part(b"", named, b"Content-Type: text/plain") + part(b"x", unnamed, b"Content-Type: image/png") + END
    form = read_form(TYPE, body)
    assert ([file.name for file in form.files], form.texts) == (["f"], [("t", "x")])


def test_form_may_be_empty_and_what_follows_the_end_is_not_read():
    assert read_form(TYPE, END).parts == ()
    assert len(read_form(TYPE, part(b"x") + END + b"anything").parts) == 1


@pytest.mark.parametrize(
    ("content_type", "is_form"),
    [
        (TYPE, True),
        ("Multipart/Form-Data;boundary=x", True),
        ("multipart/mixed; boundary=b", False),
        ("application/json", False),
        ("", False),
        (None, False),
    ],
)
def test_content_type_of_a_form_is_recognized(content_type, is_form):
    assert is_multipart(content_type) is is_form


@pytest.mark.parametrize("cut", range(len(part(b"x") + END) - len(b"\r\n")))
def test_form_that_is_cut_off_anywhere_is_refused(cut):
    assert "body" in refusal((part(b"x") + END)[:cut])


@pytest.mark.parametrize(
    ("body", "content_type", "reason"),
    [
        (part(b"x") + END, "multipart/form-data", "no boundary"),
        (part(b"x") + END, "multipart/form-data; boundary=", "no boundary"),
        (part(b"x") + END, "multipart/form-data; boundary=other", "starts with the boundary"),
        (part(b"x") + END, "multipart/form-data; boundary=" + "b" * 300, "longer than 200"),
        (part(b"x") + END, "multipart/form-data; boundary=b; x=" + "y" * 1000, "longer than 1000"),
        (b"{}", TYPE, "from its byte 0 on"),
        (b"\r\n\r\n", TYPE, "ends before its last boundary"),
        (part(b"x", b"form-data") + END, TYPE, "no name"),
        (part(b"x", b'form-data; name=""') + END, TYPE, "no name"),
        (b"--b\r\n\r\nx\r\n" + END, TYPE, "no name"),
        (part(b"x", b'form-data; name="\xff"') + END, TYPE, "name of a part is not UTF-8"),
        (part(b"x", b'form-data; name="' + b"n" * 5000 + b'"') + END, TYPE, "at most 4096 bytes"),
        (part(b"x", b'form-data; name="a"', *[b"X: y"] * MAX_HEADERS) + END, TYPE, "at most 8 headers"),
        (part(b"x", b'form-data; name="a"', b"no colon") + END, TYPE, "not a form"),
        (part(b"x") * (MAX_PARTS + 1) + END, TYPE, "more than 1000 parts"),
        (part(bytes(MAX_TEXT_BYTES + 1)) + END, TYPE, "the part 'a' is a text of more than"),
    ],
)
def test_form_that_cannot_be_read_is_refused_with_the_reason(body, content_type, reason):
    message = refusal(body, content_type)
    assert reason in message
    assert len(message) < 300


def test_text_that_is_not_utf8_is_refused():
    with pytest.raises(BodyInvalid, match="the part 'a' is not UTF-8"):
        _ = read_form(TYPE, part(b"\xff") + END).texts


def test_most_parts_are_read_and_long_texts_where_they_are_expected():
    assert len(read_form(TYPE, part(b"x") * MAX_PARTS + END).parts) == MAX_PARTS
    long = part(bytes(MAX_TEXT_BYTES + 1)) + END
    assert len(read_form(TYPE, long, long_texts=["a"]).parts[0].data) == MAX_TEXT_BYTES + 1


@pytest.mark.parametrize("piece", [b"\r\n--bx", b"\r\n--", b"\r", b"\n", b"-", b"--b\r\n"])
def test_no_body_takes_long(piece):
    """The parser steps through some of these in Python: 30 MB of the first would take it many seconds."""
    large = piece * (30_000_000 // len(piece))
    started = time.perf_counter()
    for body in (part(large, b'form-data; name="f"; filename=""') + END, large):
        with suppress(BodyInvalid):
            read_form(TYPE, body)
    assert time.perf_counter() - started < 5


def test_parser_logs_nothing_of_a_body(caplog):
    refusal(b"--b\r\nsecret header\r\n\r\n" + END)
    assert not caplog.records


def test_nothing_is_written_to_disk(monkeypatch):
    monkeypatch.setattr("tempfile.SpooledTemporaryFile", None)
    monkeypatch.setattr("tempfile.NamedTemporaryFile", None)
    body = part(bytes(10_000_000), b'form-data; name="f"; filename=""') + END
    assert len(read_form(TYPE, body).files[0].data) == 10_000_000
