"""Control images as callers have them, and results as they save them."""

import io
from pathlib import Path

import PIL.Image
import pytest

from edits_client.images import Image
from edits_client.models import StoredEffectiveRecord
from edits_client.sources import LocalImage, read_source


def png() -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (2, 1), "red").save(buffer, "PNG")
    return buffer.getvalue()


def finished(data: bytes, image_format: str) -> Image:
    return Image(data, image_format, 2, 1, 7, "http://x", 0, "f" * 32, 1.5, StoredEffectiveRecord(), [])


def test_everything_that_holds_an_image_is_read(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png())
    pil = read_source(PIL.Image.open(path))
    assert isinstance(pil, LocalImage)
    assert PIL.Image.open(io.BytesIO(pil.data)).getpixel((1, 0)) == (255, 0, 0)
    with path.open("rb") as file:
        sources = [str(path), path, png(), file]
        assert [read_source(source) for source in sources] == [LocalImage(png())] * 4


@pytest.mark.parametrize("reference", ["https://host/a.png", "upload:" + "0" * 64, "sha256:" + "0" * 64])
def test_what_the_service_can_find_itself_stays_a_name(reference):
    assert read_source(reference) == reference


def test_data_url_is_a_file():
    assert read_source("data:image/png;base64,AAEC") == LocalImage(b"\x00\x01\x02")


def test_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match="no_such"):
        read_source("no_such.png")


def test_result_is_saved_byte_for_byte(tmp_path):
    assert finished(png(), "png").save(tmp_path / "out.PNG").read_bytes() == png()
    assert finished(b"jpeg", "jpeg").save(str(tmp_path / "out.jpg")) == tmp_path / "out.jpg"


@pytest.mark.parametrize("name", ["out.jpg", "out", "out.png.webp"])
def test_result_is_not_saved_under_the_name_of_another_format(tmp_path, name):
    with pytest.raises(ValueError, match=r"\.png"):
        finished(png(), "png").save(tmp_path / name)
    assert not list(Path(tmp_path).iterdir())


def test_result_opens_in_pillow():
    assert finished(png(), "png").pil().size == (2, 1)
