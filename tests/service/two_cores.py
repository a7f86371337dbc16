"""Two models on a Ray of two cores, in a process of its own: python -m tests.service.two_cores FOLDER

It deploys the service with the resources that are shipped, and waits until it is ready. Then it deploys it once more,
with editors that ask for a core each, and prints what is said of the replicas that no machine has room for.
"""

import sys
import time
from pathlib import Path

import httpx
import ray
from ray import serve

import serve_app.app
from serve_app.commands.ports import free_port
from serve_app.config import AppConfig
from serve_app.replicas.running_editors import unplaced_replicas
from tests.conftest import LORAS
from tests.service.standin import NotingEngine, as_checkpoint

MODELS = ("qwen_image_edit", "qwen_image")
LONGEST_S = 90


def deploy(folder: Path) -> None:
    args = {
        "lora_root": str(LORAS),
        "artifacts_url": "artifacts",
        "models": [{"id": model, "checkpoint": str(folder / model), "device": "cpu"} for model in MODELS],
    }
    config = AppConfig.model_validate(args).resolved(folder)
    target = serve.RunTarget(serve_app.app.build_application(config, NotingEngine), name="edits")
    serve.run_many([target], wait_for_applications_running=False)


def wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + LONGEST_S
    seen: object = None
    while time.monotonic() < deadline:
        try:
            seen = httpx.get(f"{url}/ready", timeout=5)
            if seen.status_code == 200:
                return
        except httpx.TransportError as error:
            # The proxy does not listen yet.
            seen = error
        time.sleep(0.2)
    raise TimeoutError(seen, serve.status())


def running_editors() -> int:
    application = serve.status().applications.get("edits")
    deployments = application.deployments if application else {}
    return sum(deployments[name].replica_states.get("RUNNING", 0) for name in deployments if name.startswith("Editor-"))


def said() -> str:
    """What is said of the ingresses once both editors run."""
    began = time.monotonic()
    while time.monotonic() < began + LONGEST_S:
        if running_editors() == len(MODELS) and (sentence := unplaced_replicas("edits").get("Ingress")):
            return sentence
        time.sleep(0.5)
    raise TimeoutError(serve.status())


def main() -> None:
    folder = Path(sys.argv[1])
    for model in MODELS:
        (folder / model).mkdir()
        as_checkpoint(folder / model)
    port = free_port()
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, namespace="serve")
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        deploy(folder)
        wait_until_ready(f"http://127.0.0.1:{port}")
        serve.delete("edits")
        serve_app.app.EDITOR_CPUS = 1
        deploy(folder)
        sys.stdout.write(said())
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
