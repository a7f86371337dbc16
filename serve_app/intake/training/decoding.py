"""Decoding the trainer's images in an ingress: a few at a time, within memory, and only files that can be decoded."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from serve_app.images.decode import ImageFacts
from serve_app.images.sizes import Size
from serve_app.intake.resources import Resources

T = TypeVar("T")

# How many images are worked on at a time.
AT_ONCE = 2
# What a comparison takes of memory: two images, one of them saved again, their difference and its channels.
BYTES_PER_PIXEL = 18


class Decoding:
    """Belongs to one event loop."""

    def __init__(self, resources: Resources) -> None:
        self._decoders = resources.decoders
        self._memory = resources.image_memory
        self._slots = asyncio.Semaphore(AT_ONCE)

    async def facts(self, data: bytes, tenant: str) -> ImageFacts:
        """The facts about an image's file, which a process of the decoder pool has decoded as a whole.

        A file that makes a decoder fail reaches no further. Raises ControlImageInvalid, with only the reason, or
        Overloaded.
        """
        return await self._decoders.facts(data, "ignore", tenant)

    async def run(self, size: Size, tenant: str, work: Callable[[], T]) -> T:
        """What `work` returns, which decodes images of this size (pixels) in a thread.

        Raises Overloaded, and what `work` raises.
        """
        width, height = size
        async with self._slots:
            with self._memory.hold(tenant) as hold:
                await hold.take(width * height * BYTES_PER_PIXEL)
                return await asyncio.to_thread(work)


class Recent(Generic[T]):
    """The results of the newest calls, by a key that changes with what they are made from."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: OrderedDict[str, T] = OrderedDict()

    async def get(self, key: str, make: Callable[[], Awaitable[T]]) -> T:
        """The result for this key, made unless it is known. Raises what `make` raises, which is not remembered."""
        if key not in self._known:
            self._known[key] = await make()
        self._known.move_to_end(key)
        result = self._known[key]
        if len(self._known) > self._most:
            self._known.popitem(last=False)
        return result
