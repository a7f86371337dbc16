"""The queue of webhooks. Any process may take those that are due, and each is posted at least once."""

from collections.abc import Collection
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles

from serve_app.jobs import tables
from serve_app.jobs.database import Database, transaction
from serve_app.jobs.records import Delivery, WebhookTarget

_deliveries = tables.deliveries.c
_is_due = _deliveries.due_at <= tables.now()
_any_due = sa.select(_deliveries.id).where(_is_due).limit(1)


class host_of(sa.sql.functions.FunctionElement[str]):
    """The host and port of an http(s) URL, in lower case: the part between its second and third slash."""

    type = sa.Text()
    inherit_cache = True


@compiles(host_of, "postgresql")
def _host_of_postgresql(element: host_of, compiler: Any, **options: Any) -> str:
    return f"lower(split_part({compiler.process(element.clauses, **options)}, '/', 3))"


@compiles(host_of, "sqlite")
def _host_of_sqlite(element: host_of, compiler: Any, **options: Any) -> str:
    url = compiler.process(element.clauses, **options)
    after = f"substr({url}, instr({url}, '://') + 3)"
    return f"lower(substr({after}, 1, instr({after} || '/', '/') - 1))"


def _due_ids(limit: int, per_host: int, except_hosts: Collection[str]) -> sa.Select[tuple[str]]:
    """The ids of the deliveries to take next: the oldest of each host, then the second of each, and so on."""
    host = host_of(tables.requests.c.webhook["url"].as_string())
    due = (
        sa.select(
            _deliveries.id,
            _deliveries.due_at,
            sa.func.row_number().over(partition_by=host, order_by=_deliveries.due_at).label("place"),
        )
        .join(tables.requests, tables.requests.c.id == _deliveries.request_id)
        .where(_is_due, host.not_in(except_hosts))
        .subquery()
    )
    return sa.select(due.c.id).where(due.c.place <= per_host).order_by(due.c.place, due.c.due_at).limit(limit)


class WebhookQueue:
    """Deliveries in the job database. Every public method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @transaction
    async def take(
        self, limit: int, lease_s: float, per_host: int, except_hosts: Collection[str] = ()
    ) -> list[Delivery]:
        """Take up to `limit` deliveries that are due, up to `per_host` for each host, none for `except_hosts`.

        Hosts are those of `host_of`. The oldest delivery of every host comes before the second of any host. A delivery
        whose outcome is not recorded within `lease_s` is due again.
        """
        async with self._database.reading() as connection:
            if (await connection.execute(_any_due)).first() is None:
                return []
            chosen = list((await connection.execute(_due_ids(limit, per_host, except_hosts))).scalars())
        if not chosen:
            return []
        async with self._database.writing() as connection:
            # Another process may have taken the same ones meanwhile.
            still_due = sa.select(_deliveries.id).where(_deliveries.id.in_(chosen), _is_due)
            ids = list((await connection.execute(still_due.with_for_update(skip_locked=True))).scalars())
            await connection.execute(
                tables.deliveries.update()
                .where(_deliveries.id.in_(ids))
                .values(due_at=tables.now() + lease_s, attempts=_deliveries.attempts + 1)
            )
            rows = await connection.execute(
                sa.select(tables.deliveries, tables.requests.c.webhook, tables.requests.c.traceparent)
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
                WebhookTarget(row.webhook["url"], tuple(row.webhook["events"]), row.webhook["base_url"]),
                row.traceparent,
            )
            for row in rows
        ]

    @transaction
    async def delivered(self, delivery_id: str) -> None:
        """Record that the receiver accepted a delivery."""
        await self._set(delivery_id, due_at=None, delivered_at=tables.now(), error=None)

    @transaction
    async def failed(self, delivery_id: str, error: str, again_in_s: float | None) -> None:
        """Record why a delivery failed, and after how many seconds to try it again (None: never)."""
        await self._set(delivery_id, error=error, due_at=None if again_in_s is None else tables.now() + again_in_s)

    async def _set(self, delivery_id: str, **values: object) -> None:
        async with self._database.writing() as connection:
            await connection.execute(tables.deliveries.update().where(_deliveries.id == delivery_id).values(**values))
