"""How far the start of an editor is: what editors report, and what `/ready` says of it."""

import asyncio
import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from serve_app.errors import StorageFailed
from serve_app.intake.starts import Starts
from serve_app.replicas.start_report import StartReport
from serve_app.storage import artifact_keys
from serve_app.storage.artifacts import Artifacts
from serve_app.storage.starting_editors import StartingEditors
from serve_app.telemetry.start_progress import Progress, StartProgress, following
from tests.unit.serving import wait_until

GROUP = "qwen_image_edit"
GIB = 2**30


@pytest.fixture
def artifacts(tmp_path) -> Artifacts:
    return Artifacts(str(tmp_path))


def test_progress_counts_bytes_and_logs_tenths(caplog):
    caplog.set_level(logging.INFO)
    with following() as start:
        assert start.progress == ("starting", 0, 0)
        progress = Progress("weights", 10 * GIB)
        assert start.progress == ("loading", 0, 10 * GIB)
        for _ in range(10):
            progress.add(GIB // 2)
        assert start.progress == ("loading", 5 * GIB, 10 * GIB)
        progress.finished()
        assert start.progress == ("preparing", 5 * GIB, 10 * GIB)
    assert [record.message.split(" after")[0] for record in caplog.records] == [
        f"weights: {done}.0 of 10.0 GiB" for done in range(1, 6)
    ]


def test_progress_outside_of_a_start_is_only_logged():
    with following() as start:
        pass
    Progress("weights", GIB).add(GIB)
    assert start.progress == ("starting", 0, 0)


def test_editor_reports_while_it_starts_and_no_longer(artifacts):
    reports = StartingEditors(artifacts)
    with StartReport(artifacts, GROUP, period_s=0.01):
        Progress("weights", 100, "downloading").add(30)
        expected = StartProgress("downloading", 30, 100)
        wait_until(lambda: (report := reports.get(GROUP)) is not None and report[0] == expected, 30)
        _, beat = reports.get(GROUP)
        wait_until(lambda: reports.get(GROUP)[1] != beat, 30)
    wait_until(lambda: reports.get(GROUP) is None, 30)


def test_editor_that_fails_to_start_stops_reporting(artifacts):
    with pytest.raises(ValueError, match="no GPU"), StartReport(artifacts, GROUP, period_s=0.01):
        raise ValueError("no GPU")
    wait_until(lambda: StartingEditors(artifacts).get(GROUP) is None, 30)


async def test_report_that_does_not_change_any_more_is_of_a_dead_editor(artifacts):
    reports = StartingEditors(artifacts)
    progress = StartProgress("loading", 1, 2)
    starts = Starts(artifacts, stale_s=0, ttl_s=0)
    reports.put(GROUP, progress, beat=1)
    assert await starts.progress([GROUP, "other"]) == {GROUP: progress}
    assert await starts.progress([GROUP]) == {}
    reports.put(GROUP, progress, beat=2)
    assert await starts.progress([GROUP]) == {GROUP: progress}


async def test_answers_are_kept_for_a_moment(artifacts):
    reports = StartingEditors(artifacts)
    starts = Starts(artifacts, ttl_s=30)
    reports.put(GROUP, StartProgress("loading", 1, 2), beat=1)
    await starts.progress([GROUP])
    reports.put(GROUP, StartProgress("loading", 2, 2), beat=2)
    assert await starts.progress([GROUP]) == {GROUP: StartProgress("loading", 1, 2)}


async def test_without_artifact_storage_there_is_no_progress(artifacts, monkeypatch):
    def fail(self: object, key: str) -> None:
        raise StorageFailed("an artifact cannot be read")

    monkeypatch.setattr(Artifacts, "get", fail)
    assert await Starts(artifacts).progress([GROUP]) == {}


async def test_store_that_never_answers_blocks_no_other_work(artifacts, monkeypatch):
    release, reads = threading.Event(), []

    def hang(self: object, key: str) -> None:
        reads.append(key)
        release.wait(30)

    monkeypatch.setattr(Artifacts, "get", hang)
    monkeypatch.setattr("serve_app.intake.starts.PATIENCE_S", 0.05)
    pool = ThreadPoolExecutor(2)
    asyncio.get_running_loop().set_default_executor(pool)
    try:
        starts = Starts(artifacts)
        assert await asyncio.gather(*(starts.progress([GROUP]) for _ in range(2))) == [{}, {}]
        assert await starts.progress([GROUP]) == {}
        assert len(reads) == 1
        await asyncio.wait_for(asyncio.to_thread(reads.copy), 10)
    finally:
        release.set()


@pytest.mark.parametrize(
    "report",
    [
        [1, 2],
        "loading",
        {"state": "resting", "bytes_read": 1, "bytes": 2, "beat": 1},
        {"state": "loading", "bytes_read": 1, "bytes": 2},
    ],
)
def test_unknown_report_is_none(application, client, report):
    application.service.resources.artifacts.put_json(artifact_keys.starting_editor(GROUP), report)
    application.running[GROUP] = 0
    answer = client.get("/ready")
    assert (answer.status_code, answer.json()["editors"]) == (503, {})


def test_ready_tells_the_bytes_of_editors_that_start(application, client):
    reports = StartingEditors(application.service.resources.artifacts)
    reports.put(GROUP, StartProgress("loading", 20 * GIB, 54 * GIB), beat=1)
    # An editor runs, so nobody waits for the one that starts.
    assert client.get("/ready").json()["editors"] == {}
    application.running[GROUP] = 0
    answer = client.get("/ready")
    assert (answer.status_code, answer.json()["ready"], answer.json()["waiting_for"]) == (503, False, [GROUP])
    assert answer.json()["editors"] == {GROUP: {"state": "loading", "bytes_read": 20 * GIB, "bytes": 54 * GIB}}
