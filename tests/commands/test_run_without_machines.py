"""`edits-server run` names replicas that no machine has room for, even if no ingress runs. Without Ray."""

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview

from serve_app.commands import run
from serve_app.commands.run import RunningService
from serve_app.replicas import running_editors

SENTENCE = "Ingress: 2 of 2 replicas have no machine after 20 s"


class Loop:
    """The service of `run` with a Serve that has placed nothing. It stops when the sentence was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stop = SimpleNamespace(asked=False)
        self.asked_in: list[threading.Thread] = []
        self.front_looked_after = 0
        file: Any = SimpleNamespace(application="edits", path=Path("no_file"))
        front: Any = SimpleNamespace(keep_running=self.keep_running)
        stop: Any = self.stop
        self.service = RunningService(file, front, stop, port=1)
        deploying = ApplicationStatusOverview(
            status=ApplicationStatus.DEPLOYING, message="", last_deployed_time_s=0, deployments={}
        )
        monkeypatch.setattr(self.service, "_status", lambda: deploying)
        monkeypatch.setattr(running_editors, "unplaced_replicas", self.unplaced)
        monkeypatch.setattr(run, "POLL_S", 0.01)

    def keep_running(self) -> None:
        self.front_looked_after += 1

    def unplaced(self, application: str) -> dict[str, str]:
        assert application == "edits"
        self.asked_in.append(threading.current_thread())
        self.stop.asked = True
        return {"Ingress": SENTENCE}


def test_replicas_without_a_machine_are_named_while_the_service_starts(monkeypatch, caplog):
    loop = Loop(monkeypatch)
    schema: Any = None
    loop.service._wait_until_running(schema)
    assert SENTENCE in caplog.messages


def test_replicas_without_a_machine_are_named_for_as_long_as_the_service_runs(monkeypatch, caplog):
    loop = Loop(monkeypatch)
    loop.service.watch()
    assert SENTENCE in caplog.messages
    # The front does not wait for Serve's answer.
    assert threading.main_thread() not in loop.asked_in
    assert not loop.asked_in[0].is_alive()
