"""Pauses, threads and locks of the async client. `_sync/clock.py` is its counterpart, and is not generated."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import anyio
import anyio.to_thread
from anyio import Lock

T = TypeVar("T")

__all__ = ["Lock", "in_thread", "sleep"]


async def sleep(seconds: float) -> None:
    await anyio.sleep(seconds)


async def in_thread(work: Callable[[], T]) -> T:
    """The result of blocking work."""
    return await anyio.to_thread.run_sync(work)
