"""The job store: the one owner of every request's state."""

import os
import socket
import uuid

import sqlalchemy as sa

from serve_app.config import JobsConfig
from serve_app.jobs import tables
from serve_app.jobs.calibrations import Calibrations
from serve_app.jobs.database import Database, transaction
from serve_app.jobs.keyed_requests import KeyedRequests
from serve_app.jobs.limits.rates import Rates
from serve_app.jobs.queue import Queue
from serve_app.jobs.requests import Requests
from serve_app.jobs.retention import Retention
from serve_app.jobs.sweeps.queue import SweepQueue
from serve_app.jobs.sweeps.store import Sweeps
from serve_app.jobs.uploads import Uploads
from serve_app.jobs.waiting_clients import WaitingClients
from serve_app.jobs.webhook_queue import WebhookQueue


def owner_name() -> str:
    """A unique name for a holder of claims or a duty. Host and process are for people who look into the database."""
    return f"{socket.gethostname()[:64]}:{os.getpid()}:{uuid.uuid4().hex}"


class JobStore:
    """Its parts share one database. `open` it and `close` it within one event loop."""

    def __init__(self, config: JobsConfig) -> None:
        self._database = Database(config.database_url)
        self.requests = Requests(self._database, config)
        self.keyed = KeyedRequests(self._database)
        self.queue = Queue(self._database, config)
        self.webhooks = WebhookQueue(self._database)
        self.clients = WaitingClients(self._database)
        self.retention = Retention(self._database)
        self.rates = Rates(self._database)
        self.uploads = Uploads(self._database, config)
        self.sweeps = Sweeps(self._database)
        self.calibrations = Calibrations(self._database)
        self.sweep_queue = SweepQueue(self._database, self.requests)

    @transaction
    async def open(self) -> None:
        """Migrate the tables to this version. Raises StoreUnavailable."""
        await self._database.open()

    async def close(self) -> None:
        await self._database.close()

    @transaction
    async def now(self) -> float:
        """The time by the database's clock, in seconds since the epoch."""
        async with self._database.reading() as connection:
            return float((await connection.execute(sa.select(tables.now()))).scalar_one())

    @transaction
    async def take_duty(self, name: str, owner: str, seconds: float) -> bool:
        """Give the duty `name` to `owner` for `seconds`, and return True, unless another owner has it at the moment."""
        new = self._database.insert(tables.duties).values(name=name, owner=owner, until=tables.now() + seconds)
        duties = tables.duties.c
        free = sa.or_(duties.owner == owner, duties.until < tables.now())
        take = new.on_conflict_do_update(
            index_elements=["name"], set_={"owner": owner, "until": new.excluded.until}, where=free
        ).returning(duties.name)
        async with self._database.writing() as connection:
            return (await connection.execute(take)).first() is not None
