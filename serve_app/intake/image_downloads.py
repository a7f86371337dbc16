"""The control images of one request that lie elsewhere: brought a few at a time, within the memory that it holds."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from serve_app.concurrency.budget import Hold
from serve_app.errors import ControlImageInvalid, FetchFailed

# Brings the image of a name: at most so many bytes, whose number it announces as soon as it is known.
Bring = Callable[[str, int, Callable[[int], None]], Awaitable[bytes]]


class Downloads:
    """What a request's images take is held before anything is asked for: `each` for every image of unknown size.

    What turns out smaller is given back, as soon as its server says how long it is.
    """

    def __init__(self, bring: Bring, room: Hold, each: int) -> None:
        self._bring = bring
        self._room = room
        self._each = each
        # Images that were not begun, those under way, and the bytes of those that were begun.
        self._left = self._running = self._used = 0
        self._limit = 0
        self._changed = asyncio.Event()

    async def expect(self, count: int) -> None:
        """Hold memory for so many images, at most a tenant's share. Raises Overloaded."""
        if count:
            await self._room.take(count * self._each)
        self._left, self._limit = count, self._room.amount

    async def get(self, name: str) -> bytes:
        """One of the expected images. Raises FetchFailed, ControlImageInvalid or Overloaded."""
        while self._running and self._used + self._each > self._limit:
            # Once those under way are here, it is known whether there is room.
            self._changed.clear()
            await self._changed.wait()
        limit = min(self._each, self._limit - self._used)
        if limit <= 0:
            raise self._too_large()
        with self._begun(limit) as size:
            try:
                data = await self._bring(name, limit, size.known)
            except FetchFailed as error:
                size.known(0)
                if limit < self._each and error.details.get("max_bytes") == limit:
                    raise self._too_large() from error
                raise
            size.known(len(data))
            return data

    def _too_large(self) -> ControlImageInvalid:
        return ControlImageInvalid(
            f"the control images of this request together are larger than {self._limit} bytes; send its prompts in "
            "several requests"
        )

    @contextmanager
    def _begun(self, limit: int) -> Iterator["Size"]:
        size = Size(self, limit)
        self._left -= 1
        self._running += 1
        self._used += limit
        try:
            yield size
        finally:
            self._running -= 1
            self._settle()

    def change(self, difference: int) -> None:
        self._used += difference
        self._settle()

    def _settle(self) -> None:
        self._room.keep(self._used + self._left * self._each)
        self._changed.set()


class Size:
    """What an image that is under way may still turn out to take (bytes)."""

    def __init__(self, downloads: Downloads, most: int) -> None:
        self._downloads = downloads
        self._most = most

    def known(self, size: int) -> None:
        change, self._most = size - self._most, size
        self._downloads.change(change)
