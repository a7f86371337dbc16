"""Which replica makes an edit: the shipped router, three real miniature engines, real adapters in files."""

import os
import signal
import threading
import time
from dataclasses import dataclass

import httpx
import pytest
from ray import serve
from ray.serve.schema import ServeDeploySchema

from serve_app.config import MINIATURE_RANDOM, AppConfig
from serve_app.pipeline.random_lora import make_lora
from tests.service.builds import load_noted_engine
from tests.service.conftest import Deployed
from tests.service.noted import notes_file

REPLICAS = 3
LORAS = [f"job_{index}/lora.safetensors" for index in range(6)]
EDITOR = "Editor-qwen_image_edit"
# Enough for an edit to be seen while it runs.
STEPS = 8


@dataclass(frozen=True)
class Note:
    """One edit: who made it, and whether the adapters had to be read for it."""

    pid: int
    was_read: bool
    adapters: str


class Fleet(Deployed):
    def notes(self) -> list[Note]:
        lines = notes_file(self.config.models[0]).read_text().splitlines()
        parts = [line.split(" ", 2) for line in lines]
        return [Note(int(pid), how == "read", adapters) for pid, how, adapters in parts]

    def new_notes(self, known: list[Note]) -> list[Note]:
        return self.notes()[len(known) :]

    def wait_for_replicas(self) -> list[int]:
        deadline = time.monotonic() + 60
        while not self.is_ready() or len(self.replica_pids(EDITOR)) < REPLICAS:
            assert time.monotonic() < deadline, serve.status()
            time.sleep(0.1)
        return self.replica_pids(EDITOR)


@pytest.fixture(scope="module")
def fleet(cluster, engine, tmp_path_factory):
    """One application for all of these tests: each leaves it serving."""
    folder = tmp_path_factory.mktemp("fleet")
    for seed, path in enumerate(LORAS):
        make_lora(engine._pipeline.transformer, folder / "loras" / path, seed=seed)
    args = {
        "lora_root": str(folder / "loras"),
        "artifacts_url": str(folder / "artifacts"),
        "require_lora": False,
        "models": [{"checkpoint": MINIATURE_RANDOM, "threads": 1, "device": "cpu", "adapter_disk_folder": str(folder)}],
        "jobs": {"database_url": f"sqlite+aiosqlite:///{folder}/jobs.sqlite3", "lease_s": 3},
    }
    declared = {"name": "fleet", "route_prefix": "/fleet", "import_path": "tests.service.builds:noted", "args": args}
    declared["deployments"] = [{"name": EDITOR, "num_replicas": REPLICAS}]
    schema = ServeDeploySchema.model_validate({"applications": [declared]})
    serve.context._get_global_client().deploy_apps(schema)
    client = httpx.Client(base_url=f"http://127.0.0.1:{cluster}/fleet", timeout=30)
    fleet = Fleet("fleet", client, folder, AppConfig.model_validate(args), load_noted_engine)
    fleet.wait_for_replicas()
    yield fleet
    serve.delete("fleet")
    client.close()


@pytest.fixture
def body(make_body):
    def body(*loras: str, images: int = 1, **prompt: object) -> dict:
        body = make_body(output_format="png", loras=[{"path": path} for path in loras], **prompt)
        body["prompts"] *= images
        return body

    return body


def test_same_adapters_go_to_the_replica_that_holds_them(fleet, body):
    images = {fleet.edit(body(path))[1] for path in LORAS}
    assert len(images) == len(LORAS)
    first = fleet.notes()
    for path in LORAS:
        fleet.edit(body(path))
    again = fleet.new_notes(first)
    assert all(note.was_read for note in first)
    assert [(note.adapters, note.pid) for note in again] == [(note.adapters, note.pid) for note in first]
    assert not any(note.was_read for note in again)


def test_base_model_requests_go_anywhere(fleet, body):
    known = fleet.notes()
    fleet.edit(body(images=2 * REPLICAS, sample_steps=STEPS))
    assert {note.pid for note in fleet.new_notes(known)} == set(fleet.replica_pids(EDITOR))


def test_death_of_a_replica_loses_no_request_and_the_others_keep_their_adapters(fleet, body):
    requests = [fleet.submit(body(path, sample_steps=STEPS)) for path in LORAS]
    fleet.wait(requests[0], lambda status: status["progress"]["steps_done"] > 0)
    victim = next(note.pid for note in fleet.notes() if note.adapters == LORAS[0])
    os.kill(victim, signal.SIGKILL)
    assert {fleet.result(request)["status"] for request in requests} == {"succeeded"}
    living = fleet.wait_for_replicas()
    assert victim not in living
    known = fleet.notes()
    for path in LORAS:
        fleet.edit(body(path))
    # Were it the arithmetic of ids alone, the new replica would now get, and read, some that others hold. Those that it
    # has read before it took traffic it may get.
    held = {note.adapters for note in known if note.pid in living}
    # What only the dead one had made may go anywhere.
    assert len(held) > len(LORAS) / 2
    for note in fleet.new_notes(known):
        assert not (note.adapters in held and note.was_read)


def test_no_adapter_starves_next_to_a_popular_one(fleet, body):
    enough = threading.Event()
    made: list[str] = []

    def want_the_popular_one() -> None:
        while not enough.is_set():
            made.append(fleet.result(fleet.submit(body(LORAS[0], images=4)))["status"])

    crowd = [threading.Thread(target=want_the_popular_one) for _ in range(2)]
    for each in crowd:
        each.start()
    try:
        # The popular one's requests do not end before these have.
        for loras in ([LORAS[1]], [LORAS[2]], []):
            assert fleet.result(fleet.submit(body(*loras)))["status"] == "succeeded"
    finally:
        enough.set()
        for each in crowd:
            each.join()
    assert set(made) == {"succeeded"}
