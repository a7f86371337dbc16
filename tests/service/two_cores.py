"""Two models on a Ray of two cores, in a process of its own: python -m tests.service.two_cores FOLDER

It prints how long the service took until it was ready. Then it deploys once more, with editors that ask for a core
each, and prints what is said of what has no machine.
"""

import json
import sys
import time
from pathlib import Path

import httpx
import ray
from ray import serve
from ray.serve.schema import ServeDeploySchema

from serve_app.commands.ports import free_port
from serve_app.replicas.running_editors import unplaced_replicas
from tests.conftest import LORAS
from tests.service.standin import as_checkpoint

MODELS = ("qwen_image_edit", "qwen_image")
LONGEST_S = 90


def deploy(folder: Path, deployments: list[dict]) -> None:
    args = {
        "lora_root": str(LORAS),
        "artifacts_url": f"{folder}/artifacts",
        "models": [{"id": model, "checkpoint": str(folder / model), "device": "cpu"} for model in MODELS],
        "jobs": {"database_url": f"sqlite+aiosqlite:///{folder}/jobs.sqlite3"},
    }
    application = {"name": "edits", "import_path": "tests.service.builds:timed", "args": args}
    declared = {"applications": [application | {"deployments": deployments}]}
    serve.context._get_global_client().deploy_apps(ServeDeploySchema.model_validate(declared))


def ready_after(url: str) -> float:
    began = time.monotonic()
    seen: object = None
    while time.monotonic() < began + LONGEST_S:
        try:
            seen = httpx.get(f"{url}/ready", timeout=5)
            if seen.status_code == 200:
                return time.monotonic() - began
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
        deploy(folder, [])
        ready_s = ready_after(f"http://127.0.0.1:{port}")
        serve.delete("edits")
        a_core_each = {"ray_actor_options": {"num_cpus": 1}}
        deploy(folder, [{"name": f"Editor-{model}", **a_core_each} for model in MODELS])
        sys.stdout.write(json.dumps({"ready_s": ready_s, "said": said()}))
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
