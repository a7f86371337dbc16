"""How many editors run, when Serve's controller is slow to say, or does not: its head is being replaced."""

import asyncio
import threading

import pytest
from ray.serve.schema import DeploymentStatus, DeploymentStatusOverview, DeploymentStatusTrigger

from serve_app.replicas import running_editors
from serve_app.replicas.running_editors import PlacementLog, RunningEditors

MODEL = "qwen_image_edit"


class Controller(RunningEditors):
    """With `answers` cleared, nobody answers."""

    def __init__(self) -> None:
        super().__init__("edits", [MODEL], ttl_s=0.1)
        self.editors = 3
        self.answers = threading.Event()
        self.answers.set()

    def _ask(self) -> dict[str, DeploymentStatusOverview]:
        assert self.answers.wait(30)
        healthy = (DeploymentStatus.HEALTHY, DeploymentStatusTrigger.UNSPECIFIED)
        return {MODEL: DeploymentStatusOverview(*healthy, {"RUNNING": self.editors}, "")}


async def until_known(controller: RunningEditors, editors: int) -> None:
    async with asyncio.timeout(30):
        while await controller() != {MODEL: editors}:
            await asyncio.sleep(0.02)


async def test_last_known_numbers_count_while_the_controller_does_not_answer():
    controller = Controller()
    assert await controller() == {MODEL: 3}
    controller.answers.clear()
    await asyncio.sleep(0.2)
    controller.editors = 2
    assert await controller() == {MODEL: 3}
    controller.answers.set()
    await until_known(controller, 2)


class Failing(Controller):
    """Its controller fails, and then a new one knows nothing."""

    def _ask(self) -> dict[str, DeploymentStatusOverview]:
        answers = super()._ask()
        if self.editors == 1:
            raise ConnectionError("the controller died")
        return answers if self.editors else {}


async def test_last_known_numbers_count_when_the_controller_fails_or_is_new():
    controller = Failing()
    assert await controller() == {MODEL: 3}
    for editors in (1, 0):
        controller.editors = editors
        await asyncio.sleep(0.2)
        assert await controller() == {MODEL: 3}
    controller.editors = 2
    await until_known(controller, 2)


class Unplaced:
    """What is found of replicas without a machine, and how often that was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.found: dict[str, str] | Exception = {}
        self.asked = 0
        monkeypatch.setattr(running_editors, "unplaced_replicas", self)
        monkeypatch.setattr(running_editors, "CHECK_PERIOD_S", 0.0)

    def __call__(self, application: str) -> dict[str, str]:
        self.asked += 1
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


def test_replicas_without_a_machine_are_named_in_the_log_and_not_at_every_check(monkeypatch, caplog):
    unplaced, log = Unplaced(monkeypatch), PlacementLog("edits")
    unplaced.found = {"Ingress": "Ingress: no machine"}
    for _ in range(3):
        log.check()
    assert caplog.messages == ["Ingress: no machine"]
    unplaced.found = {}
    log.check()
    unplaced.found = {"Ingress": "Ingress: no machine again"}
    log.check()
    assert caplog.messages[1:] == ["Ingress: no machine again"]
    monkeypatch.setattr(running_editors, "REPEAT_S", 0.0)
    log.check()
    assert caplog.messages[2:] == ["Ingress: no machine again"]


def test_serve_is_asked_at_intervals_however_often_check_is_called(monkeypatch):
    unplaced, log = Unplaced(monkeypatch), PlacementLog("edits")
    monkeypatch.setattr(running_editors, "CHECK_PERIOD_S", 60.0)
    for _ in range(3):
        log.check()
    assert unplaced.asked == 1


def test_failed_check_is_logged_and_not_raised(monkeypatch, caplog):
    unplaced, log = Unplaced(monkeypatch), PlacementLog("edits")
    unplaced.found = ConnectionError("the controller died")
    log.check()
    assert "could not ask Serve" in caplog.text
