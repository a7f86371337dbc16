"""Steps and their previews as clients see them, and what survives when processes die. With timed stand-in engines.

On PostgreSQL; the other tests of this folder run on SQLite.
"""

import asyncio
import base64
import json
import os
import signal
import statistics
import time
from contextlib import aclosing
from pathlib import Path

import pytest
from ray import serve
from ray.serve.handle import DeploymentHandle

from serve_app.replicas.edit_progress import ALIVE_S
from serve_app.replicas.editor_client import EditorHandles
from serve_app.tasks import EditDone, EditTask, Heartbeat, Stage, StepDone
from tests.service.previews import (
    WATCHED_EDIT,
    WATCHED_STEPS,
    assert_leaves_nothing,
    assert_shows_step,
    events,
)
from tests.service.standin import STEP_S, NotingEngine, as_checkpoint

STEPS = 20
# An edit that is to be stopped: what stops it has fifteen seconds, however busy the machine is.
MANY_STEPS = 150
LORAS = [{"path": "my_lora_job/my_lora.safetensors"}]


class Notes:
    """What the engines of an application did, a line each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def lines(self) -> list[str]:
        return (self._folder / "notes").read_text().splitlines()

    def steps(self, seed: int) -> dict[int, float]:
        """When each step of an edit was made, by this machine's clock (s)."""
        parts = [line.split() for line in (self._folder / "steps").read_text().splitlines()]
        return {int(step): float(moment) for of_seed, step, moment in parts if int(of_seed) == seed}

    def wait_for(self, prefix: str, seconds: float = 10) -> None:
        deadline = time.monotonic() + seconds
        while not any(line.startswith(prefix) for line in self.lines()):
            assert time.monotonic() < deadline, self.lines()
            time.sleep(0.05)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return as_checkpoint(tmp_path_factory.mktemp("notes"))


@pytest.fixture(scope="module")
def notes(folder) -> Notes:
    return Notes(folder)


@pytest.fixture(scope="module")
def timed(deploy, folder, postgres):
    """One application for all of these tests: each leaves it serving."""
    models = [{"checkpoint": str(folder), "device": "cpu"}]
    jobs = {"lease_s": 3, "database_url": postgres.new_database()}
    return deploy("timed", NotingEngine, ingresses=2, models=models, jobs=jobs)


@pytest.fixture
def body(make_body):
    def body(images: int = 1, **prompt: object) -> dict:
        body = make_body(**{"sample_steps": STEPS, "loras": LORAS} | prompt)
        body["prompts"] *= images
        return body

    return body


def begun(status: dict) -> bool:
    return status["progress"]["steps_done"] >= 2


def test_health_is_answered_while_an_edit_runs(timed, body):
    request_id = timed.submit(body())
    timed.wait(request_id, begun)
    started = time.monotonic()
    assert timed.client.get("/health").json() == {"status": "healthy"}
    assert time.monotonic() - started < STEPS * STEP_S / 2
    assert timed.status(request_id)["status"] == "in_progress"
    assert timed.result(request_id)["status"] == "succeeded"


def test_steps_are_seen_to_pass(timed, body):
    request_id = timed.submit(body())
    seen: set[int] = set()
    timed.wait(request_id, lambda s: seen.add(s["progress"]["steps_done"]) or s["status"] == "succeeded")
    assert len(seen) > 4


def test_watcher_sees_a_step_within_a_second(timed, notes, body):
    seed = 91
    request_id = timed.submit(body(seed=seed))
    with timed.client.stream("GET", f"/v1/requests/{request_id}/events") as answer:
        told = [
            (time.time(), json.loads(line.removeprefix("data: ")))
            for line in answer.iter_lines()
            if line.startswith("data: ")
        ]
    made = notes.steps(seed)
    delays = [moment - made[data["step"]] for moment, data in told if data.get("step")]
    # Not all of them: a busy machine may hold anything up.
    assert len(delays) > 4
    assert statistics.median(delays) < 1
    assert told[-1][1]["status"] == "succeeded"


def test_watched_request_has_previews_on_every_ingress_and_leaves_none(timed, body):
    request_id = timed.submit(body(**WATCHED_EDIT))
    previews, got = [], []
    for name, data in events(timed, request_id):
        if name == "preview":
            previews.append(data)
            answer = timed.client.get(f"/v1/requests/{request_id}/images/0/preview")
            # Whichever ingress answers. The edit may be over by then.
            if answer.status_code == 200:
                got.append(answer)
    assert name == "succeeded"
    steps = [data["step"] for data in previews]
    assert len(steps) >= 2
    assert steps == sorted(set(steps))
    for data in previews:
        assert data["image"] == 0
        assert_shows_step(base64.b64decode(data["jpeg_base64"]), data["step"])
    assert got
    for answer in got:
        assert answer.headers["x-steps"] == str(WATCHED_STEPS)
        assert_shows_step(answer.content, int(answer.headers["x-step"]))
    after = timed.client.get(f"/v1/requests/{request_id}/images/0/preview")
    assert (after.status_code, after.json()["detail"]["error"]["code"]) == (404, "PREVIEW_NOT_READY")
    assert_leaves_nothing(timed, request_id)


def test_unwatched_request_has_no_previews(timed, body):
    request_id = timed.submit(body(**WATCHED_EDIT))
    names = {name for name, _ in events(timed, request_id, previews=False)}
    assert {"step", "succeeded"} <= names
    assert "preview" not in names
    assert_leaves_nothing(timed, request_id)


def test_cancelled_edit_stops_at_its_next_step_and_the_next_one_starts(timed, notes, body):
    running = timed.submit(body(seed=101, sample_steps=MANY_STEPS))
    waiting = timed.submit(body(seed=102))
    timed.wait(running, begun)
    step = timed.client.delete(f"/v1/requests/{running}").json()["progress"]["steps_done"]
    assert timed.result(waiting)["status"] == "succeeded"
    [line] = [line for line in notes.lines() if line.startswith("stopped 101")]
    # It went on while the answer came, the dispatcher looked and the editor was told: half a second, or two when busy.
    assert int(line.split()[-1]) <= step + 20
    assert "made 101" not in notes.lines()
    assert timed.status(running)["status"] == "canceled"


def test_cancelled_edit_that_was_prepared_makes_room_while_another_runs(timed, notes, body):
    running, prepared = timed.submit(body(seed=111)), timed.submit(body(seed=112))
    timed.wait(running, begun)
    timed.client.delete(f"/v1/requests/{prepared}")
    after = timed.submit(body(seed=113))
    assert timed.result(after)["status"] == "succeeded"
    made = [line for line in notes.lines() if line.startswith(("made 11", "stopped 11"))]
    assert made == ["made 111", "made 113"]


async def test_caller_knows_where_editors_are_before_its_first_edit(timed):
    """An ingress would else look for them with its first request: a second on a busy machine."""
    # One of its own: `serve.get_deployment_handle` gives the same one to whoever asks.
    handle = DeploymentHandle("Editor-qwen_image_edit", "timed")
    EditorHandles({"qwen_image_edit": handle})
    deadline = time.monotonic() + 30
    while not handle.running_replicas_populated() and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    assert handle.running_replicas_populated()


async def test_edit_whose_caller_goes_away_stops_at_its_next_step(timed, notes, make_plan):
    handle = serve.get_deployment_handle("Editor-qwen_image_edit", "timed")
    task = EditTask("abandoned", 0, make_plan(steps=MANY_STEPS, seed=5, control_images=()))
    async with aclosing(EditorHandles({"qwen_image_edit": handle}).edit(task)) as events:
        async for event in events:
            if isinstance(event, StepDone) and event.step == 3:
                break
    await asyncio.to_thread(notes.wait_for, "stopped 5 after")
    [line] = [line for line in notes.lines() if line.startswith("stopped 5")]
    assert int(line.split()[-1]) <= 20
    assert "made 5" not in notes.lines()


async def test_editor_says_that_an_edit_waits_and_goes_on_saying_that_it_is_there(timed, make_plan):
    handles = EditorHandles({"qwen_image_edit": serve.get_deployment_handle("Editor-qwen_image_edit", "timed")})
    seconds = 1.5 * ALIVE_S

    async def said(name: str, steps: int) -> list[object]:
        task = EditTask(name, 0, make_plan(steps=steps, control_images=()))
        return [event async for event in handles.edit(task) if not isinstance(event, EditDone)]

    first = asyncio.create_task(said("first", int(seconds / STEP_S)))
    await asyncio.sleep(seconds / 10)
    second = await said("second", 1)
    assert (await first)[:2] == [Heartbeat(Stage.PREPARING), Heartbeat(Stage.RUNNING)]
    waiting, running = Heartbeat(Stage.WAITING), Heartbeat(Stage.RUNNING)
    # Again while it waits, and otherwise once the device is its own.
    waited = [waiting, waiting, running, StepDone(0, 1), StepDone(1, 1), Heartbeat(Stage.STORING)]
    assert second == [Heartbeat(Stage.PREPARING), *waited]


def test_killed_editor_costs_a_retry(timed, notes, body):
    request_id = timed.submit(body(2))
    timed.wait(request_id, begun)
    starts = len([line for line in notes.lines() if line.startswith("started")])
    [pid] = timed.replica_pids("Editor-qwen_image_edit")
    os.kill(pid, signal.SIGKILL)
    assert timed.result(request_id)["status"] == "succeeded"
    assert len([line for line in notes.lines() if line.startswith("started")]) == starts + 1


def test_killed_ingresses_lose_nothing(timed, body):
    request_id = timed.submit(body(2))
    timed.wait(request_id, begun)
    for pid in timed.replica_pids("Ingress"):
        os.kill(pid, signal.SIGKILL)
    timed.wait_until_ready()
    assert timed.result(request_id)["status"] == "succeeded"


def test_replica_with_a_dead_device_is_replaced(timed, body):
    [pid] = timed.replica_pids("Editor-qwen_image_edit")
    result = timed.result(timed.submit(body(prompt="kill the device")))
    assert result["status"] == "succeeded"
    assert pid not in timed.replica_pids("Editor-qwen_image_edit")


def test_result_that_is_no_image_fails_with_a_sentence_and_the_replica_serves_on(timed, body):
    pids = timed.replica_pids("Editor-qwen_image_edit")
    for _ in range(2):
        result = timed.result(timed.submit(body(prompt="give no image")))
        assert (result["status"], result["outputs"]) == ("failed", None)
        assert "the result is all of one colour" in result["error"]
    assert timed.result(timed.submit(body()))["status"] == "succeeded"
    assert timed.replica_pids("Editor-qwen_image_edit") == pids


def test_restart_during_a_job(timed, notes, body):
    """The finished stay, the unfinished finish."""
    finished = timed.result(timed.submit(body(seed=7)))
    request_id = timed.submit(body(3))
    timed.wait(request_id, begun)
    timed.stop()
    timed.start()
    assert timed.result(request_id)["status"] == "succeeded"
    again = timed.client.get(f"/v1/requests/{finished['request_id']}/result").json()
    assert again == finished
    assert timed.client.get(finished["outputs"]["images"][0]["url"]).status_code == 200
    assert notes.lines().count("made 7") == 1
