"""Deletes requests that are too old or take too much space, and files that nothing needs."""

from collections.abc import Callable, Sequence
from functools import partial

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from serve_app.jobs import state_changes, tables
from serve_app.jobs.database import Database, transaction
from serve_app.jobs.new_rows import json_bytes
from serve_app.jobs.sweeps.store import requests_of
from serve_app.jobs.uploads import check_upload_id, upload_not_found

# Deletes files in artifact storage, by key. Blocks.
Delete = Callable[[Sequence[str]], None]

_requests, _files, _uploads = tables.requests.c, tables.request_files.c, tables.uploads.c


class Retention:
    """Every public method is one transaction.

    A request needs its files, a sweep those of its cells, and an upload that has not expired needs its own. Files are
    deleted inside the transaction that finds that nothing needs them. Until it ends, nothing that needs one of them can
    be committed.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    @transaction
    async def ended_before(self, seconds: float, limit: int) -> list[str]:
        """The ids of up to `limit` requests that ended more than `seconds` ago, the oldest first.

        The requests of sweeps are deleted with their sweep.
        """
        of_sweep = sa.exists().where(tables.sweep_cells.c.request_id == _requests.id)
        old = (
            sa.select(_requests.id)
            .where(_requests.finished_at < tables.now() - seconds, sa.not_(of_sweep))
            .order_by(_requests.finished_at)
            .limit(limit)
        )
        async with self._database.reading() as connection:
            return list((await connection.execute(old)).scalars())

    @transaction
    async def over_size(self, max_bytes: int, limit: int) -> list[str]:
        """The ids of up to `limit` ended requests, oldest first, to delete so that files and rows fit `max_bytes`."""
        each = sa.select(sa.func.max(_files.size_bytes).label("size")).group_by(_files.key).subquery()
        of_files = sa.select(sa.func.coalesce(sa.func.sum(each.c.size), 0)).scalar_subquery()
        of_rows = sa.select(sa.func.coalesce(sa.func.sum(_requests.row_bytes), 0)).scalar_subquery()
        own = sa.select(sa.func.coalesce(sa.func.sum(_files.size_bytes), 0)).where(_files.request_id == _requests.id)
        oldest = (
            sa.select(_requests.id, (sa.func.coalesce(_requests.row_bytes, 0) + own.scalar_subquery()).label("size"))
            .where(_requests.finished_at.is_not(None))
            .order_by(_requests.finished_at)
            .limit(limit)
        )
        async with self._database.reading() as connection:
            surplus = int((await connection.execute(sa.select(of_files + of_rows))).scalar_one()) - max_bytes
            rows = (await connection.execute(oldest)).all() if surplus > 0 else []
        chosen = []
        for row in rows:
            if surplus <= 0:
                break
            chosen.append(row.id)
            surplus -= int(row.size)
        return chosen

    @transaction
    async def delete_requests(self, request_ids: Sequence[str], delete: Delete) -> None:
        """Delete ended requests, and the files that no other request needs."""
        async with self._database.deleting_files() as connection:
            keys = await self._files_of(connection, request_ids)
            ended = sa.and_(_requests.id.in_(request_ids), _requests.finished_at.is_not(None))
            await connection.execute(tables.requests.delete().where(ended))
            await self._delete_unneeded(connection, keys, delete)

    @transaction
    async def purge(self, request_id: str, delete: Delete) -> None:
        """Delete the files of an ended request that no other request needs, and its images from its record."""
        async with self._database.deleting_files() as connection:
            keys = await self._files_of(connection, [request_id])
            await connection.execute(tables.request_files.delete().where(_files.request_id == request_id))
            await self._forget_results(connection, request_id)
            await connection.execute(tables.requests.update().where(_requests.id == request_id).values(purged=True))
            await self._delete_unneeded(connection, keys, delete)

    @transaction
    async def delete_upload(self, sha256: str, tenant: str, delete: Delete) -> None:
        """Delete an upload that has not expired, and its file if nothing else needs it. Raises UploadNotFound."""
        check_upload_id(sha256)
        this = sa.and_(_uploads.tenant == tenant, _uploads.sha256 == sha256, _uploads.expires_at > tables.now())
        async with self._database.deleting_files() as connection:
            deleted = await connection.execute(tables.uploads.delete().where(this).returning(_uploads.key))
            key = deleted.scalar_one_or_none()
            if key is None:
                raise upload_not_found(sha256)
            await self._delete_unneeded(connection, [key], delete)

    @transaction
    async def delete_unneeded(self, keys: Sequence[str], delete: Delete) -> None:
        """Delete those of these files that nothing needs."""
        async with self._database.deleting_files() as connection:
            await self._delete_unneeded(connection, keys, delete)

    @transaction
    async def unneeded(self, keys: Sequence[str]) -> list[str]:
        """Those of these files that nothing needs at this moment."""
        async with self._database.reading() as connection:
            return await self._unneeded(connection, keys)

    @transaction
    async def unfinished(self, request_ids: Sequence[str]) -> list[str]:
        """Those of these requests that have not ended."""
        live = sa.select(_requests.id).where(_requests.id.in_(request_ids), _requests.finished_at.is_(None))
        async with self._database.reading() as connection:
            return list((await connection.execute(live)).scalars())

    @transaction
    async def delete_sweep(self, sweep_id: str, seconds: float, delete: Delete) -> list[str]:
        """Delete a sweep that ended more than `seconds` ago, and the files that nothing else needs.

        Returns the ids of its requests, which are left to the caller: nobody can make the sweep go on any more. None of
        a sweep that was resumed or extended meanwhile.
        """
        of_sweep = tables.sweep_files.c.sweep_id == sweep_id
        is_old = sa.and_(tables.sweeps.c.id == sweep_id, tables.sweeps.c.ended_at < tables.now() - seconds)
        async with self._database.deleting_files() as connection:
            request_ids = await requests_of(connection, sweep_id)
            keys = list((await connection.execute(sa.select(tables.sweep_files.c.key).where(of_sweep))).scalars())
            deleted = await connection.execute(tables.sweeps.delete().where(is_old).returning(tables.sweeps.c.id))
            if deleted.first() is None:
                return []
            await self._delete_unneeded(connection, keys, delete)
        return request_ids

    @transaction
    async def purge_sweep(self, sweep_id: str, delete: Delete) -> None:
        """Delete the files that a sweep needs and nothing else does. Its requests are purged one by one."""
        of_sweep = tables.sweep_files.c.sweep_id == sweep_id
        async with self._database.deleting_files() as connection:
            keys = list((await connection.execute(sa.select(tables.sweep_files.c.key).where(of_sweep))).scalars())
            await connection.execute(tables.sweep_files.delete().where(of_sweep))
            await self._delete_unneeded(connection, keys, delete)

    async def _forget_results(self, connection: AsyncConnection, request_id: str) -> None:
        of_request, result = tables.images.c.request_id == request_id, tables.images.c.result
        results = (await connection.execute(sa.select(result).where(of_request))).scalars()
        size_bytes = sum(json_bytes(each) for each in results if each is not None)
        await connection.execute(tables.images.update().where(of_request).values(result=None))
        await state_changes.add_row_bytes(connection, request_id, -size_bytes)

    async def _files_of(self, connection: AsyncConnection, request_ids: Sequence[str]) -> list[str]:
        of_requests = sa.select(_files.key).where(_files.request_id.in_(request_ids)).distinct()
        return list((await connection.execute(of_requests)).scalars())

    async def _delete_unneeded(self, connection: AsyncConnection, keys: Sequence[str], delete: Delete) -> None:
        if unneeded := await self._unneeded(connection, keys):
            await self._database.delete_files(partial(delete, unneeded))

    async def _unneeded(self, connection: AsyncConnection, keys: Sequence[str]) -> list[str]:
        of_requests = sa.select(_files.key).where(_files.key.in_(keys))
        of_uploads = sa.select(_uploads.key).where(_uploads.key.in_(keys), _uploads.expires_at > tables.now())
        of_sweeps = sa.select(tables.sweep_files.c.key).where(tables.sweep_files.c.key.in_(keys))
        needed = set((await connection.execute(of_requests.union(of_uploads, of_sweeps))).scalars())
        return [key for key in keys if key not in needed]
