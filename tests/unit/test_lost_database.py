"""What the store does when the database goes away."""

import asyncio
import socket
from contextlib import AsyncExitStack

import pytest
import sqlalchemy as sa

from serve_app.commands.ports import free_port
from serve_app.config import JobsConfig
from serve_app.errors import StoreUnavailable
from serve_app.jobs.database import CLIENT_TIMEOUT_S, SERVER_TIMEOUT_S, Database, transaction
from serve_app.jobs.store import JobStore
from serve_app.storage.artifacts import Artifacts
from serve_app.tasks import Status
from serve_app.workers.dispatcher import Dispatcher
from tests.unit.conftest import InstantEditors
from tests.unit.test_jobs import MODEL, claim, is_stored, new

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
    made: list[str] = []

    async def create() -> None:
        while not enough.is_set():
            made.append((await store.requests.create(new(), is_stored)).id)

    creating = [asyncio.create_task(create()) for _ in range(4)]
    killed = 0
    while killed < 20:
        async with killer.reading() as connection:
            killed += len((await connection.execute(KILL_OTHERS)).all())
        made_before = len(made)
        await asyncio.sleep(0.15)
        # On a busy machine, each try would be killed otherwise.
        while len(made) < made_before + len(creating) and not any(task.done() for task in creating):
            await asyncio.sleep(0.05)
    enough.set()
    await asyncio.gather(*creating)
    claims = await claim(store, limit=10_000, capacity=10_000)
    await store.close()
    await killer.close()
    assert sorted(c.task.request_id for c in claims) == sorted(made)


class Relay:
    """The way to a server's socket from a port of 127.0.0.1, which can be broken."""

    def __init__(self, database_url: str) -> None:
        url = sa.make_url(database_url)
        self._socket = f"{url.query['host']}/.s.PGSQL.5432"
        self._port = free_port()
        self._name = url.database
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"postgresql+asyncpg://postgres@127.0.0.1:{self._port}/{self._name}"

    async def mend(self) -> None:
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", self._port)

    async def cut(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_unix_connection(self._socket)
        for source, sink in ((reader, there[1]), (there[0], writer)):
            task = asyncio.create_task(self._pump(source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                sink.write(data)
        finally:
            sink.close()


@pytest.fixture
async def relay(postgres):
    relay = Relay(postgres.new_database())
    await relay.mend()
    yield relay
    await relay.cut()


class SteadyEditors(InstantEditors):
    """Editors that take 0.4 s per step."""

    async def edit(self, task):
        async for event in super().edit(task):
            yield event
            await asyncio.sleep(0.4)


async def test_database_that_was_away_for_longer_than_a_lease_costs_no_work_that_goes_on(relay, tmp_path):
    # Shorter than the database is away, longer than a step and than a busy machine pauses a test.
    config = JobsConfig(database_url=relay.url, lease_s=3, stall_s=3).model_copy(update={"silence_s": 3})
    artifacts = Artifacts(str(tmp_path / "artifacts"))
    editors = SteadyEditors(artifacts)
    stores = [JobStore(config) for _ in range(3)]

    async def editor_count() -> dict[str, int]:
        return {MODEL: 4}

    async with AsyncExitStack() as stack:
        for store in stores:
            await store.open()
            stack.push_async_callback(store.close)
        # One that holds nothing, and would take over what the others hold.
        for store in stores:
            dispatcher = asyncio.create_task(Dispatcher(store, editors, artifacts, config, editor_count).run())
            stack.callback(dispatcher.cancel)
        made = [await stores[0].requests.create(new(), is_stored) for _ in range(4)]
        while len(editors.tasks) < 4:
            await asyncio.sleep(0.01)
        await relay.cut()
        await asyncio.sleep(4)
        await relay.mend()
        for each in made:
            async with asyncio.timeout(20):
                while not (record := await stores[0].requests.get(each.id)).status.ended:
                    await asyncio.sleep(0.05)
            assert (record.status, record.images[0].reasons) == (Status.SUCCEEDED, ())
    assert len(editors.tasks) == 4


async def test_connection_to_a_lost_machine_is_closed_by_either_end(relay):
    """A machine or a network that vanishes closes nothing; a unit test cannot lose packets: see the drills."""
    database = Database(relay.url)
    async with database.reading() as connection:
        raw = (await connection.get_raw_connection()).driver_connection
        peer = raw._transport.get_extra_info("socket")
        assert peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == SERVER_TIMEOUT_S * 1000
        assert peer.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        answer = await connection.execute(sa.text("SHOW idle_in_transaction_session_timeout"))
        assert answer.scalar_one() == f"{CLIENT_TIMEOUT_S}s"
    await database.close()


async def test_transaction_that_was_ended_for_its_silence_is_tried_again(postgres):
    database = Database(postgres.new_database())
    tries = []

    class Slow:
        @transaction
        async def ask(self) -> int:
            async with database.writing() as connection:
                tries.append(await connection.execute(sa.text("SET idle_in_transaction_session_timeout = '100ms'")))
                if len(tries) == 1:
                    await asyncio.sleep(0.5)
                return (await connection.execute(sa.text("SELECT 1"))).scalar_one()

    assert await Slow().ask() == 1
    assert len(tries) == 2
    await database.close()


async def test_a_server_that_is_not_there_is_said_to_be_unavailable(tmp_path):
    store = JobStore(JobsConfig(database_url=f"postgresql+asyncpg://nobody@/nothing?host={tmp_path}"))
    for ask in (store.open, lambda: store.requests.get("0" * 32)):
        with pytest.raises(StoreUnavailable):
            await ask()
    await store.close()


async def test_loss_of_the_database_is_one_log_line_per_call_with_the_drivers_reason(tmp_path, caplog):
    store = JobStore(JobsConfig(database_url=f"postgresql+asyncpg://nobody@/nothing?host={tmp_path}"))
    with pytest.raises(StoreUnavailable):
        await store.take_duty("sweeper", "somebody", 1.0)
    await store.close()
    [record] = [record for record in caplog.records if record.name.startswith("serve_app")]
    assert (record.levelname, record.exc_info) == ("WARNING", None)
    assert record.getMessage().startswith("lost the job database in take_duty: FileNotFoundError: ")
