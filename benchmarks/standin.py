"""The whole service on logical CPUs, with editors that sleep: real HTTP, job store, dispatchers, router and Serve.

An editor takes `START_S` to start (an import of torch and a checkpoint would take that), `STEP_S` for a step and
`LOAD_S` for an adapter that its host cache (the real one) does not hold.
"""

# No `from __future__ import annotations` here: Serve reads the annotation of a builder to validate the args.

import base64
import io
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import PIL.Image
import ray
from ray import serve
from ray.serve.schema import ServeDeploySchema

from benchmarks.routing import Edited, Prepared, TimedAdapter
from serve_app.adapters.verified_files import VerifiedFiles
from serve_app.app import build_application
from serve_app.commands.ports import free_port
from serve_app.config import MINIATURE_RANDOM, AppConfig, ModelConfig
from serve_app.engine.adapter_cache import AdapterCache
from serve_app.errors import EditCanceled, EditError
from serve_app.replicas.running_editors import editor_name
from serve_app.tasks import AdapterUse

ROOT = Path(__file__).parents[1]
MODEL = "qwen_image_edit"
EDITOR = editor_name(MODEL)
START_S, STEP_S, LOAD_S = 6.0, 0.1, 0.5
# Logical: what is counted, not what there is.
CPUS = 32


class TimedEngine:
    """`Engine`'s interface. The image is one colour, by the seed."""

    # Whether it loads adapters when there is no edit that needs them.
    IS_WARMED_UP = True

    def __init__(self, config: ModelConfig, files: VerifiedFiles) -> None:
        time.sleep(START_S)
        self.alive = True
        self.adapters: AdapterCache[TimedAdapter] = AdapterCache(config.adapter_cache_bytes)
        self._mine = threading.local()

    def hold(self, uses: Sequence[AdapterUse]) -> None:
        if not self.IS_WARMED_UP:
            raise EditError("this engine stays cold")
        self._mine.loads = 0
        self.adapters.get_all({use.id: self._load for use in uses})

    def prepare(self, plan: Any, control_images: Sequence[bytes]) -> Prepared:
        self._mine.loads = 0
        adapters = self.adapters.get_all({use.id: self._load for use in plan.adapters})
        return Prepared(plan, adapters, self._mine.loads)

    def _load(self) -> TimedAdapter:
        self._mine.loads += 1
        time.sleep(LOAD_S)
        return TimedAdapter()

    def run(self, prepared: Prepared, on_step: Callable[[int], None], should_stop: Callable[[], bool]) -> Edited:
        plan, started = prepared.plan, time.perf_counter()
        on_step(0)
        for step in range(1, plan.steps + 1):
            time.sleep(STEP_S)
            on_step(step)
            if should_stop():
                raise EditCanceled(f"stopped after step {step} of {plan.steps}")
        image = PIL.Image.new("RGB", (plan.width, plan.height), (plan.seed % 256, 0, 0))
        timings = {"generate": time.perf_counter() - started, "load_control_images": 0.0}
        return Edited(image, {"loads": prepared.loads, "pid": os.getpid()}, timings)


def build(args: AppConfig) -> serve.Application:
    """`serve_app.app:build` with this engine. Paths in the args are absolute."""
    return build_application(args, TimedEngine)


class ColdEngine(TimedEngine):
    IS_WARMED_UP = False


def build_cold(args: AppConfig) -> serve.Application:
    """The same, with editors that do not warm up."""
    return build_application(args, ColdEngine)


@contextmanager
def cluster() -> Iterator[str]:
    """A Ray and a Serve of its own, without an application; the URL that it serves on."""
    port = free_port()
    ray.init(address="local", num_cpus=CPUS, include_dashboard=False, log_to_driver=False, namespace="serve")
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        yield f"http://127.0.0.1:{port}"
        serve.shutdown()
    finally:
        ray.shutdown()


def declared(folder: Path, deployments: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """The application as a serve config has it; `changes` are of its args or, of `policy_kwargs`, its policy."""
    policy = {
        "policy_function": "serve_app.replicas.autoscaler:Autoscaler",
        "policy_kwargs": changes.pop("policy_kwargs", {}),
    }
    args = {
        "models": [{"id": MODEL, "checkpoint": MINIATURE_RANDOM, "device": "cpu"}],
        "lora_root": str(ROOT / "tests/loras"),
        "require_lora": False,
        "artifacts_url": str(folder / "artifacts"),
        "jobs": {"database_url": f"sqlite+aiosqlite:///{folder}/jobs.sqlite3", "lease_s": 3},
    }
    return {
        "name": "edits",
        "route_prefix": "/",
        "import_path": "benchmarks.standin:build",
        "autoscaling_policy": policy,
        "args": args | changes,
        "deployments": deployments,
    }


def deploy(application: dict[str, Any]) -> None:
    """As `serve deploy` does; returns at once."""
    schema = ServeDeploySchema.model_validate({"applications": [application]})
    serve.context._get_global_client().deploy_apps(schema)


def wait_until_running(seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while (status := serve.status().applications["edits"].status) != "RUNNING":
        if time.monotonic() > deadline:
            raise TimeoutError(f"the application is {status}: {serve.status()}")
        time.sleep(0.2)


def body(steps: int, seed: int = 0, loras: Sequence[str] = ()) -> dict[str, Any]:
    """A request for one small image."""
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (64, 64), (90, 120, 200)).save(buffer, "PNG")
    prompt = {
        "prompt": "make it night",
        "ctrl_img": base64.b64encode(buffer.getvalue()).decode(),
        "width": 64,
        "height": 64,
        "sample_steps": steps,
        "seed": seed,
    }
    return {"model": MODEL, "prompts": [prompt], "loras": [{"path": path} for path in loras]}
