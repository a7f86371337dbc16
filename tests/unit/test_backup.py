"""Backup and restore as docs/runbooks/backup.md has them: a dump of the database, then a copy of the files."""

import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from serve_app.config import SQLITE_PREFIX, AppConfig
from tests.postgres import PostgresServer, program
from tests.unit.conftest import IMAGE, ON_BOTH_DATABASES, Application
from tests.unit.serving import wait_until
from tests.unit.test_http_contract import finished
from tests.unit.test_watching import submit


class Backup:
    """A dump of a job database in a folder, and how it becomes a database again."""

    def __init__(self, url: str, folder: Path, request: pytest.FixtureRequest) -> None:
        self._url = url
        self._folder = folder
        self._request = request

    def dump(self) -> None:
        """While the service runs."""
        if self._url.startswith(SQLITE_PREFIX):
            # What `sqlite3 FILE ".backup 'COPY'"` does.
            with (
                closing(sqlite3.connect(self._url.removeprefix(SQLITE_PREFIX))) as source,
                closing(sqlite3.connect(self._folder / "jobs.sqlite3")) as target,
            ):
                source.backup(target)
            return
        _run("pg_dump", "--format=custom", "--no-owner", f"--file={self._folder}/edits.dump", _plain(self._url))

    def restored_url(self) -> str:
        """The URL of a new database with what was dumped."""
        if self._url.startswith(SQLITE_PREFIX):
            return f"{SQLITE_PREFIX}{self._folder}/jobs.sqlite3"
        server: PostgresServer = self._request.getfixturevalue("postgres")
        url = server.new_database()
        options = ["--no-owner", "--exit-on-error", "--single-transaction", f"--dbname={_plain(url)}"]
        _run("pg_restore", *options, f"{self._folder}/edits.dump")
        return url


def _plain(url: str) -> str:
    return url.replace("+asyncpg", "")


def _run(name: str, *arguments: str) -> None:
    done = subprocess.run([program(name), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def backup(config: AppConfig, tmp_path: Path, request: pytest.FixtureRequest) -> Backup:
    folder = tmp_path / "backup"
    folder.mkdir()
    return Backup(config.jobs.database_url, folder, request)


def restored(config: AppConfig, backup: Backup, files: Path) -> AppConfig:
    """The config of a service on the restored database and the copied files."""
    jobs = config.jobs.model_copy(update={"database_url": backup.restored_url()})
    return config.model_copy(update={"jobs": jobs, "artifacts_url": str(files)})


def image_of(client: TestClient, body: dict[str, Any]) -> bytes:
    answer = client.get(f"/v1/requests/{body['request_id']}/images/0")
    assert answer.status_code == 200, answer.text
    return answer.content


@ON_BOTH_DATABASES
def test_a_restored_service_has_its_results_and_goes_on_with_its_work(config, backup, make_body, tmp_path) -> None:
    files = tmp_path / "backup/artifacts"
    # The restored service waits until the claims in the dump have expired.
    first = Application(config.model_copy(update={"jobs": config.jobs.model_copy(update={"lease_s": 2})}))
    with TestClient(first.app) as client:
        done = finished(client, make_body(seed=1))
        client.portal.call(first.editors.gate.clear)
        running = submit(client, make_body(seed=2))
        wait_until(lambda: len(first.editors.tasks) >= 2)
        waiting = [submit(client, make_body(seed=seed)) for seed in (3, 4)]

        backup.dump()
        later = submit(client, make_body(seed=5))
        shutil.copytree(config.artifacts_url, files)
        client.portal.call(first.editors.gate.set)
    shutil.rmtree(config.artifacts_url)

    second = Application(restored(config, backup, files))
    with TestClient(second.app) as client:
        again = client.get(f"/v1/requests/{done['request_id']}/result").json()
        assert again["status"] == "succeeded"
        assert image_of(client, done) == IMAGE
        for request_id in [running, *waiting]:
            wait_until(lambda id=request_id: status(client, id) == "succeeded", 30)
        assert {task.plan.seed for task in second.editors.tasks} == {2, 3, 4}
        # What was accepted after the dump is unknown.
        assert client.get(f"/v1/requests/{later}/status").status_code == 404
        assert finished(client, make_body(seed=5))["status"] == "succeeded"


def status(client: TestClient, request_id: str) -> str:
    return str(client.get(f"/v1/requests/{request_id}/status").json()["status"])


def test_files_that_are_copied_before_the_dump_lack_its_results(config, backup, make_body, tmp_path) -> None:
    """Why the runbook says: the database first."""
    files = tmp_path / "backup/artifacts"
    with TestClient(Application(config).app) as client:
        finished(client, make_body(seed=1, output_format="png"))
        shutil.copytree(config.artifacts_url, files)
        late = finished(client, make_body(seed=2, output_format="webp"))
        backup.dump()
    with TestClient(Application(restored(config, backup, files)).app) as client:
        assert status(client, late["request_id"]) == "succeeded"
        assert client.get(f"/v1/requests/{late['request_id']}/images/0").status_code == 404
