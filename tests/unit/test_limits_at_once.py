"""The limits of a tenant when requests come at once on two ingresses: no more pass than if they came one by one."""

import asyncio
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
from starlette.testclient import TestClient

from serve_app.config import AppConfig, IngressSettings, JobsConfig
from serve_app.errors import (
    GpuQuotaExceeded,
    QueueFull,
    ServiceError,
    StorageQuotaExceeded,
    SweepQuotaExceeded,
    TooManyUnfinished,
)
from serve_app.jobs import tables
from serve_app.jobs.limits.quotas import NO_QUOTAS, Quotas, add_day
from serve_app.jobs.new_rows import row_bytes
from serve_app.jobs.records import NewImage, NewRequest
from serve_app.jobs.store import JobStore
from serve_app.jobs.sweeps.records import Axes, NewCell, NewSweep, SweepDefinition
from serve_app.policy.sweep_order import places
from serve_app.tasks import EditPlan
from tests.conftest import as_base64, as_png, noise_image
from tests.unit.conftest import ON_BOTH_DATABASES, Application
from tests.unit.sweeps import sweep_body

pytestmark = ON_BOTH_DATABASES

SENT, PASS = 20, 5
TENANT, MODELS = "acme", ("qwen_image_edit", "qwen_image")


@pytest.fixture
async def stores(database_url: str) -> AsyncIterator[list[JobStore]]:
    """Those of two ingresses."""
    stores = [JobStore(JobsConfig(database_url=database_url)) for _ in range(2)]
    for store in stores:
        await store.open()
    yield stores
    for store in stores:
        await store.close()


@pytest.fixture
def make_new(make_plan: Callable[..., EditPlan]) -> Callable[..., NewRequest]:
    plan = make_plan()

    def make(number: int = 0, *, models: Sequence[str] = MODELS[:1], size: int = 100) -> NewRequest:
        """A request with a control image of its own, and one second of work by the speed of `with_speed`."""
        image = NewImage(replace(plan, model=models[number % len(models)]), 1.0)
        return NewRequest(
            uuid.uuid4().hex, TENANT, image.plan.model, (image,), 60.0, files={f"controls/{number}": size}
        )

    return make


async def with_speed(store: JobStore) -> None:
    """Let a unit of work take a second."""
    async with store._database.writing() as connection:
        rows = [{"editor_group": model, "flops_per_s": 1.0} for model in MODELS]
        await connection.execute(tables.speeds.insert(), rows)


async def outcomes(calls: Sequence[Awaitable[Any]]) -> Counter[type]:
    """How many of the calls, all begun at once, were refused with which error. None stands for success."""
    found = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(each, ServiceError) or not isinstance(each, BaseException) for each in found), found
    return Counter(type(each) if isinstance(each, ServiceError) else type(None) for each in found)


async def post_all(stores: Sequence[JobStore], new: Sequence[NewRequest], quotas: Quotas, queued: int) -> Counter[type]:
    """Send requests as ingresses do. All pass the early check before the first is committed."""
    requests = [stores[number % 2].requests for number in range(len(new))]
    early = [await each.refuse_when_full(TENANT, 1, queued, quotas) for each in requests]
    return await outcomes(
        [
            each.create(one, lambda key: True, queued, quotas, stored)
            for each, one, stored in zip(requests, new, early, strict=True)
        ]
    )


@pytest.mark.parametrize(
    ("quotas", "queued", "error"),
    [
        (Quotas(max_unfinished=PASS), 1000, TooManyUnfinished),
        (Quotas(gpu_seconds_per_day=PASS + 0.5), 1000, GpuQuotaExceeded),
        (NO_QUOTAS, PASS, QueueFull),
    ],
    ids=["unfinished", "GPU seconds", "queued"],
)
async def test_requests_for_two_models_that_come_at_once_keep_to_a_limit(stores, make_new, quotas, queued, error):
    await with_speed(stores[0])
    new = [make_new(number, models=MODELS) for number in range(SENT)]
    assert await post_all(stores, new, quotas, queued) == {type(None): PASS, error: SENT - PASS}


async def test_requests_that_come_at_once_keep_no_more_bytes_than_they_may(stores, make_new):
    each = row_bytes(make_new()) + 100_000
    quotas = Quotas(max_stored_bytes=PASS * each + 1_000)
    new = [make_new(number, size=100_000) for number in range(SENT)]
    assert await post_all(stores, new, quotas, 1000) == {type(None): PASS, StorageQuotaExceeded: SENT - PASS}


async def test_a_file_that_several_requests_share_counts_once(stores, make_new):
    rows = row_bytes(make_new())
    quotas = Quotas(max_stored_bytes=100_000 + PASS * rows)
    new = [make_new(size=100_000) for _ in range(SENT)]
    assert await post_all(stores, new, quotas, 1000) == {type(None): PASS, StorageQuotaExceeded: SENT - PASS}


async def test_what_was_deleted_since_the_early_check_does_not_count(stores, make_new):
    quotas = Quotas(max_stored_bytes=150_000)
    old, new = make_new(1, size=100_000), make_new(2, size=100_000)
    requests = stores[0].requests
    await requests.create(old, lambda key: True, None, quotas)
    stored = await requests.refuse_when_full(TENANT, 1, None, quotas)
    with pytest.raises(StorageQuotaExceeded):
        await stores[1].requests.create(new, lambda key: True, None, quotas, stored)
    await requests.cancel(old.id)
    await stores[0].retention.delete_requests([old.id], lambda keys: None)
    assert (await stores[1].requests.create(new, lambda key: True, None, quotas, stored)).id == new.id


def new_sweep(plan: EditPlan, cells: int, work: float = 1.0) -> NewSweep:
    axes = Axes(("a",), (1.0,), ("p",), tuple(range(cells)), (("sha256:0",),), (None,), ("exact",))
    made = tuple(
        NewCell(place, replace(plan, seed=place.seed), work, {f"controls/{place.seed}": 100_000})
        for place in places(axes.lengths)
    )
    return NewSweep(uuid.uuid4().hex, TENANT, plan.model, SweepDefinition({"prompts": []}, axes), made, 1e6)


async def test_sweeps_that_come_at_once_have_no_more_cells_than_they_may(stores, make_plan):
    sweeps = [new_sweep(make_plan(), 3) for _ in range(SENT)]
    calls = [stores[n % 2].sweeps.create(sweep, lambda key: True, 3 * PASS + 2) for n, sweep in enumerate(sweeps)]
    assert await outcomes(calls) == {type(None): PASS, SweepQuotaExceeded: SENT - PASS}


@pytest.mark.parametrize("kind", ["GPU seconds", "bytes"])
async def test_cells_of_a_sweep_and_requests_at_once_keep_to_a_limit_together(stores, make_new, make_plan, kind):
    await with_speed(stores[0])
    each = row_bytes(make_new()) + 100_000
    quotas = (
        Quotas(gpu_seconds_per_day=PASS + 0.5)
        if kind == "GPU seconds"
        else Quotas(max_stored_bytes=PASS * each + 50_000)
    )
    sweep = new_sweep(make_plan(), SENT)
    await stores[0].sweeps.create(sweep, lambda key: True)
    new = [make_new(100 + number, size=100_000) for number in range(SENT)]
    cells, posted = await asyncio.gather(
        stores[0].sweep_queue.submit(sweep.id, SENT, lambda tenant: (1000, quotas)),
        post_all(stores, new, quotas, 1000),
    )
    assert cells + posted[type(None)] == PASS


async def test_a_cell_longer_than_a_days_seconds_is_made_on_a_day_of_its_own(stores, make_plan):
    await with_speed(stores[0])
    sweep = new_sweep(make_plan(), 3, work=100.0)
    await stores[0].sweeps.create(sweep, lambda key: True)
    queue, limits = stores[0].sweep_queue, (1000, Quotas(gpu_seconds_per_day=50.0))
    assert [await queue.submit(sweep.id, 10, lambda tenant: limits) for _ in range(2)] == [1, 0]
    other = new_sweep(make_plan(), 3, work=100.0)
    other = replace(other, tenant="other")
    await stores[0].sweeps.create(other, lambda key: True)
    async with stores[0]._database.writing() as connection:
        await add_day(stores[0]._database, connection, "other", gpu_seconds=1.0)
    assert await queue.submit(other.id, 10, lambda tenant: limits) == 0


@pytest.fixture
def ingresses(config: AppConfig) -> Iterator[list[tuple[Application, TestClient]]]:
    """Two that run on one database. Their editors begin and wait."""
    with ExitStack() as exits:
        running = []
        for _ in range(2):
            application = Application(config)
            client = exits.enter_context(TestClient(application.app))
            client.portal.call(application.editors.gate.clear)
            exits.callback(client.portal.call, application.editors.gate.set)
            running.append((application, client))
        yield running


@pytest.mark.parametrize(
    ("limits", "path", "code"),
    [
        ({"max_unfinished": PASS}, "/v1/inference", "TOO_MANY_UNFINISHED"),
        ({"max_stored_bytes": PASS * 320_000}, "/v1/inference", "STORAGE_QUOTA_EXCEEDED"),
        ({"submits_per_minute": PASS}, "/v1/inference", "RATE_LIMITED"),
        ({"sweep_cells_per_day": PASS}, "/v1/sweeps", "SWEEP_QUOTA_EXCEEDED"),
    ],
    ids=["unfinished", "stored bytes", "rate", "sweep cells"],
)
def test_twenty_posts_at_once_on_two_ingresses_keep_to_a_limit(ingresses, make_body, limits, path, code):
    for application, _ in ingresses:
        application.service.reconfigure(IngressSettings.model_validate({"limits": limits}))

    def post(number: int) -> str:
        # Each has a control image of its own, of 300,000 bytes.
        image = as_base64(as_png(noise_image(352, 352, seed=number)))
        body = make_body()
        body["prompts"][0]["ctrl_img"] = image
        if path == "/v1/sweeps":
            body = sweep_body(lambda: body, seeds=[number])
        answer = ingresses[number % 2][1].post(path, json=body)
        return "" if answer.is_success else answer.json()["detail"]["error"]["code"]

    with ThreadPoolExecutor(SENT) as pool:
        answers = Counter(pool.map(post, range(SENT)))
    assert answers == {"": PASS, code: SENT - PASS}
