"""Calls of one request, a few at a time: what an error does to the others."""

import asyncio

import pytest

from serve_app.intake.admission.admission import gather_few


async def test_calls_after_a_failed_one_are_cancelled():
    ended: list[str] = []

    async def wait_for_room() -> None:
        try:
            await asyncio.sleep(30)
        finally:
            ended.append("waiting")

    async def fail() -> None:
        await asyncio.sleep(0)
        raise ZeroDivisionError

    async def never() -> None:
        ended.append("begun")

    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(gather_few([fail, wait_for_room, never], 2), 5)
    assert ended == ["waiting"]


async def test_first_error_in_order_is_raised_whichever_comes_first():
    async def late() -> None:
        await asyncio.sleep(0.05)
        raise ValueError("late")

    async def early() -> None:
        raise ZeroDivisionError

    with pytest.raises(ValueError, match="late"):
        await gather_few([late, early, early], 3)
