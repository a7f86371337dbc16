"""Uploads: control images that tenants have sent ahead of their requests, and how much of them a tenant may have."""

import re
from collections.abc import Collection
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from pydantic import TypeAdapter
from sqlalchemy.ext.asyncio import AsyncConnection

from serve_app.config import JobsConfig
from serve_app.errors import FilesGone, UploadNotFound, UploadQuotaExceeded
from serve_app.images.decode import ImageFacts
from serve_app.jobs import tables
from serve_app.jobs.database import Database, IsStored, transaction
from serve_app.jobs.records import NewUpload, Upload

# The form of an upload's id.
SHA256 = re.compile("[0-9a-f]{64}")

_uploads = tables.uploads.c
_facts = TypeAdapter(dict[str, ImageFacts])


class Uploads:
    """The uploads in the job database, by tenant and digest. An expired one counts as if it was not there.

    Every public method is one transaction.
    """

    def __init__(self, database: Database, config: JobsConfig) -> None:
        self._database = database
        self._keep_s = config.upload_keep_s

    @transaction
    async def create(self, new: NewUpload, is_stored: IsStored, tenant_max: int | None = None) -> Upload:
        """Keep an upload whose file is in artifact storage; one that is there already is kept for longer.

        With it, the uploads of its tenant may have at most `tenant_max` bytes. Raises UploadQuotaExceeded; FilesGone if
        its file was deleted before the commit, when nothing needed it yet; StorageFailed.
        """
        async with self._database.writing() as connection:
            await self._database.lock_file_references(connection)
            await self._database.lock_uploads(connection, new.tenant)
            if not await self._database.read_storage(lambda: is_stored(new.key)):
                raise FilesGone("the file of this upload was deleted meanwhile; send it again")
            await self._refuse_when_full(connection, new, tenant_max)
            return await self._insert(connection, new)

    @transaction
    async def refuse_when_full(self, new: NewUpload, tenant_max: int | None = None) -> None:
        """Raise UploadQuotaExceeded if `create` would raise it now. To be called before the file is stored."""
        async with self._database.reading() as connection:
            await self._refuse_when_full(connection, new, tenant_max)

    @transaction
    async def get(self, sha256: str, tenant: str) -> Upload:
        """Raises UploadNotFound."""
        check_upload_id(sha256)
        found = await self._find([sha256], tenant)
        if sha256 not in found:
            raise upload_not_found(sha256)
        return found[sha256]

    @transaction
    async def find(self, sha256s: Collection[str], tenant: str | None) -> dict[str, Upload]:
        """Those of these uploads that there are, by digest. With a `tenant`, only its own."""
        return await self._find(sha256s, tenant)

    @transaction
    async def delete_expired(self, limit: int) -> list[str]:
        """Forget up to `limit` expired uploads, and return the keys of their files, which are left to the caller."""
        is_expired = _uploads.expires_at <= tables.now()
        some = sa.select(_uploads.tenant, _uploads.sha256).where(is_expired).limit(limit)
        # The condition once more: an upload that is sent again at this moment is not expired any more.
        these = sa.and_(sa.tuple_(_uploads.tenant, _uploads.sha256).in_(some), is_expired)
        async with self._database.writing() as connection:
            return list(
                (await connection.execute(tables.uploads.delete().where(these).returning(_uploads.key))).scalars()
            )

    async def _refuse_when_full(self, connection: AsyncConnection, new: NewUpload, tenant_max: int | None) -> None:
        if tenant_max is None:
            return
        mine = sa.and_(_uploads.tenant == new.tenant, _uploads.expires_at > tables.now())
        others = sa.select(
            sa.func.coalesce(sa.func.sum(_uploads.size_bytes), 0).label("size"),
            sa.func.min(_uploads.expires_at).label("first_end"),
            sa.func.count().filter(_uploads.sha256 == new.sha256).label("repeats"),
        ).where(mine)
        row = (await connection.execute(others)).one()
        if row.repeats or row.size + new.size_bytes <= tenant_max:
            return
        details: dict[str, Any] = {"used": int(row.size), "sent": new.size_bytes, "limit": tenant_max}
        wait = ""
        if row.first_end is not None:
            first_end = datetime.fromtimestamp(row.first_end, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
            details |= {"first_expires_at": first_end}
            wait = f"wait until one of them expires, the first at {first_end}, or "
        raise UploadQuotaExceeded(
            f"your uploads have {row.size} bytes, this one has {new.size_bytes}, and the limit is {tenant_max}: delete "
            f"some with DELETE /v1/uploads/{{id}}, {wait}send the image within its request",
            details,
        )

    async def _insert(self, connection: AsyncConnection, new: NewUpload) -> Upload:
        now = (await connection.execute(sa.select(tables.now()))).scalar_one()
        values = asdict(new) | {"created_at": now, "expires_at": now + self._keep_s}
        insert = self._database.insert(tables.uploads).values(values)
        longer = {name: getattr(insert.excluded, name) for name in ("key", "facts", "expires_at")}
        keep = insert.on_conflict_do_update(index_elements=["tenant", "sha256"], set_=longer).returning(*_uploads)
        return _record((await connection.execute(keep)).one())

    async def _find(self, sha256s: Collection[str], tenant: str | None) -> dict[str, Upload]:
        found = tables.uploads.select().where(_uploads.sha256.in_(sha256s), _uploads.expires_at > tables.now())
        if tenant is not None:
            found = found.where(_uploads.tenant == tenant)
        async with self._database.reading() as connection:
            return {row.sha256: _record(row) for row in await connection.execute(found)}


def _record(row: sa.Row[Any]) -> Upload:
    return Upload(**dict(row._mapping) | {"facts": _facts.validate_python(row.facts)})


def check_upload_id(sha256: str) -> None:
    """Raise UploadNotFound if this cannot be an id. PostgreSQL refuses some strings, such as those with NUL."""
    if not SHA256.fullmatch(sha256):
        raise upload_not_found(sha256)


def upload_not_found(sha256: str) -> UploadNotFound:
    return UploadNotFound(f"there is no upload {sha256!r}, or it has expired", {"upload_id": sha256})
