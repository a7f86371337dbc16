"""What `edits-server calibrate` says while it makes images, and that it stops between two of them."""

import pytest

from serve_app.commands.calibration_progress import Progress, Stopped


def test_each_image_has_a_line_with_the_time_that_is_left():
    lines: list[str] = []
    seconds = iter((100.0, 220.0, 250.0))
    progress = Progress(4, lines.append, lambda: next(seconds))
    for title in ("exact, without LoRAs", "exact, without LoRAs", "fast, without LoRAs"):
        progress.next(title)
    assert lines == [
        "exact, without LoRAs: image 1 of 4",
        "exact, without LoRAs: image 2 of 4, about 6 min left",
        "fast, without LoRAs: image 3 of 4, about 2 min left",
    ]


def test_no_image_begins_after_an_interruption():
    progress = Progress(2, lambda text: None)
    progress.next("exact")
    with pytest.raises(KeyboardInterrupt), progress.stopping():
        raise KeyboardInterrupt
    with pytest.raises(Stopped):
        progress.next("exact")
