"""Reloads while replicas come and go, with editors that warm up before they take traffic and with others.

    python -m benchmarks.warm_up

The whole service with editors that sleep (`benchmarks.standin`): two editors, four, two again, at the same load for
each. 40 adapters in Zipf traffic, room for eight in an editor's cache (the real one), a load half as long as an edit.
Counted is what the edits' own records say: a reload is a call that the cache makes because it does not hold the
adapter.
"""

import argparse
import asyncio
import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from ray import serve

from benchmarks.routing import UTILISATION, popularity
from benchmarks.standin import EDITOR, LOAD_S, MODEL, ROOT, STEP_S, body, cluster, declared, deploy, wait_until_running
from serve_app.config import MINIATURE_RANDOM
from serve_app.replicas.routing_stats import ADAPTER_BYTES

ADAPTERS, PLACES = 40, 8
STEPS = round(2 * LOAD_S / STEP_S)
# Editors, and for how long (s); the first stretch fills caches and popularity.
PHASES = ((2, 40.0), (4, 40.0), (2, 30.0))
INGRESS = {"min_replicas": 2, "max_replicas": 2, "metrics_interval_s": 1}


@dataclass(frozen=True)
class Made:
    """An edit: the phase it was posted in, the editor's process, what it loaded, seconds from its POST to its end."""

    phase: int
    pid: int
    loads: int
    seconds: float


def configured(folder: Path, editors: int, builder: str) -> dict[str, Any]:
    bounds = {"min_replicas": editors, "max_replicas": editors, "downscale_delay_s": 1}
    deployments = [{"name": "Ingress", "autoscaling_config": INGRESS}, {"name": EDITOR, "autoscaling_config": bounds}]
    cache = {"adapter_cache_bytes": PLACES * ADAPTER_BYTES}
    models = [{"id": MODEL, "checkpoint": MINIATURE_RANDOM, "device": "cpu"} | cache]
    application = declared(folder, deployments, models=models, lora_root=str(folder / "loras"))
    return application | {"import_path": f"benchmarks.standin:{builder}"}


async def edit(http: httpx.AsyncClient, phase: int, adapter: int, seed: int) -> Made:
    started = time.monotonic()
    posted = await http.post("/v1/inference", json=body(STEPS, seed, [f"{adapter}.safetensors"]))
    posted.raise_for_status()
    while True:
        await asyncio.sleep(0.3)
        answer = await http.get(posted.json()["status_url"])
        if answer.status_code != 200:
            print(f"a status poll was answered {answer.status_code}: {answer.text[:300]}", flush=True)
        elif answer.json()["status"] in ("succeeded", "failed", "canceled"):
            break
    seconds = time.monotonic() - started
    [runtime] = (await http.get(posted.json()["result_url"])).json()["metadata"]["runtime"]
    return Made(phase, runtime["pid"], runtime["loads"], seconds)


async def drive(url: str, folder: Path, builder: str, seed: int) -> list[Made]:
    chance, work = random.Random(seed), []
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=httpx.Limits(max_connections=100)) as http:
        for phase, (editors, seconds) in enumerate(PHASES):
            await asyncio.to_thread(deploy, configured(folder, editors, builder))
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                [adapter] = chance.choices(range(ADAPTERS), popularity(ADAPTERS))
                work.append(asyncio.create_task(edit(http, phase, adapter, len(work))))
                await asyncio.sleep(chance.expovariate(editors * UTILISATION / (STEPS * STEP_S)))
        return await asyncio.gather(*work)


def run(url: str, builder: str, seed: int) -> list[Made]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "loras").mkdir()
        for adapter in range(ADAPTERS):
            # Copies are adapters of their own: one is known by its file's name and time.
            file = folder / f"loras/{adapter}.safetensors"
            shutil.copy(ROOT / "tests/loras/my_lora_job/my_lora.safetensors", file)
            os.utime(file, (adapter, adapter))
        deploy(configured(folder, PHASES[0][0], builder))
        wait_until_running()
        try:
            return asyncio.run(drive(url, folder, builder, seed))
        finally:
            serve.delete("edits")


def row(name: str, made: Sequence[Made]) -> str:
    reloads = sum(each.loads for each in made) / len(made)
    seconds = [each.seconds for each in made]
    p95 = statistics.quantiles(seconds, n=20)[-1]
    return f"| {name} | {len(made)} | {reloads:.2f} | {statistics.median(seconds):.2f} | {p95:.2f} |"


def report(builder: str, made: list[Made]) -> None:
    first = {each.pid for each in made if each.phase == 0}
    new = [each for each in made if each.phase == 1 and each.pid not in first]
    print(f"\n{builder}\n\n| | edits | reloads an edit | median, s | p95, s |\n|---|---|---|---|---|")
    for phase, (editors, _) in enumerate(PHASES):
        print(row(f"{editors} editors", [each for each in made if each.phase == phase]))
    print(row("of them on the two new ones", new))
    print(row("their first 20", new[:20]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with cluster() as url:
        for builder in ("build_cold", "build"):
            report(builder, run(url, builder, arguments.seed))


if __name__ == "__main__":
    main()
