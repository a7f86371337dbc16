"""The warm list: the adapters that an editor loads before it takes traffic.

First come those of the model's tiers and those that `keep_warm` names, then those that recent images used most. One
ingress at a time has the duty of writing the list to artifact storage. Editors read it when they start.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from pydantic import TypeAdapter

from serve_app.concurrency.loops import WakeUp, every
from serve_app.errors import RequestError
from serve_app.jobs.store import JobStore, owner_name
from serve_app.storage import artifact_keys
from serve_app.storage.artifacts import Artifacts
from serve_app.tasks import AdapterUse
from serve_app.telemetry.metrics import NO_METER, Loop, Meter

logger = logging.getLogger(__name__)

DUTY = "warmth"
# How often the list is computed, and written if it has changed (s); and how long an ingress takes the duty for (s).
PERIOD_S, DUTY_S = 20.0, 50.0
# How many recent images are counted (as many as routers remember), and how many sets of adapters the list has at most.
RECENT_IMAGES, MAX_SETS = 200, 64

AdapterSet = tuple[AdapterUse, ...]
# Returns the adapter for a path and a model. Raises RequestError.
Resolve = Callable[[str, str], Awaitable[AdapterUse]]


@dataclass(frozen=True)
class WarmList:
    """Sets of adapters, the most important first. Editors load `kept` and then `hottest` when they start.

    Later they load `kept` again if they have lost it.
    """

    kept: tuple[AdapterSet, ...] = ()
    hottest: tuple[AdapterSet, ...] = ()


_warm_list = TypeAdapter(WarmList)


def read_warm_list(artifacts: Artifacts, model: str) -> WarmList:
    """The warm list of a model; empty if there is none. Blocks.

    Raises StorageFailed, and ValueError if the file is not a warm list.
    """
    stored = artifacts.get_json(artifact_keys.warm_list(model))
    return _warm_list.validate_python(stored) if stored else WarmList()


def load_until_full(
    sets: Iterable[AdapterSet], load: Callable[[AdapterSet], bool], is_held: Callable[[AdapterSet], bool]
) -> None:
    """Load sets of adapters, the most important first, until the cache is full. The first ones stay in the cache.

    `load` returns whether it succeeded, and may evict other adapters. `is_held` says whether a set is in the cache.
    """
    held: list[AdapterSet] = []
    for uses in sets:
        if load(uses):
            held.append(uses)
        if not all(map(is_held, held)):
            # The cache is full: loading this set has evicted an earlier one.
            held.pop()
            break
    # Load again what was evicted. The most important set is loaded last, since the cache evicts the oldest use.
    for uses in reversed(held):
        load(uses)


def by_use(recent: Iterable[AdapterSet]) -> list[AdapterSet]:
    """The distinct sets of adapters, regardless of scales, the most frequent first."""
    known: dict[frozenset[str], AdapterSet] = {}
    counts: Counter[frozenset[str]] = Counter()
    for uses in recent:
        if ids := frozenset(use.id for use in uses):
            known.setdefault(ids, uses)
            counts[ids] += 1
    return [known[ids] for ids, _ in counts.most_common()]


class WarmListWriter:
    """Writes the warm lists of all models. `run` works until it is cancelled.

    `models` has the LoRAs of each model's tiers, by the model's id. Every editor of the model keeps them in memory, so
    that no request waits for the first copy of a tier's own LoRA.
    """

    def __init__(
        self,
        store: JobStore,
        artifacts: Artifacts,
        resolve: Resolve,
        models: Mapping[str, Sequence[str]],
        meter: Meter = NO_METER,
    ) -> None:
        self._store = store
        self._artifacts = artifacts
        self._resolve = resolve
        self._models = models
        self._meter = meter
        self._owner = owner_name()
        self._wake_up = WakeUp()
        self._keep: tuple[str, ...] = ()

    def keep(self, paths: Sequence[str]) -> None:
        """Set the paths of adapters that every editor keeps in memory. May be called at any time."""
        self._keep = tuple(paths)
        self._wake_up.set()

    async def run(self) -> None:
        pause = self._wake_up.pause
        await every(PERIOD_S, self._write_all, loop=Loop.WARM_LIST, meter=self._meter, pause=pause)

    async def _write_all(self) -> None:
        if await self._store.take_duty(DUTY, self._owner, DUTY_S):
            for model in self._models:
                await self._write(model)

    async def _write(self, model: str) -> None:
        paths = dict.fromkeys((*self._models[model], *self._keep))
        kept = [use for path in paths if (use := await self._adapter(path, model))]
        recent = await self._store.requests.recent_adapters(model, RECENT_IMAGES)
        warm = WarmList(tuple((use,) for use in kept), tuple(by_use(recent)[:MAX_SETS]))
        if await asyncio.to_thread(read_warm_list, self._artifacts, model) != warm:
            await asyncio.to_thread(self._artifacts.put_json, artifact_keys.warm_list(model), asdict(warm))

    async def _adapter(self, path: str, model: str) -> AdapterUse | None:
        try:
            return await self._resolve(path, model)
        except RequestError as error:
            logger.warning("%s is not kept warm for %s: %s", path, model, error.message)
            return None
