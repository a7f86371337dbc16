"""Measured losses in the job database: found by what they hold for, on both databases."""

from dataclasses import replace
from typing import NoReturn

import pytest
import sqlalchemy as sa

from serve_app.config import JobsConfig
from serve_app.errors import IdempotencyConflict
from serve_app.jobs import tables
from serve_app.jobs.calibrations import (
    MAX_ENDED_RUNS,
    Calibration,
    CalibrationKey,
    CalibrationRun,
    Comparison,
    digest_of,
)
from serve_app.storage.artifacts import Artifacts
from serve_app.tasks import Loss, LossRange
from serve_app.workers.sweeper import Sweeper
from tests.unit.conftest import ON_BOTH_DATABASES

pytestmark = ON_BOTH_DATABASES

KEY = CalibrationKey("qwen_image_edit", "fast", "5e", "c0", digest_of(["b", "a"]), "content")
LOSS = Loss(LossRange(31.5, 38.0), LossRange(0.9, 0.95), 4.0, 2.0, 11, 1000.5, "eleven prompts", 0.125)


async def test_what_was_measured_is_found_by_everything_that_it_holds_for(store):
    await store.calibrations.record(Calibration(KEY, LOSS, {"set": "prompts.yaml"}))
    assert await store.calibrations.find(KEY) == Calibration(KEY, LOSS, {"set": "prompts.yaml"})
    for name in ("model", "tier", "settings", "checkpoint", "adapters"):
        assert await store.calibrations.find(replace(KEY, **{name: "other"})) is None


async def test_other_content_under_the_name_of_the_checkpoint_voids_it(store):
    await store.calibrations.record(Calibration(KEY, LOSS))
    assert await store.calibrations.find(replace(KEY, content="other")) is None
    # Where the files are not at hand, their name decides.
    assert await store.calibrations.find(replace(KEY, content=None)) == Calibration(KEY, LOSS)


async def test_a_newer_measurement_replaces_the_earlier_one(store):
    await store.calibrations.record(Calibration(KEY, LOSS))
    newer = replace(LOSS, measured_at=2000.0, cases=12)
    await store.calibrations.record(Calibration(replace(KEY, content="new"), newer, {"set": "more"}))
    found = await store.calibrations.find(replace(KEY, content="new"))
    assert found is not None
    assert found.loss == newer
    assert await store.calibrations.all() == [Calibration(replace(KEY, content="new"), newer, {"set": "more"})]


async def test_all_are_listed_the_newest_first(store):
    for number, model in enumerate(("a", "b", "a")):
        key = replace(KEY, model=model, tier=f"tier {number}")
        await store.calibrations.record(Calibration(key, replace(LOSS, measured_at=float(number))))
    assert [each.key.tier for each in await store.calibrations.all()] == ["tier 2", "tier 1", "tier 0"]
    assert [each.key.tier for each in await store.calibrations.all("a")] == ["tier 2", "tier 0"]


async def test_a_set_of_adapters_has_no_order(store):
    assert digest_of(["a", "b"]) == digest_of(["b", "a", "a"])
    assert digest_of(["a", "b"]) != digest_of(["ab"])


async def test_a_run_counts_as_submitted_once_it_is_or_its_process_has_died(store):
    runs = {name: CalibrationRun(name * 32, "", "qwen_image_edit", (), 0.0) for name in "abc"}
    await store.calibrations.start(runs["a"], 60.0)
    await store.calibrations.start(runs["b"], 60.0)
    await store.calibrations.start(runs["c"], -1.0)
    assert await store.calibrations.submitted_ids() == [runs["c"].id]
    comparisons = [Comparison(KEY, {"set": "s"}, "exact" * 6, "tier" * 8)]
    assert await store.calibrations.extend(runs["a"].id, comparisons, 60.0)
    assert await store.calibrations.submitted_ids() == [runs["c"].id]
    stored = await store.calibrations.submitted(runs["a"].id)
    assert (stored.comparisons, stored.submitting_until) == (tuple(comparisons), None)
    assert stored.created_at > 0
    assert sorted(await store.calibrations.submitted_ids()) == [runs["a"].id, runs["c"].id]
    assert await store.calibrations.under_way(runs["a"].id) == stored
    await store.calibrations.end(runs["a"].id)
    assert not await store.calibrations.extend(runs["a"].id, comparisons, 60.0)
    assert await store.calibrations.submitted(runs["a"].id) is None
    assert await store.calibrations.under_way(runs["a"].id) is None
    await store.calibrations.refuse(runs["b"].id, "refused")
    assert [run.id for run in await store.calibrations.unfinished()] == [runs["c"].id]


async def test_the_sweeper_keeps_the_runs_that_are_listed(store, tmp_path):
    ids = [f"{number:032}" for number in range(MAX_ENDED_RUNS + 3)]
    for name in ids:
        await store.calibrations.start(CalibrationRun(name, "", "qwen_image_edit", (), 0.0))
    # The first one stays under way.
    for name in ids[1:]:
        await store.calibrations.end(name)
    listed = await store.calibrations.ended()
    await Sweeper(store, Artifacts(str(tmp_path)), JobsConfig()).sweep()
    async with store._database.reading() as connection:
        kept = (await connection.execute(sa.select(tables.calibration_runs.c.id))).scalars().all()
    assert set(kept) == {ids[0], *(run.id for run in listed)}
    assert len(kept) == MAX_ENDED_RUNS + 1


async def test_a_key_and_body_of_a_tenant_are_one_run(store):
    first = CalibrationRun("1" * 32, "acme", "qwen_image_edit", (), 0.0, idempotency_key="k", body_sha256="b" * 64)
    assert await store.calibrations.earlier("acme", "k", "b" * 64) is None
    assert (await store.calibrations.start(first, 60.0)).id == first.id
    # Two ingresses may find no earlier one at the same time.
    assert (await store.calibrations.start(replace(first, id="2" * 32), 60.0)).id == first.id
    assert (await store.calibrations.start(replace(first, id="3" * 32, tenant="other"), 60.0)).id == "3" * 32
    with pytest.raises(IdempotencyConflict):
        await store.calibrations.start(replace(first, id="4" * 32, body_sha256="c" * 64), 60.0)
    with pytest.raises(IdempotencyConflict):
        await store.calibrations.earlier("acme", "k", "c" * 64)
    await store.calibrations.end(first.id)
    ended = await store.calibrations.earlier("acme", "k", "b" * 64)
    assert ended is not None
    assert (ended.id, ended.ended_at is not None) == (first.id, True)
    assert {run.id for run in await store.calibrations.unfinished()} == {"3" * 32}


async def test_a_run_that_a_repeat_may_have_been_given_stays_after_its_refusal(store):
    first = CalibrationRun("1" * 32, "acme", "qwen_image_edit", (), 0.0, idempotency_key="k", body_sha256="b" * 64)
    await store.calibrations.start(first, 60.0)
    await store.calibrations.refuse(first.id, "the queue is full")
    [ended] = await store.calibrations.ended()
    assert (ended.id, ended.problem) == (first.id, "the queue is full")
    assert await store.calibrations.earlier("acme", "k", "b" * 64) is None
    assert (await store.calibrations.start(replace(first, id="2" * 32), 60.0)).id == "2" * 32


async def test_the_run_that_start_returns_is_stored(store, monkeypatch):
    first = CalibrationRun("1" * 32, "acme", "qwen_image_edit", (), 0.0, idempotency_key="k", body_sha256="b" * 64)
    await store.calibrations.start(first, 60.0)
    by_key = store.calibrations._by_key

    async def refused_before(*key: str) -> CalibrationRun | None:
        await store.calibrations.refuse(first.id, "the queue is full")
        return await by_key(*key)

    monkeypatch.setattr(store.calibrations, "_by_key", refused_before)
    run = await store.calibrations.start(replace(first, id="2" * 32), 60.0)
    assert [each.id for each in await store.calibrations.unfinished()] == [run.id]


async def test_a_loss_is_found_while_no_transaction_can_write(store, monkeypatch):
    await store.calibrations.record(Calibration(KEY, LOSS))
    async with store._database.writing() as connection:
        await connection.execute(tables.calibrations.update().values(current_at=1.0))

    def away() -> NoReturn:
        raise OSError("the database refuses to write")

    monkeypatch.setattr(store._database, "writing", away)
    assert await store.calibrations.find(KEY) == Calibration(KEY, LOSS)


async def test_runs_are_under_way_until_they_end(store):
    comparison = Comparison(KEY, {"set": "s"}, "exact" * 6, "tier" * 8)
    run = CalibrationRun("1" * 32, "acme", "qwen_image_edit", (comparison,), 0.0)
    await store.calibrations.start(run)
    await store.calibrations.start(run)
    [found] = await store.calibrations.unfinished()
    assert replace(found, created_at=0.0) == run
    assert found.created_at > 0
    await store.calibrations.end(run.id, "an image failed")
    assert await store.calibrations.unfinished() == []
    [ended] = await store.calibrations.ended()
    assert (ended.problem, ended.ended_at is not None) == ("an image failed", True)
    # The first end counts.
    await store.calibrations.end(run.id)
    assert (await store.calibrations.ended())[0].problem == "an image failed"
