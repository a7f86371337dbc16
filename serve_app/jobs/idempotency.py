"""Idempotency keys: the row that an earlier call with the same key has made."""

import sqlalchemy as sa

from serve_app.errors import IdempotencyConflict
from serve_app.jobs.database import Database


async def id_by_key(
    database: Database, table: sa.Table, what: str, tenant: str, key: str, body_sha256: str | None
) -> str | None:
    """The id in `table` that a tenant's call with this key has made, if any.

    Raises IdempotencyConflict, which names the row as `what`, if the body of that call was another one.
    """
    columns = table.c
    with_key = sa.select(columns.id, columns.body_sha256).where(
        columns.tenant == tenant, columns.idempotency_key == key
    )
    async with database.reading() as connection:
        row = (await connection.execute(with_key)).one_or_none()
    if row is None:
        return None
    if row.body_sha256 != body_sha256:
        raise IdempotencyConflict(
            f"this Idempotency-Key was used for a {what} with another body", {f"{what}_id": row.id}
        )
    return str(row.id)
