"""Pauses, threads and locks of the sync client. It has no other threads than its callers'."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Lock
from typing import TypeVar

T = TypeVar("T")

__all__ = ["Lock", "in_thread", "sleep"]


def sleep(seconds: float) -> None:
    time.sleep(seconds)


def in_thread(work: Callable[[], T]) -> T:
    """The result of blocking work."""
    return work()
