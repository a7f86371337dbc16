"""The job database: SQLite for one machine, PostgreSQL for a cluster. This module hides the differences."""

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
from serve_app.jobs.database_tls import split_tls

P = ParamSpec("P")
T = TypeVar("T")

# Whether artifact storage has a file with this key. Blocks.
IsStored = Callable[[str], bool]

logger = logging.getLogger(__name__)

MIGRATIONS = Path(__file__).parent / "migrations"
# How often a transaction is tried if its connection is lost, and the pause before the second try (s). Each further
# pause is twice as long. No try starts later than RETRY_WINDOW_S after the first one.
MAX_TRIES, FIRST_PAUSE_S, RETRY_WINDOW_S = 5, 0.1, 8.0
# How long PostgreSQL may be silent before the service closes the connection and tries a new one, and how long a
# client may be silent in a transaction before PostgreSQL ends it (s). A machine that loses power or network closes no
# connection: by default the service would wait for 15 minutes, and PostgreSQL would keep the transaction's locks for
# two hours.
SERVER_TIMEOUT_S, CLIENT_TIMEOUT_S = 5, 10
# Classes of SQLSTATE after which a retry may succeed: connection exceptions, operator intervention, rolled back
# transactions (deadlocks), and the timeout of an idle transaction.
TRANSIENT_STATES = ("08", "57P", "40", "25P03")
# How long a migration waits for the lock of a table, while others wait behind it (s): less than PostgreSQL's
# `deadlock_timeout` of 1 s, so that of two transactions that wait for each other, the service's succeeds. Then the
# pause before it is tried again, and for how long it is (s).
TABLE_LOCK_S, MIGRATION_PAUSE_S, MIGRATION_WINDOW_S = 0.5, 0.5, 300.0
# SQLSTATEs of a lock that was not available in time, and of a deadlock.
LOCKED_STATES = ("55P03", "40P01")
POSTGRESQL_ARGUMENTS: dict[str, Any] = {
    "timeout": SERVER_TIMEOUT_S,
    "server_settings": {"idle_in_transaction_session_timeout": f"{CLIENT_TIMEOUT_S}s"},
}
# TCP options: when keep-alive probes start (s), their interval (s), how many may fail, and how long sent data may stay
# unacknowledged (ms) before the kernel closes the connection.
KEEPALIVE = {
    "TCP_KEEPIDLE": SERVER_TIMEOUT_S // 2,
    "TCP_KEEPINTVL": 1,
    "TCP_KEEPCNT": SERVER_TIMEOUT_S // 2,
    "TCP_USER_TIMEOUT": SERVER_TIMEOUT_S * 1000,
}
# How many transactions may read artifact storage at a time (at least as many as there are connections), and for how
# long (s): less than other transactions wait for the lock (`busy_timeout`).
STORAGE_THREADS, STORAGE_S = 16, 25.0
# Ids of PostgreSQL's advisory locks: numbers that nothing else in this database uses. The last two are the first half
# of an id, whose second half is a tenant's.
MIGRATION_LOCK, FILES_LOCK, UPLOADS_LOCK, QUOTAS_LOCK = 7_236_001, 7_236_002, 7_236_003, 7_236_004


class Database:
    """Connections to the job database. `open` it and `close` it within one event loop."""

    def __init__(self, url: str) -> None:
        self._url, tls = split_tls(sa.make_url(url))
        self._threads = Threads(STORAGE_THREADS, STORAGE_S, "reading artifact storage")
        self.is_sqlite = self._url.get_backend_name() == "sqlite"
        if self.is_sqlite and self._url.database:
            Path(self._url.database).parent.mkdir(parents=True, exist_ok=True)
        arguments = {} if self.is_sqlite else POSTGRESQL_ARGUMENTS | tls
        # pool_pre_ping: a pooled connection that the server has closed is replaced before it is used.
        self._writer: AsyncEngine = create_async_engine(
            self._url, pool_pre_ping=not self.is_sqlite, connect_args=arguments
        )
        # Most of the traffic is polls. Each read is one statement, so it needs no transaction.
        self._reader: AsyncEngine = create_async_engine(
            self._url,
            isolation_level="AUTOCOMMIT",
            skip_autocommit_rollback=True,
            pool_reset_on_return=None,
            pool_pre_ping=not self.is_sqlite,
            connect_args=arguments,
        )
        for engine in (self._writer, self._reader):
            sa.event.listen(engine.sync_engine, "connect", _configure_sqlite if self.is_sqlite else _detect_lost_server)
        if self.is_sqlite:
            sa.event.listen(self._writer.sync_engine, "begin", _begin_writing)

    async def open(self) -> None:
        """Migrate the tables to this version. One process at a time does so; the others wait.

        Ingresses of the version before may be at work: a migration that would have to wait for their locks, and make
        them wait, is taken back and tried again.
        """
        deadline = time.monotonic() + MIGRATION_WINDOW_S
        while True:
            try:
                return await self._migrate()
            except DBAPIError as error:
                if getattr(error.orig, "sqlstate", None) not in LOCKED_STATES or time.monotonic() > deadline:
                    raise
                logger.info("the tables are in use; the migration is tried again")
            await asyncio.sleep(MIGRATION_PAUSE_S)

    async def _migrate(self) -> None:
        async with self._writer.begin() as connection:
            if not self.is_sqlite:
                await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(MIGRATION_LOCK)))
                await connection.execute(sa.text(f"SET LOCAL lock_timeout = '{TABLE_LOCK_S}s'"))
            await connection.run_sync(migrate)

    async def close(self) -> None:
        """Close all connections, even if the caller is cancelled meanwhile."""

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
    async def deleting_files(self) -> AsyncIterator[AsyncConnection]:
        """A transaction during which no other transaction can add a reference to a file."""
        async with self.writing() as connection:
            if not self.is_sqlite:
                # Deleting files takes time, in which the server hears nothing; it must not end the transaction.
                await connection.execute(sa.text("SET LOCAL idle_in_transaction_session_timeout = 0"))
                await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(FILES_LOCK)))
            yield connection

    async def lock_file_references(self, connection: AsyncConnection) -> None:
        """Wait until no transaction deletes files (`deleting_files`), and allow none until this transaction ends."""
        if not self.is_sqlite:
            await connection.execute(sa.select(sa.func.pg_advisory_xact_lock_shared(FILES_LOCK)))

    async def lock_uploads(self, connection: AsyncConnection, tenant: str) -> None:
        """Wait until no other transaction adds an upload of this tenant, and allow none until this one ends."""
        if not self.is_sqlite:
            await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(UPLOADS_LOCK, sa.func.hashtext(tenant))))

    async def lock_quotas(self, connection: AsyncConnection, tenant: str) -> None:
        """Wait until no other transaction looks at the quotas of this tenant, and allow none until this one ends."""
        if not self.is_sqlite:
            await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(QUOTAS_LOCK, sa.func.hashtext(tenant))))

    async def read_storage(self, call: Callable[[], T]) -> T:
        """Run a blocking call that reads artifact storage, from within a transaction. Raises StorageFailed.

        Transactions have threads of their own for this: while they hold a lock, they must not wait for threads that
        hang in other calls.
        """
        try:
            return await self._threads.run(call, STORAGE_S)
        except (TimeoutError, Overloaded) as error:
            raise StorageFailed("artifact storage does not answer") from error

    async def delete_files(self, call: Callable[[], None]) -> None:
        """Run a blocking call that deletes files, without a time limit, because the transaction must not end before it.

        Raises StorageFailed if no thread is free.
        """
        try:
            await self._threads.run(call)
        except Overloaded as error:
            raise StorageFailed("artifact storage does not answer") from error

    def insert(self, table: sa.Table) -> sqlite.Insert | postgresql.Insert:
        """An INSERT statement of the database's dialect, which supports ON CONFLICT."""
        return sqlite.insert(table) if self.is_sqlite else postgresql.insert(table)


def transaction(method: Callable[P, Awaitable[T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Decorate a method that makes one transaction: run it again if its connection is lost.

    The method must be correct if it runs twice, because the answer to a commit can be lost as well. If the caller is
    cancelled, the transaction ends first: a connection that is left in the middle of one would keep its locks.

    Raises StoreUnavailable if the database cannot be reached, StoreFailed for any other error of the database.
    """

    async def with_retries(*args: P.args, **kwargs: P.kwargs) -> T:
        started = time.monotonic()
        for tries in range(1, MAX_TRIES + 1):
            try:
                return await method(*args, **kwargs)
            except (SQLAlchemyError, OSError) as error:
                if not is_transient(error):
                    logger.exception("the job database refused a statement of %s", method.__name__)
                    raise StoreFailed("the service failed to handle this; its log says why") from error
                if tries == 1:
                    # Only once, in one line: during an outage, callers come again and again.
                    logger.warning("lost the job database in %s: %s", method.__name__, _reason(error))
                if tries == MAX_TRIES or time.monotonic() - started > RETRY_WINDOW_S:
                    raise StoreUnavailable("the job database cannot be reached; try again") from error
                await asyncio.sleep(FIRST_PAUSE_S * 2 ** (tries - 1))
        raise AssertionError("unreachable")

    @functools.wraps(method)
    async def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return await background.shielded(with_retries(*args, **kwargs))

    return call


def is_transient(error: BaseException) -> bool:
    """Whether the transaction may succeed if it is tried again: its connection or a deadlock made it fail."""
    if not isinstance(error, DBAPIError):
        # asyncpg raises OSError if it cannot connect; the pool times out if all its connections wait for the server.
        return isinstance(error, OSError | PoolTimeout)
    if isinstance(error.orig, sqlite3.Error):
        return isinstance(error, OperationalError)
    if isinstance(error, DataError | IntegrityError | ProgrammingError | NotSupportedError):
        return False
    # An error without SQLSTATE was not sent by the server, so the connection failed.
    state: str | None = getattr(error.orig, "sqlstate", None)
    return error.connection_invalidated or state is None or state.startswith(TRANSIENT_STATES)


def _reason(error: SQLAlchemyError | OSError) -> str:
    """What the driver says, in one line. The text of SQLAlchemy's own error would quote the statement and its data."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    return f"{type(cause).__name__}: {' '.join(str(cause).split())}"


def migrate(connection: sa.Connection) -> None:
    """Run the migrations that this database lacks. The connection must hold the migration lock."""
    known = _revisions()
    current = MigrationContext.configure(connection).get_current_revision()
    if current == known[0]:
        return
    if current is not None and current not in known:
        # A replica of the previous version starts while a newer one rolls out. Migrations only add, so both can work.
        logger.warning("the job database is at revision %s, which is newer than this version; continuing", current)
        return
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


@functools.cache
def _revisions() -> list[str]:
    """The revisions of this version, the newest first. To find them, Alembic runs the file of each migration."""
    return [script.revision for script in ScriptDirectory(str(MIGRATIONS)).walk_revisions()]


def _detect_lost_server(connection: Any, _: Any) -> None:
    """Let the kernel close a connection to PostgreSQL if the server no longer acknowledges anything."""
    # asyncpg has no option for this and no public access to its socket.
    peer: socket.socket = connection.driver_connection._transport.get_extra_info("socket")
    if peer.family == socket.AF_UNIX:
        return
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, seconds in KEEPALIVE.items():
        # Some systems lack some of these options.
        if hasattr(socket, option):
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), seconds)


def _configure_sqlite(connection: Any, _: Any) -> None:
    # Otherwise the driver begins transactions itself, without the write lock: see _begin_writing.
    connection.isolation_level = None
    cursor = connection.cursor()
    # This comes first, because the next statements need locks too.
    cursor.execute("PRAGMA busy_timeout = 30000")
    cursor.execute("PRAGMA journal_mode = WAL")
    # A commit returns after it is on the disk, so an accepted request survives a power cut.
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _begin_writing(connection: sa.Connection) -> None:
    # Take the write lock at the start: a transaction that reads first and writes later fails at once if another
    # writer committed in between.
    connection.exec_driver_sql("BEGIN IMMEDIATE")
