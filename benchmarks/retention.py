"""How long the sweeper holds up other writers, and what a look into a full outbox takes, on both databases.

    python -m benchmarks.retention

PostgreSQL is a server of this run's own (tests/postgres.py) that waits for the disk at each commit, as SQLite
does here. Each figure is of one whole transaction: SQLite's write lock, or PostgreSQL's lock on files, is held for
no longer than that. Artifacts are a local folder. Nothing leaves the machine, and it ends by itself.
"""

import asyncio
import statistics
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from serve_app.config import SQLITE_PREFIX, JobsConfig
from serve_app.jobs import tables
from serve_app.jobs.records import NewImage, NewRequest, Webhook
from serve_app.jobs.store import JobStore
from serve_app.storage.artifacts import Artifacts
from serve_app.tasks import EditPlan
from serve_app.workers.sweeper import FILES, REQUESTS
from serve_app.workers.webhooks import PER_HOST
from tests.postgres import PostgresServer

PLAN = EditPlan("m", "reference", "a prompt of usual length", "", 1024, 1024, 25, 4.0, 42, "jpeg", ("ab" * 32,))
BATCHES, IMAGES, LARGE, DUE = 10, 4, 1000, 10_000
WEBHOOK = Webhook("https://dead.example/hook", ("canceled",), "http://base")


async def ended_request(store: JobStore, images: int) -> str:
    id_ = uuid.uuid4().hex
    files = {f"pictures/{id_}-{index}": 1_000_000 for index in range(images)} | {f"controls/{id_}": 1_000_000}
    new = NewRequest(id_, "t", "m", (NewImage(PLAN, 1.0),) * images, 3600.0, files=files, webhook=WEBHOOK)
    await store.requests.create(new, lambda key: True)
    await store.requests.cancel(id_)
    return id_


async def milliseconds(work: Callable[[], Awaitable[object]]) -> float:
    started = time.perf_counter()
    await work()
    return (time.perf_counter() - started) * 1000


async def measure(database_url: str, folder: Path) -> dict[str, list[float]]:
    store, artifacts = JobStore(JobsConfig(database_url=database_url)), Artifacts(str(folder))
    await store.open()
    found: dict[str, list[float]] = {}

    async def note(what: str, work: Callable[[], Awaitable[object]]) -> None:
        found.setdefault(what, []).append(await milliseconds(work))

    keys: list[str] = []
    for _ in range(BATCHES):
        ids = [await ended_request(store, IMAGES) for _ in range(REQUESTS)]
        await note(
            f"forget {REQUESTS} requests of {IMAGES} images",
            lambda ids=ids: store.retention.remove(ids, keys.extend),
        )
    for _ in range(3):
        large = await ended_request(store, LARGE)
        await note(f"forget a request of {LARGE} images", lambda id_=large: store.retention.remove([id_], keys.extend))
    for key in keys:
        artifacts.put(key, b"x" * 1000)
    for start in range(0, len(keys) - FILES, FILES):
        some = keys[start : start + FILES]
        await note(f"delete {FILES} files", lambda some=some: store.retention.delete_unneeded(some, artifacts.delete))
    await fill_outbox(store)
    for _ in range(BATCHES):
        await note(f"take {PER_HOST} of {DUE} webhooks of one host", lambda: store.outbox.take(64, 60.0, PER_HOST))
        await note(f"find that none of {DUE} may go", lambda: store.outbox.take(64, 60.0, PER_HOST, ["dead.example"]))
    await store.close()
    return found


async def fill_outbox(store: JobStore) -> None:
    id_ = await ended_request(store, 1)
    row = {"request_id": id_, "event": "image", "created_at": 0.0, "attempts": 0, "due_at": 0.0}
    async with store._database.writing() as connection:
        for _ in range(0, DUE, 1000):
            await connection.execute(tables.deliveries.insert(), [row | {"id": uuid.uuid4().hex} for _ in range(1000)])


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder, PostgresServer(durable=True) as server:
        sqlite = await measure(f"{SQLITE_PREFIX}{folder}/jobs.sqlite3", Path(folder) / "a")
        postgres = await measure(server.new_database(), Path(folder) / "b")
    table = Table("one transaction, ms: median (max)", "SQLite", "PostgreSQL")
    for what in sqlite:
        figures = (f"{statistics.median(of[what]):.1f} ({max(of[what]):.1f})" for of in (sqlite, postgres))
        table.add_row(what, *figures)
    Console().print(table)


if __name__ == "__main__":
    asyncio.run(main())
