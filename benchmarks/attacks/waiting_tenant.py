"""The waiting tenant: measures the latencies of its POST, status and image requests."""

import asyncio
import base64
import json
import statistics
import time
from contextlib import suppress
from dataclasses import dataclass, field

import aiohttp

from benchmarks.attacks.files import small_png

# A request that is not answered within this time counts with it (s).
GIVEN_UP_S = 60.0
PAUSE_S = 0.1
KINDS = ("post", "status", "image", "health")


@dataclass
class Seen:
    """Seconds of each request by kind, and a sentence for each failure."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    failures: list[str] = field(default_factory=list)

    def __iadd__(self, other: "Seen") -> "Seen":
        for kind, seconds in other.seconds.items():
            self.seconds[kind] += seconds
        self.failures += other.failures
        return self

    def median(self, kind: str) -> float:
        return statistics.median(self.seconds[kind]) if self.seconds[kind] else float("nan")


class WaitingTenant:
    """A client that repeats the same round: post a small edit, ask for a status, fetch an image, ask for `/health`.

    It cancels what it has posted, so that its own queue never fills.
    """

    def __init__(self, port: int, key: str, image_url: str) -> None:
        self._base = f"http://127.0.0.1:{port}"
        self._headers = {"Authorization": f"Bearer {key}"}
        # One control image in the body and one by URL, so that a POST needs every resource that an attack may occupy.
        self._controls = [base64.b64encode(small_png()).decode(), image_url]
        self._finished = ""
        self._seed = 0

    async def prepare(self) -> None:
        """Make one request to ask about later. Raises RuntimeError if it does not succeed."""
        async with aiohttp.ClientSession(self._base, headers=self._headers) as session:
            async with session.post("/v1/inference", json=self._body()) as answer:
                if answer.status != 200:
                    raise RuntimeError(f"the waiting tenant's request was refused: {await answer.text()}")
                request_id = (await answer.json())["request_id"]
            for _ in range(300):
                async with session.get(f"/v1/requests/{request_id}/status") as answer:
                    status = (await answer.json())["status"]
                if status == "succeeded":
                    self._finished = request_id
                    return
                await asyncio.sleep(0.1)
        raise RuntimeError("the waiting tenant's first request did not succeed")

    async def watch(self, rounds: int, until: asyncio.Event) -> Seen:
        """Measure up to `rounds` rounds; stops when `until` is set."""
        seen = Seen()
        async with aiohttp.ClientSession(self._base, headers=self._headers) as session:
            for _ in range(rounds):
                if until.is_set():
                    break
                posted = await self._timed(session, seen, "post", "/v1/inference", json=self._body())
                await self._timed(session, seen, "status", f"/v1/requests/{self._finished}/status")
                await self._timed(session, seen, "image", f"/v1/requests/{self._finished}/images/0")
                await self._timed(session, seen, "health", "/health")
                await self._cancel(session, posted)
                await asyncio.sleep(PAUSE_S)
        return seen

    async def _cancel(self, session: aiohttp.ClientSession, posted: bytes) -> None:
        with suppress(aiohttp.ClientError, OSError, KeyError, ValueError):
            async with session.delete(f"/v1/requests/{json.loads(posted)['request_id']}"):
                pass

    async def _timed(
        self, session: aiohttp.ClientSession, seen: Seen, kind: str, path: str, **options: object
    ) -> bytes:
        """The body of the answer; empty if there was none."""
        body = b""
        started = time.perf_counter()
        method = "POST" if options else "GET"
        try:
            async with asyncio.timeout(GIVEN_UP_S), session.request(method, path, **options) as answer:
                body = await answer.read()
                if answer.status != 200:
                    seen.failures.append(f"{kind}: {answer.status} {body[:200]!r}")
        except (aiohttp.ClientError, OSError) as error:
            seen.failures.append(f"{kind}: {type(error).__name__}")
        seen.seconds[kind].append(time.perf_counter() - started)
        return body

    def _body(self) -> dict[str, object]:
        self._seed += 1
        options = {"prompt": "x", "width": 64, "height": 64, "sample_steps": 1, "seed": self._seed}
        prompts = [options | {"ctrl_img": control} for control in self._controls]
        return {"model": "qwen_image_edit", "prompts": prompts, "loras": [{"path": "my_lora_job/my_lora.safetensors"}]}
