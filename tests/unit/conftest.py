import asyncio
import hashlib
import json
import shutil
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from aiohttp import web
from fastapi.dependencies import models as fastapi_models
from starlette.testclient import TestClient

from serve_app.api.app import create_app
from serve_app.config import MINIATURE_RANDOM, SQLITE_PREFIX, AppConfig, JobsConfig
from serve_app.intake.admission.quality import Losses
from serve_app.intake.service import Service
from serve_app.jobs.database import Database
from serve_app.jobs.store import JobStore
from serve_app.storage import artifact_keys
from serve_app.storage.artifacts import Artifacts
from serve_app.tasks import EditDone, EditEvent, EditTask, StepDone
from tests.conformity import Conformity, Document
from tests.postgres import PostgresServer

IMAGE = b"an image's bytes"
# The LoRA file of each test, below the LoRA root.
LORA = "job/lora.safetensors"

TO_Q = "diffusion_model.transformer_blocks.0.attn.to_q"
# One pair that fits the miniature of random weights.
PAIR = {f"{TO_Q}.lora_A.weight": (2, 16), f"{TO_Q}.lora_B.weight": (16, 2)}


def safetensors_bytes(shapes: Mapping[str, tuple[int, ...]] = PAIR, metadata: Mapping[str, str] = {}) -> bytes:
    """A sound safetensors file of zeros in fp32, written by hand: unit tests have no torch."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, shape in shapes.items():
        size = 4
        for side in shape:
            size *= side
        entries[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    header = json.dumps(entries).encode()
    return len(header).to_bytes(8, "little") + header + bytes(end)


class InstantEditors:
    """Editors that make an image at once. `errors` are raised first, one per edit; `gate` holds edits back.

    `stopped` is set when an edit was told to stop.
    """

    def __init__(self, artifacts: Artifacts) -> None:
        self.artifacts = artifacts
        self.tasks: list[EditTask] = []
        self.errors: list[Exception] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.stopped = asyncio.Event()

    async def edit(self, task: EditTask) -> AsyncGenerator[EditEvent]:
        self.tasks.append(task)
        plan = task.plan
        yield StepDone(0, plan.steps)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.stopped.set()
            raise
        if self.errors:
            raise self.errors.pop(0)
        for step in range(1, plan.steps + 1):
            yield StepDone(step, plan.steps)
        digest = hashlib.sha256(IMAGE).hexdigest()
        key = artifact_keys.image(digest, f".{plan.output_format}")
        self.artifacts.put(key, IMAGE)
        timings = {"generate": 1.0, "load_control_images": 0.1, "save": 0.1}
        url, size = self.artifacts.url(key), len(IMAGE)
        yield EditDone(key, url, plan.output_format, plan.width, plan.height, plan.seed, size, digest, timings, {})


@pytest.fixture(autouse=True)
def forget_applications() -> Iterator[None]:
    """FastAPI remembers each function of a route, and with it all of its application, to classify it only once."""
    yield
    for remembering in (value for value in vars(fastapi_models).values() if hasattr(value, "cache_clear")):
        remembering.cache_clear()


class Application:
    """The HTTP application in this process, over instant editors unless others are named."""

    document: ClassVar[Document | None] = None

    def __init__(
        self, config: AppConfig, editors: type[InstantEditors] = InstantEditors, losses: Losses | None = None
    ) -> None:
        self.config = config
        self.editors = editors(Artifacts(config.artifacts_url))
        self.running = {group: 1 for model in config.models for group in model.editor_groups}
        self.service = Service(config, self.editors, self._editor_count, losses=losses)
        self.app = create_app(self.service)
        # Every answer in these tests is what the OpenAPI document says, which is the same for every config.
        if Application.document is None:
            Application.document = Document(self.app)
        self.app.add_middleware(Conformity, document=Application.document)

    async def _editor_count(self) -> Mapping[str, int]:
        return self.running


# For a module whose promises hold on both databases.
ON_BOTH_DATABASES = pytest.mark.parametrize("database_kind", ["sqlite", "postgresql"])


@pytest.fixture
def database_kind() -> str:
    """SQLite unless a test asks for both."""
    return "sqlite"


async def _migrate(url: str) -> str:
    database = Database(url)
    await database.open()
    await database.close()
    return url


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a job database whose tables are there and empty."""
    path = tmp_path_factory.mktemp("migrated") / "jobs.sqlite3"
    asyncio.run(_migrate(f"{SQLITE_PREFIX}{path}"))
    return path


@pytest.fixture(scope="session")
def migrated_postgres(postgres: PostgresServer) -> str:
    """The URL of a job database whose tables are there and empty."""
    return asyncio.run(_migrate(postgres.new_database()))


@pytest.fixture
def database_url(request: pytest.FixtureRequest, tmp_path: Path, database_kind: str) -> str:
    """A job database without requests. It is a copy of a migrated one, for migrating each takes long."""
    if database_kind == "sqlite":
        shutil.copy(request.getfixturevalue("migrated_sqlite"), tmp_path / "jobs.sqlite3")
        return f"{SQLITE_PREFIX}{tmp_path}/jobs.sqlite3"
    template = request.getfixturevalue("migrated_postgres")
    return str(request.getfixturevalue("postgres").new_database(template))


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[JobStore]:
    """The jobs in such a database."""
    store = JobStore(JobsConfig(database_url=database_url))
    await store.open()
    yield store
    await store.close()


@pytest.fixture
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path, database_kind: str) -> str:
    """A database without tables."""
    if database_kind == "sqlite":
        return f"{SQLITE_PREFIX}{tmp_path}/empty.sqlite3"
    return str(request.getfixturevalue("postgres").new_database())


@pytest.fixture
def config(request: pytest.FixtureRequest, tmp_path: Path, database_kind: str) -> AppConfig:
    """A config whose every path lies in one folder, with one LoRA file in place."""
    if _shares(request):
        return request.getfixturevalue("shared_application").application.config
    return config_in(tmp_path, request.getfixturevalue("database_url"))


@pytest.fixture(scope="module")
def shared_config(tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path) -> AppConfig:
    """A config for an application that all tests of a module use."""
    folder = tmp_path_factory.mktemp("shared")
    shutil.copy(migrated_sqlite, folder / "jobs.sqlite3")
    return config_in(folder, f"{SQLITE_PREFIX}{folder}/jobs.sqlite3")


def config_in(folder: Path, database_url: str) -> AppConfig:
    """A config whose every path lies in `folder`, with one LoRA file in place."""
    lora = folder / "loras" / LORA
    lora.parent.mkdir(parents=True)
    lora.write_bytes(safetensors_bytes())
    paths = {"lora_root": "loras", "artifacts_url": "artifacts", "models": [{"checkpoint": MINIATURE_RANDOM}]}
    paths |= {"jobs": {"database_url": database_url}}
    return AppConfig.model_validate(paths | {"fetch": {"timeout_s": 2}}).resolved(folder)


@pytest.fixture
def lease_s() -> float:
    """Longer than a busy machine pauses a test."""
    return 3.0


@pytest.fixture
async def bench(config: AppConfig, lease_s: float) -> AsyncIterator[Any]:
    """A store of jobs, editors, and as many dispatchers as a test starts."""
    # It needs this module.
    from tests.unit.bench import Bench

    bench = Bench(config.model_copy(update={"jobs": config.jobs.model_copy(update={"lease_s": lease_s})}))
    await bench.store.open()
    yield bench
    await bench.store.close()


# For a module whose tests need `client` as it is configured here: each test gets a running application that an earlier
# one has left as if it were new. Its paths are those of `config`, not in `tmp_path`.
SHARES_AN_APPLICATION = pytest.mark.shares_an_application


def _shares(request: pytest.FixtureRequest) -> bool:
    """Whether the test uses a shared application: its module says so, and the test needs no other config."""
    if request.node.get_closest_marker("shares_an_application") is None:
        return False
    names = set(request.fixturenames)
    return "client" in names and "client_with" not in names and request.getfixturevalue("database_kind") == "sqlite"


@pytest.fixture(scope="session")
def idle_applications() -> Iterator[list[Any]]:
    """The shared applications that no test uses."""
    idle: list[Any] = []
    yield idle
    for each in idle:
        each.close()


@pytest.fixture
def shared_application(
    idle_applications: list[Any], migrated_sqlite: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    # It needs this module.
    from tests.unit.shared import SharedApplication

    if not idle_applications:
        folder = tmp_path_factory.mktemp("shared")
        shutil.copy(migrated_sqlite, folder / "jobs.sqlite3")
        idle_applications.append(SharedApplication(config_in(folder, f"{SQLITE_PREFIX}{folder}/jobs.sqlite3")))
    shared = idle_applications.pop()
    yield shared
    if shared.clean():
        idle_applications.append(shared)
    else:
        shared.close()


@pytest.fixture
def application(request: pytest.FixtureRequest, config: AppConfig) -> Application:
    if _shares(request):
        return request.getfixturevalue("shared_application").application
    return Application(config)


@pytest.fixture
def client(request: pytest.FixtureRequest, application: Application) -> Iterator[TestClient]:
    if _shares(request):
        yield request.getfixturevalue("shared_application").client
        return
    with TestClient(application.app) as client:
        yield client


@pytest.fixture
def client_with(config: AppConfig) -> Iterator[Callable[..., TestClient]]:
    """A client of an application whose config has these top-level changes."""
    clients = []

    def make(**changes: object) -> TestClient:
        changed = AppConfig.model_validate(config.model_dump() | changes)
        clients.append(TestClient(Application(changed).app))
        return clients[-1].__enter__()

    yield make
    for client in clients:
        client.__exit__(None, None, None)


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@pytest.fixture
async def web_server() -> AsyncIterator[Callable[[Handler], Awaitable[str]]]:
    """Start a loopback web server with one handler; its base URL."""
    runners = []

    async def start(handler: Handler) -> str:
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", handler)
        runner = web.AppRunner(application, shutdown_timeout=0.1)
        await runner.setup()
        runners.append(runner)
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}"

    yield start
    for runner in runners:
        await runner.cleanup()
