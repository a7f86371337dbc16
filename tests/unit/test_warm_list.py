"""Which adapters a new editor holds before it takes traffic."""

import asyncio
from contextlib import suppress
from dataclasses import replace

import pytest

from serve_app.engine.adapter_cache import AdapterCache
from serve_app.errors import LoraNotFound
from serve_app.jobs.records import NewImage
from serve_app.jobs.store import JobStore
from serve_app.storage.artifacts import Artifacts
from serve_app.tasks import AdapterUse
from serve_app.workers.warm_list import WarmList, WarmListWriter, by_use, load_until_full, read_warm_list
from tests.unit.test_jobs import MODEL, PLAN, is_stored, new


def use(name: str, scale: float = 1.0) -> AdapterUse:
    return AdapterUse(name, f"{name}.safetensors", f"/loras/{name}.safetensors", scale)


def test_the_most_used_sets_come_first_whatever_their_scales():
    a, b = (use("a"),), (use("b"), use("c"))
    swapped = (use("c", 0.5), use("b"))
    assert by_use([b, a, (), swapped, (use("a", 0.1),), a]) == [a, b]
    assert by_use([swapped, b, a]) == [swapped, a]


@pytest.fixture
async def store(config):
    store = JobStore(config.jobs)
    await store.open()
    yield store
    await store.close()


async def named(path: str, model: str) -> AdapterUse:
    if path == "gone":
        raise LoraNotFound("there is no such file")
    return use(path)


async def test_warm_list_is_written_by_one_ingress_and_at_once_after_a_change(store, config):
    artifacts = Artifacts(config.artifacts_url)
    for name in ("a", "b", "a"):
        plan = replace(PLAN, adapters=(use(name),))
        await store.requests.create(replace(new(), images=(NewImage(plan, 1.0),)), is_stored)
    assert read_warm_list(artifacts, MODEL) == WarmList()
    each = [WarmListWriter(store, artifacts, named, {MODEL: []}) for _ in range(2)]
    running = [asyncio.create_task(writer.run()) for writer in each]
    try:
        await until(lambda: read_warm_list(artifacts, MODEL) == WarmList((), ((use("a"),), (use("b"),))))
        for writer in each:
            writer.keep(["gone", "z"])
        await until(lambda: read_warm_list(artifacts, MODEL).kept == ((use("z"),),))
    finally:
        for task in running:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def test_the_loras_of_tiers_come_before_those_to_keep_warm_for_their_model_alone(store, config):
    artifacts = Artifacts(config.artifacts_url)
    writer = WarmListWriter(store, artifacts, named, {MODEL: ["few_steps", "gone"], "other": []})
    writer.keep(["z", "few_steps"])
    running = asyncio.create_task(writer.run())
    try:
        await until(lambda: read_warm_list(artifacts, MODEL).kept == ((use("few_steps"),), (use("z"),)))
        await until(lambda: read_warm_list(artifacts, "other").kept == ((use("z"),), (use("few_steps"),)))
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def until(is_so) -> None:
    async with asyncio.timeout(15):
        while not is_so():
            await asyncio.sleep(0.02)


class Sized:
    size_bytes = 10


@pytest.mark.parametrize("places", [1, 2, 5, 14, 30])
def test_of_more_sets_than_fit_the_most_important_ones_stay(places):
    cache: AdapterCache[Sized] = AdapterCache(10 * places)
    sets = [(use(str(number)),) for number in range(20)]

    def load(uses: tuple[AdapterUse, ...]) -> bool:
        if uses == sets[1]:
            return False
        cache.get_all({each.id: Sized for each in uses})
        return True

    load_until_full(sets, load, lambda uses: all(cache.holds(each.id) for each in uses))
    loadable = [uses for uses in sets if uses != sets[1]]
    assert [uses for uses in loadable if cache.holds(uses[0].id)] == loadable[:places]
