"""SSIM by its definition, and the figures of another implementation."""

import PIL.Image
import PIL.ImageFilter
import pytest

from serve_app.images.similarity import ssim
from tests.conftest import noise_image


def damaged(image: PIL.Image.Image, how: str) -> PIL.Image.Image:
    if how == "blurred":
        return image.filter(PIL.ImageFilter.BoxBlur(2))
    if how == "darker":
        return image.point(lambda value: value * 3 // 4)
    return noise_image(*image.size, seed=9)


@pytest.mark.parametrize(
    ("how", "expected"),
    [("blurred", 0.5385563801), ("darker", 0.9290178661), ("another", 0.2082479292)],
)
def test_figures_are_those_of_scikit_image(how, expected):
    """scikit-image 0.26: structural_similarity(x, y, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
    data_range=255) of the images in mode L."""
    image = noise_image(200, 160, seed=3)
    assert ssim(image, damaged(image, how)) == pytest.approx(expected, abs=1e-9)


def test_equal_images_have_one():
    image = noise_image(64, 48)
    assert ssim(image, image.copy()) == 1.0


def test_large_images_are_compared_at_the_scale_of_the_definition():
    """A shift of brightness of single pixels counts less from afar."""
    image = noise_image(1024, 768, seed=3)
    small = image.convert("L").convert("F").reduce(3)
    other = noise_image(1024, 768, seed=4)
    expected = ssim(small, other.convert("L").convert("F").reduce(3))
    assert ssim(image, other) == pytest.approx(expected, abs=0.01)


# Of other sizes, and too small.
@pytest.mark.parametrize("size", [(64, 32), (10, 64)])
def test_images_that_cannot_be_compared(size):
    with pytest.raises(ValueError, match="cannot be compared"):
        ssim(noise_image(10, 64), noise_image(*size))
