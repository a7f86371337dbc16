"""The drill's view of the job database: states and owners of images, their changes, and connections in use."""

import asyncio
import json
import time
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Self

import asyncpg

POLL_S = 0.1
# The application name of the drill's own connections, so that it does not end them.
OWN_NAME = "drill"

IMAGES = """
SELECT plan ->> 'negative_prompt' AS image, state, status, owner, generation, step FROM images
"""
# Finds and ends a connection in one statement, so that nothing happens in between.
END_ONE_IN_USE = """
SELECT pid, state, query FROM (
    SELECT pid, state, left(query, 60) AS query FROM pg_stat_activity
    WHERE datname = current_database() AND backend_type = 'client backend' AND application_name <> $1
        AND state IN ('active', 'idle in transaction') AND query ILIKE '%images%'
    ORDER BY random() LIMIT 1
) AS victim WHERE pg_terminate_backend(pid)
"""
REASONS = "SELECT plan ->> 'negative_prompt' AS image, reasons FROM images WHERE json_array_length(reasons) > 0"
# Transactions of an address that lock the queue's row of a model, as a claim and a POST do.
HOLDING_A_LINE = """
SELECT true FROM pg_stat_activity AS activity JOIN pg_locks AS locks USING (pid)
WHERE activity.client_addr = $1 AND activity.state = 'idle in transaction'
    AND locks.relation = 'lines'::regclass AND locks.mode IN ('RowShareLock', 'RowExclusiveLock')
"""


@dataclass(frozen=True)
class Seen:
    """One state of an image's row, and when the drill first saw it (seconds since the epoch)."""

    at: float
    image: str
    state: str
    status: str
    owner: str | None
    generation: int
    step: int

    @property
    def owner_pid(self) -> int | None:
        """The process id of the ingress that has claimed it."""
        return _pid(self.owner) if self.owner else None

    @property
    def is_running(self) -> bool:
        return self.state == "claimed" and self.status == "in_progress"


@dataclass(frozen=True)
class Connection:
    """A connection of the service that the drill has ended."""

    pid: int
    state: str
    query: str


class Store:
    """`async with Store(url) as store`; `await store.look()`, or `follow` in a task."""

    def __init__(self, url: str) -> None:
        self._url = url.replace("+asyncpg", "")
        self.history: dict[str, list[Seen]] = {}

    async def __aenter__(self) -> Self:
        self._connection = await asyncpg.connect(self._url, server_settings={"application_name": OWN_NAME})
        # A connection carries one statement at a time.
        self._turn = asyncio.Lock()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._connection.close()

    async def follow(self) -> None:
        """Record every change until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(POLL_S)

    async def look(self) -> dict[str, Seen]:
        """Read the current state of every image, and record changes."""
        async with self._turn:
            rows = await self._connection.fetch(IMAGES)
        now = time.time()
        for row in rows:
            seen = Seen(now, *row.values())
            history = self.history.setdefault(seen.image, [])
            if not history or _less_time(history[-1]) != _less_time(seen):
                history.append(seen)
        return self.latest()

    def latest(self) -> dict[str, Seen]:
        """The state of every image at the last look."""
        return {image: history[-1] for image, history in self.history.items()}

    async def running(self) -> tuple[str, ...]:
        """The images that editors work on, according to the database."""
        return tuple(image for image, seen in (await self.look()).items() if seen.is_running)

    async def end_one_in_use(self) -> Connection | None:
        """End one connection of the service that is in a transaction on images. None if there is none."""
        async with self._turn:
            row = await self._connection.fetchrow(END_ONE_IN_USE, OWN_NAME)
        return Connection(*row.values()) if row else None

    async def holds_a_line(self, address: str) -> bool:
        """Whether an open transaction of this address locks the queue's row of a model and waits for its client."""
        async with self._turn:
            return bool(await self._connection.fetchval(HOLDING_A_LINE, ip_address(address)))

    async def claims(self) -> dict[int, int]:
        """How many images each ingress has claimed, by its process id."""
        async with self._turn:
            rows = await self._connection.fetch("SELECT owner, count(*) FROM images WHERE state = 'claimed' GROUP BY 1")
        return {_pid(owner): images for owner, images in rows}

    async def unfinished(self) -> list[str]:
        """The ids of requests that have not ended."""
        async with self._turn:
            rows = await self._connection.fetch("SELECT id FROM requests WHERE finished_at IS NULL")
        return [row["id"] for row in rows]

    async def reasons(self) -> dict[str, list[str]]:
        """Reasons of lost attempts, for the images that had any."""
        async with self._turn:
            rows = await self._connection.fetch(REASONS)
        return {image: json.loads(reasons) for image, reasons in rows}

    async def counts(self) -> tuple[int, int]:
        """Number of requests in the database, and number of images booked as made."""
        async with self._turn:
            requests = await self._connection.fetchval("SELECT count(*) FROM requests")
            images = await self._connection.fetchval("SELECT coalesce(sum(images), 0) FROM usage")
        return int(requests), int(images)


def _pid(owner: str) -> int:
    """The process id in an owner's name, which is host:pid:..."""
    return int(owner.split(":")[1])


def _less_time(seen: Seen) -> tuple[object, ...]:
    return (seen.state, seen.status, seen.owner, seen.generation, seen.step)
