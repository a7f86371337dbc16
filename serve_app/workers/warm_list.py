"""Which adapters an editor should hold before it takes traffic: those that are named, then those lately used most.

One ingress at a time has the duty of writing that down in artifact storage, where an editor that starts reads it.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
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
# How often it is written down, if it is another (s); how long the duty is taken for.
PERIOD_S, DUTY_S = 20.0, 50.0
# From how many images popularity is counted, as many as routers remember; how many sets are written down.
IMAGES, SETS = 200, 64

AdapterSet = tuple[AdapterUse, ...]
# The adapter that a path names, for a model. Raises RequestError.
Resolve = Callable[[str, str], Awaitable[AdapterUse]]


@dataclass(frozen=True)
class Warm:
    """Sets of adapters, the most important ones first: `kept` are wanted at all times, `hottest` from the start."""

    kept: tuple[AdapterSet, ...] = ()
    hottest: tuple[AdapterSet, ...] = ()


_warm = TypeAdapter(Warm)


def read_warm(artifacts: Artifacts, model: str) -> Warm:
    """What was written down for a model's editors. Blocks.

    Raises StorageFailed, and ValueError for a file that is no such record.
    """
    stored = artifacts.get_json(artifact_keys.warm_list(model))
    return _warm.validate_python(stored) if stored else Warm()


def fill(sets: Iterable[AdapterSet], load: Callable[[AdapterSet], bool], is_held: Callable[[AdapterSet], bool]) -> None:
    """Load sets, the most important ones first, until the cache is full; the first of them are those that stay.

    `load` says whether it could, and may make room by giving up others.
    """
    held: list[AdapterSet] = []
    for uses in sets:
        if load(uses):
            held.append(uses)
        if not all(map(is_held, held)):
            # Each has been used once, and of those the latest stays: this one is too many.
            held.pop()
            break
    # The most important one is used last, and comes back if it had to make room.
    for uses in reversed(held):
        load(uses)


def hottest(recent: Iterable[AdapterSet]) -> list[AdapterSet]:
    """The distinct sets, whatever their scales, those that occur most first."""
    known: dict[frozenset[str], AdapterSet] = {}
    counts: Counter[frozenset[str]] = Counter()
    for uses in recent:
        if ids := frozenset(use.id for use in uses):
            known.setdefault(ids, uses)
            counts[ids] += 1
    return [known[ids] for ids, _ in counts.most_common()]


class WarmListWriter:
    """`run` until cancelled. `keep` are paths of adapters that every editor should hold; set it at any time."""

    def __init__(
        self,
        store: JobStore,
        artifacts: Artifacts,
        resolve: Resolve,
        models: Sequence[str],
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
        kept = [use for path in self._keep if (use := await self._named(path, model))]
        recent = await self._store.requests.recent_adapters(model, IMAGES)
        warm = Warm(tuple((use,) for use in kept), tuple(hottest(recent)[:SETS]))
        if await asyncio.to_thread(read_warm, self._artifacts, model) != warm:
            await asyncio.to_thread(self._artifacts.put_json, artifact_keys.warm_list(model), asdict(warm))

    async def _named(self, path: str, model: str) -> AdapterUse | None:
        try:
            return await self._resolve(path, model)
        except RequestError as error:
            logger.warning("%s is not kept warm for %s: %s", path, model, error.message)
            return None
