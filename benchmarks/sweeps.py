"""A sweep of 1,000 cells: how long it takes to start, to look at and to compare, and the memory of the ingress.

    python -m benchmarks.sweeps
    python -m benchmarks.sweeps --cells 1000

The service runs on Ray Serve with one ingress and one editor that only changes the brightness of a photograph of
512x512 pixels. The table shows seconds, sizes of answers, and the resident size of the ingress (at most during each
step). Loopback only.
"""

# No `from __future__ import annotations` here: Serve reads the annotation of a builder to validate the args.

import argparse
import base64
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import PIL.Image
from ray import serve

from benchmarks.local_service import EDITOR, MODEL, ROOT, cluster, declared, deploy, wait_until_running
from benchmarks.uploads import INGRESS, forget_peak, process, resident_mb
from serve_app.adapters.verified_files import VerifiedFiles
from serve_app.app import build_application
from serve_app.config import AppConfig, ModelConfig
from serve_app.engine.protocol import Edited, OnStep, ShouldStop
from tests.standin import PreparedPlan, StandInEngine, edited

LORA = "my_lora_job/my_lora.safetensors"
MULTIPLIERS = [round(0.1 * number, 1) for number in range(1, 11)]
PATIENCE_S = 500.0


# The control image: it changes nothing here.
CONTROL = base64.b64encode((ROOT / "samples/astronaut.jpg").read_bytes()).decode()


@cache
def photograph() -> PIL.Image.Image:
    return PIL.Image.open(ROOT / "samples/astronaut.jpg").convert("RGB").resize((512, 512))


class Darkening(StandInEngine):
    """Makes the photograph darker, by the multiplier and the seed."""

    def run(self, prepared: PreparedPlan, on_step: OnStep, should_stop: ShouldStop) -> Edited:
        plan, began = prepared.plan, time.perf_counter()
        on_step(0, None)
        strength = plan.adapters[0].scale if plan.adapters else 0.0
        image = photograph().point(lambda value: int(value * (1 - 0.5 * strength * (1 + plan.seed % 7) / 7)))
        done = edited(plan, time.perf_counter() - began, {})
        return Edited(image, done.timings, done.effective, done.runtime)


def load(config: ModelConfig, files: VerifiedFiles) -> Darkening:
    return Darkening(config, 0.0)


def build(args: AppConfig) -> serve.Application:
    """`serve_app.app:build` with this engine."""
    return build_application(args, load)


class Bench:
    """Calls the service and prints a row for each step."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client
        self._ingress = process(INGRESS)
        print("| step | s | answer, MB | ingress, MB |\n|---|---|---|---|")

    def row(self, what: str, call: Callable[[], httpx.Response | None]) -> httpx.Response | None:
        forget_peak(self._ingress)
        before, began = resident_mb(self._ingress, "VmRSS"), time.perf_counter()
        answer = call()
        seconds = time.perf_counter() - began
        if answer is not None:
            answer.raise_for_status()
        size = f"{len(answer.content) / 1e6:.2f}" if answer is not None else ""
        peak = resident_mb(self._ingress, "VmHWM")
        print(f"| {what} | {seconds:.2f} | {size} | {before:.0f} → {peak:.0f} |", flush=True)
        return answer


def body(cells: int) -> dict[str, Any]:
    """A sweep over ten multipliers and as many seeds as needed."""
    image = {"prompt": "darker", "width": 512, "height": 512, "sample_steps": 1, "guidance_scale": 1}
    base = {"model": MODEL, "loras": [{"path": LORA}], "prompts": [image | {"ctrl_img": CONTROL}]}
    return {"base": base, "axes": {"multipliers": MULTIPLIERS, "seeds": list(range(cells // len(MULTIPLIERS)))}}


def measure(url: str, cells: int) -> None:
    with httpx.Client(base_url=url, timeout=600) as client:
        bench = Bench(client)
        bench.row("dry run", lambda: client.post("/v1/sweeps", json=body(cells) | {"dry_run": True}))
        started = bench.row("POST /v1/sweeps", lambda: client.post("/v1/sweeps", json=body(cells)))
        assert started is not None
        path = f"/v1/sweeps/{started.json()['sweep_id']}"

        def until_ended() -> None:
            deadline = time.monotonic() + PATIENCE_S
            while client.get(path).json()["status"] not in ("succeeded", "failed", "canceled"):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"the sweep has not ended within {PATIENCE_S:.0f} s")
                time.sleep(1.0)

        bench.row(f"{cells} cells made, polled every second", until_ended)
        bench.row("GET the sweep", lambda: client.get(path))
        hundred = {"rows": "seeds", "columns": "multipliers", "format": "jpeg"}
        bench.row("a page of the sheet, 100 images", lambda: client.get(f"{path}/sheet", params=hundred))
        bench.row("its last page", lambda: client.get(f"{path}/sheet", params=hundred | {"page": cells // 100}))
        # One checkpoint and no multiplier 0: there is nothing to compare.
        bench.row("cells.csv without comparisons", lambda: client.get(f"{path}/cells.csv"))
        bench.row("the archive", lambda: client.get(f"{path}/archive"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=1_000, help="a multiple of 100")
    arguments = parser.parse_args()
    os.environ["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"] = "60"
    folder = Path(tempfile.mkdtemp(prefix="sweeps-"))
    deployments = [{"name": "Ingress", "num_replicas": 1}, {"name": EDITOR, "num_replicas": 1}]
    try:
        with cluster() as url:
            deploy(declared(folder, deployments) | {"import_path": "benchmarks.sweeps:build"})
            wait_until_running()
            measure(url, arguments.cells)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
