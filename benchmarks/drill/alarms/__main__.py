"""The drill of the alarms: Prometheus scrapes a running service, which is given a reason for each shipped alert.

python -m benchmarks.drill.alarms [PHASE ...]

Prometheus has the rules of cluster/monitoring with durations of a sixtieth: minutes are seconds, and hours are minutes.
The first phase is without a fault: no alert may fire. Each other phase causes something, and the alerts that tell of it
have to fire. At its end, every query of the dashboard and every recording rule is asked. The exit code is 1 if an alert
does not fire, fires in the first phase, or a query has no answer and no reason for that. All phases take 7 minutes.
"""

import argparse
import asyncio
import shutil
import signal
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path

import httpx

from benchmarks.drill.alarms.engine import COMPILE, DIE, FAIL, MEMORY, NOT_LOADED, STUCK
from benchmarks.drill.alarms.prometheus import Prometheus, names_of_alerts, queries
from benchmarks.drill.load import CONTROL
from benchmarks.drill.service import MODEL, ROOT, DrillFailed, Service, conclude
from benchmarks.drill.store import Store
from serve_app.config import MINIATURE_RANDOM
from serve_app.replicas.routing_stats import ADAPTER_BYTES
from tests.postgres import PostgresServer

LORAS = 12
JOBS = {"lease_s": 3, "stall_s": 90, "silence_s": 10, "max_attempts": 2, "sweep_s": 5, "max_queued": 150}
WEBHOOKS = {"secret": "${WEBHOOK_SECRET}", "allow_private_addresses": True, "max_attempts": 1}
ENVIRONMENT = {
    "WEBHOOK_SECRET": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    # Four seconds instead of ten. Ray drops a gauge that was not set for two of these intervals, and ingresses set
    # theirs every five seconds (`BacklogReport`): with two seconds the gauges came and went.
    "RAY_metrics_report_interval_ms": "4000",
}
# Nobody listens there.
DEAF = "http://127.0.0.1:9/hook"
QUIET, FAILING, STALLED, IDLE, AWAY, GONE = "quiet", "failing", "stalled", "idle", "away", "gone"
EXPECTED = {
    QUIET: [],
    FAILING: [
        *["EditsFailing", "EditorsLost", "EditsOutOfMemory", "EditsRecompiling", "EditsColdAdapters"],
        *["EditsWebhooksGivenUp", "EditsSuccessBudgetBurnsFast", "EditsSuccessBudgetBurns"],
    ],
    STALLED: ["EditsStuck", "EditsLeasesLost", "EditsPredictionBudgetBurnsFast", "EditsPredictionBudgetBurns"],
    IDLE: ["EditsWithoutEditor", "EditsQueueLong", "EditsRefusedForLength"],
    AWAY: ["EditsStoreAway", "EditsLoopFailing", "EditsNotSwept"],
    GONE: ["EditsNotMeasured"],
}
WHAT = {
    QUIET: "requests that succeed",
    FAILING: "edits fail, need too much memory, kill their editor, compile, use 12 LoRAs in turn; no webhook arrives",
    STALLED: "every edit is stuck for 45 s, and an ingress is killed twice",
    IDLE: "the editors are killed and none can start; more images of 150 steps are posted than may wait",
    AWAY: "a file is where the folder of artifact storage was",
    GONE: "every process of the cluster is killed",
}
LIMIT_S = {QUIET: 25.0, FAILING: 110.0, STALLED: 90.0, IDLE: 60.0, AWAY: 150.0, GONE: 30.0}
# The most requests of a phase that have not ended at its end.
MAX_UNFINISHED = 60
# How long the first metrics may take (s).
MEASURED_S = 90.0
# Why a query has no answer where nothing of its kind happens in the drill.
REASONS = {
    "swept": "nothing is old enough to be deleted",
    "edits_previews": "nobody watches an edit",
    "loop_failures": "no loop has failed",
}


class AlarmDrill:
    """`run` the phases, then print `report`."""

    def __init__(self, service: Service, store: Store, client: httpx.AsyncClient, prometheus: Prometheus) -> None:
        self._service, self._store, self._client, self._prometheus = service, store, client, prometheus
        self._request_ids: list[str] = []
        self._phases: dict[str, tuple[float, float]] = {}
        self._number = 0
        self._problems: list[str] = []

    async def run(self, names: Sequence[str]) -> list[str]:
        causes: dict[str, Callable[[], Awaitable[None]]] = {
            QUIET: self._succeed,
            FAILING: self._fail,
            STALLED: self._stall,
            IDLE: self._be_idle,
            AWAY: self._be_away,
            GONE: self._be_gone,
        }
        await self._measured()
        looking = asyncio.create_task(self._look())
        try:
            for name in names:
                await self._phase(name, causes[name])
                if name != GONE:
                    self._ask(name)
        finally:
            looking.cancel()
        return self._problems

    async def _phase(self, name: str, cause: Callable[[], Awaitable[None]]) -> None:
        start = time.monotonic()
        causing = asyncio.create_task(cause())
        try:
            while time.monotonic() - start < LIMIT_S[name] and (name == QUIET or self._silent(name, start)):
                await asyncio.sleep(0.5)
                if causing.done():
                    causing.result()
        finally:
            causing.cancel()
            self._phases[name] = (start, time.monotonic())
        await asyncio.gather(causing, return_exceptions=True)
        await self._undo()
        self._problems += [f"{name}: {alert} did not fire" for alert in self._silent(name, start)]
        if name == QUIET:
            fired = [alert for alert, seen in self._prometheus.seen.items() if seen.firing]
            self._problems += [f"{name}: {alert} fired" for alert in fired]

    def _silent(self, name: str, start: float) -> list[str]:
        """The alerts that this phase should make fire and that have not fired since its start."""
        return [alert for alert in EXPECTED[name] if self._fired_at(alert, start) is None]

    def _fired_at(self, alert: str, start: float) -> float | None:
        seen = self._prometheus.seen.get(alert)
        return next((begin for begin, last in seen.firing if last > start), None) if seen else None

    async def _measured(self) -> None:
        """Wait until Prometheus has the service's metrics, and forget what alarmed it before."""
        deadline = time.monotonic() + MEASURED_S
        while not self._prometheus.value_of("ray_edits_editors > 0") or self._prometheus.look():
            if time.monotonic() > deadline:
                raise DrillFailed(f"Prometheus had no metrics of the service after {MEASURED_S:g} s")
            await asyncio.sleep(0.5)
        self._prometheus.seen.clear()

    async def _look(self) -> None:
        while True:
            await asyncio.to_thread(self._prometheus.look)
            await asyncio.sleep(0.5)

    async def _undo(self) -> None:
        """End what a phase has left: its marks in the folder, and its requests."""
        (self._service.folder / NOT_LOADED).unlink(missing_ok=True)
        artifacts = self._service.folder / "artifacts"
        if artifacts.is_file():
            artifacts.unlink()
            (self._service.folder / "artifacts-away").rename(artifacts)
        for request_id in self._request_ids[-MAX_UNFINISHED:]:
            with suppress(httpx.TransportError):
                await self._client.delete(f"/v1/requests/{request_id}")
        self._request_ids.clear()

    async def _post(self, prompt: str = "", steps: int = 2, images: int = 1, **more: object) -> None:
        self._number += 1
        one = {"prompt": prompt or "well", "width": 64, "height": 64, "sample_steps": steps, "ctrl_img": CONTROL}
        prompts = [one | {"seed": self._number + each} for each in range(images)]
        body = {"model": MODEL, "prompts": prompts, "loras": [], **more}
        # Ingresses are killed, and the queue and storage refuse requests.
        with suppress(httpx.TransportError):
            answer = await self._client.post("/v1/inference", json=body)
            if answer.is_success:
                self._request_ids.append(answer.json()["request_id"])
            elif answer.status_code not in (httpx.codes.TOO_MANY_REQUESTS, *range(500, 600)):
                raise DrillFailed(f"a POST was answered {answer.status_code}: {answer.text[:300]}")

    async def _lora(self, prompt: str = "") -> None:
        await self._post(prompt, loras=[{"path": f"lora-{self._number % LORAS}.safetensors"}])

    async def _succeed(self) -> None:
        while True:
            await self._post(loras=[{"path": "lora-0.safetensors"}])
            await asyncio.sleep(1)

    async def _fail(self) -> None:
        for _ in range(2):
            await self._post(DIE)
        while True:
            for prompt in (FAIL, MEMORY):
                await self._post(prompt, webhook_url=DEAF)
            for _ in range(3):
                await self._lora(COMPILE)
            await asyncio.sleep(1)

    async def _stall(self) -> None:
        for _ in range(30):
            await self._post()
            await asyncio.sleep(0.1)
        for _ in range(4):
            await self._post(STUCK)
        for _ in range(30):
            await self._post()
        for _ in range(2):
            await asyncio.sleep(4)
            owners = [seen.owner_pid for seen in (await self._store.look()).values() if seen.state == "claimed"]
            alive = [pid for pid in owners if pid is not None and self._service.owns(pid)]
            if alive:
                self._service.kill(max(set(alive), key=alive.count))
        while True:
            await self._post()
            await asyncio.sleep(2)

    async def _be_idle(self) -> None:
        (self._service.folder / NOT_LOADED).touch()
        for pid in self._service.editors():
            self._service.kill(pid)
        for _ in range(18):
            await self._post(steps=150, images=8)
        while True:
            await self._post(steps=150, images=8)
            await asyncio.sleep(1)

    async def _be_away(self) -> None:
        artifacts = self._service.folder / "artifacts"
        artifacts.rename(self._service.folder / "artifacts-away")
        artifacts.touch()
        while True:
            await self._post()
            await asyncio.sleep(1)

    async def _be_gone(self) -> None:
        await asyncio.to_thread(self._service.kill_cluster)

    def _ask(self, name: str) -> None:
        """Ask every query; a problem for each that has no answer and no reason."""
        asked = list(queries())
        empty = [(place, query) for place, query in asked if not self._prometheus.value_of(query)]
        print(f"after {name}: {len(asked) - len(empty)} of {len(asked)} queries have an answer")
        for place, query in empty:
            reason = next((reason for word, reason in REASONS.items() if word in query), None)
            print(f"  {place}: none, {reason or query}")
            if reason is None and name != QUIET:
                self._problems.append(f"after {name}: {place} has no answer: {query}")

    def report(self) -> list[str]:
        """The table of phases and alerts, as lines of Markdown."""
        rows = ["| after its cause, s: pending | firing | alert | cause |", "|---|---|---|---|"]
        for name, (start, _) in self._phases.items():
            for alert in EXPECTED[name]:
                fired, seen = self._fired_at(alert, start), self._prometheus.seen.get(alert)
                pending = seen.pending - start if seen and seen.pending and seen.pending > start else None
                shown = ["-" if at is None else f"{at:.0f}" for at in (pending, fired and fired - start)]
                rows.append(f"| {shown[0]} | {shown[1]} | {alert} | {WHAT[name]} |")
        expected = {alert for name in self._phases for alert in EXPECTED[name]}
        others = sorted(alert for alert, seen in self._prometheus.seen.items() if seen.firing and alert not in expected)
        return [*rows, "", f"other alerts that fired: {', '.join(others) or 'none'}"]


async def drill(names: Sequence[str]) -> list[str]:
    with PostgresServer(durable=True) as postgres, tempfile.TemporaryDirectory(prefix="drill-loras-") as loras:
        copy_loras(Path(loras))
        url = postgres.new_database()
        model = {"id": MODEL, "checkpoint": MINIATURE_RANDOM, "device": "cpu", "adapter_cache_bytes": ADAPTER_BYTES}
        args = {"jobs": {"database_url": url, **JOBS}, "webhooks": WEBHOOKS, "models": [model], "lora_root": loras}
        with Service(url, "benchmarks.drill.alarms.engine:build", args, ENVIRONMENT) as service:
            await service.start()
            with Prometheus(service.folder) as prometheus:
                prometheus.until_ready()
                async with Store(url) as store, httpx.AsyncClient(base_url=service.url, timeout=10) as client:
                    each = AlarmDrill(service, store, client, prometheus)
                    try:
                        return await each.run(names)
                    finally:
                        print("\n".join(each.report()))


def copy_loras(folder: Path) -> None:
    for number in range(LORAS):
        shutil.copy(ROOT / "tests/loras/my_lora_job/my_lora.safetensors", folder / f"lora-{number}.safetensors")


async def main(names: Sequence[str]) -> None:
    began = time.monotonic()
    # A drill that is stopped reports what it has seen.
    task = asyncio.current_task()
    assert task
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        problems = await drill(names)
    except DrillFailed as failure:
        problems = [str(failure)]
    conclude(began, problems)
    print(f"{sum(len(EXPECTED[name]) for name in names)} of {len(names_of_alerts())} alerts fired when they should.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="PHASE", help=f"of {', '.join(EXPECTED)}; default: all")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(EXPECTED):
        parser.error(f"there is no phase {', '.join(sorted(unknown))}")
    asyncio.run(main(arguments.names or list(EXPECTED)))
