"""Presets in a running application: they change in place, and no fault in them stops an ingress."""

import time

import httpx
import pytest
from ray import serve

from serve_app.config import AppConfig
from tests.conftest import LORAS
from tests.service.conftest import Deployed, declare
from tests.service.standin import NotingEngine, as_checkpoint

STYLE = {
    "model": "qwen_image_edit",
    "loras": [{"path": "my_lora_job/my_lora.safetensors", "network_multiplier": 0.5}],
    "sample_steps": 2,
    "size": "input",
}


@pytest.fixture
def deploy_with(cluster, tmp_path):
    """Deploy the application, or change it in place, with this `user_config` of its ingresses."""
    as_checkpoint(tmp_path)
    args = {
        "lora_root": str(LORAS),
        "artifacts_url": f"{tmp_path}/artifacts",
        "models": [{"checkpoint": str(tmp_path), "device": "cpu"}],
        "jobs": {"database_url": f"sqlite+aiosqlite:///{tmp_path}/jobs.sqlite3"},
    }
    client = httpx.Client(base_url=f"http://127.0.0.1:{cluster}/presets", timeout=30)
    deployed = Deployed("presets", client, tmp_path, AppConfig.model_validate(args), NotingEngine)

    def deploy(user_config: dict) -> Deployed:
        ingress = {"name": "Ingress", "num_replicas": 2, "user_config": user_config}
        application = {"name": "presets", "route_prefix": "/presets", "import_path": "tests.service.builds:timed"}
        status = declare(application | {"args": args, "deployments": [ingress]})
        assert status.status == "RUNNING", status
        return deployed

    yield deploy
    serve.delete("presets")
    client.close()


def until(is_so, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_presets_change_in_place_and_their_faults_stop_nothing(deploy_with, make_body):
    deployed = deploy_with({"presets": {"style": STYLE}})
    deployed.wait_until_ready()
    body = {"preset": "style", "prompts": [{"prompt": "x", "ctrl_img": make_body()["prompts"][0]["ctrl_img"]}]}
    result, _ = deployed.edit(body)
    image = result["outputs"]["images"][0]
    # The control image has 96x64 pixels.
    assert (image["width"], image["height"]) == (1248, 832)
    ingresses = sorted(deployed.replica_pids("Ingress"))
    assert len(ingresses) == 2

    def code(preset: str) -> str | None:
        answer = deployed.client.post("/v1/explain", json=body | {"preset": preset}).json()
        return answer["detail"]["error"]["code"] if "detail" in answer else None

    def everywhere(preset: str, expected: str | None) -> bool:
        # Each ingress answers some of them.
        return all(code(preset) == expected for _ in range(10))

    faulty = {"qwen_image": STYLE, "typo": {"modle": "m"}, "gone": STYLE | {"loras": [{"path": "gone.safetensors"}]}}
    deploy_with({"presets": {"other": STYLE, "two words": STYLE} | faulty})
    until(lambda: everywhere("other", None))
    assert everywhere("style", "PRESET_NOT_FOUND")
    assert {name: code(name) for name in faulty} == dict.fromkeys(faulty, "PRESET_BROKEN")
    broken = deployed.client.get("/ready").json()["broken_presets"]
    assert [preset["name"] for preset in broken] == ["gone", "qwen_image", "two words", "typo"]

    # What cannot be read at all changes nothing.
    for unreadable in ({"presets": {"style": STYLE}, "max_qeued": 7}, {"presets": []}):
        deploy_with(unreadable)
        time.sleep(2)
        assert everywhere("other", None)
    deploy_with({"presets": {"style": STYLE}})
    until(lambda: everywhere("style", None))
    assert sorted(deployed.replica_pids("Ingress")) == ingresses
    assert deployed.is_ready()
