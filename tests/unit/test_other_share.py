"""What of an edit's time is not denoising."""

import pytest

from serve_app.jobs.queue import other_share


@pytest.mark.parametrize(
    ("timings", "share"),
    [
        ({"generate": 8.0, "denoise": 6.0, "decode": 1.5, "save": 2.0}, 0.4),
        ({"generate": 8.0, "save": 2.0}, 0.2),
        ({"generate": 8.0}, 0.0),
        # Clocks that disagree a little.
        ({"generate": 8.0, "denoise": 8.1}, 0.0),
    ],
)
def test_share_of_an_edit_that_is_not_steps(timings, share):
    assert other_share(timings) == pytest.approx(share)
