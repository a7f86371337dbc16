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
