"""The sweeper deletes requests and sweeps that are past their retention, expired uploads, calibrations that are not
listed any more, losses that no longer hold, and files that nothing needs.

One process at a time has the duty. Even if two had it, nothing would be lost: a file is deleted inside a transaction in
which nothing needs it and no other transaction can add a reference to it (`Retention`). Such a transaction blocks
other writers, so each one is small.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence

from serve_app.concurrency.loops import every
from serve_app.config import JobsConfig, SweepsConfig
from serve_app.jobs.store import JobStore, owner_name
from serve_app.storage import artifact_keys
from serve_app.storage.artifacts import Artifacts
from serve_app.telemetry.metrics import FAILED, FINISHED, NO_METER, SWEEPS, SWEPT, Loop, Meter

logger = logging.getLogger(__name__)

DUTY = "sweeper"
# For how many periods a sweeper takes the duty: it keeps the duty if it is a little late, and is soon replaced if it
# dies.
DUTY_SWEEPS = 1.5
# How many requests, how many uploads, and how many files, are deleted in one transaction.
REQUESTS_AT_ONCE, UPLOADS_AT_ONCE, FILES_AT_ONCE = 20, 100, 100
# How many sweeps are looked up at a time.
SWEEPS_AT_ONCE = 20
# How many keys or ids are looked up in one statement.
LOOKUPS_AT_ONCE = 500
# A younger file may belong to a request that is not committed yet (s).
MIN_ORPHAN_AGE_S = 3600.0

# Marks the measured losses that hold now: `Calibrations.mark_current`. Raises StoreUnavailable.
MarkLosses = Callable[[], Awaitable[None]]


class Sweeper:
    """`run` until cancelled."""

    def __init__(
        self,
        store: JobStore,
        artifacts: Artifacts,
        config: JobsConfig,
        meter: Meter = NO_METER,
        keep_sweeps_s: float = SweepsConfig().keep_s,
        mark_losses: MarkLosses | None = None,
    ) -> None:
        """`keep_sweeps_s` is how long a sweep is kept after its end. Without `mark_losses`, no loss is deleted."""
        self._mark_losses = mark_losses
        self._keep_sweeps_s = keep_sweeps_s
        self._store = store
        self._artifacts = artifacts
        self._config = config
        self._meter = meter
        self._owner = owner_name()

    async def run(self) -> None:
        await every(self._config.sweep_s, self._counted_sweep, loop=Loop.SWEEPER, meter=self._meter)

    async def _counted_sweep(self) -> None:
        try:
            await self.sweep()
        except Exception:
            self._meter.record(SWEEPS, outcome=FAILED)
            raise

    async def sweep(self) -> None:
        """Delete everything that is due now, as long as this process has the duty. Raises ServiceError."""
        if not await self._has_duty():
            return
        retention, config = self._store.retention, self._config
        await self._delete_requests(lambda: retention.ended_before(config.keep_s, REQUESTS_AT_ONCE))
        await self._delete_requests(lambda: retention.over_size(config.keep_bytes, REQUESTS_AT_ONCE))
        await self._delete_sweeps()
        await self._delete_uploads()
        await self._delete_calibrations()
        for folder in artifact_keys.REFERRED_FOLDERS:
            await self._delete_orphans(folder)
        await self._delete_orphaned_records()
        await self._delete_leftover_previews()
        # Last: it looks up files in other storage, and if that fails, everything else has been deleted.
        await self._delete_losses()
        self._meter.record(SWEEPS, outcome=FINISHED)

    async def _has_duty(self) -> bool:
        return await self._store.take_duty(DUTY, self._owner, self._config.sweep_s * DUTY_SWEEPS)

    async def _delete_requests(self, find: Callable[[], Awaitable[list[str]]]) -> None:
        while await self._has_duty() and (ids := await find()):
            await self._delete_these(ids)

    async def _delete_these(self, ids: Sequence[str]) -> None:
        # The editors' records first: without the rows nothing names them. Ended requests do not need them.
        for request_id in ids:
            await asyncio.to_thread(self._artifacts.delete_folder, artifact_keys.records(request_id))
        keys: set[str] = set()
        # The files after the rows, since a request can have thousands. If the process dies here, the files are
        # orphans, which a later sweep deletes.
        await self._store.retention.delete_requests(ids, keys.update)
        self._meter.record(SWEPT, len(ids), what="requests")
        await self.delete_unneeded(sorted(keys))
        logger.info("deleted %s requests and up to %s of their files", len(ids), len(keys))

    async def _delete_sweeps(self) -> None:
        """Delete sweeps that are past their retention, and then their requests.

        If the process dies in between, these are requests like others, and are deleted as such.
        """
        keep_s, retention = self._keep_sweeps_s, self._store.retention
        while await self._has_duty() and (ids := await self._store.sweeps.ended_before(keep_s, SWEEPS_AT_ONCE)):
            for sweep_id in ids:
                request_ids = await retention.delete_sweep(sweep_id, keep_s, self._artifacts.delete)
                for batch in _batches(request_ids, REQUESTS_AT_ONCE):
                    await self._delete_these(batch)
                logger.info("deleted the sweep %s with %s requests", sweep_id, len(request_ids))

    async def _delete_uploads(self) -> None:
        while await self._has_duty() and (keys := await self._store.uploads.delete_expired(UPLOADS_AT_ONCE)):
            self._meter.record(SWEPT, len(keys), what="uploads")
            await self.delete_unneeded(sorted(set(keys)))
            logger.info("deleted %s uploads and up to as many files", len(keys))

    async def _delete_calibrations(self) -> None:
        if deleted := await self._store.calibrations.delete_old_runs():
            logger.info("deleted %s calibrations that had ended", deleted)

    async def _delete_losses(self) -> None:
        if self._mark_losses is None:
            return
        # Before the deletion: nobody has marked them while the service was stopped.
        await self._mark_losses()
        if deleted := await self._store.calibrations.delete_outdated(self._config.loss_keep_s):
            logger.info("deleted %s measured losses that no longer hold", deleted)

    async def delete_unneeded(self, keys: Sequence[str]) -> None:
        """Delete those of these files that nothing needs. Safe while new requests and uploads are committed.

        Raises StoreUnavailable and StorageFailed.
        """

        def delete(unneeded: Sequence[str]) -> None:
            self._artifacts.delete(unneeded)
            self._meter.record(SWEPT, len(unneeded), what="files")

        for batch in _batches(keys, FILES_AT_ONCE):
            await self._store.retention.delete_unneeded(batch, delete)

    async def _delete_orphans(self, folder: str) -> None:
        old = await asyncio.to_thread(self._artifacts.older_than, folder, MIN_ORPHAN_AGE_S)
        promised: set[str] | None = None
        for keys in _batches(old, LOOKUPS_AT_ONCE):
            if not await self._has_duty():
                return
            orphans = await self._store.retention.unneeded(keys)
            if orphans and folder == artifact_keys.IMAGES:
                if promised is None:
                    promised = await self._images_of_unfinished()
                orphans = [key for key in orphans if key not in promised]
            await self.delete_unneeded(orphans)
            if orphans:
                logger.info("deleted %s files in %s that no request needs", len(orphans), folder)

    async def _images_of_unfinished(self) -> set[str]:
        """The keys of images that editors made for unfinished requests, even if no dispatcher has recorded them yet."""
        records = _by_request(await asyncio.to_thread(self._artifacts.older_than, artifact_keys.RECORDS, 0.0))
        promised: set[str] = set()
        for ids in _batches(list(records), LOOKUPS_AT_ONCE):
            for request_id in await self._store.retention.unfinished(ids):
                for key in records[request_id]:
                    # The record is missing if the request was purged meanwhile.
                    record = await asyncio.to_thread(self._artifacts.get_json, key) or {}
                    promised.add(record.get("key", ""))
        return promised

    async def _delete_orphaned_records(self) -> None:
        """Delete editors' records of requests that were deleted meanwhile."""
        old = _by_request(await asyncio.to_thread(self._artifacts.older_than, artifact_keys.RECORDS, MIN_ORPHAN_AGE_S))
        for ids in _batches(list(old), LOOKUPS_AT_ONCE):
            if not await self._has_duty():
                return
            known = await self._store.requests.versions(ids)
            for request_id in ids:
                if request_id not in known:
                    await asyncio.to_thread(self._artifacts.delete_folder, artifact_keys.records(request_id))

    async def _delete_leftover_previews(self) -> None:
        """Delete step previews that were not deleted when their request ended.

        Also those of a request that has not ended: if somebody watches it, its files are younger than this.
        """
        old = await asyncio.to_thread(self._artifacts.older_than, artifact_keys.PREVIEWS, MIN_ORPHAN_AGE_S)
        for request_id in _by_request(old):
            await asyncio.to_thread(self._artifacts.delete_folder, artifact_keys.previews(request_id))


def _by_request(keys: Sequence[str]) -> dict[str, list[str]]:
    """Group the keys of editors' records or step previews by request id."""
    of_request: dict[str, list[str]] = {}
    for key in keys:
        of_request.setdefault(artifact_keys.request_of(key), []).append(key)
    return of_request


def _batches(keys: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (keys[start : start + size] for start in range(0, len(keys), size))
