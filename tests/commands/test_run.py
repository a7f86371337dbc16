"""`edits-server run` from its start to its end, on a Ray of its own, with timed steps in place of a model's."""

import base64
import io
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from shutil import rmtree
from typing import Any

import httpx
import psutil
import pytest
import yaml

from serve_app.commands.ports import free_port
from tests.conftest import LORAS, ROOT, noise_image
from tests.service.standin import STEP_S, as_checkpoint

START_S = 180
# An edit that takes longer than everything else that a stop does.
STEPS = 60


def write_config(folder: Path, port: int, import_path: str, **args: Any) -> Path:
    (folder / "notes").mkdir()
    as_checkpoint(folder / "notes")
    model = {"checkpoint": str(folder / "notes"), "device": "cpu"}
    # The stand-in's builder resolves nothing.
    database = {"database_url": f"sqlite+aiosqlite:///{folder}/jobs.sqlite3"}
    args = {"models": [model], "lora_root": str(LORAS), "artifacts_url": str(folder / "artifacts")} | args
    application = {"name": "edits", "route_prefix": "/", "import_path": import_path, "args": args | {"jobs": database}}
    # Logical CPUs are those of the machine, which may have two.
    application["deployments"] = [
        {"name": "Ingress", "num_replicas": 1},
        {"name": "Editor-qwen_image_edit", "ray_actor_options": {"num_cpus": 0.1}},
    ]
    file = folder / "serve_config.yaml"
    options = {"host": "127.0.0.1", "port": port}
    file.write_text(yaml.safe_dump({"http_options": options, "applications": [application]}))
    return file


def launch(config: Path, folder: Path) -> "subprocess.Popen[bytes]":
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    # A short path for Ray's sockets, and none of its files where others look for theirs.
    environment |= {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": str(folder)}
    command = [sys.executable, "-m", "serve_app.commands", "run", str(config)]
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)


@dataclass
class Started:
    process: "subprocess.Popen[bytes]"
    config: Path
    folder: Path
    client: httpx.Client
    # What a poll of an unknown request was answered until the service was ready, without repetitions.
    answers: list[tuple[int, str]] = field(default_factory=list)

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_S
        while "the service is ready at" not in self.log() or self.client.get("/ready").status_code != 200:
            assert self.process.poll() is None, self.log()[-3000:]
            assert time.monotonic() < deadline, self.log()[-3000:]
            with suppress(httpx.TransportError):
                # It may not listen yet.
                self._poll()
            time.sleep(0.02)
        # On a busy machine it may have become ready after the last poll.
        self._poll()

    def _poll(self) -> None:
        response = self.client.get("/v1/requests/x/status")
        seen = (response.status_code, response.json()["detail"]["error"]["code"])
        if seen not in self.answers:
            self.answers.append(seen)


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="run-"))
    yield path
    rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def started() -> Iterator[Started]:
    folder = Path(tempfile.mkdtemp(prefix="run-"))
    port = free_port()
    config = write_config(folder, port, "tests.service.builds:timed")
    process = launch(config, folder)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            service = Started(process, config, folder, client)
            service.wait_until_ready()
            yield service
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
        process.wait(60)
        rmtree(folder, ignore_errors=True)


def image() -> str:
    buffer = io.BytesIO()
    noise_image(64, 64).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def body(steps: int) -> dict[str, Any]:
    prompt = {"prompt": "a", "width": 64, "height": 64, "sample_steps": steps, "ctrl_img": image()}
    return {"model": "qwen_image_edit", "prompts": [prompt], "loras": [{"path": "my_lora_job/my_lora.safetensors"}]}


def test_a_poll_is_503_until_the_application_answers(started: Started):
    assert started.answers == [(503, "SERVICE_UNAVAILABLE"), (404, "REQUEST_NOT_FOUND")]


def test_all_processes_listen_on_loopback_only(started: Started):
    command = psutil.Process(started.process.pid)
    listening = {
        (process.name(), connection.laddr.ip)
        for process in [command, *command.children(recursive=True)]
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    }
    names = {name for name, _ in listening}
    assert len(names) >= 5, names
    # IPv4 addresses of sockets that take both kinds are written as IPv6 ones.
    assert [each for each in listening if not ip_address(each[1].removeprefix("::ffff:")).is_loopback] == []


def test_large_headers_are_431(started: Started):
    """On a connection of their own."""
    assert httpx.get(started.client.base_url.join("/health"), headers={"X": "a" * 1_000_000}).status_code == 431


def test_a_second_service_on_the_port_names_it_and_stops(started: Started, folder: Path):
    second = launch(started.config, folder)
    assert second.wait(60) == 1
    said = (folder / "log").read_text().splitlines()
    port = started.client.base_url.port
    assert said == [
        f"edits-server: http_options: cannot listen on 127.0.0.1:{port}: Address already in use;"
        " stop what listens there, or configure another port"
    ]
    assert started.client.get("/health").status_code == 200


def test_urls_are_those_that_the_client_used(started: Started):
    headers = {"Host": "edits.example", "X-Forwarded-Proto": "https"}
    submitted = started.client.post("/v1/inference", json=body(1), headers=headers).json()
    assert submitted["status_url"].startswith("https://edits.example/v1/requests/")


def test_the_playground_is_served_through_the_front(started: Started):
    page = started.client.get("/")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    script = started.client.get("/web/app.js")
    assert (script.status_code, script.headers["content-type"]) == (200, "text/javascript; charset=utf-8")


def test_the_token_of_a_signed_url_is_in_no_log(started: Started):
    """Neither the front's, nor Ray's, nor Serve's, nor the service's."""
    token = "1800000000.cmVk.the-token-of-a-signed-url"
    for path in (f"/v1/requests/{'0' * 32}/images/0", "/nowhere", "/health"):
        started.client.get(path, params={"token": token})
    # Some logs are written with a delay.
    time.sleep(2)
    logs = [
        path for path in started.folder.rglob("*") if path.is_file() and path.suffix in ("", ".log", ".out", ".err")
    ]
    assert any("serve" in path.parts for path in logs)
    assert [str(path) for path in logs if token.encode() in path.read_bytes()] == []


def test_changed_presets_of_the_file_are_applied_in_place(started: Started):
    def change(**presets: Any) -> None:
        content = yaml.safe_load(started.config.read_text())
        content["applications"][0]["deployments"][0]["user_config"] = {"presets": presets}
        started.config.write_text(yaml.safe_dump(content))

    def wait_for(holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not holds():
            assert time.monotonic() < deadline, started.log()[-3000:]
            time.sleep(0.1)

    def presets() -> list[str]:
        return [each["name"] for each in started.client.get("/v1/presets").json()["presets"]]

    lora = [{"path": "my_lora_job/my_lora.safetensors"}]
    change(one={"model": "qwen_image_edit", "loras": lora})
    wait_for(lambda: presets() == ["one"])
    change(one={"modle": "qwen_image_edit"})
    wait_for(lambda: "the changed config is refused, so the one before it still holds" in started.log())
    assert presets() == ["one"]
    change(two={"model": "qwen_image_edit", "loras": lora})
    wait_for(lambda: presets() == ["two"])


def test_sigterm_lets_an_edit_finish_and_ends_with_0(started: Started):
    """The last test of the module: it ends the service."""
    request_id = started.client.post("/v1/inference", json=body(STEPS)).json()["request_id"]
    deadline = time.monotonic() + 60
    while (status := started.client.get(f"/v1/requests/{request_id}/status").json())["status"] != "in_progress":
        assert time.monotonic() < deadline, status
        time.sleep(0.05)
    began = time.monotonic()
    started.process.send_signal(signal.SIGTERM)
    refused = None
    while refused is None:
        answer = started.client.post("/v1/inference", json=body(1))
        refused = answer if answer.status_code != 200 else None
    assert (refused.status_code, refused.json()["detail"]["error"]["code"]) == (503, "SERVICE_UNAVAILABLE")
    assert started.process.wait(90) == 0
    assert time.monotonic() - began > STEPS * STEP_S / 2
    with sqlite3.connect(started.folder / "jobs.sqlite3") as database:
        [(status,)] = database.execute("SELECT status FROM requests WHERE id = ?", (request_id,)).fetchall()
    assert status == "succeeded"


def test_a_service_that_cannot_be_deployed_says_why_and_ends(folder: Path):
    process = launch(write_config(folder, free_port(), "tests.commands.refusing:build"), folder)
    assert process.wait(START_S) == 1
    last = (folder / "log").read_text(errors="replace").splitlines()[-1]
    assert last.startswith("edits-server: the service could not be deployed: nobody can build this")


def test_an_unknown_key_stops_the_command_before_anything_starts(folder: Path):
    config = write_config(folder, free_port(), "serve_app.app:build", lora_rot="x")
    assert launch(config, folder).wait(60) == 1
    log = (folder / "log").read_text()
    assert log == f"edits-server: {config}: applications.0.args.lora_rot: Extra inputs are not permitted\n"
