"""Measured losses are kept as long as they hold, and for a time afterwards, on both databases."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from serve_app.config import MINIATURE_RANDOM, AppConfig, JobsConfig
from serve_app.config.jobs import DAY_S
from serve_app.errors import LoraDownloadFailed, LoraNotFound, ServiceError, StorageFailed
from serve_app.intake.calibrations.current import CurrentLosses
from serve_app.intake.calibrations.losses import MeasuredLosses
from serve_app.jobs import tables
from serve_app.jobs.calibrations import Calibration, CalibrationKey, digest_of
from serve_app.jobs.database import MIGRATIONS, Database
from serve_app.jobs.store import JobStore
from serve_app.models.registry import ModelSpec
from serve_app.schemas.requests import Lora
from serve_app.storage.artifacts import Artifacts
from serve_app.tasks import AdapterUse, Loss, LossRange
from serve_app.workers.sweeper import Sweeper
from tests.unit.conftest import ON_BOTH_DATABASES
from tests.unit.losses import current_since

pytestmark = ON_BOTH_DATABASES

LOSS = Loss(LossRange(31.5, 38.0), LossRange(0.9, 0.95), 4.0, 2.0, 11, 1000.5, "eleven prompts", 0.125)
MODEL = "qwen_image_edit"
PATH, OTHER, URL, OF_TIER = "job/a.safetensors", "job/b.safetensors", "https://h/c.safetensors", "tier.safetensors"
TIERS = {"balanced": {"feature_cache": 0.1}, "turbo": {"adapter": OF_TIER, "steps": 4}}
# A loss as the version before writes it, which does not know `current_at`.
INSERT = """INSERT INTO calibrations (model, tier, settings, checkpoint, adapters, content, loss, details, measured_at)
VALUES (:model, :tier, :settings, :checkpoint, :adapters, :content, :loss, :details, 1000.5)"""


class Files:
    """The identities of LoRAs' files by path, or why they cannot be looked up. Describes LoRAs as `Loras` does."""

    def __init__(self) -> None:
        self.ids: dict[str, str | ServiceError] = {PATH: "a1", OTHER: "b1", OF_TIER: "t1"}

    async def described(self, lora: Lora, spec: ModelSpec) -> AdapterUse:
        found = self.ids.get(lora.path, LoraNotFound("not there"))
        if isinstance(found, ServiceError):
            raise found
        return AdapterUse(found, lora.path, "", lora.network_multiplier)


class Service:
    """A store with what the sweeper needs of a service, whose config and files a test changes."""

    def __init__(self, store: JobStore, folder: Path) -> None:
        self.store = store
        self.files = Files()
        self.tiers: Mapping[str, Any] = TIERS
        self._folder = folder
        self._sweeper = Sweeper(store, Artifacts(str(folder)), JobsConfig(), mark_losses=self._mark)

    async def _mark(self) -> None:
        losses = MeasuredLosses(self.store.calibrations)
        await CurrentLosses(self._config, self.store.calibrations, losses, self.files.described).mark()

    @property
    def _config(self) -> AppConfig:
        model = {"checkpoint": MINIATURE_RANDOM, "tiers": self.tiers}
        return AppConfig.model_validate({"models": [model], "artifacts_url": str(self._folder)})

    async def key(self, tier: str, tier_adapter: str | None, adapters: Mapping[str, str]) -> CalibrationKey:
        [model] = self._config.models
        name = next(each for each in model.tiers if each == tier)
        digest = model.tiers[name].digest(tier_adapter)
        return await MeasuredLosses(self.store.calibrations).key(model, name, digest, adapters.values())

    async def measure(self, tier: str = "balanced", tier_adapter: str | None = None, **adapters: str) -> CalibrationKey:
        """Keep a loss for LoRAs by path, which was last current 100 days ago."""
        key = await self.key(tier, tier_adapter, adapters)
        details = {"adapters": [{"path": path, "id": id_, "network_multiplier": 1} for path, id_ in adapters.items()]}
        await self.store.calibrations.record(Calibration(key, LOSS, details))
        await current_since(self.store, 100 * DAY_S)
        return key

    async def sweep(self) -> set[str]:
        """Sweep, and return the digests of the adapters of the losses that are left."""
        await self._sweeper.sweep()
        return {each.key.adapters for each in await self.store.calibrations.all()}


async def marked_s_ago(store: JobStore) -> list[float | None]:
    ago = sa.select(tables.now() - tables.calibrations.c.current_at)
    async with store._database.reading() as connection:
        return list((await connection.execute(ago)).scalars())


@pytest.fixture
def service(store, tmp_path) -> Service:
    return Service(store, tmp_path / "artifacts")


async def test_losses_that_hold_are_kept_however_old_they_are(service):
    await service.measure()
    await service.measure(**{PATH: "a1", OTHER: "b1"})
    await service.measure("turbo", "t1")
    assert await service.sweep() == {digest_of([]), digest_of(["a1", "b1"])}
    assert all(ago is not None and ago < 60 for ago in await marked_s_ago(service.store))
    assert len(await service.store.calibrations.all()) == 3


async def test_a_loss_of_other_settings_another_checkpoint_or_another_file_is_deleted_after_the_retention(service):
    keys = [await service.measure(**{PATH: "a1"}), await service.measure(**{OTHER: "b0"})]
    await service.store.calibrations.record(Calibration(replace(keys[0], checkpoint="c"), LOSS, {"adapters": []}))
    await service.store.calibrations.record(Calibration(replace(keys[0], model="gone"), LOSS, {"adapters": []}))
    await service.store.calibrations.record(Calibration(replace(keys[0], settings="s"), LOSS, {"adapters": []}))
    await service.measure("turbo", "t0")
    await current_since(service.store, 89 * DAY_S)
    await service.sweep()
    assert len(await service.store.calibrations.all()) == 6
    await current_since(service.store, 91 * DAY_S)
    assert await service.sweep() == {digest_of(["a1"])}
    assert [each.key for each in await service.store.calibrations.all()] == [keys[0]]


async def test_a_tier_that_is_changed_back_in_time_keeps_its_losses(service):
    key = await service.measure()
    await current_since(service.store, 80 * DAY_S)
    service.tiers = {"balanced": {"feature_cache": 0.2}}
    assert await service.sweep() == {digest_of([])}
    service.tiers = TIERS
    await service.sweep()
    [ago] = await marked_s_ago(service.store)
    assert ago is not None
    assert ago < 60
    assert await service.store.calibrations.find(key) is not None


@pytest.mark.parametrize("away", [StorageFailed("away"), LoraDownloadFailed("away")])
async def test_what_cannot_be_looked_up_at_the_moment_counts_as_unchanged(service, away):
    await service.measure(**{PATH: "a1"})
    await service.measure("turbo", "t1")
    service.files.ids = {PATH: away, OF_TIER: away}
    assert await service.sweep() == {digest_of(["a1"]), digest_of([])}


async def test_a_loss_with_a_url_holds_as_long_as_requests_find_it(service):
    key = await service.measure(**{URL: "u1"})
    assert await service.store.calibrations.find(key) is not None
    assert await service.sweep() == {key.adapters}
    await current_since(service.store, 91 * DAY_S)
    assert await service.sweep() == set()


async def test_a_request_writes_to_the_row_at_most_once_an_hour(service):
    key = await service.measure()
    for ago, then in ((3500.0, 3500.0), (3700.0, 0.0)):
        await current_since(service.store, ago)
        assert await service.store.calibrations.find(key) is not None
        assert await marked_s_ago(service.store) == [pytest.approx(then, abs=60)]
    # What is not found, because the files of the checkpoint are others, is not current.
    await service.store.calibrations.record(Calibration(replace(key, content="then"), LOSS, {"adapters": []}))
    await current_since(service.store, 7200.0)
    assert await service.store.calibrations.find(replace(key, content="now")) is None
    assert await marked_s_ago(service.store) == [pytest.approx(7200, abs=60)]


def migrate_to(revision: str) -> Callable[[sa.Connection], None]:
    def migrate(connection: sa.Connection) -> None:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        config.attributes["connection"] = connection
        command.upgrade(config, revision)

    return migrate


async def test_losses_of_the_version_before_are_found_and_kept_for_the_retention(empty_database_url, tmp_path):
    async def write_as_before(tier: str) -> None:
        key = {"model": MODEL, "tier": tier, "settings": "s", "checkpoint": "c", "adapters": digest_of([])}
        values = key | {"content": None, "loss": json.dumps(loss), "details": '{"adapters": []}'}
        async with database.writing() as connection:
            await connection.execute(sa.text(INSERT), values)

    loss = {"psnr_db": {"worst": 31.5, "median": 38.0}, "ssim": {"worst": 0.9, "median": 0.95}, "exact_s": 4.0}
    loss |= {"tier_s": 2.0, "cases": 11, "measured_at": 1000.5, "on": "eleven prompts", "latents": 0.125}
    database = Database(empty_database_url)
    async with database.writing() as connection:
        await connection.run_sync(migrate_to("0012"))
    await write_as_before("fast")
    store = JobStore(JobsConfig(database_url=empty_database_url))
    await store.open()
    # An ingress of the version before still runs.
    await write_as_before("turbo")
    await database.close()
    found = await store.calibrations.all()
    assert [(each.key.tier, each.loss) for each in found] == [("fast", LOSS), ("turbo", LOSS)]
    assert await marked_s_ago(store) == [None, None]
    assert await store.calibrations.find(found[0].key) == found[0]
    service = Service(store, tmp_path / "artifacts")
    # Nobody knows since when they do not hold: the retention begins now.
    await service.sweep()
    assert [ago is not None and ago < 60 for ago in await marked_s_ago(store)] == [True, True]
    await current_since(store, 91 * DAY_S)
    assert await service.sweep() == set()
    await store.close()
