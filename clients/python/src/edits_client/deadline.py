"""How long a call waits for a request."""

from __future__ import annotations

import time

from edits_client.errors import WaitTimeout


class Deadline:
    """The time until which a request is waited for: `timeout` seconds from now, or for ever with None."""

    def __init__(self, request_id: str, timeout: float | None) -> None:
        self._request_id = request_id
        self._timeout = timeout
        self._ends = None if timeout is None else time.monotonic() + timeout

    def check(self, needed_s: float = 0.0) -> None:
        """Raise WaitTimeout if there are less than `needed_s` seconds left."""
        if self._timeout is not None and self._left() < needed_s:
            raise WaitTimeout(f"request {self._request_id} has not ended within {self._timeout:g} s", self._request_id)

    def at_most(self, seconds: float) -> float:
        """`seconds`, or what is left if that is less; never 0."""
        return max(0.001, min(seconds, self._left()))

    def _left(self) -> float:
        return float("inf") if self._ends is None else self._ends - time.monotonic()
