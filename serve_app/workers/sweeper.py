"""The sweeper: forgets requests that are past their retention, and deletes files that no request needs.

One process at a time has the duty. Were there two, nothing would be lost: a file is deleted inside a transaction
in which no request needs it, and none can begin to (`Retention`). Such a transaction holds up others that write,
so each is kept small.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence

from serve_app.concurrency.loops import every
from serve_app.config import JobsConfig
from serve_app.jobs.store import JobStore, owner_name
from serve_app.storage import artifact_keys
from serve_app.storage.artifacts import Artifacts
from serve_app.telemetry.metrics import FAILED, FINISHED, NO_METER, SWEEPS, SWEPT, Loop, Meter

logger = logging.getLogger(__name__)

DUTY = "sweeper"
# For how many sweeps the duty is taken: who is late for the next one keeps it, who died is soon replaced.
DUTY_SWEEPS = 1.5
# Requests that are forgotten, and files that are deleted, in one transaction.
REQUESTS, FILES = 20, 100
# Keys and ids that are looked up in one statement.
LOOKUP = 500
# A file that is younger may belong to a request that is about to be committed (s).
ORPHAN_S = 3600.0


class Sweeper:
    """`run` until cancelled."""

    def __init__(self, store: JobStore, artifacts: Artifacts, config: JobsConfig, meter: Meter = NO_METER) -> None:
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
        """Do all there is to do now, for as long as the duty is this process's. Raises ServiceError."""
        if not await self._is_mine():
            return
        retention, config = self._store.retention, self._config
        await self._forget(lambda: retention.ended_before(config.keep_s, REQUESTS))
        await self._forget(lambda: retention.over_size(config.keep_bytes, REQUESTS))
        for folder in artifact_keys.REFERRED_FOLDERS:
            await self._delete_orphans(folder)
        await self._delete_records_of_nobody()
        self._meter.record(SWEEPS, outcome=FINISHED)

    async def _is_mine(self) -> bool:
        return await self._store.take_duty(DUTY, self._owner, self._config.sweep_s * DUTY_SWEEPS)

    async def _forget(self, find: Callable[[], Awaitable[list[str]]]) -> None:
        while await self._is_mine() and (ids := await find()):
            # First, as nothing would lead to them later. What has ended needs them no more.
            for request_id in ids:
                await asyncio.to_thread(self._artifacts.delete_folder, artifact_keys.records(request_id))
            keys: set[str] = set()
            # The files after the rows: a request can have thousands. What a crash leaves here are orphans.
            await self._store.retention.delete_requests(ids, keys.update)
            self._meter.record(SWEPT, len(ids), what="requests")
            await self.discard(sorted(keys))
            logger.info("forgot %s requests and up to %s files of theirs", len(ids), len(keys))

    async def discard(self, keys: Sequence[str]) -> None:
        """Delete those of these files that no request needs; safe next to requests that come to need one.

        Raises StoreUnavailable and StorageFailed.
        """

        def delete(unneeded: Sequence[str]) -> None:
            self._artifacts.delete(unneeded)
            self._meter.record(SWEPT, len(unneeded), what="files")

        for some in _portions(keys, FILES):
            await self._store.retention.delete_unneeded(some, delete)

    async def _delete_orphans(self, folder: str) -> None:
        old = await asyncio.to_thread(self._artifacts.older_than, folder, ORPHAN_S)
        promised: set[str] | None = None
        for keys in _portions(old, LOOKUP):
            if not await self._is_mine():
                return
            orphans = await self._store.retention.unneeded(keys)
            if orphans and folder == artifact_keys.IMAGES:
                promised = await self._promised() if promised is None else promised
                orphans = [key for key in orphans if key not in promised]
            await self.discard(orphans)
            if orphans:
                logger.info("deleted %s files in %s that no request needs", len(orphans), folder)

    async def _promised(self) -> set[str]:
        """The images that were made for unfinished requests, whether or not a dispatcher knows of them already."""
        records = _by_request(await asyncio.to_thread(self._artifacts.older_than, artifact_keys.RECORDS, 0.0))
        promised: set[str] = set()
        for ids in _portions(list(records), LOOKUP):
            for request_id in await self._store.retention.unfinished(ids):
                for key in records[request_id]:
                    # It is gone if the request was purged meanwhile.
                    record = await asyncio.to_thread(self._artifacts.get_json, key) or {}
                    promised.add(record.get("key", ""))
        return promised

    async def _delete_records_of_nobody(self) -> None:
        """Those that an editor wrote for a request that was forgotten meanwhile."""
        old = _by_request(await asyncio.to_thread(self._artifacts.older_than, artifact_keys.RECORDS, ORPHAN_S))
        for ids in _portions(list(old), LOOKUP):
            if not await self._is_mine():
                return
            known = await self._store.requests.versions(ids)
            for request_id in ids:
                if request_id not in known:
                    await asyncio.to_thread(self._artifacts.delete_folder, artifact_keys.records(request_id))


def _by_request(record_keys: Sequence[str]) -> dict[str, list[str]]:
    """The keys of records, by request id."""
    of_request: dict[str, list[str]] = {}
    for key in record_keys:
        of_request.setdefault(artifact_keys.request_of_record(key), []).append(key)
    return of_request


def _portions(keys: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (keys[start : start + size] for start in range(0, len(keys), size))
