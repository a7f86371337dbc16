"""Clients that hold a connection open until their request ends, and repeat the call by themselves if it is lost.

A request counts its clients: the one that made it, each repeat that was attached to it, and those that left. When the
last one has hung up, the request is abandoned. Nobody fetches its result then, so it is cancelled after a while, unless
a repeat comes first. All of this is in the database: a repeat may reach another ingress, and any ingress cancels.
"""

from typing import Any

import sqlalchemy as sa

from serve_app.jobs import state_changes, tables
from serve_app.jobs.database import Database, transaction
from serve_app.jobs.records import WaitingClient
from serve_app.jobs.state_changes import UNFINISHED
from serve_app.tasks import Status

# How long after the last client has hung up its request is cancelled (s). Clients repeat a call within 10 s.
ABANDONED_S = 30.0
# For how long after its end a request is the answer to a repeat of its call (s).
REPEATABLE_S = 1800.0

_requests = tables.requests.c


class WaitingClients:
    """Every public method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @transaction
    async def attach(self, tenant: str, call_sha256: str) -> WaitingClient | None:
        """Attach a repeat of a call to the newest request that the call made.

        None if there is none that is under way or succeeded within the last REPEATABLE_S. A request that failed or was
        cancelled is not repeated: the repeat is a new try.
        """
        is_answer = sa.or_(
            _requests.status.in_(UNFINISHED),
            sa.and_(
                _requests.status == Status.SUCCEEDED,
                _requests.finished_at >= tables.now() - REPEATABLE_S,
                sa.not_(_requests.purged),
            ),
        )
        newest = (
            sa.select(_requests.id)
            .where(_requests.tenant == tenant, _requests.call_sha256 == call_sha256, is_answer)
            .order_by(_requests.created_at.desc(), _requests.id.desc())
            .limit(1)
        )
        attach = (
            tables.requests.update()
            # It may have been cancelled since it was chosen: the condition is checked again on its locked row.
            .where(_requests.id == newest.scalar_subquery(), is_answer)
            .values(attachments=_requests.attachments + 1, abandoned_at=None)
            .returning(_requests.id, _requests.attachments)
        )
        async with self._database.writing() as connection:
            row = (await connection.execute(attach)).one_or_none()
        return None if row is None else WaitingClient(row.id, row.attachments)

    @transaction
    async def leave(self, client: WaitingClient, *, hung_up: bool) -> None:
        """Record that a client of an unfinished request no longer waits.

        `hung_up` says that it was lost before it got any answer. The last client that leaves so abandons the request.
        """
        unfinished = sa.and_(_requests.id == client.request_id, _requests.status.in_(UNFINISHED))
        counts = sa.select(_requests.attachments, _requests.departed).where(unfinished).with_for_update()
        async with self._database.writing() as connection:
            row = (await connection.execute(counts)).one_or_none()
            if row is None:
                return
            # Numbers, not a count: this transaction may run twice.
            departed = sorted({*(row.departed or ()), client.number})
            is_abandoned = hung_up and len(departed) > row.attachments
            await connection.execute(
                tables.requests.update()
                .where(unfinished)
                .values(departed=departed, abandoned_at=tables.now() if is_abandoned else None)
            )

    @transaction
    async def cancel_abandoned(self) -> dict[str, str]:
        """Cancel the requests that were abandoned more than ABANDONED_S ago. Returns the model of each, by its id."""
        is_abandoned: sa.ColumnElement[bool] = _requests.abandoned_at < tables.now() - ABANDONED_S
        abandoned: sa.Select[Any] = sa.select(_requests.id, _requests.model).where(is_abandoned)
        async with self._database.reading() as connection:
            rows = (await connection.execute(abandoned)).all()
        models = {}
        for row in rows:
            # A client may have attached itself meanwhile; once the row is locked, none can.
            locked = (
                tables.requests.update()
                .where(_requests.id == row.id, is_abandoned)
                .values(abandoned_at=None)
                .returning(_requests.id)
            )
            async with self._database.writing() as connection:
                if (await connection.execute(locked)).first() is None:
                    continue
                if await state_changes.end_unfinished(connection, row.id, Status.CANCELED):
                    models[row.id] = row.model
        return models
