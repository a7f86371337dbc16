"""Requests that earlier versions stored are answered as those versions' clients expect.

Each file of `tests/recorded` holds rows that a release wrote, with an engine of the miniature, and what version 0.2.0
answered for them.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import yaml
from starlette.testclient import TestClient

from serve_app.config import SQLITE_PREFIX, AppConfig, AuthConfig
from serve_app.intake.keys import new_key
from serve_app.jobs import tables
from tests.conftest import ROOT
from tests.unit.conftest import Application

RECORDED = ROOT / "tests/recorded"
VERSIONS = [path.stem for path in sorted(RECORDED.glob("*.json"))]
OF_A_REQUEST = ("status", "result", "events")


def read(version: str) -> dict[str, Any]:
    return json.loads((RECORDED / f"{version}.json").read_text())


def insert(database_url: str, rows: dict[str, list[dict[str, Any]]]) -> None:
    """Write the recorded rows into an empty job database. Columns that they lack are null."""
    engine = sa.create_engine(f"sqlite:///{database_url.removeprefix(SQLITE_PREFIX)}")
    with engine.begin() as connection:
        for name, recorded in rows.items():
            table: sa.Table = getattr(tables, name)
            empty = dict.fromkeys(column.key for column in table.columns if column.nullable)
            # A column may have another name in the code.
            keys = {column.name: column.key for column in table.columns}
            values = [empty | {keys[name]: value for name, value in row.items()} for row in recorded]
            connection.execute(table.insert(), values)
    engine.dispose()


def answers(config: AppConfig, rows: dict[str, list[dict[str, Any]]], folder: Path) -> dict[str, Any]:
    """What the service says about the rows: texts of bodies by path."""
    insert(config.jobs.database_url, rows)
    # However old the recorded requests are by now.
    config = config.model_copy(update={"jobs": config.jobs.model_copy(update={"keep_s": 1e10})})
    paths = [f"/v1/requests/{row['id']}/{part}" for row in rows["requests"] for part in OF_A_REQUEST]
    with TestClient(Application(config).app) as client:
        said = {path: client.get(path).text for path in paths}
    # Only callers with a key see the history.
    key, sha256 = new_key()
    file = folder / "keys.yaml"
    file.write_text(yaml.safe_dump({"operators": [sha256]}))
    config = config.model_copy(update={"auth": AuthConfig(keys_file=str(file))})
    with TestClient(Application(config).app, headers={"X-API-Key": key}) as client:
        return said | {"/v1/requests": client.get("/v1/requests").text}


def bodies(text: str) -> Iterator[Any]:
    """The JSON values of an answer: one, or the data of each event of a stream with its other fields."""
    if not text.startswith(("event:", "data:")):
        yield json.loads(text)
        return
    for event in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in event.splitlines())
        yield fields | {"data": json.loads(fields["data"])}


def differences(old: Any, new: Any, place: str = "$") -> Iterator[str]:
    """What of the old value is gone or another one in the new. New fields of objects are welcome."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name, value in old.items():
            if name not in new:
                yield f"{place}.{name} is gone"
            else:
                yield from differences(value, new[name], f"{place}.{name}")
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from differences(before, after, f"{place}[{index}]")
    # 1, 1.0 and true are equal in Python, and are not to a client.
    elif json.dumps(old) != json.dumps(new):
        yield f"{place} was {json.dumps(old)[:80]} and is {json.dumps(new)[:80]}"


@pytest.mark.parametrize("version", VERSIONS)
def test_recorded_requests_are_answered_as_before(config, tmp_path, version):
    recorded = read(version)
    now = answers(config, recorded["rows"], tmp_path)
    assert now.keys() == recorded["answers"].keys()
    for path, text in recorded["answers"].items():
        before, after = list(bodies(text)), list(bodies(now[path]))
        assert list(differences(before, after)) == [], path


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"a": None}, {}),
        ({"a": None}, {"a": 0}),
        ({"a": 1}, {"a": 1.0}),
        ({"a": 1}, {"a": True}),
        ({"a": [1]}, {"a": [1, 2]}),
        ({"a": {"b": "x"}}, {"a": {"b": "y"}}),
        ({"a": []}, {"a": None}),
    ],
)
def test_what_a_client_would_notice_is_a_difference(old, new):
    assert list(differences(old, new))
    assert list(differences(old, {"more": 1} | old)) == []
