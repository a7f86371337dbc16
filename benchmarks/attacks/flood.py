"""The flood: requests, polls, sweeps and large uploads of one tenant, at a rate that does not wait for answers."""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from benchmarks.attacks.files import MB, large_png

# What the flooding tenant may do, in the keys file.
LIMITS = {
    "submits_per_minute": 600,
    "reads_per_minute": 3000,
    "max_unfinished": 20,
    "max_upload_bytes": 100 * MB,
    "gpu_seconds_per_day": 3600,
    "sweep_cells_per_day": 1000,
}
RATE, FLOOD_S = 200, 15.0
# Of 20 requests, so many submit one, poll, send a sweep of 100 cells, and upload a file.
SHARES = (("submit", 11), ("poll", 6), ("sweep", 2), ("upload", 1))
UPLOAD_BYTES, UPLOADS = 8 * MB, 4
# Fewer than the front lets one address have, so that it is the service that answers.
MOST_UNDER_WAY = 390
# What the number of requests that were sent is called among the counts of answers.
SENT = "sent"
JSON = {"Content-Type": "application/json"}


@dataclass
class Flood:
    """Sends for FLOOD_S. `answers` counts answers by status, and `sent` what was sent at all."""

    url: str
    key: str
    body: bytes
    local_address: str
    answers: dict[str, int] = field(default_factory=dict)
    sent: int = 0

    async def run(self) -> None:
        connector = aiohttp.TCPConnector(local_addr=(self.local_address, 0), limit=MOST_UNDER_WAY)
        headers = {"Authorization": f"Bearer {self.key}"}
        timeout = aiohttp.ClientTimeout(total=30)
        uploads = [large_png(UPLOAD_BYTES, seed) for seed in range(UPLOADS)]
        async with aiohttp.ClientSession(self.url, connector=connector, headers=headers, timeout=timeout) as session:
            self._sweeps: list[str] = []
            await self._send_all(session, uploads)
            # Their cells would otherwise go on after the flood.
            for sweep_id in self._sweeps:
                async with session.delete(f"/v1/sweeps/{sweep_id}"):
                    pass

    async def _send_all(self, session: aiohttp.ClientSession, uploads: Sequence[bytes]) -> None:
        kinds = [kind for kind, share in SHARES for _ in range(share)]
        under_way: set[asyncio.Task[None]] = set()
        began = time.monotonic()
        for number in range(int(RATE * FLOOD_S)):
            await asyncio.sleep(max(0.0, began + number / RATE - time.monotonic()))
            if time.monotonic() > began + FLOOD_S:
                break
            if len(under_way) >= MOST_UNDER_WAY:
                self._count("not sent: too many wait for an answer")
                continue
            self.sent += 1
            # 7 and 20 have no common divisor: the kinds are mixed.
            one = asyncio.create_task(self._one(session, kinds[7 * number % len(kinds)], uploads[number % UPLOADS]))
            under_way.add(one)
            one.add_done_callback(under_way.discard)
        await asyncio.gather(*under_way)

    async def _one(self, session: aiohttp.ClientSession, kind: str, upload: bytes) -> None:
        axes = {"multipliers": [number / 100 for number in range(100)]}
        requests: dict[str, tuple[str, str, dict[str, Any]]] = {
            "submit": ("POST", "/v1/inference", {"data": self.body, "headers": JSON}),
            "poll": ("GET", "/v1/requests", {}),
            "sweep": ("POST", "/v1/sweeps", {"json": {"base": json.loads(self.body), "axes": axes}}),
            "upload": ("POST", "/v1/uploads", {"data": upload}),
        }
        method, path, options = requests[kind]
        try:
            async with session.request(method, path, **options) as answer:
                content = await answer.read()
                self._count(str(answer.status))
                if kind == "sweep" and answer.status == 200:
                    self._sweeps.append(json.loads(content)["sweep_id"])
        except (aiohttp.ClientError, OSError) as error:
            self._count(type(error).__name__)

    def _count(self, answer: str) -> None:
        self.answers[answer] = self.answers.get(answer, 0) + 1
