"""Sizes, against values worked out by hand or by diffusers' own function."""

import pytest

from serve_app.images.sizes import fits_encoder, size_for_area, snap


def test_snap_floors():
    assert [snap(length, 32) for length in (64, 95, 96, 1000)] == [64, 64, 96, 992]


@pytest.mark.parametrize(
    ("ratio", "size"), [(1.0, (1024, 1024)), (16 / 9, (1376, 768)), (640 / 448, (1216, 864)), (0.5, (736, 1440))]
)
def test_about_a_megapixel(ratio, size):
    assert size_for_area(ratio) == size


@pytest.mark.parametrize(
    ("size", "fits"), [((64, 64), True), ((1900, 10), False), ((10, 900), True), ((1, 4096), False)]
)
def test_extreme_images(size, fits):
    assert fits_encoder(*size) is fits
