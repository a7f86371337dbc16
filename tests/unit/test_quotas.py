"""Quotas of a tenant: requests that have not ended, GPU seconds and cells of sweeps per UTC day."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from starlette.testclient import TestClient

from serve_app.config import IngressSettings
from serve_app.jobs import tables
from serve_app.jobs.limits import quotas
from serve_app.jobs.limits.quotas import DAY_S, Quotas, add_day
from serve_app.jobs.store import JobStore
from tests.unit.conftest import IMAGE, ON_BOTH_DATABASES, Application
from tests.unit.serving import wait_until
from tests.unit.sweeps import add_checkpoints, ended, started, sweep_body
from tests.unit.test_http_contract import finished

pytestmark = ON_BOTH_DATABASES


def limit(application: Application, **limits: float) -> None:
    application.service.reconfigure(IngressSettings.model_validate({"limits": limits}))


def refusal(answer: Any) -> dict[str, Any]:
    error = answer.json()["detail"]["error"]
    assert answer.status_code == 429, answer.text
    return error | {"retry_after": int(answer.headers["Retry-After"])}


@contextmanager
def held_back(client: TestClient, application: Application) -> Iterator[None]:
    """Editors begin and wait."""
    client.portal.call(application.editors.gate.clear)
    yield
    client.portal.call(application.editors.gate.set)


def in_store(client: TestClient, application: Application, work: Any) -> Any:
    """What a coroutine returns that works on the store of the application."""
    return client.portal.call(work, application.service.resources.store)


async def use_seconds(store: JobStore, seconds: float) -> None:
    async with store._database.writing() as connection:
        await add_day(store._database, connection, "", gpu_seconds=seconds)


async def days(store: JobStore) -> list[Any]:
    async with store._database.reading() as connection:
        return list(await connection.execute(tables.daily_usage.select()))


async def now(store: JobStore) -> float:
    async with store._database.reading() as connection:
        return (await connection.execute(sa.select(tables.now()))).scalar_one()


def test_only_so_many_requests_may_be_under_way(client, application, make_body):
    limit(application, max_unfinished=2)
    with held_back(client, application):
        first, _ = (client.post("/v1/inference", json=make_body()).json()["request_id"] for _ in range(2))
        error = refusal(client.post("/v1/inference", json=make_body()))
        assert (error["code"], error["details"]) == ("TOO_MANY_UNFINISHED", {"unfinished": 2, "limit": 2})
        assert error["retry_after"] == 10
        client.post(f"/v1/requests/{first}/cancel")
        assert client.post("/v1/inference", json=make_body()).status_code == 200
    limit(application)
    finished(client, make_body())


def test_cells_of_a_sweep_do_not_count_as_requests_under_way(client, application, config, make_body):
    add_checkpoints(config)
    limit(application, max_unfinished=1)
    with held_back(client, application):
        sweep_id = started(client, sweep_body(make_body, seeds=[1, 2, 3]))["sweep_id"]
        wait_until(lambda: application.editors.tasks, 30)
        assert client.post("/v1/inference", json=make_body()).status_code == 200
    ended(client, sweep_id)


def test_gpu_seconds_are_counted_per_day_and_with_what_waits(client, application, make_body):
    finished(client, make_body())
    [day] = in_store(client, application, days)
    seconds = in_store(client, application, now)
    assert (day.tenant, day.day, day.gpu_seconds) == ("", int(seconds // DAY_S), pytest.approx(1.0))
    # The editors' speed is known now: an image takes a second.
    limit(application, gpu_seconds_per_day=3.5)
    with held_back(client, application):
        sent = [client.post("/v1/inference", json=make_body()).status_code for _ in range(2)]
        assert sent == [200, 200]
        error = refusal(client.post("/v1/inference", json=make_body()))
    assert error["code"] == "GPU_QUOTA_EXCEEDED"
    assert error["details"]["used"] == pytest.approx(1.0, abs=0.1)
    assert error["details"]["pending"] == pytest.approx(2.0, rel=0.5)
    assert error["retry_after"] == error["details"]["retry_after_s"]
    assert error["retry_after"] == pytest.approx(DAY_S - seconds % DAY_S, abs=60)
    # A request that is only explained costs nothing.
    assert client.post("/v1/explain", json=make_body()).status_code == 200


def test_a_sweep_waits_for_tomorrow_without_gpu_seconds(client, application, config, make_body):
    in_store(client, application, lambda store: use_seconds(store, 100.0))
    limit(application, gpu_seconds_per_day=100)
    sweep_id = started(client, sweep_body(make_body, seeds=[1, 2]))["sweep_id"]
    submitted = client.portal.call(
        application.service.resources.store.sweep_queue.submit, sweep_id, 10, application.service._limits_of_sweeps
    )
    assert submitted == 0
    limit(application)
    ended(client, sweep_id)


def test_cells_of_sweeps_per_day(client, application, make_body):
    limit(application, sweep_cells_per_day=5)
    sweep_id = started(client, sweep_body(make_body, seeds=[1, 2, 3]))["sweep_id"]
    error = refusal(client.post("/v1/sweeps", json=sweep_body(make_body, seeds=[1, 2, 3])))
    assert error["code"] == "SWEEP_QUOTA_EXCEEDED"
    assert {name: error["details"][name] for name in ("used", "sent", "limit")} == {"used": 3, "sent": 3, "limit": 5}
    assert 0 < error["retry_after"] <= DAY_S + 1
    extension = {"axes": {"seeds": [4, 5]}}
    assert client.post(f"/v1/sweeps/{sweep_id}/extend", json=extension).status_code == 200
    again = client.post(f"/v1/sweeps/{sweep_id}/extend", json={"axes": {"seeds": [6]}})
    assert refusal(again)["code"] == "SWEEP_QUOTA_EXCEEDED"
    assert client.post("/v1/sweeps", json=sweep_body(make_body, seeds=[1]) | {"dry_run": True}).status_code == 200
    ended(client, sweep_id)


def test_requests_may_keep_so_many_bytes(client, application, make_body):
    kept = finished(client, make_body())["request_id"]
    limit(application, max_stored_bytes=len(IMAGE))
    answer = client.post("/v1/inference", json=make_body())
    error = answer.json()["detail"]["error"]
    assert (answer.status_code, error["code"]) == (409, "STORAGE_QUOTA_EXCEEDED")
    assert error["details"]["limit"] == len(IMAGE) < error["details"]["stored"]
    assert error["details"]["sent"] == 0
    # What it keeps is the file of the control image, that of the result, and rows. A second request adds rows alone.
    stored = error["details"]["stored"]
    limit(application, max_stored_bytes=stored + 1)
    error = client.post("/v1/inference", json=make_body()).json()["detail"]["error"]
    rows = error["details"]["sent"]
    assert error["details"]["stored"] == stored
    assert f"this one has {rows} without its results" in error["message"]
    assert 0 < rows < 10_000
    limit(application, max_stored_bytes=stored + rows)
    again = finished(client, make_body())["request_id"]
    error = client.post("/v1/inference", json=make_body()).json()["detail"]["error"]
    assert 0 < error["details"]["stored"] - stored < 10_000
    for request_id in (kept, again):
        assert client.delete(f"/v1/requests/{request_id}", params={"purge": True}).status_code == 200
    limit(application, max_stored_bytes=stored)
    finished(client, make_body())


def test_the_refusal_names_the_scope_that_deleting_needs(client, application, make_body):
    finished(client, make_body())
    limit(application, max_stored_bytes=1)
    message = client.post("/v1/inference", json=make_body()).json()["detail"]["error"]["message"]
    assert "?purge=true and a key that has the scope operate" in message


def test_rows_of_purged_requests_do_not_count(client, application, make_body):
    request_id = finished(client, make_body())["request_id"]
    limit(application, max_stored_bytes=1)
    assert client.post("/v1/inference", json=make_body()).json()["detail"]["error"]["details"]["stored"] > 0
    assert client.delete(f"/v1/requests/{request_id}", params={"purge": True}).status_code == 200
    details = client.post("/v1/inference", json=make_body()).json()["detail"]["error"]["details"]
    assert details["stored"] == 0
    limit(application, max_stored_bytes=details["sent"])
    finished(client, make_body())


def test_stored_bytes_are_summed_while_others_can_write(client, application, make_body, monkeypatch):
    database = application.service.resources.store._database
    writing, stored_bytes = database.writing, quotas._stored_bytes
    under_way, seen = [], []

    @asynccontextmanager
    async def marked() -> AsyncIterator[Any]:
        async with writing() as connection:
            under_way.append(connection)
            yield connection
            under_way.remove(connection)

    async def noted(connection: Any, tenant: str, since: float = 0.0) -> int:
        seen.append((connection in under_way, since > 0))
        return await stored_bytes(connection, tenant, since)

    monkeypatch.setattr(database, "writing", marked)
    monkeypatch.setattr(quotas, "_stored_bytes", noted)
    limit(application, max_stored_bytes=10**9)
    finished(client, make_body())
    ended(client, started(client, sweep_body(make_body, seeds=[1]))["sweep_id"])
    # Within the transaction that writes, only those of the last seconds.
    assert set(seen) == {(False, False), (True, True)}


def test_a_cell_that_fits_does_not_wait_for_requests_that_would_count_twice(client, application, make_body):
    for _ in range(2):
        finished(client, make_body())
    limit(application, max_stored_bytes=1)
    stored = client.post("/v1/inference", json=make_body()).json()["detail"]["error"]["details"]["stored"]
    sweep_id = started(client, sweep_body(make_body, seeds=[1]))["sweep_id"]
    # The requests of a moment ago are in the sum before, and among those that came since.
    quotas_of = Quotas(max_stored_bytes=2 * stored)
    submit = application.service.resources.store.sweep_queue.submit
    assert client.portal.call(submit, sweep_id, 10, lambda _: (None, quotas_of)) == 1
    limit(application)
    ended(client, sweep_id)


def test_cells_of_a_sweep_wait_for_space(client, application, make_body):
    finished(client, make_body())
    limit(application, max_stored_bytes=1)
    sweep_id = started(client, sweep_body(make_body, seeds=[1, 2]))["sweep_id"]
    submitted = client.portal.call(
        application.service.resources.store.sweep_queue.submit, sweep_id, 10, application.service._limits_of_sweeps
    )
    assert submitted == 0
    limit(application)
    ended(client, sweep_id)
