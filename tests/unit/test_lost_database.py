"""What the store does when the database goes away."""

import asyncio

import pytest
import sqlalchemy as sa

from serve_app.config import JobsConfig
from serve_app.errors import StoreUnavailable
from serve_app.jobs.database import Database
from serve_app.jobs.store import JobStore
from tests.unit.test_jobs import claim, is_stored, new

KILL_OTHERS = sa.text(
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
)


async def test_lost_connections_cost_no_answer_and_make_nothing_twice(postgres):
    """PostgreSQL alone: SQLite has no connections to lose."""
    url = postgres.new_database()
    store, killer = JobStore(JobsConfig(database_url=url)), Database(url)
    await store.open()
    enough = asyncio.Event()

    async def create() -> list[str]:
        made = []
        while not enough.is_set():
            made.append((await store.requests.create(new(), is_stored)).id)
        return made

    creating = [asyncio.create_task(create()) for _ in range(4)]
    killed = 0
    while killed < 20:
        async with killer.reading() as connection:
            killed += len((await connection.execute(KILL_OTHERS)).all())
        await asyncio.sleep(0.15)
    enough.set()
    made = [request_id for task in creating for request_id in await task]
    claims = await claim(store, limit=10_000, capacity=10_000)
    await store.close()
    await killer.close()
    assert sorted(c.task.request_id for c in claims) == sorted(made)


async def test_a_server_that_is_not_there_is_said_to_be_unavailable(tmp_path):
    store = JobStore(JobsConfig(database_url=f"postgresql+asyncpg://nobody@/nothing?host={tmp_path}"))
    for ask in (store.open, lambda: store.requests.get("0" * 32)):
        with pytest.raises(StoreUnavailable):
            await ask()
    await store.close()
