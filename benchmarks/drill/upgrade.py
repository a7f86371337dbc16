"""The drill of an upgrade: a release's database is migrated while its ingresses serve, and is rolled back to.

python -m benchmarks.drill.upgrade [--release TAG]

Two ingresses of the release (by default the newest, out of git) serve requests on a PostgreSQL server. Meanwhile the
database is migrated to this version, two ingresses of this version join, those of the release leave, come back, and
those of this version leave. Four clients post, poll and fetch images all the time, each call at another ingress of
those that a load balancer would choose. Editors make their image at once. The exit code is 1 if a call is answered with
an error, or a request does not succeed. It takes a minute.
"""

import argparse
import asyncio
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from benchmarks.drill.load import CONTROL, LORAS
from benchmarks.drill.service import MODEL, ROOT
from serve_app.commands.ports import free_port
from serve_app.config import MINIATURE_RANDOM
from serve_app.jobs.database import Database
from tests.postgres import PostgresServer
from tools.releases import newest_release, unpack

CLIENTS, PHASE_S, START_S, END_S = 4, 8.0, 90.0, 60.0
# What a release's own tests call the application in one process. It ends like uvicorn at SIGTERM.
INGRESS = """
import sys
import uvicorn
from serve_app.config import AppConfig
from tests.unit.conftest import Application

application = Application(AppConfig.model_validate_json(sys.argv[1]))
uvicorn.run(application.app, port=int(sys.argv[2]), log_level="warning", timeout_graceful_shutdown=10)
"""
HEADER = "| phase | ingresses | requests | succeeded | calls | failed | median POST, ms | slowest call, ms |"


class Ingress:
    """A process of one version of the service. `code` is the folder that has it."""

    def __init__(self, code: Path, config: str, errors: Path) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        environment = os.environ | {"PYTHONPATH": str(code), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-c", INGRESS, config, str(port)]
        with errors.open("ab") as log:
            self._process = subprocess.Popen(command, cwd=code, env=environment, stderr=log, stdout=log)

    async def until_healthy(self) -> None:
        """Raises TimeoutError if it does not answer."""
        async with asyncio.timeout(START_S), httpx.AsyncClient() as client:
            while self._process.poll() is None:
                try:
                    if (await client.get(f"{self.url}/health")).is_success:
                        return
                except httpx.TransportError:
                    await asyncio.sleep(0.1)
        raise RuntimeError("an ingress ended at its start")

    async def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(END_S):
            while self._process.poll() is None:
                await asyncio.sleep(0.05)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@dataclass
class Phase:
    """What clients saw during a part of the drill."""

    name: str
    ingresses: str
    posts_s: list[float] = field(default_factory=list)
    calls_s: list[float] = field(default_factory=list)
    statuses: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def row(self) -> str:
        cells = [self.name, self.ingresses, len(self.statuses), self.statuses.count("succeeded"), len(self.calls_s)]
        cells += [len(self.failed), f"{1000 * statistics.median(self.posts_s):.0f}", f"{1000 * max(self.calls_s):.0f}"]
        return f"| {' | '.join(map(str, cells))} |"


class Clients:
    """Clients that post, poll and fetch, each call at the next of the ingresses `rotation`."""

    def __init__(self) -> None:
        self.rotation: Sequence[Ingress] = ()
        self.phases: list[Phase] = []
        self._number = itertools.count()

    async def run(self) -> None:
        async with httpx.AsyncClient(timeout=30) as http:
            await asyncio.gather(*(self._work(http) for _ in range(CLIENTS)))

    async def _work(self, http: httpx.AsyncClient) -> None:
        while True:
            phase, number = self.phases[-1], next(self._number)
            prompt = {"prompt": "night", "ctrl_img": CONTROL, "width": 64, "height": 64, "sample_steps": 2}
            body = {"model": MODEL, "prompts": [prompt | {"seed": number}], "loras": LORAS}
            began = time.perf_counter()
            posted = await self._call(http, phase, "POST", "/v1/inference", json=body)
            phase.posts_s.append(time.perf_counter() - began)
            if posted is not None:
                phase.statuses.append(await self._end(http, phase, posted.json()["request_id"]))

    async def _end(self, http: httpx.AsyncClient, phase: Phase, request_id: str) -> str:
        deadline = time.monotonic() + END_S
        while time.monotonic() < deadline:
            polled = await self._call(http, phase, "GET", f"/v1/requests/{request_id}/status")
            status = polled.json()["status"] if polled is not None else "unknown"
            if status in ("succeeded", "failed", "canceled"):
                await self._call(http, phase, "GET", f"/v1/requests/{request_id}/result")
                await self._call(http, phase, "GET", f"/v1/requests/{request_id}/images/0")
                return status
            await asyncio.sleep(0.1)
        return "not ended"

    async def _call(
        self, http: httpx.AsyncClient, phase: Phase, method: str, path: str, json: object = None
    ) -> httpx.Response | None:
        """The answer; None if it is an error, which is noted."""
        ingress = self.rotation[next(self._number) % len(self.rotation)]
        began = time.perf_counter()
        try:
            answer = await http.request(method, ingress.url + path, json=json)
        except httpx.TransportError as error:
            phase.failed.append(f"{method} {path}: {error!r}")
            return None
        finally:
            phase.calls_s.append(time.perf_counter() - began)
        if not answer.is_success:
            phase.failed.append(f"{method} {path}: {answer.status_code} {answer.text[:200]}")
            return None
        return answer


async def migrate(url: str) -> float:
    """Migrate the database to this version's schema. Returns the seconds that it took."""
    began = time.perf_counter()
    database = Database(url)
    await database.open()
    await database.close()
    return time.perf_counter() - began


class UpgradeDrill:
    """`run` it: it prints a row for each phase and returns the problems."""

    def __init__(self, release: str, url: str, folder: Path) -> None:
        self._release, self._url, self._folder = release, url, folder
        config = {"lora_root": str(ROOT / "tests/loras"), "artifacts_url": str(folder / "artifacts")}
        config |= {"models": [{"checkpoint": MINIATURE_RANDOM}], "jobs": {"database_url": url}}
        self._config = json.dumps(config)
        self._clients = Clients()
        self._old_code = unpack(release, folder)
        self._started: list[Ingress] = []

    async def run(self) -> list[str]:
        try:
            old = await self._two(self._old_code)
            self._begin("before", old)
            working = asyncio.create_task(self._clients.run())
            await self._go_on(working)
            self._begin("migration", old)
            migration_s = await migrate(self._url)
            await self._go_on(working)
            new = await self._two(ROOT)
            self._begin("this version joins", [*old, *new])
            await self._go_on(working)
            await self._leave("the release leaves", old, new)
            await self._go_on(working)
            old = await self._two(self._old_code)
            self._begin("rolling back", [*new, *old])
            await self._go_on(working)
            await self._leave("rolled back", new, old)
            await self._go_on(working)
            working.cancel()
        finally:
            for ingress in self._started:
                ingress.kill()
        print(HEADER + "\n" + "|---" * (HEADER.count("|") - 1) + "|")
        print("\n".join(phase.row() for phase in self._clients.phases))
        print(f"\nThe migration from {self._release} took {migration_s:.2f} s.")
        phases = self._clients.phases
        ended = [f"{phase.name}: a request is {s}" for phase in phases for s in phase.statuses if s != "succeeded"]
        return [*(f"{phase.name}: {failure}" for phase in phases for failure in phase.failed), *ended]

    async def _two(self, code: Path) -> list[Ingress]:
        ingresses = [Ingress(code, self._config, self._folder / "log") for _ in range(2)]
        self._started += ingresses
        for ingress in ingresses:
            await ingress.until_healthy()
        return ingresses

    def _begin(self, name: str, rotation: Sequence[Ingress]) -> None:
        self._clients.rotation = rotation
        self._clients.phases.append(Phase(name, str(len(rotation))))

    async def _leave(self, name: str, leaving: Sequence[Ingress], staying: Sequence[Ingress]) -> None:
        """Take ingresses out of the rotation, and stop them when their last calls are answered."""
        self._begin(name, staying)
        await asyncio.sleep(1)
        for ingress in leaving:
            await ingress.stop()

    @staticmethod
    async def _go_on(working: asyncio.Task[None]) -> None:
        """Let the clients work for a while. Raises what they raise."""
        done, _ = await asyncio.wait([working], timeout=PHASE_S)
        for task in done:
            task.result()


async def main(release: str) -> None:
    with PostgresServer(durable=True) as postgres, tempfile.TemporaryDirectory(prefix="upgrade-") as folder:
        problems = await UpgradeDrill(release, postgres.new_database(), Path(folder)).run()
    if problems:
        sys.exit("\n".join(["It FAILED:", *problems[:50]]))
    print("Every call was answered, and every request succeeded.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--release", default=newest_release(), metavar="TAG", help="default: the newest")
    asyncio.run(main(parser.parse_args().release))
