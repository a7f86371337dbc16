"""The drill of the alarms: Prometheus scrapes a running service, which is given a reason for each shipped alert.

python -m benchmarks.drill.alarms [PHASE ...]

Prometheus has the rules of cluster/monitoring with durations of a sixtieth: minutes are seconds, and hours are minutes.
In the first phase nothing is wrong, and no alert may fire. Each other phase causes something and lasts until its
alerts have fired. At its end, every query of the dashboard and every recording rule is asked. A phase begins
when everything runs and none of its alerts fires. The exit code is 1 if an alert does not fire, fires in the first
phase, or a query has no answer and no reason for that. All phases take about 8 minutes.
"""

import argparse
import asyncio
import signal
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx

from benchmarks.drill.alarms.causes import Causes, copy_loras
from benchmarks.drill.alarms.phases import GONE, PHASES, QUIET, Phase
from benchmarks.drill.alarms.prometheus import Prometheus, names_of_alerts, queries
from benchmarks.drill.service import MODEL, DrillFailed, Service, conclude
from benchmarks.drill.store import Store
from serve_app.config import MINIATURE_RANDOM
from serve_app.replicas.routing_stats import ADAPTER_BYTES
from tests.postgres import PostgresServer

# No edit is stopped because it makes no step: one phase holds them.
JOBS = {"lease_s": 3, "stall_s": 600, "silence_s": 10, "max_attempts": 2, "sweep_s": 5, "max_queued": 150}
WEBHOOKS = {"secret": "${WEBHOOK_SECRET}", "allow_private_addresses": True, "max_attempts": 1}
ENVIRONMENT = {
    "WEBHOOK_SECRET": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    # Five seconds instead of ten. Ray drops a gauge that was not set for two of these intervals. Ingresses set theirs
    # every five seconds (`BacklogReport`), or seven while Serve's controller does not answer.
    "RAY_metrics_report_interval_ms": "5000",
}
# How long it may take until everything runs and is measured (s), and how often alerts are looked at (s).
CALM_S, LOOK_S = 300.0, 0.5
# How long a query may have no answer (s): on a busy machine, a gauge can miss two reports, and a scrape can fail.
ASK_S = 20.0
# Why a query has no answer, where nothing of its kind happens in the drill, or in one phase.
REASONS: Mapping[str, str] = {
    "swept": "nothing is old enough to be deleted",
    "edits_previews": "nobody watches an edit",
    "loop_failures": "no loop has failed",
}
REASONS_IN: Mapping[str, Mapping[str, str]] = {
    "idle": {"adapter_cache_bytes": "no editor runs", "attempts_total": "no attempt ends"},
    "away": {"attempts_total": "no attempt ends"},
}


class AlarmDrill:
    """`run` the phases once."""

    def __init__(self, causes: Causes, prometheus: Prometheus) -> None:
        self._causes, self._prometheus = causes, prometheus
        self._problems: list[str] = []

    async def run(self, phases: Sequence[Phase]) -> list[str]:
        """Print what each phase shows, as rows of Markdown tables. Returns the problems."""
        async with asyncio.timeout(CALM_S):
            await self._causes.first_edit()
        for phase in phases:
            firing = await self._until_calm(phase)
            start = time.monotonic()
            await self._run(phase, start)
            self._report(phase, start, firing)
            if phase != GONE:
                await self._ask(phase)
                await self._causes.undo()
        return self._problems

    async def _until_calm(self, phase: Phase) -> set[str]:
        """Wait until everything runs, and no alert fires that this phase should make fire, or none at all if it should
        make none fire. Returns the alerts that fire."""
        deadline = time.monotonic() + CALM_S
        while True:
            firing = self._prometheus.look()
            if await self._causes.is_undone() and not (firing if phase == QUIET else firing & set(phase.alerts)):
                return firing
            if time.monotonic() > deadline:
                raise DrillFailed(f"before {phase.name}: not everything ran after {CALM_S:g} s; firing: {firing}")
            await asyncio.sleep(LOOK_S)

    async def _run(self, phase: Phase, start: float) -> None:
        self._prometheus.seen.clear()
        causing = asyncio.create_task(phase.cause(self._causes))
        try:
            while time.monotonic() < start + phase.limit_s and (phase == QUIET or self._silent(phase)):
                await asyncio.sleep(LOOK_S)
                await asyncio.to_thread(self._prometheus.look)
                if causing.done():
                    causing.result()
        finally:
            causing.cancel()
            await asyncio.gather(causing, return_exceptions=True)

    def _silent(self, phase: Phase) -> list[str]:
        return [alert for alert in phase.alerts if not self._prometheus.has_fired(alert)]

    def _report(self, phase: Phase, start: float, before: set[str]) -> None:
        """The alerts that fired in a phase, except those `before` it, and problems: one that did not fire, and one that
        fired although nothing was wrong."""
        print(f"\n{phase.name}: {phase.what}\n\n| alert | pending, s | firing, s |\n|---|---|---|")
        seen = self._prometheus.seen
        others = {alert for alert in seen if self._prometheus.has_fired(alert)} - set(phase.alerts) - before
        for alert in [*phase.alerts, *sorted(others)]:
            times = (seen[alert].pending, seen[alert].firing) if alert in seen else (None, None)
            shown = ["-" if at is None else f"{at - start:.0f}" for at in times]
            print(f"| {alert}{' (also)' * (alert in others)} | {shown[0]} | {shown[1]} |")
        self._problems += [f"{phase.name}: {alert} did not fire" for alert in self._silent(phase)]
        if phase == QUIET:
            self._problems += [f"{phase.name}: {alert} fired" for alert in seen if self._prometheus.has_fired(alert)]

    async def _ask(self, phase: Phase) -> None:
        """Ask every query; a problem for each that has no answer for ASK_S and no reason for that."""
        asked, reasons = list(queries()), REASONS | REASONS_IN.get(phase.name, {})
        begin, empty = time.monotonic(), asked
        while True:
            empty = [(place, query) for place, query in empty if not self._prometheus.value_of(query)]
            without = [query for _, query in empty if not any(word in query for word in reasons)]
            if not without or time.monotonic() > begin + ASK_S:
                break
            await asyncio.sleep(LOOK_S)
        print(f"\n{len(asked) - len(empty)} of {len(asked)} queries have an answer.", flush=True)
        for place, query in empty:
            print(f"{place}: none, {next((reasons[word] for word in reasons if word in query), query)}", flush=True)
        self._problems += [f"after {phase.name}: no answer: {query}" for query in without]


async def drill(phases: Sequence[Phase]) -> list[str]:
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
                    return await AlarmDrill(Causes(service, store, client, prometheus), prometheus).run(phases)


async def main(phases: Sequence[Phase]) -> None:
    began = time.monotonic()
    # A drill that is stopped ends its service.
    task = asyncio.current_task()
    assert task
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        problems = await drill(phases)
    except DrillFailed as failure:
        problems = [str(failure)]
    conclude(began, problems)
    expected = {alert for phase in phases for alert in phase.alerts}
    print(f"{len(expected)} of {len(names_of_alerts())} alerts fired when they should.")


if __name__ == "__main__":
    known = {phase.name: phase for phase in PHASES}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="PHASE", help=f"of {', '.join(known)}; default: all")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(known):
        parser.error(f"there is no phase {', '.join(sorted(unknown))}")
    asyncio.run(main([known[name] for name in arguments.names or known]))
