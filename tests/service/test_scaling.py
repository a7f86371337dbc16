"""Editors by what there is to do: the shipped policy in Serve's controller, fed by the ingresses."""

import time

import httpx
import pytest
from ray import serve
from ray.serve.schema import ServeDeploySchema

from serve_app.config import AppConfig
from tests.conftest import LORAS
from tests.service.conftest import Deployed
from tests.service.standin import as_checkpoint, load_timed_engine

EDITOR = "Editor-qwen_image_edit"


@pytest.fixture
def asleep(cluster, tmp_path):
    """An application whose editors may be none, and are."""
    args = {
        "lora_root": str(LORAS),
        "artifacts_url": f"{tmp_path}/artifacts",
        "models": [{"checkpoint": str(as_checkpoint(tmp_path)), "device": "cpu"}],
        "jobs": {"database_url": f"sqlite+aiosqlite:///{tmp_path}/jobs.sqlite3", "lease_s": 3},
    }
    limits = {"min_replicas": 0, "max_replicas": 2, "downscale_delay_s": 2, "downscale_to_zero_delay_s": 2}
    declared = {
        "name": "asleep",
        "route_prefix": "/asleep",
        "import_path": "tests.service.standin:build",
        "autoscaling_policy": {"policy_function": "serve_app.autoscaler:Autoscaler"},
        "args": args,
        "deployments": [
            {
                "name": "Ingress",
                "autoscaling_config": {"min_replicas": 2, "max_replicas": 2, "metrics_interval_s": 0.5},
            },
            {"name": EDITOR, "autoscaling_config": limits},
        ],
    }
    serve.context._get_global_client().deploy_apps(ServeDeploySchema.model_validate({"applications": [declared]}))
    client = httpx.Client(base_url=f"http://127.0.0.1:{cluster}/asleep", timeout=30)
    deployed = Deployed("asleep", client, tmp_path, AppConfig.model_validate(args), load_timed_engine)
    deployed.wait_until_ready()
    yield deployed
    serve.delete("asleep")
    client.close()


def test_work_at_no_replicas_waits_for_one_that_goes_once_it_is_idle(asleep, make_body):
    assert asleep.replica_pids(EDITOR) == []
    result, _ = asleep.edit(make_body(sample_steps=2, loras=[{"path": "my_lora_job/my_lora.safetensors"}]))
    assert result["status"] == "succeeded"
    assert len(asleep.replica_pids(EDITOR)) == 1
    deadline = time.monotonic() + 60
    while asleep.replica_pids(EDITOR):
        assert time.monotonic() < deadline, serve.status()
        time.sleep(0.2)
    assert asleep.is_ready()
