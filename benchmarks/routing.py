"""Our router and host cache compared with Serve's default and its consistent hashing, on the same arrivals.

    python -m benchmarks.routing

Each contender has the shipped editor deployment with four replicas, on engines that sleep: an edit takes `--work-s`,
and the load of an adapter takes a multiple of that. The host cache has room for three adapters; it is either the real
one, or one that evicts the least recently used adapter, as Serve's multiplexing does. Three processes hold a handle to
each contender and send requests for 40 adapters: Poisson arrivals, Zipf popularity, sent when due. All contenders get
the same arrivals at the same time. A load is a call that the cache makes because it does not hold the adapter.
"""

import argparse
import asyncio
import functools
import random
import statistics
import tempfile
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakSet

import ray
from ray import serve
from ray.serve.config import RequestRouterConfig
from ray.serve.handle import DeploymentHandle

from benchmarks.capacity.traffic import popularity
from serve_app.adapters.verified_files import VerifiedFiles
from serve_app.app import editor_deployment
from serve_app.config import FetchConfig, ModelConfig
from serve_app.engine.adapter_cache import AdapterCache
from serve_app.engine.protocol import Edited, OnStep, ShouldStop
from serve_app.replicas.router import ROUTER
from serve_app.replicas.routing_stats import ADAPTER_BYTES, adapter_set_id
from serve_app.replicas.running_editors import editor_name
from serve_app.tasks import AdapterUse, EditDone, EditPlan, EditTask, StepDone
from tests.standin import PreparedPlan, StandInAdapter, StandInEngine

REPLICAS, CALLERS, PLACES = 4, 3, 3
UTILISATION = 0.6
DEFAULT = RequestRouterConfig()
HASHING = RequestRouterConfig(
    request_router_class="ray.serve.experimental.consistent_hash_router.ConsistentHashRouter",
    request_router_kwargs={"num_fallback_replicas": 1},
    max_backoff_s=0.05,
)


class LeastRecentlyUsed(AdapterCache[StandInAdapter]):
    """What Serve's multiplexing does with models: so many stay, whatever they are used."""

    def _surplus(self) -> list[str]:
        places = self._budget // ADAPTER_BYTES
        return sorted(self._kept, key=self._uses.latest)[: max(0, len(self._kept) - places)]


@dataclass(frozen=True)
class Contender:
    router: RequestRouterConfig
    cache: type[AdapterCache[StandInAdapter]] = AdapterCache
    places: int = PLACES


CONTENDERS = {
    "default, recency": Contender(DEFAULT, LeastRecentlyUsed),
    "hashing, recency": Contender(HASHING, LeastRecentlyUsed),
    "ours": Contender(ROUTER),
    "default, our cache": Contender(DEFAULT),
    "hashing, our cache": Contender(HASHING),
}


class CountingEngine(StandInEngine):
    """Counts the adapters in this process's memory; edits of one step."""

    def __init__(
        self,
        work_s: float,
        load_s: float,
        cache: type[AdapterCache[StandInAdapter]],
        config: ModelConfig,
        files: VerifiedFiles,
    ) -> None:
        super().__init__(config, work_s, load_s, cache)
        self._in_memory: WeakSet[StandInAdapter] = WeakSet()
        self._most_in_memory = 0
        self._lock = threading.Lock()

    def load_adapter(self) -> StandInAdapter:
        adapter = StandInAdapter()
        with self._lock:
            self._in_memory.add(adapter)
            self._most_in_memory = max(self._most_in_memory, len(self._in_memory))
        super().load_adapter()
        return adapter

    def run(self, prepared: PreparedPlan, on_step: OnStep, should_stop: ShouldStop) -> Edited:
        done = super().run(prepared, on_step, should_stop)
        return replace(done, runtime=done.runtime | {"in_memory": self._most_in_memory})


@dataclass(frozen=True)
class Arrival:
    at: float
    caller: int
    adapter: int


@dataclass(frozen=True)
class Served:
    """Seconds from the arrival until the edit began, and until its image was there.

    `in_memory` is the largest number of adapters in its replica's memory so far, including those being loaded.
    """

    arrival: Arrival
    began: float
    done: float
    loads: int
    in_memory: int


def without_routing(adapters: int, draws: int = 100_000) -> tuple[float, float]:
    """Loads per request if the most popular adapters stayed in memory, and with one cache by recency of all places."""
    shares, places = popularity(adapters), REPLICAS * PLACES
    cache = LeastRecentlyUsed(places * ADAPTER_BYTES)
    loads = 0

    def load() -> StandInAdapter:
        nonlocal loads
        loads += 1
        return StandInAdapter()

    for adapter in random.Random(0).choices(range(adapters), shares, k=draws):
        cache.get(str(adapter), load)
    return 1 - sum(shares[:places]), loads / draws


def arrivals(seed: int, count: int, work_s: float, adapters: int) -> list[Arrival]:
    chance = random.Random(seed)
    weights = popularity(adapters)
    at, made = 0.0, []
    for _ in range(count):
        at += chance.expovariate(REPLICAS * UTILISATION / work_s)
        made.append(Arrival(at, chance.randrange(CALLERS), chance.choices(range(adapters), weights)[0]))
    return made


def task(arrival: Arrival) -> EditTask:
    use = AdapterUse(f"adapter {arrival.adapter}", "", "", 1.0)
    plan = EditPlan("qwen_image_edit", "reference", "", "", 32, 32, 1, 1.0, 0, "jpeg", (), (use,))
    return EditTask(uuid.uuid4().hex, 0, plan)


@ray.remote(num_cpus=0)
class Caller:
    """A process with a handle, as an ingress is."""

    def __init__(self, application: str) -> None:
        self._handle = serve.get_deployment_handle(editor_name("qwen_image_edit"), application)

    async def is_up(self) -> bool:
        return True

    async def send(self, mine: list[Arrival], start: float) -> list[Served]:
        return await asyncio.gather(*(self._one(arrival, start) for arrival in mine))

    async def _one(self, arrival: Arrival, start: float) -> Served:
        await asyncio.sleep(start + arrival.at - time.time())
        work = task(arrival)
        set_id = adapter_set_id(work.plan.adapters)
        handle: DeploymentHandle = self._handle.options(stream=True, multiplexed_model_id=set_id, session_id=set_id)
        began = float("nan")
        async for event in handle.edit.remote(work):
            if isinstance(event, EditDone):
                done = time.time() - start - arrival.at
                return Served(arrival, began, done, event.runtime["loads"], event.runtime["in_memory"])
            if event == StepDone(0, work.plan.steps):
                began = time.time() - start - arrival.at
        raise RuntimeError("an answer ended without its image")


def deploy(names: Sequence[str], ratio: float, work_s: float, folder: str) -> dict[str, list[Any]]:
    """Deploy an application for each contender; returns its callers."""
    callers = {}
    for name in names:
        contender = CONTENDERS[name]
        model = ModelConfig(device="cpu", adapter_cache_bytes=contender.places * ADAPTER_BYTES)
        engine = functools.partial(CountingEngine, work_s, ratio * work_s, contender.cache)
        editors = editor_deployment(model).options(num_replicas=REPLICAS, request_router_config=contender.router)
        application = name.replace(",", "").replace(" ", "-")
        serve.run(editors.bind(model, folder, FetchConfig(), engine), name=application, route_prefix=None)
        callers[name] = [Caller.remote(application) for _ in range(CALLERS)]  # type: ignore[attr-defined]  # Ray
    ray.get([caller.is_up.remote() for group in callers.values() for caller in group])
    return callers


def measure(callers: dict[str, list[Any]], stream: list[Arrival]) -> dict[str, list[Served]]:
    """Send one stream of arrivals to every contender; returns what each served."""
    start = time.time() + 1
    answers = {
        name: [
            each.send.remote([arrival for arrival in stream if arrival.caller == index], start)
            for index, each in enumerate(group)
        ]
        for name, group in callers.items()
    }
    return {name: [served for each in ray.get(refs) for served in each] for name, refs in answers.items()}


def longest_waits(served: list[Served]) -> list[float]:
    """For each adapter, the longest time that one of its requests waited for its edit to begin."""
    longest: dict[int, float] = defaultdict(float)
    for each in served:
        longest[each.arrival.adapter] = max(longest[each.arrival.adapter], each.began)
    return list(longest.values())


def p95(served: list[Served]) -> float:
    return statistics.quantiles([each.done for each in served], n=20)[-1]


def table(ratio: float, runs: dict[str, list[list[Served]]]) -> None:
    """Print a row for each contender over all its runs, with the p95 of each run."""
    counted = sum(map(len, next(iter(runs.values()))))
    print(f"\nload / work = {ratio:g}; {counted} requests each, times in seconds\n")
    print(
        "| router, cache | adapter loads per request | median | p95 (each seed) | mean wait "
        "| longest wait of any adapter, median | most adapters in a replica's memory |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, each_seed in runs.items():
        served = [each for run in each_seed for each in run]
        reloads = sum(each.loads for each in served) / len(served)
        median = statistics.median(each.done for each in served)
        seeds = ", ".join(f"{p95(run):.2f}" for run in each_seed)
        wait = statistics.fmean(each.began for each in served)
        longest = longest_waits(served)
        print(
            f"| {name} | {reloads:.2f} | {median:.2f} | {p95(served):.2f} ({seeds}) | {wait:.2f} "
            f"| {max(longest):.2f}, {statistics.median(longest):.2f} | {max(each.in_memory for each in served)} |",
            flush=True,
        )


def start_ray() -> None:
    """Start a Ray for this run alone, suited to timing."""
    ray.init(
        address="local",
        num_cpus=64,
        include_dashboard=False,
        log_to_driver=False,
        namespace="serve",
        # Without this, workers have a low priority, and other work on the machine would distort the times.
        _system_config={"worker_niceness": 0},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work-s", type=float, default=0.5)
    parser.add_argument("--requests", type=int, default=300, help="counted requests per seed")
    parser.add_argument("--warm-up", type=int, default=50, help="requests that are sent first and not counted")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--ratios", type=float, nargs="+", default=[1.5, 0.01], help="load / work")
    parser.add_argument("--adapters", type=int, default=40)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS)[:3])
    args = parser.parse_args()
    held, shared = without_routing(args.adapters)
    print(
        f"adapter loads per request, the most popular always in memory: {held:.3f}; one cache by recency: {shared:.3f}"
    )
    start_ray()
    try:
        for ratio in args.ratios:
            with tempfile.TemporaryDirectory() as folder:
                callers = deploy(args.contenders, ratio, args.work_s, folder)
                runs: dict[str, list[list[Served]]] = {name: [] for name in callers}
                for seed in args.seeds:
                    stream = arrivals(seed, args.warm_up + args.requests, args.work_s, args.adapters)
                    for name, served in measure(callers, stream).items():
                        counted = [each for each in served if each.arrival.at >= stream[args.warm_up].at]
                        runs[name].append(counted)
                table(ratio, runs)
                serve.shutdown()
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
