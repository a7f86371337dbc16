"""How fast HTTP answers while an edit runs: status polls at a steady rate, and POSTs with a 1 MB image.

    python benchmarks/http_path.py            # starts the shipped service on a free port, measures, stops it
    python benchmarks/http_path.py --polls 100 --seconds 5
    RAY_SERVE_ENABLE_HA_PROXY=1 python benchmarks/http_path.py   # with Serve's HAProxy in front

It uses loopback only, and --seconds limits its duration.
"""

import argparse
import asyncio
import base64
import io
import statistics
import time

import aiohttp
import httpx
import numpy as np
import PIL.Image

from serve_app.commands.demo import OUT, PHOTOGRAPH, service, wait_until_ready, write_config
from serve_app.commands.ports import free_port
from serve_app.models.registry import MODELS


def body(image: bytes, size: int, steps: int) -> dict:
    prompt = {"prompt": "[trigger] a photo", "width": size, "height": size, "sample_steps": steps}
    prompt |= {"ctrl_img": base64.b64encode(image).decode()}
    loras = [{"path": "my_lora_job/my_lora.safetensors"}]
    return {"model": "qwen_image_edit", "trigger_word": "sks", "prompts": [prompt], "loras": loras}


def one_megabyte() -> bytes:
    """An image whose base64 form is about 1 MB."""
    pixels = np.random.default_rng(0).integers(0, 256, (500, 500, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


async def timed(client: aiohttp.ClientSession, method: str, url: str, **arguments: object) -> float:
    """Seconds from the request to its whole answer."""
    started = time.perf_counter()
    async with client.request(method, url, **arguments) as answer:
        answer.raise_for_status()
        await answer.read()
    return time.perf_counter() - started


async def ask(client: aiohttp.ClientSession, method: str, url: str, **arguments: object) -> dict:
    async with client.request(method, url, **arguments) as answer:
        answer.raise_for_status()
        return await answer.json()


async def poll(client: aiohttp.ClientSession, url: str, rate: int, seconds: float) -> list[float]:
    """Latencies (s) of `rate` polls per second. Each is sent when it is due, even if earlier ones are unanswered."""
    started = time.perf_counter()
    polls = []
    for i in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, started + i / rate - time.perf_counter()))
        polls.append(asyncio.create_task(timed(client, "GET", url)))
    return await asyncio.gather(*polls)


def show(name: str, latencies: list[float]) -> None:
    ordered = sorted(latencies)
    p95 = ordered[int(len(ordered) * 0.95)]
    print(
        f"{name:<44} n={len(ordered):<5} median {statistics.median(ordered) * 1e3:6.1f} ms   "
        f"p95 {p95 * 1e3:6.1f} ms   max {ordered[-1] * 1e3:6.1f} ms"
    )


async def measure(port: int, polls: int, seconds: float) -> None:
    async with aiohttp.ClientSession(base_url=f"http://127.0.0.1:{port}") as client:
        photograph = PHOTOGRAPH.read_bytes()
        warm = await ask(client, "POST", "/v1/inference", json=body(photograph, 256, 1))
        while (await ask(client, "GET", warm["status_url"]))["status"] != "succeeded":
            await asyncio.sleep(0.1)

        show("status, 20/s, idle", await poll(client, warm["status_url"], 20, 3))
        running = await ask(client, "POST", "/v1/inference", json=body(photograph, 1024, 150))
        while (await ask(client, "GET", running["status_url"]))["progress"]["steps_done"] < 1:
            await asyncio.sleep(0.1)
        show(f"status, {polls}/s, during an edit", await poll(client, running["status_url"], polls, seconds))
        large = body(one_megabyte(), 64, 1)
        posts = [await timed(client, "POST", "/v1/inference", json=large) for _ in range(20)]
        show("POST with a 1 MB image, during an edit", posts)
        status = await ask(client, "GET", running["status_url"])
        assert status["status"] == "in_progress", "the edit ended before the measurement did"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--polls", type=int, default=200, help="polls per second")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long to poll")
    arguments = parser.parse_args()
    OUT.mkdir(exist_ok=True)
    port = free_port()
    with service(write_config(port, MODELS["qwen_image_edit"])) as process:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            wait_until_ready(client, process)
        asyncio.run(measure(port, arguments.polls, arguments.seconds))


if __name__ == "__main__":
    main()
