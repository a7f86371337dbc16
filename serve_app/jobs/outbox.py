"""Webhooks to be delivered: at least once each, by whichever process comes first."""

import sqlalchemy as sa

from serve_app.jobs import tables
from serve_app.jobs.database import Database, transaction
from serve_app.jobs.records import Delivery, Webhook

_deliveries = tables.deliveries.c


class Outbox:
    def __init__(self, database: Database) -> None:
        self._database = database

    @transaction
    async def take(self, limit: int, lease_s: float) -> list[Delivery]:
        """Those that are due. Whoever takes one has `lease_s` to say what became of it; then it is due again."""
        due = sa.select(_deliveries.id).where(_deliveries.due_at <= tables.now())
        async with self._database.reading() as connection:
            if (await connection.execute(due.limit(1))).first() is None:
                return []
        async with self._database.writing() as connection:
            oldest = due.order_by(_deliveries.due_at).limit(limit).with_for_update(skip_locked=True)
            ids = list((await connection.execute(oldest)).scalars())
            await connection.execute(
                tables.deliveries.update()
                .where(_deliveries.id.in_(ids))
                .values(due_at=tables.now() + lease_s, attempts=_deliveries.attempts + 1)
            )
            rows = await connection.execute(
                sa.select(tables.deliveries, tables.requests.c.webhook)
                .join(tables.requests, tables.requests.c.id == _deliveries.request_id)
                .where(_deliveries.id.in_(ids))
                .order_by(_deliveries.created_at)
            )
        return [
            Delivery(
                row.id,
                row.request_id,
                row.event,
                row.image_index,
                row.created_at,
                row.attempts,
                Webhook(row.webhook["url"], tuple(row.webhook["events"]), row.webhook["base_url"]),
            )
            for row in rows
        ]

    @transaction
    async def delivered(self, delivery_id: str) -> None:
        await self._set(delivery_id, due_at=None, delivered_at=tables.now(), error=None)

    @transaction
    async def failed(self, delivery_id: str, error: str, again_in_s: float | None) -> None:
        """Note why a delivery failed, and when it is to be tried again, if at all."""
        await self._set(delivery_id, error=error, due_at=None if again_in_s is None else tables.now() + again_in_s)

    async def _set(self, delivery_id: str, **values: object) -> None:
        async with self._database.writing() as connection:
            await connection.execute(tables.deliveries.update().where(_deliveries.id == delivery_id).values(**values))
