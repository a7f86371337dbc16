"""Sweeps by the Python client and by the command, over HTTP."""

import csv
import io
import json
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from click.testing import Result
from edits_client import AsyncClient, Client, errors
from edits_client.cli.main import app
from edits_client.cli.sweep_view import SweepView
from typer.testing import CliRunner

from serve_app.config import SQLITE_PREFIX
from serve_app.errors import EditError
from tests.conftest import as_png, noise_image
from tests.unit.conftest import LORA, Application, config_in
from tests.unit.serving import Served, serving
from tests.unit.sweeps import add_checkpoints
from tests.unit.test_sweep_files import PaintingEditors

PHOTO = as_png(noise_image(64, 64))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    shutil.copy(migrated_sqlite, folder / "jobs.sqlite3")
    application = Application(config_in(folder, f"{SQLITE_PREFIX}{folder}/jobs.sqlite3"), PaintingEditors)
    add_checkpoints(application.config, "a_000000250.safetensors", "a_000000500.safetensors")
    with serving(application) as served:
        yield served


@pytest.fixture
def client(service: Served) -> Iterator[Client]:
    service.let_go()
    with Client(service.url) as client:
        yield client


def base(client: Client) -> dict[str, Any]:
    extra = {"width": 64, "height": 64}
    return client.body(PHOTO, "at night", loras=[LORA], steps=2, prompt_extra=extra)


def test_sweep_is_planned_made_and_saved(client, tmp_path):
    axes = {"checkpoints": [None, "job/a_*"], "multipliers": [0.5, 1.0]}
    plan = client.plan_sweep(base(client), axes)
    assert (plan.status, plan.cells, plan.sweep_id) == ("dry_run", 5, None)
    sweep = client.sweep(base(client), axes, max_cells=5)
    changes = list(sweep.changes(timeout=60))
    assert {cell.cell for cell in changes} == set(range(5))
    assert len(changes) == len({(cell.cell, cell.status, cell.request_id) for cell in changes})
    end = sweep.wait(timeout=60)
    assert (end.status, end.counts.succeeded) == ("succeeded", 5)
    assert PIL.Image.open(io.BytesIO(sweep.image(end.grid[0]))).size == (64, 64)
    [sheet] = sweep.save_sheet(tmp_path / "sheet.webp", cell=64)
    assert PIL.Image.open(sheet).format == "WEBP"
    assert len(list(csv.DictReader(sweep.save_csv(tmp_path / "cells.csv").open()))) == 5
    assert len(zipfile.ZipFile(sweep.save_archive(tmp_path / "all.zip")).namelist()) == 7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.zip", "cells.csv", "sheet.webp"]


def test_sheet_of_several_pages_is_several_files(client, tmp_path):
    sweep = client.sweep(base(client), {"seeds": [1, 2, 3], "multipliers": [0.5, 1.0]})
    sweep.wait(timeout=60)
    files = sweep.save_sheet(tmp_path / "s.png", cell=32, rows_per_page=2, rows="seeds", columns="multipliers")
    assert [file.name for file in files] == ["s.png", "s-2.png"]


def test_sweep_is_cancelled_resumed_and_extended(client, service):
    service.hold_back()
    sweep = client.sweep(base(client), {"seeds": [1, 2]})
    assert sweep.cancel().status == "canceled"
    service.let_go()
    sweep.resume()
    assert client.open_sweep(sweep.id).wait(timeout=60).status == "succeeded"
    assert sweep.extend({"seeds": [3]}).cells == 3
    assert sweep.wait(timeout=60).counts.succeeded == 3


def test_cells_are_read_where_streams_do_not_get_through(client, monkeypatch):
    def broken(*arguments: object, **named: object) -> None:
        raise errors.ConnectionFailed("it does not get through")

    sweep = client.sweep(base(client), {"seeds": [1, 2]})
    monkeypatch.setattr(sweep._transport.http, "sse", broken)
    assert {cell.cell for cell in sweep.changes(timeout=60)} == {0, 1}


async def test_async_client_has_sweeps_too(service):
    service.let_go()
    async with AsyncClient(service.url) as client:
        body = await client.body(PHOTO, "at night", loras=[LORA], steps=2, prompt_extra={"width": 64, "height": 64})
        sweep = await client.sweep(body, {"seeds": [5]})
        assert (await sweep.wait(timeout=60)).status == "succeeded"


@pytest.fixture
def edits(service: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDITS_URL", service.url)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "photo.png").write_bytes(PHOTO)
    service.let_go()
    return lambda *arguments: CliRunner().invoke(app, ["sweep", "photo.png", "at night", "--steps", "2", *arguments])


def test_command_makes_a_sheet_and_a_table(edits, tmp_path):
    result = edits(
        "-c", "none", "-c", "job/a_*", "--multiplier", "0.5,1", "--sheet", "s.jpg", "--csv", "c.csv", "--size", "64x64"
    )
    assert result.exit_code == 0, result.output
    assert "succeeded, 5 of 5 images" in result.output
    assert PIL.Image.open(tmp_path / "s.jpg").format == "JPEG"
    assert len((tmp_path / "c.csv").read_text().splitlines()) == 6


def test_command_says_what_it_would_do(edits):
    result = edits("--job", "job", "--from-step", "300", "--seed", "1", "--seed", "2", "--dry-run", "--json")
    assert json.loads(result.stdout)["cells"] == 2


def test_command_varies_qualities(edits, client):
    """This service's model has no tiers, which it says: the axis has arrived there."""
    assert json.loads(edits("-l", LORA, "--quality", "exact", "--dry-run", "--json").stdout)["cells"] == 1
    assert "quality fast is not available" in edits("-l", LORA, "--quality", "exact", "--quality", "fast").output
    sweep = client.sweep(base(client), {"seeds": [1]})
    extended = CliRunner().invoke(app, ["sweep-extend", sweep.id, "--quality", "balanced", "--dry-run"])
    assert "quality balanced is not available" in extended.output


def test_trigger_word_of_a_job_is_its_checkpoints(edits):
    """The tests' files name none, which is said before anything is made."""

    def planned(prompt: str, *arguments: str) -> str:
        command = ["sweep", "photo.png", prompt, "--job", "job", "--dry-run"]
        return CliRunner().invoke(app, [*command, *arguments]).output

    assert "trigger_word is auto, but no adapter's file names a word" in planned("[trigger] at night")
    assert "trigger_word" not in planned("[trigger] at night", "--trigger", "sks")
    assert "trigger_word" not in planned("at dawn")


def test_command_extends_a_sweep(edits, client):
    sweep = client.sweep(base(client), {"seeds": [1]})
    sweep.wait(timeout=60)
    result = CliRunner().invoke(app, ["sweep-extend", sweep.id, "--seed", "1", "--seed", "2"])
    assert result.exit_code == 0, result.output
    assert "2 images in all" in result.output
    assert sweep.wait(timeout=60).counts.succeeded == 2


def test_command_tells_of_failed_cells(edits, service):
    service.application.editors.errors.append(EditError("it went wrong"))
    result = edits("-l", LORA, "--seed", "1", "--seed", "2", "--size", "64x64")
    assert result.exit_code == 4
    assert "it went wrong" in result.output


def test_grid_in_the_terminal(client):
    sweep = client.sweep(base(client), {"checkpoints": [None, "job/a_*"], "multipliers": [0.5, 1.0]})
    end = sweep.wait(timeout=60)
    lines = SweepView(end)._view().plain.splitlines()
    assert lines[:2] == [f"sweep {sweep.id}: 5 of 5 images", "columns: no LoRA to step 500"]
    assert lines[2:] == ["■     ", "  ■ ■ ", "  ■ ■ "]
