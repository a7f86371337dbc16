"""The job store: the one owner of every request's state."""

import os
import socket
import uuid

import sqlalchemy as sa

from serve_app.config import JobsConfig
from serve_app.jobs import tables
from serve_app.jobs.database import Database, transaction
from serve_app.jobs.queue import Queue
from serve_app.jobs.requests import Requests
from serve_app.jobs.retention import Retention
from serve_app.jobs.webhook_queue import WebhookQueue


def owner_name() -> str:
    """A name for who holds claims or a duty: host and process for people who look into the database, and a draw."""
    return f"{socket.gethostname()[:64]}:{os.getpid()}:{uuid.uuid4().hex}"


class JobStore:
    """Its parts share one database. `open` it and `close` it within one event loop."""

    def __init__(self, config: JobsConfig) -> None:
        self._database = Database(config.database_url)
        self.requests = Requests(self._database, config)
        self.queue = Queue(self._database, config)
        self.webhooks = WebhookQueue(self._database)
        self.retention = Retention(self._database)

    @transaction
    async def open(self) -> None:
        """Raises StoreUnavailable."""
        await self._database.open()

    async def close(self) -> None:
        await self._database.close()

    @transaction
    async def take_duty(self, name: str, owner: str, seconds: float) -> bool:
        """Whether `owner` has the duty `name` for so long: nobody else has it, or had it and is late."""
        new = self._database.insert(tables.duties).values(name=name, owner=owner, until=tables.now() + seconds)
        duties = tables.duties.c
        free = sa.or_(duties.owner == owner, duties.until < tables.now())
        take = new.on_conflict_do_update(
            index_elements=["name"], set_={"owner": owner, "until": new.excluded.until}, where=free
        ).returning(duties.name)
        async with self._database.writing() as connection:
            return (await connection.execute(take)).first() is not None
