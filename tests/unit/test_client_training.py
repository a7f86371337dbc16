"""The Python client and the command `edits` about training jobs, against the application on loopback."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from anyio.from_thread import start_blocking_portal
from click.testing import Result
from edits_client import AsyncClient, Client, errors
from edits_client.cli import context
from edits_client.cli.main import app
from typer.testing import CliRunner

from serve_app.config import AppConfig
from tests.conftest import as_png, noise_image
from tests.training_folder import (
    checkpoint_name,
    sample_name,
    trainer_config,
    write_checkpoints,
    write_config,
    write_sample_image,
)
from tests.unit.clients import RETRIES, Blocking
from tests.unit.conftest import Application, InstantEditors, safetensors_bytes
from tests.unit.serving import Served, serving
from tests.unit.test_training_by_http import SAMPLE, as_jpeg, edit, image_of

JOB = "people/my_job"


@pytest.fixture(scope="module")
def served(shared_config: AppConfig) -> Iterator[Served]:
    """The application with one training job; the control image of its samples is not on the service."""
    folder = Path(shared_config.lora_root) / JOB
    write_config(folder, trainer_config(sample={"samples": [SAMPLE, SAMPLE | {"seed": 40}], "seed": 7}))
    write_checkpoints(folder, safetensors_bytes(), (250, None))
    for number, image in enumerate((image_of(7), image_of(1))):
        write_sample_image(folder, sample_name(250, number), as_jpeg(image))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InstantEditors, "edit", edit)
        with serving(Application(shared_config)) as found:
            yield found


@pytest.fixture(params=["sync", "async"])
def client(request: pytest.FixtureRequest, served: Served) -> Iterator[Any]:
    if request.param == "sync":
        with Client(served.url, retries=RETRIES) as found:
            yield found
        return
    with start_blocking_portal() as portal:
        found = AsyncClient(served.url, retries=RETRIES)
        yield Blocking(portal, found)
        portal.call(found.close)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the control image."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("EDITS_API_KEY", raising=False)
    monkeypatch.setattr(context, "RETRIES", RETRIES)
    (tmp_path / "cat.png").write_bytes(as_png(noise_image(96, 64)))
    return tmp_path


def edits(served: Served, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["--url", served.url, *arguments], prog_name="edits")


def done(result: Result) -> str:
    assert result.exit_code == 0, result.output
    return result.stdout


def test_jobs_and_their_images(client):
    [entry] = client.training_jobs("MY_job")
    assert entry.name == JOB
    assert list(client.training_jobs("nothing")) == []
    job = client.training_job(JOB)
    assert [each.step for each in job.checkpoints] == [250]
    assert client.sample_image(JOB, job.sample_images[0].file) == as_jpeg(image_of(7))
    small = client.sample_image(JOB, job.sample_images[0].file, thumbnail=True)
    assert PIL.Image.open(io.BytesIO(small)).format == "JPEG"
    with pytest.raises(errors.SampleNotFound):
        client.sample_image(JOB, "config.yaml")
    with pytest.raises(errors.TrainingJobNotFound):
        client.training_job("nothing")


def test_pages_of_jobs_are_read_as_they_are_needed(client, served):
    root = Path(served.application.config.lora_root)
    for number in range(60):
        write_checkpoints(root / f"many/{number:02}", b"", (250,))
    assert [job.name for job in client.training_jobs("many/")] == [f"many/{number:02}" for number in range(60)]


def test_previews_are_waited_for(client, folder):
    with pytest.raises(errors.ControlImageRequired, match=r"cat\.png"):
        client.previews(JOB, step=250)
    status = client.previews(JOB, step=250, control_images={"cat.png": folder / "cat.png"})
    assert [pair.comparison.is_equal for pair in status.pairs] == [True, False]
    assert status.summary.startswith("1 of 2 previews are equal")
    assert client.previews_status(JOB, status.id) == status
    with pytest.raises(errors.PreviewsImpossible):
        client.previews(JOB, step=300)
    with pytest.raises(errors.PreviewsNotFound):
        client.previews_status(JOB, "250-" + "0" * 32)


def test_command_lists_jobs(served, folder):
    said = done(edits(served, "training-jobs", "--search", "my_job"))
    assert JOB in said
    assert "250, final" in said
    said = done(edits(served, "training-jobs", JOB))
    assert f"{JOB}/{checkpoint_name('my_job', 250)}" in said
    assert "missing: /home/me/control/cat.png" in said
    assert json.loads(done(edits(served, "training-jobs", JOB, "--json")))["name"] == JOB


def test_command_compares_previews(served, folder):
    arguments = ("preview", JOB, "--step", "250", "--control-image", "cat.png=cat.png", "--sheet", "pairs.png")
    result = edits(served, *arguments)
    said = done(result)
    assert "equal" in said
    assert " dB, " in said
    assert "1 of 2 previews are equal in every pixel" in said
    assert "note: the sample is a JPEG" in result.stderr
    sheet = PIL.Image.open(folder / "pairs.png")
    assert sheet.width > 4 * 64
    status = json.loads(done(edits(served, *arguments, "--sample", "0", "--json")))
    assert [pair["sample"] for pair in status["pairs"]] == [0]


def test_command_says_what_is_missing(served, folder):
    result = edits(served, "preview", JOB, "--step", "250")
    assert result.exit_code == context.REFUSED
    assert "/home/me/control/cat.png" in result.stderr
    assert edits(served, "preview", JOB, "--step", "250", "--control-image", "cat.png").exit_code == 2
    assert edits(served, "preview", JOB, "--step", "250", "--sheet", "nowhere/a.png").exit_code == 2
