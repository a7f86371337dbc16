"""Attacks of one tenant, and their effect on another tenant's latencies and on the service's memory and storage.

    python -m benchmarks.attacks                        # every attack; 14 minutes at most
    python -m benchmarks.attacks slow_bodies costly_images

It starts `edits-server run` on loopback with two tenants and an editor that only sleeps. It measures the waiting tenant
alone and then during each attack of `benchmarks.attacks.attacker`, and stops what it started. It fails if one of the
waiting tenant's medians is more than three times its median without an attack, if one of its requests fails, if a
process of the service takes more than `MEMORY_MB`, or if an attack ended too early or could not connect to be measured.

The flood is of a tenant with limits. It comes in turns with quiet, so that other work on the machine slows both down,
and the medians of POST and status may only double.
"""

import argparse
import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import yaml
from aiohttp import ClientError, ClientSession, web

from benchmarks.attacks.attacker import ATTACK_S, ATTACKS, MAX_QUEUED
from benchmarks.attacks.files import small_png
from benchmarks.attacks.flood import FLOOD_S, LIMITS, SENT
from benchmarks.attacks.waiting_tenant import Seen, WaitingTenant
from benchmarks.drill.service import kill_session, serve_config
from serve_app.commands.ports import free_port
from serve_app.config import SQLITE_PREFIX
from serve_app.intake.keys import new_key

ROOT = Path(__file__).parents[2]
START_S, STOP_S = 120.0, 60.0
QUIET_ROUNDS, ROUNDS = 30, 30
# How long the attack runs before the waiting tenant is measured, and how long the service rests afterwards (s).
HEAD_START_S, REST_S = 1.0, 3.0
SLOWER = 3.0
# Attacks that come in turns with quiet: how many times, and how much slower which medians may be.
TURNS, TURNS_SLOWER, TURNS_KINDS = {"flood": 4}, 2.0, ("post", "status")
# The fewest rounds of the waiting tenant during an attack for a result.
LEAST_ROUNDS = 5
# The largest resident size allowed for a process of the service.
MEMORY_MB = 1500.0


class Service:
    """The service in its own process session, by which its processes are found."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.port = port
        self.keys = {tenant: new_key() for tenant in ("attacker", "waiting", "flood")}

    def start(self) -> None:
        shutil.copytree(ROOT / "samples/loras", self.folder / "loras")
        tenants: dict[str, Any] = {tenant: {"keys": [sha256]} for tenant, (_, sha256) in self.keys.items()}
        tenants["flood"]["limits"] = LIMITS
        (self.folder / "keys.yaml").write_text(yaml.safe_dump({"tenants": tenants}))
        (self.folder / "serve_config.yaml").write_text(yaml.safe_dump(self._config()))
        environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_TMPDIR": str(self.folder)}
        command = [str(Path(sys.executable).parent / "edits-server"), "run", str(self.folder / "serve_config.yaml")]
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)

    async def until_ready(self) -> None:
        """Raises RuntimeError if it is not ready in time."""
        deadline = time.monotonic() + START_S
        async with ClientSession() as session:
            while time.monotonic() < deadline and self._process.poll() is None:
                with suppress(ClientError):
                    async with session.get(f"http://127.0.0.1:{self.port}/ready") as answer:
                        if answer.status == 200:
                            return
                await asyncio.sleep(0.3)
        raise RuntimeError(f"the service did not start:\n{(self.folder / 'log').read_text(errors='replace')[-3000:]}")

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_S)
        kill_session(self._process.pid)

    def processes(self) -> Iterator[psutil.Process]:
        for process in psutil.process_iter():
            with suppress(ProcessLookupError, psutil.Error):
                if os.getsid(process.pid) == self._process.pid:
                    yield process

    def stored_mb(self) -> float:
        files = (path for path in self.folder.rglob("*") if path.is_file() and "session" not in str(path))
        return sum(path.stat().st_size for path in files) / 1e6

    def _config(self) -> dict[str, Any]:
        config = serve_config(
            {"host": "127.0.0.1", "port": self.port},
            "benchmarks.drill.timed:build",
            self.folder,
            {
                "database_url": f"{SQLITE_PREFIX}{self.folder}/jobs.sqlite3",
                "max_queued_per_tenant": MAX_QUEUED,
                "max_queued": 10 * MAX_QUEUED,
            },
            {"num_replicas": 2},
            {"num_replicas": 1},
        )
        args = config["applications"][0]["args"]
        args["models"][0]["checkpoint"] = "miniature"
        args["lora_root"] = str(self.folder / "loras")
        args["auth"] = {"keys_file": str(self.folder / "keys.yaml")}
        args["fetch"] = {"allowed_networks": ["127.0.0.0/8"]}
        return config


class PeakMemory:
    """The largest resident size (MB) of a process of the service since `reset`, sampled four times per second."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._end = threading.Event()
        self.mb, self.name = 0.0, ""

    def reset(self) -> None:
        self.mb, self.name = 0.0, ""

    @contextmanager
    def watched(self) -> Iterator[None]:
        thread = threading.Thread(target=self._watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._end.set()
            thread.join()

    def _watch(self) -> None:
        while not self._end.wait(0.25):
            for process in self._service.processes():
                with suppress(psutil.Error):
                    mb = process.memory_info().rss / 1e6
                    if mb > self.mb:
                        self.mb, self.name = mb, process.name()


@asynccontextmanager
async def image_server() -> AsyncIterator[str]:
    """A server of the waiting tenant that answers at once; yields the URL of an image."""

    async def handler(asked: web.Request) -> web.Response:
        return web.Response(body=small_png())

    application = web.Application()
    application.router.add_get("/{path:.*}", handler)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/image.png"
    await runner.cleanup()


async def attacked(name: str, service: Service, waiting: WaitingTenant) -> tuple[Seen, dict[str, int]]:
    """Run an attack; returns what the waiting tenant measured, and the answers that the attacker got, by status."""
    key, _ = service.keys.get(name, service.keys["attacker"])
    arguments = [name, str(service.port), key, str(service.folder / "loras")]
    attack = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.attacks.attacker", *arguments), stdout=subprocess.PIPE, cwd=ROOT
    )
    ended = asyncio.Event()
    answers = asyncio.create_task(attack.communicate())
    answers.add_done_callback(lambda _: ended.set())
    await asyncio.sleep(HEAD_START_S)
    seen = await waiting.watch(ROUNDS, ended)
    output, _ = await asyncio.wait_for(answers, 2 * ATTACK_S + 60)
    return seen, json.loads(output)


async def attacked_in_turns(name: str, service: Service, waiting: WaitingTenant) -> tuple[Seen, Seen, dict[str, int]]:
    """What the waiting tenant measured without the attack and with it, a few times in turns, and the answers."""
    quiet, seen = Seen(), Seen()
    answers: dict[str, int] = {}
    for _ in range(TURNS[name]):
        quiet += await waiting.watch(QUIET_ROUNDS, asyncio.Event())
        during, got = await attacked(name, service, waiting)
        seen += during
        answers = {answer: answers.get(answer, 0) + got.get(answer, 0) for answer in [*answers, *got]}
        await asyncio.sleep(REST_S)
    seen.failures += quiet.failures
    return quiet, seen, answers


def both_medians(quiet: Seen, seen: Seen) -> str:
    return ", ".join(
        f"{kind} {1e3 * quiet.median(kind):.0f} and {1e3 * seen.median(kind):.0f}" for kind in seen.seconds
    )


async def measure(names: list[str]) -> bool:
    """Print a row per attack. Returns whether all of them stayed within the bounds."""
    folder = Path(tempfile.mkdtemp(prefix="attacks-"))
    service = Service(folder, free_port())
    service.start()
    try:
        await service.until_ready()
        memory = PeakMemory(service)
        async with image_server() as image_url:
            waiting = WaitingTenant(service.port, service.keys["waiting"][0], image_url)
            await waiting.prepare()
            with memory.watched():
                quiet = await waiting.watch(QUIET_ROUNDS, asyncio.Event())
                print("| attack | POST | status | image | health | largest process, MB | stored, MB | attacker got |")
                print("|---|---|---|---|---|---|---|---|")
                print(row("none (medians, ms)", [f"{1e3 * quiet.median(kind):.0f}" for kind in quiet.seconds], memory))
                within = [await stays_within_bounds(name, service, waiting, quiet, memory) for name in names]
                return all(within)
    finally:
        service.stop()
        shutil.rmtree(folder, ignore_errors=True)


async def stays_within_bounds(
    name: str, service: Service, waiting: WaitingTenant, quiet: Seen, memory: PeakMemory
) -> bool:
    """Print one attack's row. Returns whether the waiting tenant's latencies and the memory stayed within bounds."""
    memory.reset()
    stored = service.stored_mb()
    if name in TURNS:
        quiet, seen, answers = await attacked_in_turns(name, service, waiting)
    else:
        seen, answers = await attacked(name, service, waiting)
    ratios = {kind: seen.median(kind) / quiet.median(kind) for kind in seen.seconds}
    got = ", ".join(f"{count}x {answer}" for answer, count in answers.items())
    columns = [f"{ratio:.1f}x" for ratio in ratios.values()]
    print(row(name, columns, memory, f"{service.stored_mb() - stored:.0f}", got), flush=True)
    for failure in seen.failures[:3]:
        print(f"  waiting tenant: {failure}")
    await asyncio.sleep(REST_S)
    was_felt = len(seen.seconds["post"]) >= LEAST_ROUNDS and set(answers) - {"ClientConnectorError"}
    if not was_felt:
        print(f"  no result: {len(seen.seconds['post'])} rounds during an attack that got the answers {got}")
    if name in TURNS:
        rate = answers.get(SENT, 0) / FLOOD_S / TURNS[name]
        print(f"  {TURNS[name]} turns of {rate:.0f} requests per second; {both_medians(quiet, seen)}")
    allowed = dict.fromkeys(TURNS_KINDS, TURNS_SLOWER) if name in TURNS else {}
    quick = all(ratio <= allowed.get(kind, SLOWER) for kind, ratio in ratios.items())
    return bool(was_felt) and quick and not seen.failures and memory.mb <= MEMORY_MB


def row(name: str, columns: list[str], memory: PeakMemory, stored: str = "", got: str = "") -> str:
    return f"| {name} | {' | '.join(columns)} | {memory.mb:.0f} ({memory.name}) | {stored} | {got} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("attacks", nargs="*", choices=[*ATTACKS, []], help="which attacks; default: all")
    names = parser.parse_args().attacks or list(ATTACKS)
    if not asyncio.run(measure(names)):
        sys.exit("It FAILED: an attack slowed the waiting tenant down, or a process took more memory than allowed.")
    print("Every attack left the waiting tenant and the memory within bounds.")


if __name__ == "__main__":
    main()
