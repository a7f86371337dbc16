"""Downloads of one request's control images: a few at a time, within the memory that the request holds."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from serve_app.concurrency.budget import Hold
from serve_app.errors import ControlImageInvalid, FetchFailed

# Downloads an image: its URL or other name, its size limit (bytes), and a function to call with its size once known.
Download = Callable[[str, int, Callable[[int], None]], Awaitable[bytes]]


class Downloads:
    """Control images that a request names. Memory for them is held before anything is downloaded.

    An image whose size is unknown counts as `max_bytes`. When its server reports that it is smaller, the rest is
    released.
    """

    def __init__(self, download: Download, memory: Hold, max_bytes: int) -> None:
        """`max_bytes` is the size limit of one image."""
        self._download = download
        self._memory = memory
        self._max_bytes = max_bytes
        # Images that have not started, those that are being downloaded, and the bytes of all that have started.
        self._left = self._running = self._used = 0
        self._limit = 0
        self._changed = asyncio.Event()

    async def expect(self, count: int) -> None:
        """Hold memory for `count` images, at most a tenant's share. Raises Overloaded."""
        if count:
            await self._memory.take(count * self._max_bytes)
        self._left, self._limit = count, self._memory.amount

    async def get(self, name: str) -> bytes:
        """One of the expected images. Raises FetchFailed, ControlImageInvalid or Overloaded."""
        while self._running and self._used + self._max_bytes > self._limit:
            # Running downloads may turn out smaller than they count, which frees memory for this one.
            self._changed.clear()
            await self._changed.wait()
        limit = min(self._max_bytes, self._limit - self._used)
        if limit <= 0:
            raise self._too_large()
        with self._started(limit) as size:
            try:
                data = await self._download(name, limit, size.known)
            except FetchFailed as error:
                size.known(0)
                if limit < self._max_bytes and error.details.get("max_bytes") == limit:
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
    def _started(self, limit: int) -> Iterator["Size"]:
        size = Size(self, limit)
        self._left -= 1
        self._running += 1
        self._used += limit
        try:
            yield size
        finally:
            self._running -= 1
            self._release_unused()

    def change(self, difference: int) -> None:
        """Count `difference` bytes more for an image that has started."""
        self._used += difference
        self._release_unused()

    def _release_unused(self) -> None:
        self._memory.shrink_to(self._used + self._left * self._max_bytes)
        self._changed.set()


class Size:
    """The bytes that an image which is being downloaded counts as."""

    def __init__(self, downloads: Downloads, bytes_counted: int) -> None:
        self._downloads = downloads
        self._bytes = bytes_counted

    def known(self, size: int) -> None:
        """Count the image as `size` bytes from now on."""
        change, self._bytes = size - self._bytes, size
        self._downloads.change(change)
