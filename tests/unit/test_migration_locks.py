"""A migration under a running version of the service gives way to its transactions, and is made in the end."""

import asyncio

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from serve_app.jobs.database import MIGRATIONS, Database

IMAGES = sa.text("SELECT count(*) FROM images")


def make_old(connection: sa.Connection) -> None:
    """The tables of the first release."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    command.upgrade(config, "0002")


@pytest.fixture
async def old(postgres):
    """A database with the tables of the first release."""
    database = Database(postgres.new_database())
    async with database.writing() as connection:
        await connection.run_sync(make_old)
    yield database
    await database.close()


async def columns(database: Database) -> set[str]:
    async with database.reading() as connection:
        return await connection.run_sync(lambda it: {column["name"] for column in sa.inspect(it).get_columns("images")})


async def test_others_use_a_table_while_a_migration_waits_for_it(old):
    async with asyncio.timeout(30), old.writing() as working:
        await working.execute(IMAGES)
        migrating = asyncio.create_task(old.open())
        for _ in range(4):
            # Each would wait for the migration, and that for `working`, which never ends before them.
            async with old.writing() as other:
                await other.execute(sa.text("LOCK TABLE images IN ROW EXCLUSIVE MODE"))
            await asyncio.sleep(0.3)
        assert not migrating.done()
    await asyncio.wait_for(migrating, 30)
    assert "error_code" in await columns(old)


async def test_of_a_transaction_and_a_migration_that_wait_for_each_other_the_transaction_succeeds(old):
    async with asyncio.timeout(30), old.writing() as working:
        await working.execute(IMAGES)
        migrating = asyncio.create_task(old.open())
        async with old.reading() as looking:
            # Until the migration has changed one table and waits for the other.
            waits = sa.text("SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'images'::regclass")
            while not (await looking.execute(waits)).scalar():
                await asyncio.sleep(0.01)
        await working.execute(sa.text("SELECT count(*) FROM requests"))
        assert not migrating.done()
    await asyncio.wait_for(migrating, 30)
    assert "error_code" in await columns(old)
