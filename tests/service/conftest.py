"""One Ray cluster for all tests of this folder, with logical CPUs, and applications on it."""

import io
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import PIL.Image
import pytest
import ray
from ray import serve
from ray.serve.schema import ApplicationStatusOverview, ServeDeploySchema

from serve_app.app import build_application
from serve_app.commands.ports import free_port
from serve_app.config import MINIATURE_RANDOM, AppConfig
from serve_app.models.registry import MODELS
from serve_app.replicas.editor import EngineFactory, load_engine
from serve_app.tasks import Status
from tests.conftest import LORAS, THREADS

LOGICAL_CPUS = 16
# Of the application that most tests share.
PRESET = {
    "model": "qwen_image_edit",
    "loras": [{"path": "my_lora_job/my_lora.safetensors", "network_multiplier": 0.5}],
    "trigger_word": "sks",
    "sample_steps": 3,
    "guidance_scale": 2.0,
    "neg": "rain",
    "size": "96x64",
    "output_format": "png",
}


@dataclass
class Deployed:
    """An application under a prefix of its own. Its paths lie in `folder`."""

    name: str
    client: httpx.Client
    folder: Path
    config: AppConfig
    load: EngineFactory
    ingresses: int = 1
    presets: dict[str, Any] = field(default_factory=dict)

    def start(self) -> None:
        application = build_application(self.config, self.load)
        application._bound_deployment = application._bound_deployment.options(
            num_replicas=self.ingresses, user_config={"presets": self.presets}
        )
        serve.run(application, name=self.name, route_prefix=f"/{self.name}")
        self.wait_until_ready()

    def stop(self, *, wait: bool = True) -> None:
        serve.delete(self.name, _blocking=wait)

    def wait_until_ready(self, seconds: float = 90) -> None:
        deadline = time.monotonic() + seconds
        while not self.is_ready():
            assert time.monotonic() < deadline, serve.status()
            time.sleep(0.2)

    def is_ready(self) -> bool:
        try:
            return self.client.get("/ready").status_code == 200
        except httpx.TransportError:
            return False

    def submit(self, body: dict) -> str:
        answer = self.client.post("/v1/inference", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()["request_id"]

    def status(self, request_id: str) -> dict:
        return self.client.get(f"/v1/requests/{request_id}/status").json()

    def result(self, request_id: str, seconds: float = 120) -> dict:
        """The result, once the request has ended."""
        began = time.monotonic()
        while not Status((status := self.status(request_id))["status"]).ended:
            waited = time.monotonic() - began
            assert waited < seconds, status
            # The longer it takes, the rarer: asking takes CPU time, of which the edit then has less.
            time.sleep(min(0.5, 0.05 + waited / 10))
        return self.client.get(f"/v1/requests/{request_id}/result").json()

    def wait(self, request_id: str, is_so: Callable[[dict], bool], seconds: float = 60) -> dict:
        deadline = time.monotonic() + seconds
        while not is_so(status := self.status(request_id)):
            assert time.monotonic() < deadline, status
            time.sleep(0.1)
        return status

    def edit(self, body: dict) -> tuple[dict, bytes]:
        """The result of a request and its first image."""
        # Asking for it again and again would take as much of the CPU as a small edit.
        result = self.client.post("/v1/inference", params={"wait": 120}, json=body, timeout=150).json()
        assert result.get("status") == "succeeded", result
        return result, self.client.get(result["outputs"]["images"][0]["url"]).content

    def replica_pids(self, deployment: str) -> list[int]:
        """The processes of a deployment's running replicas."""
        details = serve.context._get_global_client().get_serve_details()
        replicas = details["applications"][self.name]["deployments"][deployment]["replicas"]
        return [replica["pid"] for replica in replicas if replica["state"] == "RUNNING"]


@pytest.fixture(scope="session")
def cluster() -> Iterator[int]:
    """The HTTP port of Serve on a cluster that this run started and ends."""
    # Serve gives up on a proxy that takes five seconds to start, as it does on a busy machine.
    os.environ["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"] = "60"
    # Half as often as by default: otherwise, its controller takes more CPU time than any editor.
    os.environ["RAY_SERVE_CONTROL_LOOP_INTERVAL_S"] = "0.2"
    ray.init(
        address="local",
        num_cpus=LOGICAL_CPUS,
        include_dashboard=False,
        log_to_driver=False,
        namespace="serve",
        # Metrics are there soon after they were recorded, not after ten seconds. No sooner: an export may take half of
        # it, and one that takes longer on a busy machine is lost with all that was counted since the one before.
        _system_config={"metrics_report_interval_ms": 4000},
    )
    # Only now: Ray's own processes have taken their ports.
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    yield port
    serve.shutdown()
    ray.shutdown()


Deploy = Callable[..., Deployed]


@contextmanager
def deploying(port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deploy]:
    """Deploy applications for as long as the block lasts: `deploy("name", models=[...])`, as in serve_config.yaml.

    They have one ingress, because each takes 3 s of CPU to start; tests of what several do together ask for them.
    """
    deployed = []

    def deploy(
        name: str,
        load: EngineFactory = load_engine,
        ingresses: int = 1,
        presets: dict[str, Any] | None = None,
        **args: object,
    ) -> Deployed:
        folder = tmp_path_factory.mktemp(name)
        defaults = {
            "models": [{"checkpoint": MINIATURE_RANDOM, "threads": THREADS, "device": "cpu"}],
            "lora_root": str(LORAS),
            "artifacts_url": "artifacts",
            "jobs": {"lease_s": 3},
        }
        config = AppConfig.model_validate(defaults | args).resolved(folder)
        client = httpx.Client(base_url=f"http://127.0.0.1:{port}/{name}", timeout=30)
        deployed.append(Deployed(name, client, folder, config, load, ingresses, presets or {}))
        deployed[-1].start()
        return deployed[-1]

    yield deploy
    # Idle replicas ask the database and report to Serve: together they would slow the modules that follow.
    for application in deployed:
        application.stop(wait=False)
        application.client.close()


@pytest.fixture(scope="module")
def deploy(cluster: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deploy]:
    """Deploy an application for this module."""
    with deploying(cluster, tmp_path_factory) as deploy:
        yield deploy


@pytest.fixture(scope="session")
def family(cluster: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """The miniature of random weights of every model, for all tests that need a real engine as it is shipped."""
    shared = {"checkpoint": MINIATURE_RANDOM, "threads": THREADS, "device": "cpu"}
    shared["adapter_disk_folder"] = str(tmp_path_factory.mktemp("disk"))
    # A copy, in which tests may write.
    loras = shutil.copytree(LORAS, tmp_path_factory.mktemp("root") / "loras")
    # Adapters may lie on this machine; an editor gives up on their servers soon.
    fetch = {"allow_private_addresses": True, "timeout_s": 2}
    with deploying(cluster, tmp_path_factory) as deploy:
        models = [shared | {"id": model} for model in MODELS]
        args = {"models": models, "lora_root": str(loras), "require_lora": False, "fetch": fetch}
        # Of two ingresses, either answers a client that comes back.
        yield deploy("family", ingresses=2, presets={"house-style": PRESET}, **args)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of the shared application are the last, so that nothing else runs next to it."""
    items.sort(key=lambda item: "family" in getattr(item, "fixturenames", ()))


def declare(application: dict, seconds: float = 60) -> ApplicationStatusOverview:
    """Deploy one application as `serve deploy` does, and give its status once it is settled."""
    client = serve.context._get_global_client()
    client.deploy_apps(ServeDeploySchema.model_validate({"applications": [application]}))
    deadline = time.monotonic() + seconds
    while (status := serve.status().applications.get(application["name"])) is None or status.status == "DEPLOYING":
        assert time.monotonic() < deadline, status
        time.sleep(0.2)
    return status


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(PIL.Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
