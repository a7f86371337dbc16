"""Autoscaling as it happens: a load step from one editor to four and back, to none and back, as an image.

    python -m benchmarks.scaling docs/autoscaling.png

The shipped policy on a real Ray Serve, with HTTP, the job store and editors that sleep (`benchmarks.standin`). Requests
arrive as a Poisson stream whose rate changes. Twice a second is noted how many editors there are, how many there should
be, and what there is to do. Fails if a request is refused or does not succeed.
"""

import argparse
import asyncio
import random
import re
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import httpx
import ray
from ray import serve

from benchmarks.standin import EDITOR, MODEL, START_S, STEP_S, body, cluster, declared, deploy, wait_until_running
from serve_app.config import JobsConfig
from serve_app.jobs.store import JobStore
from serve_app.policy.scaling import Backlog

STEPS = 20
EDIT_S = STEPS * STEP_S
# Seconds, and editors' worth of work that arrives meanwhile.
LOAD = ((50.0, 0.4), (70.0, 3.3), (70.0, 0.4), (45.0, 0.0), (25.0, 0.4))
LIMITS = {"min_replicas": 0, "max_replicas": 4, "downscale_delay_s": 15, "downscale_to_zero_delay_s": 20}
INGRESS = {"min_replicas": 2, "max_replicas": 2, "metrics_interval_s": 1}
WAIT_S = 6.0
SAMPLE_S = 0.5


@dataclass(frozen=True)
class Sample:
    """What was there `at` seconds after the start."""

    at: float
    running: int
    wanted: int
    work_s: float


@dataclass
class Day:
    """What happened."""

    started: float = field(default_factory=time.time)
    arrivals: list[float] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    ends: Counter[str] = field(default_factory=Counter)
    decisions: list[tuple[float, str]] = field(default_factory=list)


def arrivals(seed: int) -> list[float]:
    """When requests come, in seconds after the start."""
    chance, made, began = random.Random(seed), [], 0.0
    for seconds, editors in LOAD:
        at = began
        while editors and (at := at + chance.expovariate(editors / EDIT_S)) < began + seconds:
            made.append(at)
        began += seconds
    return made


async def watch(day: Day, store: JobStore) -> None:
    """Note what is there, until cancelled."""
    client = serve.context._get_global_client()
    while True:
        details = await asyncio.to_thread(client.get_serve_details)
        editors = details["applications"]["edits"]["deployments"][EDITOR]
        running = sum(replica["state"] == "RUNNING" for replica in editors["replicas"])
        backlog = (await store.queue.backlogs()).get(MODEL, Backlog())
        day.samples.append(Sample(time.time() - day.started, running, editors["target_num_replicas"], backlog.work_s))
        await asyncio.sleep(SAMPLE_S)


async def send(day: Day, client: httpx.AsyncClient, at: float, seed: int) -> None:
    """Post one request when its time has come, and follow it to its end."""
    await asyncio.sleep(day.started + at - time.time())
    answer = await client.post("/v1/inference", json=body(STEPS, seed))
    day.arrivals.append(time.time() - day.started)
    if answer.status_code != 200:
        day.ends[f"HTTP {answer.status_code}"] += 1
        return
    posted, url = time.time(), answer.json()["status_url"]
    while True:
        await asyncio.sleep(1)
        status = (await client.get(url)).json()
        if status["status"] in ("succeeded", "failed", "canceled"):
            break
    day.ends[status["status"]] += 1
    day.waits.append(time.time() - posted)


async def measure(url: str, jobs: JobsConfig, seed: int) -> Day:
    store = JobStore(jobs)
    await store.open()
    day = Day()
    watching = asyncio.create_task(watch(day, store))
    limits = httpx.Limits(max_connections=50)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
        await asyncio.gather(*(send(day, client, at, number) for number, at in enumerate(arrivals(seed))))
        await asyncio.sleep(max(0.0, day.started + sum(seconds for seconds, _ in LOAD) - time.time()))
    watching.cancel()
    await store.close()
    return day


def decisions(since: float) -> list[tuple[float, str]]:
    """What the policy decided and why, from the log of Serve's controller."""
    logs = Path(ray._private.worker._global_node.get_session_dir_path()) / "logs/serve"
    made = []
    for log in logs.glob("controller_*.log"):
        for line in log.read_text().splitlines():
            if found := re.search(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),(\d+) .*?(\d+ replicas?: .*)", line):
                at = time.mktime(time.strptime(found[1], "%Y-%m-%d %H:%M:%S")) + int(found[2]) / 1000
                made.append((at - since, found[3]))
    return [each for each in made if each[0] > 0]


def draw(day: Day, path: Path) -> None:
    # Only this needs it.
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (load, work, editors) = plt.subplots(3, 1, figsize=(10, 7), sharex=True, layout="constrained")
    began = 0.0
    for seconds, worth in LOAD:
        load.fill_between([began, began + seconds], worth, step="post", color="tab:gray", alpha=0.3)
        began += seconds
    load.eventplot(day.arrivals, lineoffsets=0.25, linelengths=0.5, color="tab:gray", linewidths=0.6)
    load.set_ylabel("load, in editors'\nworth of work")
    at = [sample.at for sample in day.samples]
    work.fill_between(at, [sample.work_s for sample in day.samples], color="tab:orange", alpha=0.5)
    work.set_ylabel("work that is there\n(GPU-seconds, predicted)")
    editors.step(at, [sample.wanted for sample in day.samples], where="post", color="tab:red", label="decided")
    editors.step(at, [sample.running for sample in day.samples], where="post", color="tab:blue", label="running")
    editors.set_ylabel("editors")
    editors.set_yticks(range(LIMITS["max_replicas"] + 1))
    editors.set_xlabel("seconds")
    editors.legend(loc="upper right")
    for panel in (load, work, editors):
        panel.grid(alpha=0.3)
        panel.set_xlim(0, began)
        panel.set_ylim(bottom=0)
    figure.savefig(path, dpi=100)


def report(day: Day) -> None:
    print(f"{len(day.arrivals)} requests: {', '.join(f'{count} {end}' for end, count in day.ends.items())}")
    waits = sorted(day.waits)
    print(f"until its end, s: median {waits[len(waits) // 2]:.1f}, p95 {waits[int(len(waits) * 0.95)]:.1f}")
    print(
        f"an edit takes {EDIT_S:g} s, a start {START_S:g} s and what Ray takes; {WAIT_S:g} s are allowed for the rest\n"
    )
    print("| at, s | decided |\n|---|---|")
    for at, decision in day.decisions:
        print(f"| {at:.1f} | {decision} |")
    changes = [0, *[sample.running for sample in day.samples]]
    print(f"\nrunning editors: 0 {' '.join(str(after) for before, after in pairwise(changes) if before != after)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("image", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, cluster() as url:
        editors = [{"name": "Ingress", "autoscaling_config": INGRESS}, {"name": EDITOR, "autoscaling_config": LIMITS}]
        application = declared(Path(folder), editors, policy_kwargs={"wait_s": WAIT_S})
        deploy(application)
        wait_until_running()
        day = asyncio.run(measure(url, JobsConfig.model_validate(application["args"]["jobs"]), arguments.seed))
        day.decisions = decisions(day.started)
        report(day)
        draw(day, arguments.image)
    if day.ends["succeeded"] != len(arrivals(arguments.seed)):
        raise SystemExit("not every request succeeded")


if __name__ == "__main__":
    main()
