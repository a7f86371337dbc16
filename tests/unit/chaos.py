"""A proxy on loopback that treats connections badly: by chance, but the same for the same seed."""

import asyncio
import math
import random
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress

# How many of a hundred connections get each fate. The others are passed on.
FATES = {
    "refused": 5,  # closed at once
    "request lost": 8,  # cut while the request is sent
    "answer lost": 10,  # the service gets the request, the client no answer
    "answer cut": 12,  # cut somewhere in the answers, after one or more whole ones
    "503": 8,  # answered by the proxy, as one does whose service is away
    "late 503": 5,  # the same, but the service got the request
    "slow": 10,
}
PASSED = "passed"
ANSWER_503 = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbusy"
CHUNK = 16 * 1024


class Proxy:
    """`happened` counts the fates of connections. `cuts` are after how many bytes one is cut: at least, and at most."""

    def __init__(self, host: str, port: int, seed: int, fates: Mapping[str, int] = FATES) -> None:
        self._target = host, port
        self._random = random.Random(seed)
        self._fates = [*fates, PASSED]
        self._weights = [*fates.values(), 100 - sum(fates.values())]
        self.happened: Counter[str] = Counter()
        self.cuts = 10, 30_000
        self.url = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Proxy"]:
        served: set[asyncio.Task[None]] = set()

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            served.add(asyncio.create_task(self._serve(reader, writer)))

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        async with server:
            self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            yield self
            for connection in served:
                connection.cancel()
            await asyncio.gather(*served, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        [fate] = self._random.choices(self._fates, self._weights)
        # Most answers are shorter than 1,000 bytes; a photograph and a stream of events are longer.
        cut_after = int(math.exp(self._random.uniform(*map(math.log, self.cuts))))
        self.happened[fate] += 1
        with suppress(OSError):
            if fate == "503":
                await reader.read(CHUNK)
                writer.write(ANSWER_503)
            elif fate != "refused":
                await self._pass_on(fate, cut_after, reader, writer)
        with suppress(OSError):
            writer.close()
            await writer.wait_closed()

    async def _pass_on(
        self, fate: str, cut_after: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Connect both sides until one of them closes its side, or until the fate."""
        from_service, to_service = await asyncio.open_connection(*self._target)
        pause = 0.05 if fate == "slow" else 0.0
        request = copy(reader, to_service, cut_after if fate == "request lost" else None, pause)
        if fate in ("answer lost", "late 503"):
            answer = from_service.read(1)
        else:
            answer = copy(from_service, writer, cut_after if fate == "answer cut" else None, pause)
        both = [asyncio.ensure_future(request), asyncio.ensure_future(answer)]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if fate == "late 503":
                await both[1]
                writer.write(ANSWER_503)
        finally:
            for side in both:
                side.cancel()
            await asyncio.gather(*both, return_exceptions=True)
            to_service.close()


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, cut_after: int | None, pause: float) -> None:
    """Copy until the end, or until `cut_after` bytes."""
    left = cut_after
    while data := await reader.read(CHUNK if left is None else min(CHUNK, left)):
        await asyncio.sleep(pause)
        writer.write(data)
        await writer.drain()
        if left is not None:
            left -= len(data)
            if left <= 0:
                return
