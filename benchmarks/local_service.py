"""A Ray and a Serve on this machine, with logical CPUs, and the service deployed on them as `serve deploy` does it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.schema import ServeDeploySchema

from serve_app.commands.ports import free_port
from serve_app.config import MINIATURE_RANDOM
from serve_app.replicas.running_editors import editor_name

ROOT = Path(__file__).parents[1]
MODEL = "qwen_image_edit"
EDITOR = editor_name(MODEL)
# Ray counts these; the machine may have fewer.
CPUS = 32


@contextmanager
def cluster() -> Iterator[str]:
    """A Ray and a Serve without an application; the URL that it serves on."""
    port = free_port()
    ray.init(address="local", num_cpus=CPUS, include_dashboard=False, log_to_driver=False, namespace="serve")
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        yield f"http://127.0.0.1:{port}"
        serve.shutdown()
    finally:
        ray.shutdown()


def declared(folder: Path, deployments: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """The application as in a serve config. `changes` are args; `policy_kwargs` among them go to the policy."""
    policy = {
        "policy_function": "serve_app.replicas.autoscaler:Autoscaler",
        "policy_kwargs": changes.pop("policy_kwargs", {}),
    }
    args = {
        "models": [{"id": MODEL, "checkpoint": MINIATURE_RANDOM, "device": "cpu"}],
        "lora_root": str(ROOT / "tests/loras"),
        "require_lora": False,
        "artifacts_url": str(folder / "artifacts"),
        "jobs": {"database_url": f"sqlite+aiosqlite:///{folder}/jobs.sqlite3", "lease_s": 3},
    }
    return {
        "name": "edits",
        "route_prefix": "/",
        "import_path": "serve_app.app:build",
        "autoscaling_policy": policy,
        "args": args | changes,
        "deployments": deployments,
    }


def deploy(application: dict[str, Any]) -> None:
    """Deploy the application as `serve deploy` does. Returns at once."""
    schema = ServeDeploySchema.model_validate({"applications": [application]})
    serve.context._get_global_client().deploy_apps(schema)


def wait_until_running(seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while (status := serve.status().applications["edits"].status) != "RUNNING":
        if time.monotonic() > deadline:
            raise TimeoutError(f"the application is {status}: {serve.status()}")
        time.sleep(0.2)
