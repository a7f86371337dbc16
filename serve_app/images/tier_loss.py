"""The loss of a tier: how far its images are from the exact ones, measured on pairs of images of the same cases.

PSNR is over the RGB values of all pixels, SSIM as in `similarity`. LPIPS is not measured: it needs weights of a network
that this package does not bring along.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import PIL.Image
from numpy.typing import ArrayLike

from serve_app.images.comparison import psnr
from serve_app.images.similarity import ssim
from serve_app.tasks import Loss, LossRange

# Decimals of the stored figures.
DB_DECIMALS, DECIMALS, SECONDS_DECIMALS = 2, 5, 4


@dataclass(frozen=True)
class PairLoss:
    """The tier's image of one case compared with the exact one.

    `psnr_db` is None for equal images. `latents` is the relative error of the latents before decoding, None if they are
    not known. `exact_s` and `tier_s` are the seconds that the two edits took.
    """

    psnr_db: float | None
    ssim: float
    exact_s: float
    tier_s: float
    latents: float | None = None


def compare_pair(
    exact: PIL.Image.Image, tier: PIL.Image.Image, exact_s: float, tier_s: float, latents: float | None = None
) -> PairLoss:
    """The loss of one pair. Raises ValueError if the images differ in size or are too small for SSIM."""
    exact, tier = exact.convert("RGB"), tier.convert("RGB")
    return PairLoss(psnr(exact, tier), ssim(exact, tier), exact_s, tier_s, latents)


def edit_seconds(timings: Mapping[str, float]) -> float:
    """Seconds without encoding: a second equal edit takes that from a cache."""
    stages = [timings[stage] for stage in ("apply_adapters", "denoise", "decode") if stage in timings]
    return sum(stages) if "denoise" in timings else timings.get("generate", 0.0)


def relative_error(exact: ArrayLike, tier: ArrayLike) -> float:
    """The norm of the difference over the norm of `exact`, which is not all zeros. Raises ValueError for two shapes."""
    one, other = np.asarray(exact, dtype=np.float64), np.asarray(tier, dtype=np.float64)
    if one.shape != other.shape:
        raise ValueError(f"latents of the shapes {one.shape} and {other.shape} cannot be compared")
    return float(np.linalg.norm(other - one) / np.linalg.norm(one))


def loss_of(pairs: Sequence[PairLoss], on: str, measured_at: float) -> Loss:
    """The loss over all pairs, of which there is at least one. `measured_at` is in seconds since the epoch."""
    latents = [pair.latents for pair in pairs if pair.latents is not None]
    return Loss(
        psnr_db=_range([math.inf if pair.psnr_db is None else pair.psnr_db for pair in pairs], DB_DECIMALS),
        ssim=_range([pair.ssim for pair in pairs], DECIMALS),
        exact_s=round(statistics.median(pair.exact_s for pair in pairs), SECONDS_DECIMALS),
        tier_s=round(statistics.median(pair.tier_s for pair in pairs), SECONDS_DECIMALS),
        cases=len(pairs),
        measured_at=measured_at,
        on=on,
        latents=round(max(latents), DECIMALS) if len(latents) == len(pairs) else None,
    )


def _range(values: Sequence[float], decimals: int) -> LossRange:
    """The worst value, which is the least one, and the median; None for what is infinite."""
    found = (min(values), statistics.median(values))
    return LossRange(*(None if math.isinf(value) else round(value, decimals) for value in found))
