"""Images as people have them: what each becomes, and what is refused."""

import io
import json
import struct

import numpy as np
import PIL.Image
import pytest
from pydantic import ValidationError

from serve_app.errors import ControlImageInvalid
from serve_app.images.blank import is_blank
from serve_app.images.decode import EXIF_ORIENTATION, DecodedImage, decode
from serve_app.images.encode import encode
from serve_app.images.output_formats import OUTPUT_FORMATS
from serve_app.schemas.requests import InferenceRequest
from tests.unit.profiles import icc_profile

SIZE = (60, 40)


def saved(image: PIL.Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def halves(mode: str, left: object, right: object) -> PIL.Image.Image:
    image = PIL.Image.new(mode, SIZE, left)
    image.paste(right, (30, 0, 60, 40))
    return image


def colours(decoded: DecodedImage) -> list[tuple[int, ...]]:
    return [decoded.image.getpixel((5, 5)), decoded.image.getpixel((55, 5))]


def palette_image() -> PIL.Image.Image:
    image = PIL.Image.new("P", SIZE)
    image.putpalette([9, 8, 7, 200, 100, 50])
    image.paste(1, (30, 0, 60, 40))
    return image


def big_endian_tiff() -> bytes:
    """`GREY_16` as a TIFF of the other byte order, which Pillow opens as another mode."""
    levels = np.asarray(GREY_16).astype(">u2").tobytes()
    entries = [(256, 4, 60), (257, 4, 40), (258, 3, 16 << 16), (259, 3, 1 << 16), (262, 3, 1 << 16)]
    entries += [(273, 4, 8 + 2 + 12 * 8 + 4), (278, 4, 40), (279, 4, len(levels))]
    directory = b"".join(struct.pack(">HHII", tag, kind, 1, value) for tag, kind, value in entries)
    return b"MM\0*" + struct.pack(">I", 8) + struct.pack(">H", len(entries)) + directory + bytes(4) + levels


GREY_16 = PIL.Image.fromarray(np.repeat(np.array([[255, 51200]], dtype=np.uint16), [30, 30], axis=1).repeat(40, axis=0))
FRAMES = [halves("L", 10 * n, 200) for n in range(3)]


@pytest.mark.parametrize(
    ("data", "left", "right", "conversions"),
    [
        (saved(halves("RGB", (1, 2, 3), (4, 5, 6))), (1, 2, 3), (4, 5, 6), ()),
        (saved(halves("RGBA", (9, 8, 7, 0), (4, 5, 6, 255))), (9, 8, 7), (4, 5, 6), ("alpha dropped",)),
        (saved(halves("LA", (9, 0), (7, 255))), (9, 9, 9), (7, 7, 7), ("LA to RGB", "alpha dropped")),
        (saved(palette_image()), (9, 8, 7), (200, 100, 50), ("palette to RGB",)),
        (saved(palette_image(), transparency=0), (9, 8, 7), (200, 100, 50), ("palette to RGB", "alpha dropped")),
        (
            saved(halves("CMYK", (0, 0, 0, 0), (255, 255, 255, 255)), "TIFF"),
            (255, 255, 255),
            (0, 0, 0),
            ("CMYK to RGB without a colour profile",),
        ),
        (saved(GREY_16), (0, 0, 0), (200, 200, 200), ("16-bit grey to its high byte",)),
        (saved(GREY_16, "TIFF"), (0, 0, 0), (200, 200, 200), ("16-bit grey to its high byte",)),
        (big_endian_tiff(), (0, 0, 0), (200, 200, 200), ("16-bit grey to its high byte",)),
        (saved(halves("1", 0, 1)), (0, 0, 0), (255, 255, 255), ("1 to RGB",)),
        (
            saved(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]),
            (0, 0, 0),
            (200, 200, 200),
            ("first of 3 frames", "palette to RGB"),
        ),
    ],
    ids=[
        "rgb",
        "alpha",
        "grey-alpha",
        "palette",
        "transparent-palette",
        "cmyk",
        "16-bit",
        "16-bit-tiff",
        "16-bit-big-endian",
        "1-bit",
        "gif",
    ],
)
def test_conversion_is_the_stated_one(data, left, right, conversions):
    decoded = decode(data, "ignore")
    assert decoded.image.mode == "RGB"
    assert colours(decoded) == [left, right]
    assert decoded.facts.conversions == conversions


@pytest.mark.parametrize(
    ("profile", "conversions"),
    [
        (icc_profile("Display P3"), ("colour profile 'Display P3' not applied",)),
        (icc_profile("Display P3", version=4), ("colour profile 'Display P3' not applied",)),
        (icc_profile("Linear sRGB"), ("colour profile 'Linear sRGB' not applied",)),
        (icc_profile("sGray of sRGB", space=b"GRAY"), ("colour profile 'sGray of sRGB' not applied",)),
        (icc_profile("it's\0\n" + "x" * 500), ("colour profile \"it's" + "x" * 54 + '" not applied',)),
        (icc_profile("sRGB IEC61966-2.1"), ()),
        (icc_profile("sRGB built-in", version=4), ()),
        (b"garbage", ("colour profile (ICC, without a name) not applied",)),
        (icc_profile("x")[:140], ("colour profile (ICC, without a name) not applied",)),
    ],
    ids=["v2", "v4", "linear", "grey", "long", "srgb", "srgb-v4", "garbage", "truncated"],
)
@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_colour_profile_that_is_not_srgb_is_told_and_not_applied(profile, conversions, file_format):
    image = halves("RGB", (250, 0, 0), (0, 0, 250))
    decoded = decode(saved(image, file_format, icc_profile=profile), "ignore")
    assert decoded.facts.conversions == conversions
    plain = decode(saved(image, file_format), "ignore")
    assert decoded.image.tobytes() == plain.image.tobytes()


def turned() -> bytes:
    """Lies on its side: EXIF says to turn it a quarter clockwise."""
    image = halves("RGB", (255, 0, 0), (0, 0, 255))
    image.getexif()[EXIF_ORIENTATION] = 6
    return saved(image, exif=image.getexif())


def test_exif_rotation_is_ignored_and_told():
    decoded = decode(turned(), "ignore")
    assert (decoded.facts.size, decoded.facts.exif_orientation) == (SIZE, 6)
    assert colours(decoded) == [(255, 0, 0), (0, 0, 255)]


def test_exif_rotation_is_applied_when_asked():
    decoded = decode(turned(), "apply")
    assert (decoded.facts.size, decoded.facts.exif_orientation) == ((40, 60), 6)
    assert [decoded.image.getpixel((5, y)) for y in (5, 55)] == [(255, 0, 0), (0, 0, 255)]


def with_exif(payload: bytes) -> bytes:
    return saved(halves("RGB", (255, 0, 0), (0, 0, 255)), exif=payload)


def test_orientation_of_an_odd_type_is_a_plain_number():
    exif = PIL.Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    payload = bytearray(exif.tobytes())
    # The entry's type becomes DOUBLE's neighbour RATIONAL, its value an offset to 6/1 behind the directory.
    entry = payload.index(b"\x01\x12") if b"\x01\x12" in payload else payload.index(b"\x12\x01")
    little = payload[entry : entry + 2] == b"\x12\x01"
    order = "little" if little else "big"
    payload[entry + 2 : entry + 12] = (5).to_bytes(2, order) + (1).to_bytes(4, order) + (26).to_bytes(4, order)
    payload = payload[: 6 + 26] + (6).to_bytes(4, order) + (1).to_bytes(4, order)
    facts = decode(with_exif(bytes(payload)), "ignore").facts
    assert facts.exif_orientation in (None, 6)
    json.dumps(facts.exif_orientation)


@pytest.mark.parametrize("exif", ["ignore", "apply"])
def test_sound_image_with_broken_exif_is_read(exif):
    decoded = decode(with_exif(b"Exif\0\0garbage"), exif)
    assert (decoded.facts.size, decoded.facts.exif_orientation) == (SIZE, None)


def test_tiff_is_turned_by_pillow_and_that_is_told():
    image = halves("RGB", (255, 0, 0), (0, 0, 255))
    image.getexif()[EXIF_ORIENTATION] = 6
    facts = decode(saved(image, "TIFF", exif=image.getexif()), "ignore").facts
    assert facts.size == (40, 60)
    assert facts.conversions == ("turned as its TIFF tag says, as Pillow always does",)


def test_upright_image_has_no_orientation():
    assert decode(saved(PIL.Image.new("RGB", SIZE)), "apply").facts.exif_orientation is None


@pytest.mark.parametrize("mode", ["F", "I"])
def test_grey_of_32_bits_is_refused(mode):
    with pytest.raises(ControlImageInvalid, match="32 bits"):
        decode(saved(PIL.Image.new(mode, SIZE), "TIFF"), "ignore")


@pytest.mark.parametrize("exif", ["ignore", "apply"])
def test_size_is_checked_before_pixels_are_decoded(exif):
    with pytest.raises(ControlImageInvalid, match="60x40 pixels, and at most 2399 are accepted"):
        decode(saved(PIL.Image.new("RGB", SIZE)), exif, max_pixels=2399)


def test_png_carries_its_text_and_the_pixels_unchanged():
    image = halves("RGB", (1, 2, 3), (4, 5, 6))
    made = PIL.Image.open(io.BytesIO(encode(image, OUTPUT_FORMATS["png"], {"effective": {"prompt": "rot, grün, 红"}})))
    assert json.loads(made.text["effective"]) == {"prompt": "rot, grün, 红"}
    assert made.tobytes() == image.tobytes()


@pytest.mark.parametrize("output_format", OUTPUT_FORMATS.values(), ids=lambda row: row.name)
def test_each_output_format_is_what_its_row_says(output_format):
    image = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    made = PIL.Image.open(io.BytesIO(encode(image, output_format, {"key": "text"})))
    assert made.get_format_mimetype() == output_format.mime_type
    assert PIL.Image.registered_extensions()[output_format.suffix] == output_format.pillow_format
    assert (made.convert("RGB").tobytes() == image.tobytes()) == output_format.is_lossless
    assert ("key" in made.info) == output_format.carries_text


def test_requests_accept_exactly_the_formats_of_the_table():
    schema = InferenceRequest.model_json_schema()
    formats, none = schema["properties"]["output_format"]["anyOf"]
    assert formats["$ref"] == "#/$defs/OutputFormat"
    assert none == {"type": "null"}
    assert schema["$defs"]["OutputFormat"]["enum"] == list(OUTPUT_FORMATS)
    assert formats["default"] in OUTPUT_FORMATS
    body = {"model": "m", "loras": [], "prompts": [{"prompt": "p"}]}
    for name in OUTPUT_FORMATS:
        assert InferenceRequest.model_validate(body | {"output_format": name}).output_format == name
    with pytest.raises(ValidationError, match="output_format"):
        InferenceRequest.model_validate(body | {"output_format": "gif"})


def test_image_of_one_colour_is_blank():
    assert is_blank(PIL.Image.new("RGB", SIZE, (3, 200, 7)))
    image = PIL.Image.new("RGB", SIZE, (3, 200, 7))
    image.putpixel((59, 39), (3, 200, 8))
    assert not is_blank(image)
