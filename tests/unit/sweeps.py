"""What tests of sweeps share: bodies, checkpoints, and waiting for a sweep's end."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from serve_app.config import AppConfig
from serve_app.tasks import Status
from tests.unit.conftest import safetensors_bytes
from tests.unit.serving import wait_until

# How long a sweep of a few cells may take on a busy machine (s).
PATIENCE_S = 30.0


def add_checkpoints(config: AppConfig, *names: str) -> list[str]:
    """Files that fit the model, in the folder `job` below the LoRA root."""
    for name in names:
        path = Path(config.lora_root) / "job" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(safetensors_bytes())
    return [f"job/{name}" for name in names]


def sweep_body(make_body: Callable[..., dict], **axes: Any) -> dict[str, Any]:
    """A sweep whose base is a valid body."""
    return {"base": make_body(), "axes": axes}


def started(client: TestClient, body: dict[str, Any], **options: Any) -> dict[str, Any]:
    """The answer to a sweep that is accepted."""
    answer = client.post("/v1/sweeps", json=body, **options)
    assert answer.status_code == 200, answer.text
    return answer.json()


def sweep(client: TestClient, sweep_id: str) -> dict[str, Any]:
    answer = client.get(f"/v1/sweeps/{sweep_id}")
    assert answer.status_code == 200, answer.text
    return answer.json()


def ended(client: TestClient, sweep_id: str) -> dict[str, Any]:
    """The sweep once it has ended."""
    wait_until(lambda: Status(sweep(client, sweep_id)["status"]).ended, PATIENCE_S)
    return sweep(client, sweep_id)


def statuses(shown: dict[str, Any]) -> list[str]:
    """The status of each cell."""
    return [cell["status"] for cell in shown["grid"]]
