"""The server that the tests of the job store run on: it starts, answers, and is gone whatever happens."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import asyncpg
import psutil
import pytest

from tests.conftest import ROOT
from tests.postgres import PostgresFailed, PostgresServer

# Starts a server, says where, and waits to be killed.
RUN = """
import time
from tests.postgres import PostgresServer
with PostgresServer() as server:
    print(server.folder, server.pid, flush=True)
    time.sleep(60)
"""


async def ask(url: str, question: str) -> object:
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    try:
        return await connection.fetchval(question)
    finally:
        await connection.close()


def wait_until_gone(pid: int, folder: Path) -> None:
    deadline = time.monotonic() + 10
    while psutil.pid_exists(pid) or folder.exists():
        assert time.monotonic() < deadline, (psutil.pid_exists(pid), folder)
        time.sleep(0.02)


async def test_each_database_is_new_and_empty(postgres):
    first, second = postgres.new_database(), postgres.new_database()
    await ask(first, "CREATE TABLE t (n int)")
    assert await ask(first, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == 1
    assert await ask(second, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == 0


async def test_copy_of_a_database_has_its_tables_and_is_apart_from_it(postgres):
    template = postgres.new_database()
    await ask(template, "CREATE TABLE t (n int)")
    first, second = postgres.new_database(template), postgres.new_database(template)
    await ask(first, "INSERT INTO t VALUES (1)")
    assert [await ask(url, "SELECT count(*) FROM t") for url in (first, second, template)] == [1, 0, 0]


async def test_server_is_a_current_one(postgres):
    assert int(await ask(postgres.new_database(), "SHOW server_version_num")) >= 180000


async def test_server_is_gone_after_its_block():
    with PostgresServer() as server:
        folder, pid = server.folder, server.pid
        connection = await asyncpg.connect(server.new_database().replace("+asyncpg", ""))
        children = psutil.Process(pid).children()
        assert children
    assert not folder.exists()
    assert not psutil.pid_exists(pid)
    assert not any(child.is_running() for child in children)
    connection.terminate()


def test_server_is_gone_after_its_run_was_killed():
    with subprocess.Popen([sys.executable, "-c", RUN], cwd=ROOT, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout
        folder, pid = run.stdout.readline().split()
        assert psutil.pid_exists(int(pid))
        run.send_signal(signal.SIGKILL)
    wait_until_gone(int(pid), Path(folder))


def test_server_that_cannot_start_says_why():
    with PostgresServer() as server, pytest.raises(PostgresFailed, match="already exists"):
        server._run("psql", "--host", server.folder, "--username=postgres", "--command", "CREATE DATABASE postgres")
