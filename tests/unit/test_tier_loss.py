"""The figures of a tier's loss, against values computed by hand and by their definitions."""

import numpy as np
import PIL.Image
import pytest

from serve_app.images.similarity import ssim
from serve_app.images.tier_loss import PairLoss, compare_pair, edit_seconds, loss_of, relative_error
from serve_app.tasks import LossRange
from tests.conftest import noise_image


def test_a_pair_has_the_figures_of_their_definitions():
    exact = noise_image(64, 48)
    values = np.asarray(exact).astype(int)
    tier = PIL.Image.fromarray(np.where(values < 255, values + 1, values - 1).astype(np.uint8))
    found = compare_pair(exact, tier, 2.0, 1.0, 0.25)
    # Each value differs by one level: the mean squared error is 1.
    assert found.psnr_db == pytest.approx(10 * np.log10(255**2))
    assert found == PairLoss(found.psnr_db, ssim(exact, tier), 2.0, 1.0, 0.25)


def test_equal_images_have_no_ratio_and_count_as_better_than_all_others():
    exact = noise_image(64, 48)
    equal = compare_pair(exact, exact, 1, 1)
    assert (equal.psnr_db, equal.ssim) == (None, 1)
    other = PairLoss(40.0, 0.9, 1, 1)
    assert loss_of([equal, other, equal], "", 0).psnr_db == LossRange(40.0, None)
    assert loss_of([equal], "", 0).psnr_db == LossRange(None, None)


def test_the_relative_error_is_that_of_the_norms():
    exact = np.array([[3.0, 0.0], [0.0, 4.0]])
    assert relative_error(exact, exact + np.array([[0.0, 0.5], [0.0, 0.0]])) == pytest.approx(0.1)
    assert relative_error(exact, exact) == 0
    with pytest.raises(ValueError, match="cannot be compared"):
        relative_error(exact, exact[:1])


def test_a_loss_has_the_worst_and_the_median_of_all_pairs():
    pairs = [
        PairLoss(40.004, 0.99, 4.0, 2.0, 0.1),
        PairLoss(30.0, 0.91, 2.0, 1.0, 0.3),
        PairLoss(50.0, 0.999, 3.0, 9.0, 0.2),
    ]
    found = loss_of(pairs, "three prompts", 12.5)
    assert (found.psnr_db, found.ssim) == (LossRange(30.0, 40.0), LossRange(0.91, 0.99))
    assert (found.latents, found.lpips) == (0.3, None)
    assert (found.exact_s, found.tier_s) == (3.0, 2.0)
    assert (found.cases, found.on, found.measured_at) == (3, "three prompts", 12.5)


def test_latents_count_only_if_they_are_known_of_every_pair():
    assert loss_of([PairLoss(40.0, 0.9, 1, 1, 0.1), PairLoss(40.0, 0.9, 1, 1)], "", 0).latents is None


def test_seconds_leave_out_what_earlier_edits_may_have_encoded():
    timings = {"encode_prompt": 5.0, "apply_adapters": 0.5, "denoise": 2.0, "decode": 1.0, "generate": 8.5}
    assert edit_seconds(timings) == 3.5
    assert edit_seconds({"generate": 8.5}) == 8.5
