"""What step previews cost: edits that nobody watches, that somebody watches, and without any of it, in turns.

At the published size with random weights on one GPU, or with `--miniature` on a CPU. An edit runs as in an editor: on
the device's thread, with a loop that looks for watchers, and a thread that encodes and stores previews. A watcher
changes the marker every 3 s and reads the newest preview every second, as an event stream does. `bare` is the engine
alone. The order of the kinds is reversed in every other round. A ratio is the median over the rounds of one kind's
seconds divided by those of `unwatched` in the same round.

    python -m benchmarks.previews               # 1024x1024, 25 steps, plain settings
    python -m benchmarks.previews --profile     # the same with the settings of cluster/serve_config.gpu.yaml
    python -m benchmarks.previews --miniature   # on a CPU, 256x256, to see that it runs
"""

import argparse
import asyncio
import hashlib
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import torch

from benchmarks.full_size import PHOTOGRAPH, PLAN, gpu_profile, load_full_size
from serve_app.adapters.verified_files import VerifiedFiles
from serve_app.config import FetchConfig, ModelConfig
from serve_app.engine.protocol import Edited, OnStep
from serve_app.engine.torch_engine import TorchEngine
from serve_app.intake.answers.previews import Previews
from serve_app.pipeline.latent_colors import fitted_colors
from serve_app.replicas.edit_previews import PreviewMaker
from serve_app.replicas.editor_metrics import EditorMetrics
from serve_app.storage.artifacts import Artifacts
from serve_app.storage.step_previews import StepPreviewStorage
from serve_app.tasks import EditPlan, EditTask
from serve_app.telemetry.metrics import Metric

BARE, UNWATCHED, WATCHED = KINDS = ("bare", "unwatched", "watched")
# How often a watcher asks (s).
WATCH_S = 1.0


class Counts:
    """Counts what is recorded, by metric."""

    def __init__(self) -> None:
        self.totals: dict[str, float] = {}

    def record(self, metric: Metric, value: float = 1.0, **tags: str) -> None:
        self.totals[metric.name] = self.totals.get(metric.name, 0.0) + value


class Measurement:
    """Edits of one plan on one engine, and files in `folder`."""

    def __init__(self, engine: TorchEngine, plan: EditPlan, folder: str) -> None:
        self._engine = engine
        self._plan = plan
        self._counts = Counts()
        artifacts = Artifacts(folder)
        metrics = EditorMetrics(self._counts, plan.model, engine.adapters)
        self._maker = PreviewMaker(StepPreviewStorage(artifacts), self._counts, metrics)
        self._ingress = Previews(artifacts)
        self._device_thread = ThreadPoolExecutor(1, "device")
        self._edits = 0

    async def edit(self, kind: str) -> dict[str, object]:
        """Make one edit, and say what it took."""
        self._edits += 1
        self._counts.totals.clear()
        task = EditTask(f"{kind}-{self._edits}", 0, self._plan)
        previews = self._maker.of_edit(task, lambda: False)
        if kind == BARE:
            edited, seconds = await self._run(lambda step, make: None)
        elif kind == UNWATCHED:
            async with previews.watching():
                edited, seconds = await self._run(previews.after_step)
        else:
            watcher = asyncio.create_task(self._watch(task.request_id))
            async with previews.watching():
                edited, seconds = await self._run(previews.after_step)
            watcher.cancel()
        previews.forget()
        return {
            "kind": kind,
            "seconds": round(seconds, 4),
            "denoise_s": round(edited.timings["denoise"], 4),
            "previews": int(self._counts.totals.get("edits_previews_total", 0)),
            "preview_device_s": round(self._counts.totals.get("edits_preview_seconds_total", 0.0), 5),
            "pixels": hashlib.sha256(edited.image.tobytes()).hexdigest()[:16],
        }

    async def _run(self, after_step: OnStep) -> tuple[Edited, float]:
        """The finished image, and the seconds that its edit took on the device's thread."""
        # As in an editor: nothing about it is measured here, and both control image and prompt are in its caches.
        prepared = await asyncio.to_thread(self._engine.prepare, self._plan, [PHOTOGRAPH.read_bytes()])

        def run() -> tuple[Edited, float]:
            started = time.perf_counter()
            edited = self._engine.run(prepared, after_step, lambda: False)
            return edited, time.perf_counter() - started

        return await asyncio.get_running_loop().run_in_executor(self._device_thread, run)

    async def _watch(self, request_id: str) -> None:
        """Watch and read previews as a client's event stream does."""
        while True:
            await self._ingress.watch(request_id)
            await self._ingress.latest(request_id, 0)
            await asyncio.sleep(WATCH_S)


async def measure(engine: TorchEngine, plan: EditPlan, rounds: int) -> None:
    found: list[dict[str, dict[str, object]]] = []
    with tempfile.TemporaryDirectory() as folder:
        measurement = Measurement(engine, plan, folder)
        for _ in range(2):
            # The first edits find everything cold.
            await measurement.edit(WATCHED)
        for number in range(rounds):
            kinds = KINDS if number % 2 == 0 else KINDS[::-1]
            results = {}
            for kind in kinds:
                results[kind] = await measurement.edit(kind)
                report(round=number, **results[kind])
            found.append(results)
    report(
        rounds=rounds,
        median_s={kind: round(statistics.median(seconds_of(found, kind)), 4) for kind in KINDS},
        ratio_to_unwatched={kind: ratio(found, kind) for kind in (BARE, WATCHED)},
        pixels_equal=len({result["pixels"] for results in found for result in results.values()}) == 1,
    )


def seconds_of(found: Sequence[dict[str, dict[str, object]]], kind: str) -> list[float]:
    return [float(str(results[kind]["seconds"])) for results in found]


def ratio(found: Sequence[dict[str, dict[str, object]]], kind: str) -> float:
    pairs = zip(seconds_of(found, kind), seconds_of(found, UNWATCHED), strict=True)
    return round(statistics.median(one / other for one, other in pairs), 5)


def measure_fit(engine: TorchEngine) -> None:
    """How much longer the start of an engine with an unknown VAE takes (s); the second time everything is warm."""
    took = []
    for _ in range(2):
        started = time.perf_counter()
        fitted_colors(engine._pipeline.vae, engine.device)
        took.append(round(time.perf_counter() - started, 3))
    report(fit_colors_s=took)


def report(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--profile", action="store_true", help="the settings of cluster/serve_config.gpu.yaml")
    parser.add_argument("--miniature", action="store_true", help="the trained miniature on a CPU, 256x256")
    options = parser.parse_args()
    if options.miniature:
        config, plan = ModelConfig(device="cpu"), replace(PLAN, width=256, height=256, steps=options.steps)
        engine = TorchEngine.load(config)
    else:
        config = ModelConfig(**(gpu_profile() if options.profile else {"device": "cuda"}))
        plan = replace(PLAN, steps=options.steps)
        engine = load_full_size(config, VerifiedFiles(config, FetchConfig()))
    report(
        size=f"{plan.width}x{plan.height}",
        steps=plan.steps,
        device=torch.cuda.get_device_name() if engine.device.type == "cuda" else "cpu",
        compile=config.compile,
        attention=config.attention,
    )
    measure_fit(engine)
    asyncio.run(measure(engine, plan, options.rounds))


if __name__ == "__main__":
    main()
