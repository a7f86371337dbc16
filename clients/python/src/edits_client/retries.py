"""When a call is tried again, and after how long. Pure: no clock, no I/O.

Every call of this client may be repeated: reads change nothing, submissions carry an idempotency key, uploads are
named by their content, and cancelling twice is cancelling once.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

# 408: the body arrived too slowly. 425 and 429 say when to come back. 502 to 504 come from proxies and from a service
# that starts, stops or has lost its database.
RETRIED_STATUSES = frozenset({408, 425, 429, 502, 503, 504})


@dataclass(frozen=True)
class Retries:
    """`for_s` is how long a call is repeated in all (seconds).

    The pause before try n is `first_s * 2**n`, at most `longest_s`, shortened at random by up to a half, so that many
    clients do not come back together. A `Retry-After` of the service is a lower bound.
    """

    for_s: float = 60.0
    first_s: float = 0.25
    longest_s: float = 8.0

    def pause(self, tries: int, elapsed_s: float, retry_after_s: float = 0.0) -> float | None:
        """Seconds to wait after `tries` failed tries, None if no time is left."""
        backoff = min(self.first_s * 2 ** min(tries - 1, 30), self.longest_s) * random.uniform(0.5, 1.0)
        pause = max(backoff, retry_after_s)
        return pause if elapsed_s + pause <= self.for_s else None


DEFAULT_RETRIES = Retries()


def retry_after_s(headers: Mapping[str, str]) -> float:
    """The `Retry-After` of an answer in seconds, 0 if it has none. The service never sends a date there."""
    try:
        return max(0.0, float(headers.get("retry-after", "0")))
    except ValueError:
        return 0.0
