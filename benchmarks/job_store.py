"""What a POST, a status poll and a claim take while many jobs are queued, on SQLite and on PostgreSQL.

    python -m benchmarks.job_store              # 10 to 100,000 queued jobs, on both

PostgreSQL is a server of this run's own (tests/postgres.py) that waits for the disk at each commit, as SQLite
does here. POST and status go through the whole HTTP application, in this process; the queued jobs are spread
over 50 tenants, three of four interactive. Nothing leaves the machine, and it ends by itself.
"""

import argparse
import asyncio
import base64
import statistics
import tempfile
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table

from serve_app.api.app import create_app
from serve_app.config import SQLITE_PREFIX, AppConfig, JobsConfig
from serve_app.intake.service import Service
from serve_app.jobs import statements, tables
from serve_app.jobs.database import Database
from serve_app.jobs.records import NewImage, NewRequest
from serve_app.jobs.store import JobStore
from serve_app.tasks import EditEvent, EditPlan, EditTask, Priority
from tests.postgres import PostgresServer

MODEL = "qwen_image_edit"
TENANTS = 50
BATCH = 1000
SAMPLES = 100
OWNER = "benchmark"
CONTROL = Path("samples/astronaut.jpg")


class NoEditors:
    """Editors that never begin: everything stays in the queue."""

    async def edit(self, task: EditTask) -> AsyncGenerator[EditEvent]:
        await asyncio.Event().wait()
        yield  # type: ignore[misc]  # never reached


async def no_count() -> dict[str, int]:
    return {}


def requests(count: int, start: int) -> list[NewRequest]:
    plan = EditPlan(MODEL, "reference", "a prompt of usual length", "", 1024, 1024, 25, 4.0, 42, "jpeg", ("ab" * 32,))
    return [
        NewRequest(
            id=uuid.uuid4().hex,
            tenant=f"tenant {(start + i) % TENANTS}",
            model=MODEL,
            images=(NewImage(plan, 1e16),),
            deadline_s=86400,
            priority=Priority.BULK if (start + i) % 4 == 3 else Priority.INTERACTIVE,
        )
        for i in range(count)
    ]


async def fill(database: Database, have: int, want: int) -> None:
    """Queue jobs until `want` are there: rows as `Requests.create` writes them, many in a transaction."""
    for start in range(have, want, BATCH):
        new = requests(min(BATCH, want - start), start)
        now = time.time()
        async with database.writing() as connection:
            await connection.execute(tables.requests.insert(), [statements.request_row(r, now) for r in new])
            rows = [row for i, r in enumerate(new) for row in statements.image_rows(r, now, (start + i) // TENANTS)]
            await connection.execute(tables.images.insert(), rows)


async def median_ms(once: Callable[[], Awaitable[object]]) -> float:
    seconds = []
    for _ in range(SAMPLES):
        started = time.perf_counter()
        await once()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds) * 1e3


@asynccontextmanager
async def application(url: str, folder: Path) -> AsyncGenerator[httpx.AsyncClient]:
    jobs = {"database_url": url, "max_queued": 10**6, "max_queued_per_tenant": 10**6, "lease_s": 600}
    config = AppConfig.model_validate({"jobs": jobs, "artifacts_url": "artifacts", "require_lora": False})
    app = create_app(Service(config.resolved(folder), NoEditors(), no_count))
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here")
    async with app.router.lifespan_context(app), client:
        yield client


class Bench:
    """What is measured, one call each, on one database."""

    def __init__(self, client: httpx.AsyncClient, store: JobStore, control: bytes) -> None:
        self._client = client
        self._store = store
        prompt = {"prompt": "make it night", "ctrl_img": base64.b64encode(control).decode()}
        self._body = {"model": MODEL, "loras": [], "prompts": [prompt]}
        self._posted = ""

    async def post(self) -> None:
        answer = await self._client.post("/v1/inference", json=self._body)
        self._posted = answer.raise_for_status().json()["request_id"]

    async def poll(self) -> None:
        (await self._client.get(f"/v1/requests/{self._posted}/status")).raise_for_status()

    async def claim(self) -> None:
        [_] = await self._store.queue.claim(OWNER, MODEL, 10**6, 1)


async def measure(url: str, sizes: list[int], folder: Path, control: bytes) -> list[tuple[int, list[float]]]:
    """For each size of the queue: medians of a POST, a status poll and a claim of one image (ms)."""
    store, database, rows, have = JobStore(JobsConfig(database_url=url, lease_s=600)), Database(url), [], 0
    async with application(url, folder) as client:
        await store.open()
        bench = Bench(client, store, control)
        for size in sizes:
            await fill(database, have, size)
            have = size + SAMPLES
            rows.append((size, [await median_ms(once) for once in (bench.post, bench.poll, bench.claim)]))
            await store.queue.release(OWNER)
        await database.close()
        await store.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 100, 1_000, 10_000, 100_000])
    sizes = parser.parse_args().sizes
    console = Console()
    with tempfile.TemporaryDirectory() as folder, PostgresServer(durable=True) as server:
        databases = {
            "SQLite": f"{SQLITE_PREFIX}{folder}/jobs.sqlite3",
            "PostgreSQL": server.new_database(),
        }
        for name, url in databases.items():
            table = Table("queued", "POST (ms)", "status (ms)", "claim (ms)", title=f"{name}, medians of {SAMPLES}")
            for size, medians in asyncio.run(measure(url, sizes, Path(folder), CONTROL.read_bytes())):
                table.add_row(f"{size:,}", *(f"{ms:.1f}" for ms in medians))
            console.print(table)


if __name__ == "__main__":
    main()
