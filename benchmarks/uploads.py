"""What a 19 MB control image costs when 20 requests use it: as base64, as a file in each form, and uploaded once.

    python -m benchmarks.uploads
    python -m benchmarks.uploads --requests 20 --at-once 2

Each way gets a service of its own through Ray Serve, with one ingress and one editor that only sleeps. The table shows
the bytes of all bodies, the time until every request is accepted, the largest resident size of the ingress and of
Serve's proxy, and the CPU time of the ingress with its decoders. Loopback only.
"""

import argparse
import asyncio
import base64
import io
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import PIL.Image
import psutil

from benchmarks.local_service import EDITOR, MODEL, cluster, declared, deploy, wait_until_running

# Random pixels, which no format makes smaller: 19 MB as a PNG.
WIDTH, HEIGHT = 2560, 2474
INGRESS, PROXY = "ray::ServeReplica:edits:Ingress", "ray::ProxyActor"
EDIT_TIMEOUT_S = 120.0

# Sends a request, whose seed makes it differ from the others; returns the size of the bodies and the request's id.
Send = Callable[[aiohttp.ClientSession, int], Awaitable[tuple[int, str]]]


@dataclass(frozen=True)
class Cost:
    """What one way costs. Sizes of processes are resident MB, before the first request and at most."""

    body_mb: float
    seconds: float
    ingress: tuple[float, float]
    proxy: tuple[float, float]
    cpu_s: float


def large_image() -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()


def request(control_image: str, seed: int) -> bytes:
    prompt = {"prompt": "at night", "ctrl_img": control_image, "width": 64, "height": 64, "sample_steps": 1}
    return json.dumps({"model": MODEL, "loras": [], "prompts": [prompt | {"seed": seed}]}).encode()


async def post(session: aiohttp.ClientSession, path: str, body: bytes, content_type: str) -> dict[str, Any]:
    async with session.post(path, data=body, headers={"content-type": content_type}) as answer:
        if answer.status != 200:
            raise RuntimeError(f"{path} answered {answer.status}: {(await answer.text())[:500]}")
        return await answer.json()


async def send_json(session: aiohttp.ClientSession, control_image: str, seed: int) -> tuple[int, str]:
    body = request(control_image, seed)
    answer = await post(session, "/v1/inference", body, "application/json")
    return len(body), answer["request_id"]


def as_base64(image: bytes) -> Send:
    text = base64.b64encode(image).decode()
    return lambda session, seed: send_json(session, text, seed)


def as_form(image: bytes) -> Send:
    async def send(session: aiohttp.ClientSession, seed: int) -> tuple[int, str]:
        parts = (b'name="request"', request("part:photo", seed)), (b'name="photo"; filename="photo.png"', image)
        form = b"".join(b"--b\r\nContent-Disposition: form-data; %s\r\n\r\n%s\r\n" % part for part in parts)
        answer = await post(session, "/v1/inference", form + b"--b--\r\n", "multipart/form-data; boundary=b")
        return len(form), answer["request_id"]

    return send


def as_upload(image: bytes) -> Send:
    uploading: list[asyncio.Task[dict[str, Any]]] = []

    async def send(session: aiohttp.ClientSession, seed: int) -> tuple[int, str]:
        is_first = not uploading
        if is_first:
            uploading.append(asyncio.create_task(post(session, "/v1/uploads", image, "image/png")))
        upload_id = (await uploading[0])["id"]
        size, request_id = await send_json(session, f"upload:{upload_id}", seed)
        return size + is_first * len(image), request_id

    return send


WAYS = {"base64 in JSON": as_base64, "a file in each form": as_form, "uploaded once": as_upload}


def process(title: str) -> psutil.Process:
    """The only process below this one whose title starts like this."""
    children = psutil.Process().children(recursive=True)
    [found] = [child for child in children if "".join(child.cmdline()[:1]).startswith(title)]
    return found


def resident_mb(of: psutil.Process, field: str) -> float:
    """VmRSS, the resident size, or VmHWM, the largest one since the last `forget_peak`."""
    status = Path(f"/proc/{of.pid}/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", status)[1]) * 1024 / 1e6


def forget_peak(of: psutil.Process) -> None:
    Path(f"/proc/{of.pid}/clear_refs").write_text("5")


def cpu_s(of: psutil.Process) -> float:
    """CPU seconds of a process and of those below it that are running."""
    times = [each.cpu_times() for each in (of, *of.children(recursive=True))]
    return sum(each.user + each.system for each in times)


async def until_made(session: aiohttp.ClientSession, request_id: str) -> None:
    """Wait until the editor has made the image. Raises RuntimeError if it does not."""
    deadline, status = time.monotonic() + EDIT_TIMEOUT_S, "in_queue"
    while status in ("in_queue", "in_progress") and time.monotonic() < deadline:
        await asyncio.sleep(0.2)
        async with session.get(f"/v1/requests/{request_id}/status") as answer:
            status = (await answer.json())["status"]
    if status != "succeeded":
        raise RuntimeError(f"request {request_id} is {status}")


async def measure(url: str, send: Send, requests: int, at_once: int) -> Cost:
    slots = asyncio.Semaphore(at_once)
    async with aiohttp.ClientSession(base_url=url, timeout=aiohttp.ClientTimeout(120)) as session:

        async def send_in_turn(number: int) -> tuple[int, str]:
            async with slots:
                return await send(session, number)

        # Starts the decoders, whose start is no cost of an image.
        small = io.BytesIO()
        PIL.Image.new("RGB", (64, 64)).save(small, "PNG")
        _, small_id = await as_base64(small.getvalue())(session, 10**6)
        await until_made(session, small_id)
        ingress, proxy = process(INGRESS), process(PROXY)
        before = [resident_mb(each, "VmRSS") for each in (ingress, proxy)]
        for each in (ingress, proxy):
            forget_peak(each)
        cpu_before, started = cpu_s(ingress), time.perf_counter()
        sent = await asyncio.gather(*map(send_in_turn, range(requests)))
        seconds = time.perf_counter() - started
        cpu = cpu_s(ingress) - cpu_before
        for _, request_id in sent:
            await until_made(session, request_id)
        peaks = [resident_mb(each, "VmHWM") for each in (ingress, proxy)]
    return Cost(sum(size for size, _ in sent) / 1e6, seconds, (before[0], peaks[0]), (before[1], peaks[1]), cpu)


def cost_of(send: Send, requests: int, at_once: int) -> Cost:
    folder = Path(tempfile.mkdtemp(prefix="uploads-"))
    deployments = [{"name": "Ingress", "num_replicas": 1}, {"name": EDITOR, "num_replicas": 1}]
    try:
        application = declared(folder, deployments) | {"import_path": "benchmarks.drill.timed:build"}
        with cluster() as url:
            deploy(application)
            wait_until_running()
            return asyncio.run(measure(url, send, requests, at_once))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=20, help="how many requests use the image")
    parser.add_argument("--at-once", type=int, default=2, help="how many requests are sent at the same time")
    arguments = parser.parse_args()
    os.environ["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"] = "60"
    image = large_image()
    print(f"{arguments.requests} requests, {arguments.at_once} at a time, an image of {len(image) / 1e6:.1f} MB\n")
    print("| image | bodies, MB | until accepted, s | ingress, MB | proxy, MB | CPU, s |\n|---|---|---|---|---|---|")
    for name, way in WAYS.items():
        cost = cost_of(way(image), arguments.requests, arguments.at_once)
        sizes = " | ".join(f"{before:.0f} → {peak:.0f}" for before, peak in (cost.ingress, cost.proxy))
        print(f"| {name} | {cost.body_mb:.0f} | {cost.seconds:.1f} | {sizes} | {cost.cpu_s:.1f} |", flush=True)


if __name__ == "__main__":
    main()
