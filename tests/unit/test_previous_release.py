"""The previous release on the schema of this version: what rolls out next to it, and what it is rolled back to.

Its code and its own tests come out of git.
"""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_app.config import MINIATURE_RANDOM
from serve_app.jobs.database import MIGRATIONS, Database
from tests.postgres import PostgresServer
from tests.unit.conftest import LORA, safetensors_bytes
from tools.releases import newest_release, unpack

# Two ingresses of the previous release on one database. They post and poll by turns, and print how each request ended.
INGRESSES = """
import json, sys, time
from starlette.testclient import TestClient
from tests.conftest import as_base64, as_png, noise_image
from tests.unit.conftest import Application
from serve_app.config import AppConfig

config = AppConfig.model_validate_json(sys.argv[1])
prompt = {"prompt": "night", "ctrl_img": as_base64(as_png(noise_image(64, 64))), "width": 64, "height": 64}
with TestClient(Application(config).app) as one, TestClient(Application(config).app) as other:
    for number in range(int(sys.argv[2])):
        first, second = (one, other) if number % 2 else (other, one)
        prompt |= {"sample_steps": 2, "seed": number}
        body = {"model": "qwen_image_edit", "prompts": [prompt], "loras": [{"path": "job/lora.safetensors"}]}
        answer = first.post("/v1/inference", json=body)
        status, deadline = str(answer.status_code), time.monotonic() + 60
        while answer.status_code == 200 and status not in ("succeeded", "failed") and time.monotonic() < deadline:
            polled = second.get(f"/v1/requests/{answer.json()['request_id']}/status")
            status = polled.json()["status"] if polled.status_code == 200 else f"failed: {polled.text}"
            time.sleep(0.01)
        print(json.dumps(status), flush=True)
"""

# A plugin of pytest: the previous release's code makes databases of this version's schema.
NEW_SCHEMA = """
from pathlib import Path
from serve_app.jobs import database
database.MIGRATIONS = Path({migrations!r})
"""


@pytest.fixture(scope="module")
def previous(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the newest release. Skips the test in a copy of the repository that has none."""
    try:
        release = newest_release()
    except LookupError as error:
        pytest.skip(str(error))
    return unpack(release, tmp_path_factory.mktemp("previous"))


def _environment(previous: Path) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")} | {
        "PYTHONPATH": str(previous),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


@pytest.fixture
def ingresses(previous: Path, postgres: PostgresServer, tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The URL of a database, and two ingresses of the previous release that make 16 requests on it."""
    url = postgres.new_database()
    lora = tmp_path / "loras" / LORA
    lora.parent.mkdir(parents=True)
    lora.write_bytes(safetensors_bytes())
    config = {"lora_root": str(tmp_path / "loras"), "artifacts_url": str(tmp_path / "artifacts")}
    config |= {"models": [{"checkpoint": MINIATURE_RANDOM}], "jobs": {"database_url": url}}
    command = [sys.executable, "-c", INGRESSES, json.dumps(config), "16"]
    options = {"cwd": previous, "env": _environment(previous), "text": True}
    with (
        (tmp_path / "errors").open("w") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, **options) as process,
    ):
        yield url, process
        process.kill()


def test_a_migration_under_two_ingresses_of_the_previous_release_fails_no_request(ingresses, tmp_path) -> None:
    url, process = ingresses
    before = [process.stdout.readline() for _ in range(6)]
    assert before == ['"succeeded"\n'] * 6, (tmp_path / "errors").read_text()
    asyncio.run(_migrate(url))
    after = process.stdout.readlines()
    assert [json.loads(line) for line in after] == ["succeeded"] * 10
    assert process.wait(30) == 0, (tmp_path / "errors").read_text()


async def _migrate(url: str) -> None:
    database = Database(url)
    await database.open()
    await database.close()


def test_the_previous_releases_own_tests_of_jobs_pass_on_this_schema(previous: Path) -> None:
    (previous / "new_schema.py").write_text(NEW_SCHEMA.format(migrations=str(MIGRATIONS)))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "new_schema", "-p", "no:cacheprovider"]
    # It compares the schema with its own tables.
    others = ["-k", "sqlite and not migrations_make_the_tables", "tests/unit/test_jobs.py"]
    done = subprocess.run(
        [*command, *others], cwd=previous, env=_environment(previous), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
