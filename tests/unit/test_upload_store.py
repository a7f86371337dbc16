"""The store's promises about uploads: quotas, expiry, and files that stay for as long as something needs them."""

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from serve_app.config import JobsConfig
from serve_app.errors import FilesGone, StorageFailed, UploadNotFound, UploadQuotaExceeded
from serve_app.images.decode import ImageFacts
from serve_app.jobs import tables
from serve_app.jobs.database import MIGRATIONS, Database
from serve_app.jobs.records import NewImage, NewRequest, NewUpload
from serve_app.jobs.store import JobStore
from serve_app.storage import artifact_keys
from serve_app.storage.artifacts import Artifacts
from serve_app.workers.sweeper import MIN_ORPHAN_AGE_S, Sweeper
from tests.unit.conftest import ON_BOTH_DATABASES

pytestmark = ON_BOTH_DATABASES

# The revision of the migration before the one that makes the table.
BEFORE_UPLOADS = "0003"
FACTS = {"ignore": ImageFacts((64, 48), 6, ("alpha dropped",), "png"), "apply": ImageFacts((48, 64), 6, (), "png")}


def new(number: int = 0, tenant: str = "t", size_bytes: int = 100) -> NewUpload:
    sha256 = f"{number:064x}"
    return NewUpload(tenant, sha256, artifact_keys.control_image(sha256), size_bytes, FACTS)


class Service:
    """Stores on one database, as each ingress has one, their artifacts, and sweepers."""

    def __init__(self, database_url: str, artifacts: Artifacts) -> None:
        self.artifacts = artifacts
        self._database_url = database_url
        self._stores: list[JobStore] = []

    def config(self, **jobs: object) -> JobsConfig:
        return JobsConfig.model_validate({"database_url": self._database_url} | jobs)

    async def store(self, **jobs: object) -> JobStore:
        store = JobStore(self.config(**jobs))
        self._stores.append(store)
        await store.open()
        return store

    async def close(self) -> None:
        for store in self._stores:
            await store.close()

    def sweeper(self, store: JobStore, **jobs: object) -> Sweeper:
        return Sweeper(store, self.artifacts, self.config(**jobs))

    async def upload(self, store: JobStore, upload: NewUpload, tenant_max: int | None = None):
        self.artifacts.put_missing(upload.key, b"x")
        return await store.uploads.create(upload, self.artifacts.exists, tenant_max)

    def files(self) -> set[str]:
        return set(self.artifacts.older_than("", -60.0))

    def age(self, *keys: str) -> None:
        for key in keys:
            os.utime(self.artifacts.url(key), (time.time() - 10 * MIN_ORPHAN_AGE_S,) * 2)


@pytest.fixture
async def service(database_url, tmp_path) -> AsyncIterator[Service]:
    service = Service(database_url, Artifacts(str(tmp_path / "artifacts")))
    yield service
    await service.close()


@pytest.fixture
async def store(service) -> JobStore:
    return await service.store()


async def set_expiry(store: JobStore, *of: NewUpload, seconds: float = -1.0) -> None:
    uploads = tables.uploads.c
    these = tables.uploads.update().where(uploads.sha256.in_([upload.sha256 for upload in of]))
    async with store._database.writing() as connection:
        await connection.execute(these.values(expires_at=tables.now() + seconds))


async def request(store: JobStore, plan, key: str, is_stored: Callable[[str], bool], tenant: str = "t") -> str:
    id_ = os.urandom(16).hex()
    new_request = NewRequest(id_, tenant, "m", (NewImage(plan, 1.0),), 1e6, files={key: 1})
    await store.requests.create(new_request, is_stored)
    return id_


async def test_upload_is_read_back(service, store):
    kept = await service.upload(store, new())
    assert (kept.facts, kept.size_bytes, kept.expires_at - kept.created_at) == (FACTS, 100, pytest.approx(86400))
    assert await store.uploads.get(kept.sha256, "t") == kept
    assert await store.uploads.find([kept.sha256, "f" * 64], "t") == {kept.sha256: kept}
    assert await store.uploads.find([kept.sha256], None) == {kept.sha256: kept}
    assert await store.uploads.find([kept.sha256], "u") == {}
    with pytest.raises(UploadNotFound):
        await store.uploads.get(kept.sha256, "u")


async def test_ingresses_together_do_not_exceed_a_quota(service):
    """Each of the uploads fits by itself, and half of them in all."""
    stores = [await service.store() for _ in range(3)]
    calls = [service.upload(stores[n % 3], new(n), tenant_max=600) for n in range(12)]
    calls += [service.upload(stores[n % 3], new(n, tenant="u"), tenant_max=600) for n in range(3)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    refused = [result for result in results if isinstance(result, UploadQuotaExceeded)]
    assert (len(results), len(refused), any(isinstance(r, UploadQuotaExceeded) for r in results[12:])) == (15, 6, False)
    assert refused[0].details["limit"] == 600


async def test_same_upload_at_once_counts_once(service):
    stores = [await service.store() for _ in range(3)]
    kept = await asyncio.gather(*(service.upload(stores[n % 3], new(), tenant_max=100) for n in range(9)))
    assert len({upload.created_at for upload in kept}) == 1
    await service.upload(stores[0], new(), tenant_max=1)


async def test_expired_uploads_count_for_nothing(service, store):
    await service.upload(store, new(1), tenant_max=100)
    with pytest.raises(UploadQuotaExceeded):
        await store.uploads.refuse_when_full(new(2), 100)
    await set_expiry(store, new(1))
    await store.uploads.refuse_when_full(new(2), 100)
    await service.upload(store, new(2), tenant_max=100)
    assert await store.uploads.find([new(1).sha256], "t") == {}
    with pytest.raises(UploadNotFound):
        await store.uploads.get(new(1).sha256, "t")
    with pytest.raises(UploadNotFound):
        await store.retention.delete_upload(new(1).sha256, "t", service.artifacts.delete)
    # Sent again, it is new: it needs room.
    with pytest.raises(UploadQuotaExceeded):
        await service.upload(store, new(1), tenant_max=100)


async def test_upload_whose_file_is_gone_is_not_kept(service, store):
    with pytest.raises(FilesGone):
        await store.uploads.create(new(), service.artifacts.exists)
    assert await store.uploads.find([new().sha256], None) == {}


async def test_upload_waits_for_a_sweeper_that_deletes_its_file(service, store):
    """It does not count a file that is on its way out."""
    other = await service.store()
    service.artifacts.put(new().key, b"x")
    deleting, may_delete = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def delete(keys: Sequence[str]) -> None:
        loop.call_soon_threadsafe(deleting.set)
        may_delete.wait(20)
        service.artifacts.delete(keys)

    sweeping = asyncio.create_task(store.retention.delete_unneeded([new().key], delete))
    await deleting.wait()
    uploading = asyncio.create_task(other.uploads.create(new(), service.artifacts.exists))
    await asyncio.wait([uploading], timeout=0.3)
    assert not uploading.done()
    may_delete.set()
    with pytest.raises(FilesGone):
        await uploading
    await sweeping


async def test_expired_uploads_are_swept_with_files_that_nothing_needs(service, store, make_plan):
    expired, shared, used, kept = (new(number) for number in range(4))
    for upload in (expired, shared, used, kept):
        await service.upload(store, upload)
    await set_expiry(store, expired, shared, used)
    await service.upload(store, replace(shared, tenant="u"))
    await request(store, make_plan(), used.key, service.artifacts.exists)
    await service.sweeper(store).sweep()
    assert service.files() == {shared.key, used.key, kept.key}
    async with store._database.reading() as connection:
        rows = (await connection.execute(sa.select(tables.uploads.c.tenant, tables.uploads.c.sha256))).all()
    assert set(rows) == {("u", shared.sha256), ("t", kept.sha256)}


async def test_many_expired_uploads_are_swept_in_small_batches(service, store, monkeypatch):
    monkeypatch.setattr("serve_app.workers.sweeper.UPLOADS_AT_ONCE", 3)
    for number in range(8):
        await service.upload(store, new(number))
    await set_expiry(store, *(new(number) for number in range(8)))
    await service.sweeper(store).sweep()
    assert service.files() == set()


async def test_upload_keeps_an_old_file_that_no_request_needs(service, store, make_plan):
    await service.upload(store, new())
    service.age(new().key)
    id_ = await request(store, make_plan(), new().key, service.artifacts.exists)
    await store.requests.cancel(id_)
    await service.sweeper(store, keep_s=1e-6).sweep()
    assert service.files() == {new().key}
    # Once its time is over, it is an orphan like any other file.
    await set_expiry(store, new())
    await store.retention.delete_unneeded([new().key], service.artifacts.delete)
    assert service.files() == set()


async def test_upload_is_deleted_with_its_file_or_not_at_all(service, store):
    def fail(keys: Sequence[str]) -> None:
        raise StorageFailed("no")

    await service.upload(store, new())
    with pytest.raises(StorageFailed):
        await store.retention.delete_upload(new().sha256, "t", fail)
    assert await store.uploads.get(new().sha256, "t")
    for tenant in ("u", ""):
        with pytest.raises(UploadNotFound):
            await store.retention.delete_upload(new().sha256, tenant, service.artifacts.delete)
    await store.retention.delete_upload(new().sha256, "t", service.artifacts.delete)
    assert service.files() == set()
    with pytest.raises(UploadNotFound):
        await store.uploads.get(new().sha256, "t")


async def test_deleted_upload_leaves_a_file_that_something_else_needs(service, store, make_plan):
    shared, used = new(1), new(2)
    for upload in (shared, replace(shared, tenant="u"), used):
        await service.upload(store, upload)
    await request(store, make_plan(), used.key, service.artifacts.exists)
    for upload in (shared, used):
        await store.retention.delete_upload(upload.sha256, "t", service.artifacts.delete)
    assert service.files() == {shared.key, used.key}


async def test_nothing_is_lost_while_uploads_come_and_go(service, make_plan):
    """Uploads and requests share few files, and sweepers run all the time. What is kept is there."""
    stores = [await service.store(upload_keep_s=0.02) for _ in range(2)]
    sweepers = [service.sweeper(store, keep_s=1e-6, sweep_s=1e-3) for store in stores]
    stop = asyncio.Event()
    gone = 0

    async def sweep(sweeper: Sweeper) -> None:
        while not stop.is_set():
            await sweeper.sweep()
            await asyncio.sleep(0)

    async def come_and_go(number: int) -> None:
        nonlocal gone
        store = stores[number % 2]
        for turn in range(15):
            upload = new((number + turn) % 3)
            try:
                await service.upload(store, upload)
                id_ = await request(store, make_plan(), upload.key, service.artifacts.exists)
            except FilesGone:
                gone += 1
                continue
            await asyncio.sleep(0.03)
            # The upload has expired by now, and the request needs its file.
            assert service.artifacts.exists(upload.key)
            await store.requests.cancel(id_)

    sweeping = [asyncio.create_task(sweep(sweeper)) for sweeper in sweepers]
    try:
        await asyncio.gather(*(come_and_go(number) for number in range(4)))
    finally:
        stop.set()
        await asyncio.gather(*sweeping)
    assert gone < 60
    await asyncio.sleep(0.05)
    async with stores[0]._database.writing() as connection:
        await connection.execute(tables.duties.update().values(until=0.0))
    await sweepers[0].sweep()
    assert service.files() == set()


async def test_database_of_the_version_before_gets_the_table_and_keeps_its_rows(service, empty_database_url):
    def migrate_to_the_version_before(connection: sa.Connection) -> None:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        config.attributes["connection"] = connection
        command.upgrade(config, BEFORE_UPLOADS)

    database = Database(empty_database_url)
    async with database.writing() as connection:
        await connection.run_sync(migrate_to_the_version_before)
        await connection.execute(sa.text("INSERT INTO usage VALUES ('t', 1.5, 2)"))
    await database.close()
    store = await service.store(database_url=empty_database_url)
    [usage] = await store.requests.usage("t")
    assert (usage.gpu_seconds, usage.images) == (1.5, 2)
    assert (await service.upload(store, new())).facts == FACTS
