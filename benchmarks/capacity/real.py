"""A real run: the whole service over HTTP on a Ray of its own, with engines that sleep, and when each thing happened.

    python -m benchmarks.capacity.real 1 one.json       # so many editors; what was seen goes into the file

Router, host cache, fair queue, job store (PostgreSQL) and HTTP are the shipped ones; edits are `FASTER` than an
H200's and loads take `LOAD_S`. Requests come when they are due, whether others have ended or not. Loopback alone;
it ends by itself, after about `SECONDS` and a minute.
"""

# No `from __future__ import annotations` here: Serve reads the annotation of a builder to validate the args.

import argparse
import asyncio
import base64
import io
import itertools
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import httpx
import numpy as np
import PIL.Image
import ray
from ray import serve
from ray.serve.schema import ServeDeploySchema
from safetensors.numpy import save_file

from benchmarks.capacity.stages import COMPILED_FORWARD_S, h200
from benchmarks.capacity.workload import CONTROL, MODEL, PROMPT, Arrival, Shape, Traffic
from benchmarks.routing import Edited, TimedAdapter, start_ray
from serve_app.adapters.verified_files import Contents
from serve_app.app import build_application
from serve_app.commands.demo import free_port
from serve_app.config import MINIATURE_RANDOM, AppConfig, ModelConfig
from serve_app.engine.adapter_cache import AdapterCache
from serve_app.replicas.routing_stats import ADAPTER_BYTES
from serve_app.replicas.running_editors import editor_name
from serve_app.tasks import AdapterUse, EditPlan
from tests.postgres import PostgresServer

FASTER, LOAD_S, PLACES, ADAPTERS = 7.0, 1.0, 3, 24
SECONDS, UNCOUNTED = 200.0, 20
UTILISATION = {1: 0.6, 4: 0.7}
FLOPS_PER_S = FASTER * h200(COMPILED_FORWARD_S).flops_per_s
READY_TIMEOUT_S, END_TIMEOUT_S = 90.0, 60.0
# Progress is reported this often while an engine sleeps.
STEP_S = 0.5


def traffic(editors: int) -> Traffic:
    """Poisson, so that one short run has no burst of its own; one tenant, as there are no keys."""
    alike = Traffic(1.0, ADAPTERS, burstiness=1.0, tenants=1, bulk=0.0)
    per_s = UTILISATION[editors] * editors * FLOPS_PER_S / alike.flops
    return Traffic(per_s, ADAPTERS, burstiness=1.0, tenants=1, bulk=0.0)


def arrivals(editors: int) -> list[Arrival]:
    return list(itertools.takewhile(lambda each: each.at < SECONDS, traffic(editors).arrivals(seed=editors)))


@dataclass(frozen=True)
class Prepared:
    """Who has been prepared, when that began and ended (epoch, s), and how many adapters were loaded for it."""

    plan: EditPlan
    began: float
    ended: float
    loads: int


class PacedEngine:
    """`Engine`'s interface: the real host cache, loads and edits that sleep, an edit by its work.

    An edit's `runtime` says when things began and ended.
    """

    def __init__(self, config: ModelConfig, contents: Contents) -> None:
        self.alive = True
        self.adapters: AdapterCache[TimedAdapter] = AdapterCache(config.adapter_cache_bytes)
        self._mine = threading.local()

    def hold(self, uses: Sequence[AdapterUse]) -> None:
        self._mine.loads = 0
        for use in uses:
            self.adapters.get(use.id, self._load)

    def prepare(self, plan: EditPlan, control_images: Sequence[bytes]) -> Prepared:
        began = time.time()
        self.hold(plan.adapters)
        return Prepared(plan, began, time.time(), self._mine.loads)

    def _load(self) -> TimedAdapter:
        self._mine.loads += 1
        time.sleep(LOAD_S)
        return TimedAdapter()

    def run(self, prepared: Prepared, on_step: Callable[[int], None], should_stop: Callable[[], bool]) -> Edited:
        plan, began = prepared.plan, time.time()
        end = time.monotonic() + Shape(plan.width, plan.height, plan.steps, plan.guidance_scale).flops / FLOPS_PER_S
        on_step(0)
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, STEP_S))
            on_step(1)
        times = {"prepare": prepared.began, "prepared": prepared.ended, "began": began, "ended": time.time()}
        runtime = times | {"loads": prepared.loads, "pid": os.getpid()}
        seconds = {"generate": times["ended"] - began, "load_control_images": 0.0}
        return Edited(PIL.Image.new("RGB", (plan.width, plan.height)), runtime, seconds)


def build(args: AppConfig) -> serve.Application:
    """`serve_app.app:build` with this engine. Paths in `args` are absolute."""
    return build_application(args, PacedEngine)


@dataclass(frozen=True)
class Seen:
    """One request: what it was, and when things happened to it, in seconds from the first POST's due time."""

    number: int
    due: float
    posted: float
    created: float
    prepare: float
    prepared: float
    began: float
    ended: float
    finished: float
    loads: int
    pid: int
    work_s: float

    @classmethod
    def of(cls, arrival: Arrival, posted: float, result: dict[str, Any], start: float) -> Self:
        if result["status"] != "succeeded":
            raise RuntimeError(f"a request did not succeed: {result}")
        [runtime] = result["metadata"]["runtime"]
        times = {name: runtime[name] - start for name in ("prepare", "prepared", "began", "ended")}
        created, finished = (_epoch(result[name]) - start for name in ("created_at", "finished_at"))
        work_s = arrival.shape.flops / FLOPS_PER_S
        return cls(
            arrival.number, arrival.at, posted - start, created, **times, finished=finished,
            loads=runtime["loads"], pid=runtime["pid"], work_s=work_s,
        )  # fmt: skip


def _epoch(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp()


class Client:
    """Posts each request when it is due, and asks for results once all are posted."""

    def __init__(self, url: str) -> None:
        self._http = httpx.AsyncClient(base_url=url, timeout=60, limits=httpx.Limits(max_connections=200))
        buffer = io.BytesIO()
        PIL.Image.new("RGB", CONTROL.size, "grey").save(buffer, "PNG")
        self._control = base64.b64encode(buffer.getvalue()).decode()

    async def run(self, stream: list[Arrival]) -> list[Seen]:
        await self._until_ready()
        start = time.time() + 1
        posted = await asyncio.gather(*(self._post(arrival, start) for arrival in stream))
        async with asyncio.timeout(END_TIMEOUT_S):
            results = [await self._result(id) for id, _ in posted]
        return [
            Seen.of(arrival, at, result, start)
            for arrival, (_, at), result in zip(stream, posted, results, strict=True)
        ]

    async def _until_ready(self) -> None:
        async with asyncio.timeout(READY_TIMEOUT_S):
            while (await self._http.get("/ready")).status_code != 200:
                await asyncio.sleep(0.2)

    async def _post(self, arrival: Arrival, start: float) -> tuple[str, float]:
        shape = arrival.shape
        prompt = {"prompt": PROMPT, "neg": "", "width": shape.width, "height": shape.height, "ctrl_img": self._control}
        prompt |= {"sample_steps": shape.steps, "guidance_scale": shape.guidance}
        body = {"model": MODEL, "prompts": [prompt], "loras": [{"path": file_of(arrival.adapter)}]}
        await asyncio.sleep(start + arrival.at - time.time())
        at = time.time()
        answer = await self._http.post("/v1/inference", json=body)
        return answer.raise_for_status().json()["request_id"], at

    async def _result(self, id: str) -> dict[str, Any]:
        while True:
            result = (await self._http.get(f"/v1/requests/{id}/result")).json()
            if result.get("finished_at"):
                return dict(result)
            await asyncio.sleep(0.2)


def file_of(adapter: str) -> str:
    return f"{adapter.replace(' ', '_')}.safetensors"


def write_adapters(folder: Path) -> None:
    """A file for each adapter that fits the miniature of random weights; what it holds is never applied."""
    linear = "diffusion_model.transformer_blocks.0.attn.to_q"
    pair = {f"{linear}.lora_A.weight": (2, 16), f"{linear}.lora_B.weight": (16, 2)}
    folder.mkdir()
    for rank in range(ADAPTERS):
        tensors = {name: np.zeros(shape, np.float32) for name, shape in pair.items()}
        save_file(tensors, folder / file_of(f"adapter {rank}"))


def deploy(editors: int, folder: Path, database_url: str) -> None:
    write_adapters(folder / "loras")
    model = {"id": MODEL, "checkpoint": MINIATURE_RANDOM, "device": "cpu", "adapter_disk_folder": str(folder / "disk")}
    args = {
        "models": [model | {"adapter_cache_bytes": PLACES * ADAPTER_BYTES}],
        "lora_root": str(folder / "loras"),
        "artifacts_url": str(folder / "artifacts"),
        "jobs": {"database_url": database_url},
    }
    application = {
        "name": "edits",
        "route_prefix": "/",
        "import_path": "benchmarks.capacity.real:build",
        "args": args,
        "deployments": [{"name": editor_name(MODEL), "num_replicas": editors}],
    }
    serve.context._get_global_client().deploy_apps(ServeDeploySchema.model_validate({"applications": [application]}))
    deadline = time.monotonic() + READY_TIMEOUT_S
    while _running(editor_name(MODEL)) < editors:
        if time.monotonic() > deadline:
            raise RuntimeError(f"the editors did not start: {serve.status()}")
        time.sleep(0.2)


def _running(deployment: str) -> int:
    application = serve.status().applications.get("edits")
    found = application.deployments.get(deployment) if application else None
    return found.replica_states.get("RUNNING", 0) if found else 0


def start_serve() -> str:
    """A Ray and a Serve of this run's own; where it answers."""
    port = free_port()
    start_ray()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    return f"http://127.0.0.1:{port}"


def run(editors: int) -> dict[str, Any]:
    load = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory() as folder, PostgresServer(durable=True) as postgres:
        url = start_serve()
        try:
            deploy(editors, Path(folder), postgres.new_database())
            seen = asyncio.run(Client(url).run(arrivals(editors)))
        finally:
            serve.shutdown()
            ray.shutdown()
    load.append(os.getloadavg()[0])
    rows = [[round(value, 4) for value in asdict(each).values()] for each in seen]
    return {"editors": editors, "load_average": load, "fields": list(asdict(seen[0])), "requests": rows}


def read(file: Path) -> list[Seen]:
    """The requests of a run that count: not those that filled empty caches."""
    seen = [Seen(*row) for row in json.loads(file.read_text())["requests"]]
    return [each for each in seen if each.number >= UNCOUNTED]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("editors", type=int, choices=UTILISATION)
    parser.add_argument("file", type=Path)
    args = parser.parse_args()
    record = run(args.editors)
    args.file.write_text(json.dumps(record).replace("], [", "],\n["))
    print(f"{len(record['requests'])} requests; load average {record['load_average']}")


if __name__ == "__main__":
    main()
