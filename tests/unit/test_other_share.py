"""What of an edit's time comes after its last step."""

import pytest

from serve_app.jobs.speeds import other_share


@pytest.mark.parametrize(
    ("timings", "share"),
    [
        ({"generate": 8.0, "denoise": 6.0, "decode": 1.5, "save": 2.0}, 0.35),
        ({"generate": 8.0, "save": 2.0}, 0.2),
        ({"generate": 8.0}, 0.0),
        # Clocks that disagree a little.
        ({"generate": 8.0, "decode": 8.1}, 1.0),
        # What comes before the first step is over when the last one is.
        ({"generate": 8.0, "encode_prompts": 1.0, "apply_adapters": 5.0, "denoise": 2.0}, 0.0),
    ],
)
def test_share_of_an_edit_that_comes_after_its_steps(timings, share):
    assert other_share(timings) == pytest.approx(share)
