"""A declared application with three editors: which of them makes an edit, and presets that change in place."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from ray import serve
from safetensors.torch import load_file, save_file

from serve_app.config import AppConfig
from tests.conftest import LORAS as LORA_FOLDER
from tests.service.conftest import Deployed, declare
from tests.service.standin import STEP_S, AdapterNotingEngine, as_checkpoint

REPLICAS = 3
LORAS = [f"job_{index}/lora.safetensors" for index in range(6)]
EDITOR = "Editor-qwen_image_edit"
EDITOR_OF_TIER = f"{EDITOR}-fast"
IN_FP8 = {"quantization": "fp8", "uncalibrated": "allow"}
# Enough for an edit to be seen while it runs.
STEPS = 8
STYLE = {
    "model": "qwen_image_edit",
    "loras": [{"path": LORAS[0], "network_multiplier": 0.5}],
    "sample_steps": 2,
    "size": "input",
}


@dataclass(frozen=True)
class Note:
    """One edit: who made it, and whether the adapters had to be read for it."""

    pid: int
    was_read: bool
    adapters: str


class Fleet(Deployed):
    def declare(self, user_config: dict, of_editors: dict | None = None) -> None:
        """Deploy the application, or change it in place, with this `user_config` of its ingresses and its editors."""
        application = {"name": self.name, "route_prefix": f"/{self.name}", "import_path": "tests.service.builds:noted"}
        editor = {"name": EDITOR, "num_replicas": REPLICAS, "user_config": of_editors or {}}
        ingress = {"name": "Ingress", "num_replicas": 2, "user_config": user_config}
        args = self.config.model_dump(mode="json")
        status = declare(application | {"args": args, "deployments": [editor, ingress]})
        assert status.status == "RUNNING", status

    def notes(self) -> list[Note]:
        lines = Path(self.config.models[0].checkpoint, "notes").read_text().splitlines()
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


def write_loras(folder: Path) -> None:
    """Files of different content: that is what tells adapters apart."""
    tensors = load_file(LORA_FOLDER / "my_lora_job/my_lora.safetensors")
    for path in LORAS:
        (folder / path).parent.mkdir(parents=True)
        save_file(tensors, folder / path, {"name": path})


@pytest.fixture(scope="module")
def fleet(cluster: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """One application for all of these tests: each leaves it serving."""
    folder = tmp_path_factory.mktemp("fleet")
    write_loras(folder / "loras")
    args = {
        "lora_root": "loras",
        "artifacts_url": "artifacts",
        "require_lora": False,
        "models": [{"checkpoint": str(as_checkpoint(folder)), "device": "cpu", "tiers": {"fast": IN_FP8}}],
        "jobs": {"lease_s": 3},
    }
    client = httpx.Client(base_url=f"http://127.0.0.1:{cluster}/fleet", timeout=30)
    config = AppConfig.model_validate(args).resolved(folder)
    fleet = Fleet("fleet", client, folder, config, AdapterNotingEngine)
    fleet.declare({"presets": {"style": STYLE}})
    fleet.wait_for_replicas()
    yield fleet
    fleet.stop(wait=False)
    client.close()


@pytest.fixture
def body(make_body):
    def body(*loras: str, images: int = 1, **prompt: object) -> dict:
        body = make_body(output_format="png", loras=[{"path": path} for path in loras], **prompt)
        body["prompts"] *= images
        return body

    return body


def test_same_adapters_go_to_the_replica_that_holds_them(fleet, body):
    for path in LORAS:
        fleet.edit(body(path))
    first = fleet.notes()
    for path in LORAS:
        fleet.edit(body(path))
    again = fleet.new_notes(first)
    assert all(note.was_read for note in first)
    assert [(note.adapters, note.pid) for note in again] == [(note.adapters, note.pid) for note in first]
    assert not any(note.was_read for note in again)


def test_tier_in_fp8_is_made_by_editors_of_its_own(fleet, body):
    known = fleet.notes()
    result, _ = fleet.edit(body(LORAS[0]) | {"quality": "fast"})
    fleet.edit(body(LORAS[0]))
    of_tier, exact = fleet.new_notes(known)
    assert of_tier.pid in fleet.replica_pids(EDITOR_OF_TIER)
    assert exact.pid in fleet.replica_pids(EDITOR)
    models = fleet.client.get("/v1/operation").json()["models"]
    assert [(model["id"], model["editors_running"]) for model in models] == [
        ("qwen_image_edit", REPLICAS),
        ("qwen_image_edit-fast", 1),
    ]
    assert result["status"] == "succeeded"


def test_images_of_a_base_model_request_are_made_by_all_replicas_at_once(fleet, body):
    known = fleet.notes()
    images, steps = 2 * REPLICAS, 20
    started = time.monotonic()
    fleet.edit(body(images=images, sample_steps=steps))
    # On one device, one after the other, they would take at least this long.
    assert time.monotonic() - started < images * steps * STEP_S
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


def until(is_so: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_presets_change_in_place_and_their_faults_stop_nothing(fleet, make_body):
    body = {"preset": "style", "prompts": [{"prompt": "x", "ctrl_img": make_body()["prompts"][0]["ctrl_img"]}]}
    result, _ = fleet.edit(body)
    image = result["outputs"]["images"][0]
    # The control image has 96x64 pixels.
    assert (image["width"], image["height"]) == (1248, 832)
    ingresses, editors = sorted(fleet.replica_pids("Ingress")), sorted(fleet.replica_pids(EDITOR))
    assert len(ingresses) == 2

    def code(preset: str) -> str | None:
        answer = fleet.client.post("/v1/explain", json=body | {"preset": preset}).json()
        return answer["detail"]["error"]["code"] if "detail" in answer else None

    def everywhere(preset: str, expected: str | None) -> bool:
        # Each ingress answers some of them.
        return all(code(preset) == expected for _ in range(10))

    faulty = {"qwen_image": STYLE, "typo": {"modle": "m"}, "gone": STYLE | {"loras": [{"path": "gone.safetensors"}]}}
    fleet.declare({"presets": {"other": STYLE, "two words": STYLE} | faulty})
    until(lambda: everywhere("other", None))
    assert everywhere("style", "PRESET_NOT_FOUND")
    assert {name: code(name) for name in faulty} == dict.fromkeys(faulty, "PRESET_BROKEN")
    broken = fleet.client.get("/ready").json()["broken_presets"]
    assert [preset["name"] for preset in broken] == ["gone", "qwen_image", "two words", "typo"]

    # What cannot be read at all changes nothing.
    for unreadable in ({"presets": {"style": STYLE}, "max_qeued": 7}, {"presets": []}):
        fleet.declare(unreadable, of_editors={"log_level": "CHATTY"})
        time.sleep(2)
        assert everywhere("other", None)
    fleet.declare({"presets": {"style": STYLE}})
    until(lambda: everywhere("style", None))
    assert sorted(fleet.replica_pids("Ingress")) == ingresses
    assert sorted(fleet.replica_pids(EDITOR)) == editors
    assert fleet.is_ready()


def test_control_image_on_this_machine_is_refused_as_shipped(fleet, body):
    url = str(fleet.client.base_url) + "/v1/models"
    answer = fleet.client.post("/v1/inference", json=body(LORAS[0], ctrl_img=url))
    assert answer.json()["detail"]["error"]["code"] == "CONTROL_IMAGE_INVALID"
