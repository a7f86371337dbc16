"""The causes of the drill's alerts: each is a coroutine that gives the service a reason for some of them."""

import asyncio
import shutil
import time
from contextlib import suppress
from itertools import count
from pathlib import Path

import httpx

from benchmarks.drill.alarms.engine import COMPILE, DIE, FAIL, HELD, HOLDING, MEMORY, NOT_LOADED
from benchmarks.drill.alarms.prometheus import Prometheus
from benchmarks.drill.load import CONTROL
from benchmarks.drill.service import EDITORS, INGRESSES, MODEL, ROOT, DrillFailed, Service
from benchmarks.drill.store import Store

LORAS = 12
# Nobody listens there.
DEAF = "http://127.0.0.1:9/hook"
# Held edits: three per editor, so that every editor gets one however they are routed. Edits behind them, and how long
# these wait at least (s): longer than 1.5 times what is predicted for them and 10 s.
HELD_EDITS, BEHIND, BEHIND_S = 3 * EDITORS, 60, 40.0
# After how many rounds another edit kills its editor, until the alert fires.
DIES_EVERY = 10
# The claims of an ingress that is worth killing: the alert needs more than two that are taken over.
CLAIMS = 3
# The pause between two kills (s): the claims of the first are taken over meanwhile, and counted.
TAKEN_OVER_S = 25.0
# How long a dead ingress's gauges stay (s): two report intervals of Ray's, and a scrape.
GAUGES_STAY_S = 12.0


class Causes:
    """Methods that `phases` names run until they are cancelled; `undo` ends what they leave behind."""

    def __init__(self, service: Service, store: Store, client: httpx.AsyncClient, prometheus: Prometheus) -> None:
        self._service, self._store, self._client, self._prometheus = service, store, client, prometheus
        self._folder = service.folder
        self._number = 0
        self._killed_at = float("-inf")

    async def succeed(self) -> None:
        while True:
            await self._post(loras=[{"path": "lora-0.safetensors"}])
            await asyncio.sleep(1)

    async def stall(self) -> None:
        """Hold every editor until EditsStuck fires. What waited behind is late then."""
        (self._folder / HOLDING).touch()
        for prompt in [HELD] * HELD_EDITS + [""] * BEHIND:
            await self._post(prompt)
        await asyncio.sleep(BEHIND_S)
        while not self._prometheus.has_fired("EditsStuck"):
            await asyncio.sleep(0.5)
        (self._folder / HOLDING).unlink()
        while True:
            await self._post()
            await asyncio.sleep(2)

    async def fail(self) -> None:
        for number in count():
            # Not in every round: the other edits need editors.
            if number % DIES_EVERY == 0 and not self._prometheus.has_fired("EditorsLost"):
                await self._post(DIE)
            for prompt in (FAIL, MEMORY):
                await self._post(prompt, webhook_url=DEAF)
            for _ in range(3):
                await self._post(COMPILE, loras=[{"path": f"lora-{self._number % LORAS}.safetensors"}])
            await asyncio.sleep(1)

    async def kill_ingresses(self) -> None:
        while True:
            for _ in range(3 * EDITORS):
                await self._post(steps=20)
            claims = await self._store.claims()
            held = [pid for pid, images in claims.items() if images >= CLAIMS and self._service.owns(pid)]
            if held:
                self._service.kill(held[0])
                self._killed_at = time.monotonic()
                await asyncio.sleep(TAKEN_OVER_S)

    async def be_idle(self) -> None:
        (self._folder / NOT_LOADED).touch()
        for pid in self._service.editors():
            self._service.kill(pid)
        while True:
            await self._post(steps=150, images=8)
            await asyncio.sleep(0.2)

    async def lose_storage(self) -> None:
        artifacts = self._folder / "artifacts"
        artifacts.rename(self._folder / "artifacts-away")
        artifacts.touch()
        while True:
            await self._post()
            await asyncio.sleep(1)

    async def be_gone(self) -> None:
        await asyncio.to_thread(self._service.kill_cluster)

    async def first_edit(self) -> None:
        """Have an edit made: without one, the queue's seconds are guessed, and requests have no prediction."""
        while (await self._store.counts())[1] == 0:
            await self._post()
            await asyncio.sleep(1)

    async def undo(self) -> None:
        """Remove the marks in the folder, bring storage back, and cancel every request that has not ended."""
        for mark in (NOT_LOADED, HOLDING):
            (self._folder / mark).unlink(missing_ok=True)
        artifacts = self._folder / "artifacts"
        if artifacts.is_file():
            artifacts.unlink()
            (self._folder / "artifacts-away").rename(artifacts)
        for request_id in await self._store.unfinished():
            with suppress(httpx.TransportError):
                await self._client.delete(f"/v1/requests/{request_id}")

    async def is_undone(self) -> bool:
        """Whether everything runs again, is measured again, and nothing is left to do."""
        all_run = f"count(ray_edits_editors == {EDITORS}) == {INGRESSES}"
        if time.monotonic() < self._killed_at + GAUGES_STAY_S:
            return False
        try:
            is_ready = (await self._client.get("/ready")).is_success
        except httpx.TransportError:
            return False
        return is_ready and bool(self._prometheus.value_of(all_run)) and not await self._store.unfinished()

    async def _post(self, prompt: str = "", steps: int = 2, images: int = 1, **more: object) -> None:
        self._number += 1
        one = {"prompt": prompt or "well", "width": 64, "height": 64, "sample_steps": steps, "ctrl_img": CONTROL}
        prompts = [one | {"seed": self._number + each} for each in range(images)]
        body = {"model": MODEL, "prompts": prompts, "loras": [], **more}
        # Ingresses are killed, and the queue and storage refuse requests.
        with suppress(httpx.TransportError):
            answer = await self._client.post("/v1/inference", json=body)
            refused = answer.status_code == httpx.codes.TOO_MANY_REQUESTS or answer.is_server_error
            if not (answer.is_success or refused):
                raise DrillFailed(f"a POST was answered {answer.status_code}: {answer.text[:300]}")


def copy_loras(folder: Path) -> None:
    """Write LORAS files with different names, which are different adapters to a cache."""
    for number in range(LORAS):
        shutil.copy(ROOT / "tests/loras/my_lora_job/my_lora.safetensors", folder / f"lora-{number}.safetensors")
