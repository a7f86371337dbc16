"""One database, two kinds: SQLite for one machine, PostgreSQL for a cluster. What differs between them is here."""

import asyncio
import functools
import logging
import socket
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import (
    DataError,
    DBAPIError,
    IntegrityError,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from serve_app.concurrency import background
from serve_app.concurrency.threads import Threads
from serve_app.errors import Overloaded, StorageFailed, StoreFailed, StoreUnavailable

P = ParamSpec("P")
T = TypeVar("T")

# Whether an artifact is there, by key; blocks.
IsStored = Callable[[str], bool]

logger = logging.getLogger(__name__)

MIGRATIONS = Path(__file__).parent / "migrations"
# How often a transaction is tried whose connection was lost, and how long is waited before the second try (s): each
# pause is twice the one before. No try begins after the last number.
TRIES, PAUSE_S, PATIENCE_S = 5, 0.1, 8.0
# How long PostgreSQL may be silent before its connection is given up, so that a new one is tried, and how long a client
# may be silent in a transaction before PostgreSQL ends it (s). A peer that vanishes with its machine or its network
# closes nothing: by their defaults one would wait a quarter of an hour, the other keep the transaction's locks for two.
SERVER_SILENCE_S, CLIENT_SILENCE_S = 5, 10
# SQLSTATEs of PostgreSQL: connection exceptions, operator intervention, deadlocks and the like, a silence too long.
TRANSIENT_STATES = ("08", "57P", "40", "25P03")
CONNECTING: dict[str, Any] = {
    "timeout": SERVER_SILENCE_S,
    "server_settings": {"idle_in_transaction_session_timeout": f"{CLIENT_SILENCE_S}s"},
}
# While an answer is awaited: asked for a sign of life after so long, so often, so many times; then, or when what was
# sent is not acknowledged for so many milliseconds, it is over.
KEEPALIVE = {
    "TCP_KEEPIDLE": SERVER_SILENCE_S // 2,
    "TCP_KEEPINTVL": 1,
    "TCP_KEEPCNT": SERVER_SILENCE_S // 2,
    "TCP_USER_TIMEOUT": SERVER_SILENCE_S * 1000,
}
# How many transactions look into artifact storage at a time, at least as many as there are connections; and how long
# one may (s): shorter than others wait for its lock (`busy_timeout`).
STORAGE_THREADS, STORAGE_S = 16, 25.0
# Locks of PostgreSQL that are not a row's: any two numbers that nothing else in this database uses.
MIGRATION_LOCK, FILES_LOCK = 7_236_001, 7_236_002


class Database:
    """Connections to the job database. `open` it and `close` it within one event loop."""

    def __init__(self, url: str) -> None:
        self._url = sa.make_url(url)
        self._threads = Threads(STORAGE_THREADS, STORAGE_S, "a look into artifact storage")
        self.is_sqlite = self._url.get_backend_name() == "sqlite"
        if self.is_sqlite and self._url.database:
            Path(self._url.database).parent.mkdir(parents=True, exist_ok=True)
        arguments = {} if self.is_sqlite else CONNECTING
        # A pooled connection that the server has closed is noticed before it is used.
        self._writer: AsyncEngine = create_async_engine(
            self._url, pool_pre_ping=not self.is_sqlite, connect_args=arguments
        )
        # Polls are most of the traffic: a read is one statement, without a transaction around it.
        self._reader: AsyncEngine = create_async_engine(
            self._url,
            isolation_level="AUTOCOMMIT",
            skip_autocommit_rollback=True,
            pool_reset_on_return=None,
            pool_pre_ping=not self.is_sqlite,
            connect_args=arguments,
        )
        for engine in (self._writer, self._reader):
            sa.event.listen(engine.sync_engine, "connect", _configure_sqlite if self.is_sqlite else _watch_server)
        if self.is_sqlite:
            sa.event.listen(self._writer.sync_engine, "begin", _begin_writing)

    async def open(self) -> None:
        """Bring the tables to this version, one process at a time."""
        async with self._writer.begin() as connection:
            if not self.is_sqlite:
                await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(MIGRATION_LOCK)))
            await connection.run_sync(migrate)

    async def close(self) -> None:
        async def dispose() -> None:
            await self._writer.dispose()
            await self._reader.dispose()

        await background.shielded(dispose())

    def reading(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """A connection for single statements."""
        return self._reader.connect()

    def writing(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """A transaction. In SQLite it holds the write lock from its start."""
        return self._writer.begin()

    @asynccontextmanager
    async def removing_files(self) -> AsyncIterator[AsyncConnection]:
        """A transaction beside which no other begins to refer to a file."""
        async with self.writing() as connection:
            if not self.is_sqlite:
                # Files take their time, and the server would take the silence for a client that is gone.
                await connection.execute(sa.text("SET LOCAL idle_in_transaction_session_timeout = 0"))
                await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(FILES_LOCK)))
            yield connection

    async def lock_file_references(self, connection: AsyncConnection) -> None:
        """Wait until nobody removes files; from here to this transaction's end nobody does."""
        if not self.is_sqlite:
            await connection.execute(sa.select(sa.func.pg_advisory_xact_lock_shared(FILES_LOCK)))

    async def read_storage(self, call: Callable[[], T]) -> T:
        """What a blocking look into artifact storage finds, from within a transaction. Raises StorageFailed.

        Its threads are the transactions' own: whoever holds a lock must not wait for a thread that others let hang.
        """
        try:
            return await self._threads.run(call, STORAGE_S)
        except (TimeoutError, Overloaded) as error:
            raise StorageFailed("artifact storage does not answer") from error

    async def delete_files(self, call: Callable[[], None]) -> None:
        """The same for deleting, without a limit: it has to end before the transaction that it happens in."""
        try:
            await self._threads.run(call)
        except Overloaded as error:
            raise StorageFailed("artifact storage does not answer") from error

    def insert(self, table: sa.Table) -> sqlite.Insert | postgresql.Insert:
        """An INSERT that knows ON CONFLICT."""
        return sqlite.insert(table) if self.is_sqlite else postgresql.insert(table)


def transaction(method: Callable[P, Awaitable[T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Make a method one whole transaction, tried again if its connection is lost.

    So the method has to be correct when it runs twice: the answer to a commit can be lost too. A transaction that has
    begun ends before a cancellation of its caller goes on: a connection left in the middle would keep its locks.

    Raises StoreUnavailable if the database cannot be reached, StoreFailed for any other error of the database.
    """

    async def persist(*args: P.args, **kwargs: P.kwargs) -> T:
        began = time.monotonic()
        for tries in range(1, TRIES + 1):
            try:
                return await method(*args, **kwargs)
            except (SQLAlchemyError, OSError) as error:
                if not is_worth_another_try(error):
                    logger.exception("the job database refused what %s asked for", method.__name__)
                    raise StoreFailed("the job database refused a statement; the service's log says why") from error
                if tries == TRIES or time.monotonic() - began > PATIENCE_S:
                    raise StoreUnavailable("the job database cannot be reached; try again") from error
                logger.warning("lost the job database in %s; trying again", method.__name__, exc_info=error)
                await asyncio.sleep(PAUSE_S * 2 ** (tries - 1))
        raise AssertionError("unreachable")

    @functools.wraps(method)
    async def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return await background.shielded(persist(*args, **kwargs))

    return call


def is_worth_another_try(error: BaseException) -> bool:
    """Whether a transaction failed for its connection or its neighbours, not for what it did."""
    if not isinstance(error, DBAPIError):
        # asyncpg's own, of a server that cannot be connected to; the pool's, whose connections all wait for it.
        return isinstance(error, OSError | PoolTimeout)
    if isinstance(error.orig, sqlite3.Error):
        return isinstance(error, OperationalError)
    if isinstance(error, DataError | IntegrityError | ProgrammingError | NotSupportedError):
        return False
    # An error that the server did not send is one of the connection.
    state: str | None = getattr(error.orig, "sqlstate", None)
    return error.connection_invalidated or state is None or state.startswith(TRANSIENT_STATES)


def migrate(connection: sa.Connection) -> None:
    """Run the migrations that this database has not seen, on a connection that holds the lock for it."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    current = MigrationContext.configure(connection).get_current_revision()
    if current is not None and current not in known:
        # A replica of the version before starts while the next one rolls out, whose migrations only add.
        logger.warning("the job database is at revision %s, which is newer than this version; working on", current)
        return
    command.upgrade(config, "head")


def _watch_server(connection: Any, _: Any) -> None:
    """Have the kernel give up a connection to PostgreSQL whose other end no longer acknowledges anything."""
    # asyncpg has no option for it, and no public way to its socket.
    peer: socket.socket = connection.driver_connection._transport.get_extra_info("socket")
    if peer.family == socket.AF_UNIX:
        return
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, seconds in KEEPALIVE.items():
        # Not every system has every one.
        if hasattr(socket, option):
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), seconds)


def _configure_sqlite(connection: Any, _: Any) -> None:
    # The driver would begin transactions by itself, too late for the lock that a writer needs: see _begin_writing.
    connection.isolation_level = None
    cursor = connection.cursor()
    # First, for what comes next locks too.
    cursor.execute("PRAGMA busy_timeout = 30000")
    cursor.execute("PRAGMA journal_mode = WAL")
    # A commit is on the disk when it returns: what was accepted survives a power cut.
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _begin_writing(connection: sa.Connection) -> None:
    # With the write lock from the start: a transaction that reads first and writes later fails at once
    # where another writer came between.
    connection.exec_driver_sql("BEGIN IMMEDIATE")
