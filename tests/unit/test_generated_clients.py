"""Clients are generated from the OpenAPI document without a warning, and work.

The generators run in processes of their own: see `tests/programs.py` for where they are installed.
"""

import base64
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
import yaml

from serve_app.config import AuthConfig
from serve_app.intake.keys import new_key
from tests.conftest import ROOT
from tests.programs import JAVASCRIPT, generator, npm_program
from tests.unit.conftest import IMAGE, Application
from tests.unit.test_recorded_answers import VERSIONS, read
from tools.openapi import openapi_document

SCRIPTS = ROOT / "tests/generators"


@pytest.fixture(scope="module")
def document(tmp_path_factory) -> Path:
    """The file of the document."""
    file = tmp_path_factory.mktemp("document") / "openapi.json"
    file.write_text(json.dumps(openapi_document()))
    return file


@pytest.fixture
def results(tmp_path) -> Path:
    """A file with the results that releases have answered."""
    answers = [answer for version in VERSIONS for answer in read(version)["answers"].items()]
    file = tmp_path / "results.json"
    file.write_text(json.dumps([json.loads(text) for path, text in answers if path.endswith("/result")]))
    return file


def run(*command: str | Path, **environment: str) -> str:
    """The output of a command, which must succeed."""
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env=dict(os.environ) | environment,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    return done.stdout


@pytest.fixture
def served(config, tmp_path) -> Iterator[tuple[str, str]]:
    """An application with keys on loopback: its URL, and a key."""
    key, sha256 = new_key()
    file = tmp_path / "keys.yaml"
    file.write_text(yaml.safe_dump({"tenants": {"red": [sha256]}}))
    application = Application(config.model_copy(update={"auth": AuthConfig(keys_file=str(file))}))
    server = uvicorn.Server(uvicorn.Config(application.app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    [listening] = server.servers[0].sockets
    yield f"http://127.0.0.1:{listening.getsockname()[1]}", key
    server.should_exit = True
    thread.join()


def test_the_generated_python_client_makes_an_edit(document, results, served, tmp_path, control_png):
    command = generator("openapi-python-client")
    # It formats what it has generated with the ruff of its own environment.
    path = f"{command.parent}{os.pathsep}{os.environ['PATH']}"
    said = run(command, "generate", "--path", document, "--output-path", tmp_path / "client", PATH=path)
    assert said.strip() == f"Generating {tmp_path / 'client'}"
    image = tmp_path / "control.png"
    image.write_bytes(control_png)
    # Its own environment has what the generated package needs.
    script = run(
        command.parent / "python", SCRIPTS / "edit.py", *served, image, results, PYTHONPATH=tmp_path / "client"
    )
    assert expected(json.loads(script)) == {
        "status": "succeeded",
        "image": IMAGE,
        "by_signed_url": IMAGE,
        "format": "png",
        "model": "qwen_image_edit",
        "additional": [],
        "errors": ["REQUEST_NOT_FOUND", "MODEL_NOT_FOUND"],
        "supported": ["qwen_image_edit"],
        "fault": "missing",
        "sizes": [[832, 1248]],
        "steps_of_the_repeat": 2,
        "divisor": 32,
        "sizes_of_uploads": [[96, 64], [96, 64]],
        "ends_of_forms": ["succeeded"],
        "read": {"canceled": 2, "failed": 2, "succeeded": 4},
    }


def expected(said: dict[str, Any]) -> dict[str, Any]:
    assert said.pop("seconds") >= 0
    return said | {name: base64.b64decode(said[name]) for name in ("image", "by_signed_url")}


def test_generated_models_read_what_releases_answered(document, results, tmp_path):
    command = generator("datamodel-codegen")
    options = [
        "--input-file-type",
        "openapi",
        "--output-model-type",
        "pydantic_v2.BaseModel",
        "--formatters",
        "builtin",
    ]
    output = tmp_path / "models/edit_models.py"
    output.parent.mkdir()
    assert run(command, "--input", document, "--output", output, *options) == ""
    assert json.loads(run(command.parent / "python", SCRIPTS / "read.py", output.parent, results)) == {
        "status": ["Status"],
        "created_at": ["datetime"],
        "metadata": ["Metadata"],
        "effective": ["StoredEffectiveRecord"],
        "scheduler": ["NoneType", "Scheduler"],
    }


def test_generated_typescript_is_exact(document, tmp_path):
    command = npm_program("openapi-typescript")
    said = run(command, document, "--output", tmp_path / "openapi.d.ts")
    assert [line for line in said.splitlines() if line and not line.startswith(("✨", "🚀"))] == []
    shutil.copy(JAVASCRIPT / "types.ts", tmp_path)
    options = ["--noEmit", "--strict", "--skipLibCheck", "--target", "es2022", "--module", "preserve"]
    run(npm_program("tsc"), *options, tmp_path / "types.ts")
