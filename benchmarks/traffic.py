"""Multi-LoRA traffic over HTTP: many adapters with Zipf popularity, mixed steps, two requests at once per editor.

    python -m benchmarks.traffic                       # starts the shipped service on a free port, and stops it
    python -m benchmarks.traffic --full-size           # random weights of the published size on this machine's GPU
    python -m benchmarks.traffic --url http://127.0.0.1:8000   # a running service, with the LoRAs that it lists

The same requests run once for each number in `--adapters`, so that the first row is the baseline of one adapter. The
GPU counts as busy while an image is denoised and decoded; the rest of the time is gaps. Without --url it uses loopback
only. --requests limits its duration.
"""

import argparse
import asyncio
import base64
import itertools
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import httpx
import yaml
from diffusers import QwenImageTransformer2DModel

from benchmarks.capacity.traffic import popularity
from benchmarks.full_size import gpu_profile, serving, write_lora
from serve_app.commands.demo import OUT, PHOTOGRAPH, service, wait_until_ready, write_config
from serve_app.commands.ports import free_port
from serve_app.models.architecture import TRAINED_MINIATURE
from serve_app.models.registry import MODELS
from serve_app.pipeline.random_lora import make_lora

MODEL = MODELS["qwen_image_edit"]
# Files with different random weights. The rest are hard links to them; to the service they are other adapters.
DISTINCT = 4
PAUSE_S = 0.05


@dataclass(frozen=True)
class Served:
    """One request: seconds from POST to its end, and seconds of each stage of the edit."""

    took: float
    stages: dict[str, float]

    @property
    def busy(self) -> float:
        return self.stages["denoise"] + self.stages["decode"]


def write_loras(folder: Path, count: int, *, full_size: bool) -> None:
    transformer = None if full_size else QwenImageTransformer2DModel.from_pretrained(TRAINED_MINIATURE / "transformer")
    for seed in range(count):
        path = folder / f"{seed:03}.safetensors"
        if seed >= DISTINCT:
            path.hardlink_to(folder / f"{seed % DISTINCT:03}.safetensors")
        elif full_size:
            write_lora(path, seed)
        else:
            make_lora(transformer, path, seed=seed, strength=0.01)


@contextmanager
def shipped(folder: Path) -> Iterator[str]:
    """Run the service of serve_config.yaml on a free port, with this LoRA root; yields its address."""
    OUT.mkdir(exist_ok=True)
    port = free_port()
    config = write_config(port, MODEL)
    written = yaml.safe_load(config.read_text())
    [application] = written["applications"]
    application["args"]["lora_root"] = str(folder)
    config.write_text(yaml.safe_dump(written))
    with service(config) as process:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            wait_until_ready(client, process)
        yield f"http://127.0.0.1:{port}"


def bodies(paths: Sequence[str], requests: int, size: int, steps: Sequence[int], guidance: float) -> list[dict]:
    """Request bodies. Their sizes and steps do not depend on the number of adapters."""
    chance = random.Random(0)
    image, weights = base64.b64encode(PHOTOGRAPH.read_bytes()).decode(), popularity(len(paths))
    made = []
    for number in range(requests):
        drawn = random.Random(number).choices(paths, weights)[0]
        prompt = {"prompt": f"invert the colours {number}", "ctrl_img": image, "width": size, "height": size}
        prompt |= {"sample_steps": chance.choice(steps), "guidance_scale": guidance}
        made.append({"model": MODEL.id, "prompts": [prompt], "loras": [{"path": drawn}]})
    return made


async def edit(client: aiohttp.ClientSession, body: dict) -> Served:
    started = time.perf_counter()
    async with client.post("/v1/inference", json=body) as answer:
        answer.raise_for_status()
        submitted = await answer.json()
    while True:
        async with client.get(urlsplit(submitted["status_url"]).path) as answer:
            if (await answer.json())["finished_at"] is not None:
                break
        await asyncio.sleep(PAUSE_S)
    took = time.perf_counter() - started
    async with client.get(urlsplit(submitted["result_url"]).path) as answer:
        result = await answer.json()
    if result["status"] != "succeeded":
        raise RuntimeError(f"a request failed: {result['error']}")
    return Served(took, result["metadata"]["timings"]["prompts"][0])


async def drive(url: str, requests: list[dict], at_once: int) -> tuple[float, list[Served]]:
    """Send the requests, `at_once` at a time. Returns the seconds from first POST to last end, and each request."""
    waiting = iter(requests)

    async def caller(client: aiohttp.ClientSession) -> list[Served]:
        return [await edit(client, body) for body in waiting]

    async with aiohttp.ClientSession(base_url=url) as client:
        await edit(client, requests[0])  # warm
        started = time.perf_counter()
        served = await asyncio.gather(*(caller(client) for _ in range(at_once)))
    return time.perf_counter() - started, list(itertools.chain(*served))


def row(adapters: int, editors: int, seconds: float, served: list[Served]) -> str:
    busy = sum(each.busy for each in served)
    took = [each.took for each in served]
    p95 = statistics.quantiles(took, n=20)[-1] if len(took) > 1 else took[0]
    swaps = statistics.median(each.stages["apply_adapters"] for each in served)
    return (
        f"| {adapters} | {len(served)} | {seconds:.1f} | {busy / (seconds * editors):.3f} "
        f"| {(seconds * editors - busy) / len(served):.3f} | {swaps:.4f} | {statistics.median(took):.2f} | {p95:.2f} "
        f"| {len(served) / seconds * 3600:.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="of a running service; without it, one is started and stopped")
    parser.add_argument("--full-size", action="store_true")
    parser.add_argument("--adapters", nargs="+", type=int, default=[1, 50], help="numbers of adapters, one run each")
    parser.add_argument("--requests", type=int, help="per run; default: 120 at full size, otherwise 12")
    parser.add_argument("--steps", nargs="+", type=int, default=[4, 8, 12], help="each request draws one")
    parser.add_argument("--guidance", type=float, default=4.0, help="1: one forward per step")
    parser.add_argument("--size", type=int, help="width and height; default: 1024 at full size, otherwise 64")
    parser.add_argument("--editors", type=int, default=1, help="number of editors of the service")
    options = parser.parse_args()
    count = options.requests or (120 if options.full_size else 12)
    size = options.size or (1024 if options.full_size else 64)
    print(
        "| adapters | requests | s | GPU busy | gap per image, s | swap, median s | p50, s | p95, s | images per hour |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name, started(options, Path(name)) as url:
        listed = httpx.get(f"{url}/v1/loras", params={"limit": 200}, timeout=60).raise_for_status().json()["loras"]
        paths = sorted(lora["path"] for lora in listed)
        for adapters in options.adapters:
            requests = bodies(paths[:adapters], count, size, options.steps, options.guidance)
            seconds, served = asyncio.run(drive(url, requests, 2 * options.editors))
            print(row(min(adapters, len(paths)), options.editors, seconds, served), flush=True)


@contextmanager
def started(options: argparse.Namespace, folder: Path) -> Iterator[str]:
    """Start the service that the options ask for, if it does not run yet; yields its address."""
    if options.url:
        yield options.url
        return
    write_loras(folder, max(options.adapters), full_size=options.full_size)
    with serving(folder, free_port(), gpu_profile()) if options.full_size else shipped(folder) as url:
        yield url


if __name__ == "__main__":
    main()
