"""Comparing images as the trainer saved them."""

import io

import numpy as np
import PIL.Image
import pytest

from serve_app.images.comparison import Comparison, compare, is_whole, psnr, saved_as, thumbnail
from tests.conftest import noise_image


def test_equal_images_have_no_ratio():
    assert compare(noise_image(32, 16), noise_image(32, 16)) == Comparison(None, 1.0)


def test_figures_are_those_of_numpy():
    one, other = noise_image(32, 16), noise_image(32, 16, seed=1)
    other.paste(one.crop((0, 0, 8, 16)), (0, 0))
    found = compare(one, other)
    first, second = np.asarray(one).astype(float), np.asarray(other).astype(float)
    assert found.psnr_db == pytest.approx(10 * np.log10(255**2 / ((first - second) ** 2).mean()))
    assert found.psnr_db == psnr(one, other)
    assert found.equal_share == (first == second).all(axis=2).mean()


def test_images_of_two_sizes_are_not_compared():
    with pytest.raises(ValueError, match="sizes"):
        compare(noise_image(32, 16), noise_image(16, 32))


@pytest.mark.parametrize(("suffix", "kind"), [("jpg", "JPEG"), ("jpeg", "JPEG"), ("webp", "WEBP"), ("png", "PNG")])
def test_saved_as_pillow_saves_by_default(suffix, kind):
    image, buffer = noise_image(48, 32), io.BytesIO()
    image.save(buffer, kind)
    assert np.array_equal(saved_as(image, suffix), PIL.Image.open(buffer))
    assert (compare(image, saved_as(image, suffix)).psnr_db is None) == (suffix == "png")


def test_jpeg_is_of_quality_75_and_halved_colors():
    image = noise_image(48, 32)
    for options, is_same in (({"quality": 75, "subsampling": "4:2:0"}, True), ({"quality": 76}, False)):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", **options)
        assert np.array_equal(saved_as(image, "jpg"), PIL.Image.open(buffer)) is is_same


@pytest.mark.parametrize(("suffix", "kind"), [("jpg", "JPEG"), ("webp", "WEBP"), ("png", "PNG")])
def test_every_beginning_of_a_file_is_not_whole(suffix, kind):
    buffer = io.BytesIO()
    noise_image(24, 24).save(buffer, kind)
    whole = buffer.getvalue()
    assert is_whole(whole, suffix)
    assert not any(is_whole(whole[:end], suffix) for end in range(len(whole)))


def test_thumbnail_fits_and_is_never_larger():
    assert PIL.Image.open(io.BytesIO(thumbnail(noise_image(600, 300)))).size == (300, 150)
    assert PIL.Image.open(io.BytesIO(thumbnail(noise_image(60, 30)))).size == (60, 30)
