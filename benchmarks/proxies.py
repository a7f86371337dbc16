"""The proxies between a client and an ingress, next to each other: Serve's own, Serve's HAProxy, and the front.

python -m benchmarks.proxies [--ports] [serve] [haproxy]

Starts `edits-server run` with the timed engine, with Serve's own proxy and in Serve's HAProxy mode, and measures at
each port that answers: the front, the proxy of Serve behind it, and in HAProxy mode the ingresses themselves. It also
says on which address each listens. Loopback only; two minutes for each.
"""

import argparse
import asyncio
import base64
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import httpx
import psutil
import yaml

from benchmarks.drill.service import MODEL, ROOT, kill_session, serve_config
from benchmarks.http_path import one_megabyte, poll, timed
from serve_app.commands.ports import free_port
from serve_app.config import SQLITE_PREFIX

START_S, STOP_S = 200.0, 30.0
MODES = {"serve": {}, "haproxy": {"RAY_SERVE_ENABLE_HA_PROXY": "1"}}
CONNECTIONS, SECONDS, POLLS, POSTS = 16, 4.0, 200, 10
HEADER = (
    "| mode | port of | listens on | /health, requests per s | status, 200 per s: median, ms | p95, ms "
    "| POST of 1 MB, ms |"
)


@dataclass(frozen=True)
class Door:
    """A port that answers HTTP for the service, and the process that has it."""

    process: str
    address: str
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def running(mode: str) -> Iterator[tuple[str, int]]:
    """`edits-server run` in a folder of its own; its URL and the id of its session."""
    folder, port = Path(tempfile.mkdtemp(prefix="proxies-")), free_port()
    jobs = {"database_url": f"{SQLITE_PREFIX}{folder}/jobs.sqlite3"}
    ingresses, editors = {"num_replicas": 2}, {"num_replicas": 1}
    config = serve_config(
        {"host": "127.0.0.1", "port": port}, "benchmarks.drill.timed:build", folder, jobs, ingresses, editors
    )
    (folder / "serve_config.yaml").write_text(yaml.safe_dump(config))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_TMPDIR": str(folder)} | MODES[mode]
    command = [str(Path(sys.executable).parent / "edits-server"), "run", str(folder / "serve_config.yaml")]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        wait_until_ready(process, f"http://127.0.0.1:{port}", folder / "log")
        yield f"http://127.0.0.1:{port}", process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
        kill_session(process.pid)
        shutil.rmtree(folder, ignore_errors=True)


def wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(httpx.TransportError):
            if httpx.get(f"{url}/ready").is_success:
                return
        time.sleep(0.3)
    raise RuntimeError(f"the service did not start:\n{log.read_text(errors='replace')[-3000:]}")


def doors(session: int) -> list[Door]:
    """The ports of the session's processes at which the service answers."""
    found = []
    for process in psutil.process_iter():
        with suppress(ProcessLookupError, psutil.Error):
            if os.getsid(process.pid) != session:
                continue
            sockets = [each.laddr for each in process.net_connections("tcp") if each.status == psutil.CONN_LISTEN]
            found += [Door(process.name(), address, port) for address, port in sockets]
    return sorted({door.port: door for door in found if answers(door)}.values(), key=lambda door: door.process)


def answers(door: Door) -> bool:
    with suppress(httpx.HTTPError):
        return httpx.get(f"{door.url}/health", timeout=2).text == '{"status":"healthy"}'
    return False


async def throughput(client: aiohttp.ClientSession, url: str) -> float:
    """Answers of /health per second, over as many connections as the session keeps."""
    end, count = time.perf_counter() + SECONDS, 0

    async def ask() -> None:
        nonlocal count
        while time.perf_counter() < end:
            await timed(client, "GET", f"{url}/health")
            count += 1

    await asyncio.gather(*(ask() for _ in range(CONNECTIONS)))
    return count / SECONDS


def body(image: str, steps: int) -> dict:
    prompt = {"prompt": "a photo", "width": 64, "height": 64, "sample_steps": steps, "ctrl_img": image}
    return {"model": MODEL, "prompts": [prompt], "loras": []}


async def measure(mode: str, door: Door, large: str) -> str:
    """A row of the table."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:
        async with client.post(f"{door.url}/v1/inference", json=body(large, 150)) as answer:
            answer.raise_for_status()
            status = (await answer.json())["status_url"]
        per_s = await throughput(client, door.url)
        status = f"{door.url}/v1{status.partition('/v1')[2]}"
        latencies = sorted(await poll(client, status, POLLS, SECONDS))
        posts = [await timed(client, "POST", f"{door.url}/v1/inference", json=body(large, 1)) for _ in range(POSTS)]
    median, p95 = statistics.median(latencies), latencies[int(0.95 * len(latencies))]
    cells = [mode, door.process, f"{door.address}", f"{per_s:.0f}", f"{1e3 * median:.1f}", f"{1e3 * p95:.1f}"]
    return f"| {' | '.join([*cells, f'{1e3 * statistics.median(posts):.0f}'])} |"


def list_ports(modes: Sequence[str]) -> None:
    for mode in modes:
        with running(mode) as (_, session):
            for door in doors(session):
                print(f"{mode}: {door.process} listens on {door.address}:{door.port}", flush=True)


def compare(modes: Sequence[str]) -> None:
    large = base64.b64encode(one_megabyte()).decode()
    print(HEADER + "\n" + "|---" * (HEADER.count("|") - 1) + "|", flush=True)
    for mode in modes:
        with running(mode) as (_, session):
            for door in doors(session):
                print(asyncio.run(measure(mode, door, large)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modes", nargs="*", metavar="MODE", help=f"of {', '.join(MODES)}; default: both")
    parser.add_argument("--ports", action="store_true", help="only list the ports that answer")
    arguments = parser.parse_args()
    # A benchmark that is stopped ends the service too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    if arguments.ports:
        list_ports(arguments.modes or list(MODES))
    else:
        compare(arguments.modes or list(MODES))


if __name__ == "__main__":
    main()
