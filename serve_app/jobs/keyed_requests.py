"""Requests that are found by the idempotency keys under which this service itself has sent them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from serve_app.jobs import tables
from serve_app.jobs.database import Database, transaction
from serve_app.tasks import Status

# How many keys are looked up in one statement.
KEYS_AT_ONCE = 500

_requests = tables.requests.c


@dataclass(frozen=True)
class KeyedRequest:
    """A request with an idempotency key. `purged`: its image was deleted."""

    id: str
    status: Status
    purged: bool

    @property
    def gives_no_image(self) -> bool:
        """Whether it will have no image."""
        return self.purged or self.status in (Status.FAILED, Status.CANCELED)


class KeyedRequests:
    """Every public method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @transaction
    async def find(self, tenant: str, keys: Iterable[str]) -> dict[str, KeyedRequest]:
        """The requests of a tenant that have these keys, by key."""
        found: dict[str, KeyedRequest] = {}
        async with self._database.reading() as connection:
            for some in _batches(list(keys)):
                these = sa.select(_requests.idempotency_key, _requests.id, _requests.status, _requests.purged).where(
                    _requests.tenant == tenant, _requests.idempotency_key.in_(some)
                )
                for row in await connection.execute(these):
                    found[row.idempotency_key] = KeyedRequest(row.id, Status(row.status), row.purged)
        return found


def _batches(keys: Sequence[str]) -> Iterator[Sequence[str]]:
    return (keys[start : start + KEYS_AT_ONCE] for start in range(0, len(keys), KEYS_AT_ONCE))
