"""`edits-server compare`: are two images the same, and which parameters differ."""

import math

import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import pytest

from serve_app.commands import compare
from serve_app.images.encode import encode
from serve_app.images.output_formats import OUTPUT_FORMATS
from tests.conftest import edits_server


def plain_image(colour: tuple[int, int, int] = (10, 20, 30), size: tuple[int, int] = (10, 10)) -> PIL.Image.Image:
    return PIL.Image.new("RGB", size, colour)


def record(**changes: object) -> dict:
    return {"effective": {"sample_steps": 25, "loras": [{"path": "a", "network_multiplier": 1.0}]} | changes}


@pytest.fixture
def file(tmp_path):
    def file(name: str, image: PIL.Image.Image, text: dict) -> str:
        path = tmp_path / name
        path.write_bytes(encode(image, OUTPUT_FORMATS["png"], text))
        return str(path)

    return file


def test_difference_has_share_maximum_and_psnr():
    other = plain_image()
    other.putpixel((0, 0), (10, 20, 35))
    other.putpixel((1, 0), (10, 17, 30))
    found = compare.difference(plain_image(), other)
    assert (found.share, found.largest) == (0.02, 5)
    assert found.psnr == pytest.approx(10 * math.log10(255**2 / ((25 + 9) / 300)))


def test_black_and_white_have_the_largest_difference():
    found = compare.difference(plain_image((0, 0, 0)), plain_image((255, 255, 255)))
    assert (found.share, found.largest, found.psnr) == (1.0, 255, 0.0)


def test_identical_images(file, capsys):
    paths = [file("a.png", plain_image(), record()), file("b.png", plain_image(), record())]
    assert edits_server("compare", *paths) == 0
    out = capsys.readouterr().out
    assert "identical: all 10x10 pixels" in out
    assert "no parameter differs" in out


def test_parameters_that_differ_are_named_with_both_values(file, capsys):
    changed = record(loras=[{"path": "a", "network_multiplier": 0.5}], exif="apply")
    paths = [file("a.png", plain_image(), record()), file("b.png", plain_image((11, 20, 30)), changed)]
    assert edits_server("compare", *paths) == 1
    out = capsys.readouterr().out
    assert "different: 100.0000% of the pixels, by at most 1 of 255 levels, PSNR 52.90 dB" in out
    assert "effective.loras[0].network_multiplier: 1.0 | 0.5" in out
    assert "effective.exif: None | 'apply'" in out
    assert "sample_steps" not in out


def test_image_without_parameters_is_still_compared(file, tmp_path, capsys):
    plain_image().save(tmp_path / "b.png")
    assert edits_server("compare", file("a.png", plain_image(), record()), tmp_path / "b.png") == 0
    assert "b.png carries no parameters" in capsys.readouterr().out


def test_images_that_cannot_be_compared_have_their_own_exit_code(file, tmp_path, capsys):
    one = file("a.png", plain_image(), {})
    assert edits_server("compare", one, file("b.png", plain_image(size=(11, 10)), {})) == 2
    assert "their sizes differ: 10x10 and 11x10" in capsys.readouterr().out
    (tmp_path / "c.png").write_text("not an image")
    assert edits_server("compare", one, tmp_path / "c.png") == 2
    assert edits_server("compare", one, tmp_path / "missing.png") == 2
    assert f"cannot be compared: {tmp_path}/missing.png: No such file or directory\n" in capsys.readouterr().out


def test_images_of_more_than_eight_bits_are_not_called_identical(tmp_path, capsys):
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path, level in zip(paths, (30000, 60000), strict=True):
        PIL.Image.fromarray(np.full((8, 8), level, dtype=np.uint16)).save(path)
    assert edits_server("compare", *paths) == 2
    assert "only images of 8 bits per channel" in capsys.readouterr().out


def test_alpha_counts():
    a, b = (PIL.Image.new("RGBA", (4, 4), (1, 2, 3, alpha)) for alpha in (0, 255))
    assert compare.difference(a, b).largest == 255


def test_text_of_another_program_is_no_parameter(file, tmp_path, capsys):
    info = PIL.PngImagePlugin.PngInfo()
    info.add_text("effective", "not json")
    plain_image().save(tmp_path / "b.png", pnginfo=info)
    assert edits_server("compare", file("a.png", plain_image(), record()), tmp_path / "b.png") == 0
    assert "b.png carries no parameters" in capsys.readouterr().out


def test_request_of_a_record_does_not_repeat_differences(file, capsys):
    a, b = ({"effective": {"seed": seed, "request": {"prompts": [{"seed": seed}]}}} for seed in (1, 2))
    edits_server("compare", file("a.png", plain_image(), a), file("b.png", plain_image(), b))
    out = capsys.readouterr().out
    assert "effective.seed: 1 | 2" in out
    assert "request" not in out


def test_reason_for_a_value_is_no_parameter(file, capsys):
    a = {"effective": {"seed": 42, "why": {"seed": "asked for"}, "loras": [{"path": "a", "id": "1"}]}}
    b = {"effective": {"seed": 42, "why": {"seed": "default"}, "preset": "x", "loras": [{"path": "a", "id": "2"}]}}
    assert edits_server("compare", file("a.png", plain_image(), a), file("b.png", plain_image(), b)) == 0
    assert "no parameter differs" in capsys.readouterr().out
