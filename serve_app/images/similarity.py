"""The structural similarity of two images (SSIM).

Z. Wang, A. C. Bovik, H. R. Sheikh, E. P. Simoncelli: Image quality assessment: from error visibility to structural
similarity. IEEE Transactions on Image Processing 13(4), 2004. Constants, window and the scale at which images are
compared are those of the authors' implementation (ssim.m): a Gaussian window of 11x11 with sigma 1.5 where it fits,
K1 = 0.01, K2 = 0.03, on the luminance, after images were made smaller to about 256 pixels on their shorter side.
"""

import numpy as np
import PIL.Image
from numpy.typing import NDArray

Array = NDArray[np.float64]

WINDOW, SIGMA = 11, 1.5
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
# The shorter side of images as they are compared (pixels), about.
SIDE = 256


def ssim(one: PIL.Image.Image, other: PIL.Image.Image) -> float:
    """The mean SSIM of two images: 1 if they are equal, less the more they differ.

    Raises ValueError if their sizes differ, or if one is smaller than the window.
    """
    if one.size != other.size or min(one.size) < WINDOW:
        raise ValueError(f"images of {one.size} and {other.size} pixels cannot be compared")
    x, y = _luminance(one), _luminance(other)
    mean_x, mean_y = _blurred(x), _blurred(y)
    variance_x, variance_y = _blurred(x * x) - mean_x**2, _blurred(y * y) - mean_y**2
    covariance = _blurred(x * y) - mean_x * mean_y
    likeness = (2 * mean_x * mean_y + C1) * (2 * covariance + C2)
    return float(np.mean(likeness / ((mean_x**2 + mean_y**2 + C1) * (variance_x + variance_y + C2))))


def _luminance(image: PIL.Image.Image) -> Array:
    """The luminance (ITU-R 601, 0 to 255), averaged over blocks so that the shorter side has about `SIDE` pixels."""
    factor = max(1, round(min(image.size) / SIDE))
    return np.asarray(image.convert("L").convert("F").reduce(factor), dtype=np.float64)


def _blurred(values: Array) -> Array:
    """The weighted means of all windows that lie within the image."""
    offsets = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * SIGMA**2))
    weights /= weights.sum()
    rows = len(values) - WINDOW + 1
    columns = values.shape[1] - WINDOW + 1
    across = sum(weight * values[:, start : start + columns] for start, weight in enumerate(weights))
    return np.asarray(sum(weight * across[start : start + rows] for start, weight in enumerate(weights)))
