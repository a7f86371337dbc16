"""What each part of the design costs, so that it can be said where it breaks first.

    python -m benchmarks.capacity.limits plan         # CPU of a router's look, by replicas and waiting requests
    python -m benchmarks.capacity.limits broadcast    # what Serve sends each router when a report changes
    python -m benchmarks.capacity.limits store        # transactions of the job store, SQLite and PostgreSQL
    python -m benchmarks.capacity.limits controller   # CPU of Serve's controller and of a probe, by replicas

CPU seconds are the process's own, so that other work on the machine is not counted. Loopback alone, bounded.
"""

import argparse
import asyncio
import functools
import itertools
import os
import pickle
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any

import psutil
import ray
from ray import cloudpickle, serve
from ray.serve._private.common import DeploymentID, ReplicaID, RunningReplicaInfo

from benchmarks.capacity.real import PacedEngine
from benchmarks.job_store import requests
from serve_app.app import editor_deployment
from serve_app.config import SQLITE_PREFIX, JobsConfig, ModelConfig
from serve_app.jobs.records import Claim
from serve_app.jobs.store import JobStore
from serve_app.policy.routing import Report, Routing, Waiting
from serve_app.replicas.router import ExpectedCostRouter
from serve_app.replicas.running_editors import editor_name
from tests.postgres import PostgresServer

MODEL = "qwen_image_edit"
PLACES = 14
STORE_SECONDS, WORKERS, CLAIMERS, CLAIMS = 4.0, 32, 4, 64
IDLE_SECONDS, PROBES = 20.0, 2000


def fake_router(replicas: int) -> Any:
    """What `ExpectedCostRouter` reads of Serve, for so many replicas with full caches."""
    infos = [
        SimpleNamespace(
            replica_id=SimpleNamespace(unique_id=f"replica{number:06d}"),
            routing_stats={
                "held": [f"adapter {number} {place}" for place in range(PLACES)],
                "gone": [],
                "work_s": 17.0,
                "load_s": 0.5,
                "alive": True,
            },
            max_ongoing_requests=2,
            multiplexed_model_ids={f"adapter {number} {place}" for place in range(PLACES)},
        )
        for number in range(replicas)
    ]
    lengths = {id(info.replica_id): 1 for info in infos}
    cache = SimpleNamespace(get=lambda replica_id: lengths[id(replica_id)])
    return SimpleNamespace(_replicas_list=infos, _replica_queue_len_cache=cache, _unsent=[])


def look(replicas: int, waiting: int) -> tuple[float, float]:
    """CPU seconds: to put together what is known of the replicas, and to plan for the waiting requests. Least of 5."""
    router = fake_router(replicas)
    line = [Waiting(f"request {number}", f"adapter {number} 3", float(number)) for number in range(waiting)]
    seen = []
    for _ in range(5):
        routing, began = Routing(), time.process_time()
        known = ExpectedCostRouter._known_replicas(router)
        planned = time.process_time()
        routing.plan(line, known, 0.0)
        seen.append((planned - began, time.process_time() - planned))
    return min(known for known, _ in seen), min(plan for _, plan in seen)


def broadcast(replicas: int) -> tuple[float, float, int]:
    """CPU seconds to put together and pickle every replica's state, and to read it; its bytes. Least of 5."""
    seen = []
    for _ in range(5):
        began = time.process_time()
        infos = [
            RunningReplicaInfo(
                replica_id=ReplicaID(f"{number:08d}", DeploymentID("Editor-qwen_image_edit", "edits")),
                node_id=f"{number // 8:056x}",
                node_ip=f"10.0.{number // 2048}.{number // 8 % 256}",
                availability_zone=None,
                actor_name=f"SERVE_REPLICA::edits#Editor-qwen_image_edit#{number:08d}",
                max_ongoing_requests=2,
                multiplexed_model_ids=[f"{number:08x}{place:08x}" for place in range(PLACES)],
                routing_stats=asdict(Report(tuple(f"{number:08x}{place:08x}" for place in range(PLACES)), (), 17, 0.5)),
            )
            for number in range(replicas)
        ]
        data = cloudpickle.dumps(infos)
        sent = time.process_time()
        pickle.loads(data)
        seen.append((sent - began, time.process_time() - sent))
    return min(send for send, _ in seen), min(receive for _, receive in seen), len(data)


def measure_broadcast() -> None:
    print("| replicas | sender, ms | receiver, ms | MB |")
    print("|---|---|---|---|")
    for replicas in (4, 64, 256, 2000):
        send_s, receive_s, size = broadcast(replicas)
        print(f"| {replicas:,} | {send_s * 1e3:.2f} | {receive_s * 1e3:.2f} | {size / 1e6:.2f} |", flush=True)


def measure_plan() -> None:
    print("| replicas | waiting | known, ms | plan, ms | plan, us a replica and request |")
    print("|---|---|---|---|---|")
    for replicas, waiting in itertools.product((4, 64, 256, 2000), (1, 10, 50)):
        known, plan = look(replicas, waiting)
        pair = plan / replicas / waiting * 1e6
        print(f"| {replicas:,} | {waiting} | {known * 1e3:.2f} | {plan * 1e3:.2f} | {pair:.2f} |", flush=True)


@dataclass(frozen=True)
class Rate:
    """`cpu_s` is this process's CPU for one call."""

    calls: int
    a_second: float
    cpu_s: float


async def rate(calls: Iterator[Callable[[], Awaitable[object]]], workers: int) -> Rate:
    """By so many workers, until the calls or the time are used up."""
    done, cpu, began = 0, time.process_time(), time.monotonic()

    async def work() -> None:
        nonlocal done
        while time.monotonic() < began + STORE_SECONDS and (call := next(calls, None)) is not None:
            await call()
            done += 1

    await asyncio.gather(*(work() for _ in range(workers)))
    return Rate(done, done / (time.monotonic() - began), (time.process_time() - cpu) / done)


async def measure_one_store(name: str, url: str) -> None:
    store = JobStore(JobsConfig(database_url=url, lease_s=600))
    await store.open()
    new = iter(requests(20_000, 0))
    posts = await rate((lambda: store.requests.create(next(new), lambda key: True) for _ in range(20_000)), WORKERS)
    held = await store.queue.claim("bench", MODEL, 10**6, CLAIMS)
    steps = await rate(progress(store, held), WORKERS)
    left = range(posts.calls - len(held))
    claims = await rate((lambda: store.queue.claim("bench", MODEL, 10**6, 1) for _ in left), CLAIMERS)
    for what, seen in {"POST": posts, "claim of one": claims, "step": steps}.items():
        print(f"| {name} | {what} | {seen.a_second:.0f} | {seen.cpu_s * 1e3:.2f} |", flush=True)
    await store.close()


def progress(store: JobStore, held: list[Claim]) -> Iterator[Callable[[], Awaitable[object]]]:
    for step in itertools.count(1):
        for claim in held:
            yield functools.partial(store.queue.progress, claim, step)


def measure_store() -> None:
    print("| database | transaction | a second | CPU of the caller, ms each |")
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder, PostgresServer(durable=True) as server:
        asyncio.run(measure_one_store("SQLite", f"{SQLITE_PREFIX}{folder}/jobs.sqlite3"))
        asyncio.run(measure_one_store("PostgreSQL", server.new_database()))


def cpu_of(pid: int, seconds: float) -> float:
    """The share of a core that a process takes."""
    process = psutil.Process(pid)
    before = process.cpu_times()
    time.sleep(seconds)
    after = process.cpu_times()
    return (after.user + after.system - before.user - before.system) / seconds


def probe_cost(actors: list[Any]) -> float:
    """CPU seconds of the caller for one replica's queue length."""
    began = time.process_time()
    for _ in range(PROBES // len(actors)):
        ray.get([actor.get_num_ongoing_requests.remote() for actor in actors])
    return (time.process_time() - began) / PROBES


def measure_controller() -> None:
    ray.init(address="local", num_cpus=64, include_dashboard=False, log_to_driver=False, namespace="serve")
    model = ModelConfig(device="cpu")
    try:
        print("| replicas | controller, share of a core | caller's CPU a probe, ms |")
        print("|---|---|---|")
        with tempfile.TemporaryDirectory() as folder:
            for replicas in (1, 4, 12):
                editors = editor_deployment(model).options(num_replicas=replicas)
                serve.run(editors.bind(model, folder, PacedEngine), name="editors", route_prefix=None)
                time.sleep(5)
                details = serve.context._get_global_client().get_serve_details()
                found = details["applications"]["editors"]["deployments"][editor_name(MODEL)]["replicas"]
                actors = [ray.get_actor(each["actor_name"], namespace="serve") for each in found]
                share = cpu_of(details["controller_info"]["pid"], IDLE_SECONDS)
                print(f"| {replicas} | {share:.3f} | {probe_cost(actors) * 1e3:.2f} |", flush=True)
    finally:
        serve.shutdown()
        ray.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    measures = {
        "plan": measure_plan,
        "broadcast": measure_broadcast,
        "store": measure_store,
        "controller": measure_controller,
    }
    parser.add_argument("what", choices=measures)
    what = parser.parse_args().what
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")
    measures[what]()


if __name__ == "__main__":
    main()
