"""The way operators deploy: a declared config, Serve's own overrides in it, and mistakes that are named."""

import time

import httpx
import pytest
import yaml
from ray import serve
from ray.serve.schema import ServeDeploySchema

from serve_app.app import build_application
from serve_app.config import AppConfig
from tests.conftest import LORAS, ROOT
from tests.service.conftest import declare
from tests.service.standin import STEP_S, as_checkpoint


@pytest.fixture
def declared(cluster, tmp_path):
    """Deploy one application `declared`, as `serve deploy` does, and give its status once it is settled."""
    as_checkpoint(tmp_path)

    def deploy(args: dict, **application: object):
        paths = {
            "lora_root": str(LORAS),
            "artifacts_url": f"{tmp_path}/artifacts",
            "models": [{"checkpoint": str(tmp_path), "device": "cpu"}],
            "jobs": {"database_url": f"sqlite+aiosqlite:///{tmp_path}/jobs.sqlite3"},
        }
        known = {"name": "declared", "route_prefix": "/declared", "import_path": "tests.service.builds:timed"}
        return declare(known | {"args": paths | args} | application)

    yield deploy
    serve.delete("declared")


def test_unknown_key_fails_the_deploy_and_is_named(declared):
    status = declared({"lora_rot": "x"}, import_path="serve_app.app:build")
    assert status.status == "DEPLOY_FAILED"
    assert "lora_rot" in status.message


def test_unknown_model_is_named():
    with pytest.raises(ValueError, match="there is no model 'flux'"):
        build_application(AppConfig.model_validate({"models": [{"id": "flux"}]}))


def test_prompts_of_a_request_spread_over_replicas(declared, cluster, make_body):
    editors = {"name": "Editor-qwen_image_edit", "num_replicas": 2}
    assert declared({}, deployments=[editors]).status == "RUNNING"
    steps = 20
    body = make_body(sample_steps=steps, loras=[{"path": "my_lora_job/my_lora.safetensors"}])
    body["prompts"] *= 4
    with httpx.Client(base_url=f"http://127.0.0.1:{cluster}/declared", timeout=30) as client:
        started = time.monotonic()
        url = client.post("/v1/inference", json=body).json()["status_url"]
        while client.get(url).json()["status"] != "succeeded":
            assert time.monotonic() - started < 30
            time.sleep(0.05)
        took = time.monotonic() - started
    # Four edits one after the other, on one device, would take at least this long.
    assert took < 4 * steps * STEP_S


def test_shipped_config_is_what_serve_takes():
    shipped = ServeDeploySchema.model_validate(yaml.safe_load((ROOT / "serve_config.yaml").read_text()))
    assert (shipped.http_options.host, shipped.http_options.port) == ("127.0.0.1", 8000)
    [application] = shipped.applications
    assert (application.name, application.route_prefix) == ("edits", "/")
