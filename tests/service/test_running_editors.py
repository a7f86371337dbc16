"""How many editors run, when Serve's controller is slow to say, or does not: its head is being replaced."""

import asyncio
import threading

from ray.serve.schema import DeploymentStatus, DeploymentStatusOverview, DeploymentStatusTrigger

from serve_app.app import RunningEditors

MODEL = "qwen_image_edit"


class Controller(RunningEditors):
    """With `answers` cleared, nobody answers."""

    def __init__(self) -> None:
        super().__init__("edits", [MODEL], ttl_s=0.1)
        self.editors = 3
        self.answers = threading.Event()
        self.answers.set()

    def _ask(self) -> dict[str, DeploymentStatusOverview]:
        self.answers.wait()
        healthy = (DeploymentStatus.HEALTHY, DeploymentStatusTrigger.UNSPECIFIED)
        return {MODEL: DeploymentStatusOverview(*healthy, {"RUNNING": self.editors}, "")}


async def test_what_was_known_counts_while_the_controller_does_not_answer():
    controller = Controller()
    assert await controller() == {MODEL: 3}
    controller.answers.clear()
    await asyncio.sleep(0.2)
    controller.editors = 2
    assert await controller() == {MODEL: 3}
    controller.answers.set()
    while await controller() != {MODEL: 2}:
        await asyncio.sleep(0.02)


class Failing(Controller):
    """Its controller fails, and then a new one knows nothing."""

    def _ask(self) -> dict[str, DeploymentStatusOverview]:
        answers = super()._ask()
        if self.editors == 1:
            raise ConnectionError("the controller died")
        return answers if self.editors else {}


async def test_what_was_known_counts_when_the_controller_fails_or_is_new():
    controller = Failing()
    assert await controller() == {MODEL: 3}
    for editors in (1, 0):
        controller.editors = editors
        await asyncio.sleep(0.2)
        assert await controller() == {MODEL: 3}
    controller.editors = 2
    while await controller() != {MODEL: 2}:
        await asyncio.sleep(0.02)
