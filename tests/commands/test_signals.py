"""What the first and the second signal do to a command."""

import os
import signal
from collections.abc import Iterator

import pytest

from serve_app.commands.signals import StopSignals


@pytest.fixture
def stop() -> Iterator[StopSignals]:
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    signals = StopSignals()
    signals.listen()
    yield signals
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks_and_the_second_one_stops_at_once(stop: StopSignals, number: int):
    assert not stop.asked
    os.kill(os.getpid(), number)
    assert stop.asked
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)
