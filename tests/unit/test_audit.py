"""The audit log: who used which adapter, and what operators did. No prompt and no key is in it."""

import json
import logging
from collections.abc import Iterator
from datetime import datetime

import pytest
import yaml
from starlette.testclient import TestClient

from serve_app.config import AuthConfig
from serve_app.intake.callers.keys_file import key_id_of
from serve_app.intake.keys import new_key
from tests.unit.conftest import LORA, Application
from tests.unit.sweeps import ended, started, sweep_body
from tests.unit.test_http_contract import finished


@pytest.fixture
def as_tenant_and_operator(config, tmp_path) -> Iterator[tuple[TestClient, str, str]]:
    (red, red_hash), (boss, boss_hash) = new_key(), new_key()
    file = tmp_path / "keys.yaml"
    file.write_text(yaml.safe_dump({"tenants": {"red": [red_hash]}, "operators": [boss_hash]}))
    application = Application(config.model_copy(update={"auth": AuthConfig(keys_file=str(file))}))
    with TestClient(application.app) as client:
        yield client, red, boss


def lines(caplog: pytest.LogCaptureFixture) -> list[dict]:
    found = [json.loads(record.getMessage()) for record in caplog.records if record.name == "serve_app.audit"]
    for line in found:
        assert datetime.fromisoformat(line["time"]).tzinfo is not None
    return found


@pytest.fixture
def only_errors_are_logged() -> Iterator[None]:
    """By the rest of the service."""
    logger = logging.getLogger("serve_app")
    level = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(level)


@pytest.mark.usefixtures("only_errors_are_logged")
def test_an_accepted_request_names_its_adapters_and_its_sender(as_tenant_and_operator, make_body, caplog):
    client, red, _ = as_tenant_and_operator
    client.headers["X-API-Key"] = red
    body = make_body(prompt="a secret plan")
    request_id = finished(client, body)["request_id"]
    client.post("/v1/inference", json=make_body(loras=[{"path": "job/nothing.safetensors"}]))
    client.get("/v1/requests")
    [line] = lines(caplog)
    assert line["who"] == {"tenant": "red", "key": key_id_of(red)}
    assert (line["action"], line["target"], line["outcome"]) == ("request", request_id, "accepted")
    [adapter] = line["adapters"]
    assert adapter["path"] == LORA
    assert adapter["id"]
    assert "secret" not in caplog.text
    assert red not in caplog.text


def test_a_sweep_names_its_adapters(as_tenant_and_operator, make_body, caplog):
    client, red, _ = as_tenant_and_operator
    client.headers["X-API-Key"] = red
    sweep_id = started(client, sweep_body(make_body, checkpoints=[LORA, None], seeds=[1]))["sweep_id"]
    ended(client, sweep_id)
    [line] = lines(caplog)
    assert (line["action"], line["target"], [each["path"] for each in line["adapters"]]) == ("sweep", sweep_id, [LORA])


def test_everything_that_an_operator_does_is_recorded(as_tenant_and_operator, make_body, caplog):
    client, red, boss = as_tenant_and_operator
    request_id = client.post("/v1/inference", json=make_body(), headers={"X-API-Key": red}).json()["request_id"]
    caplog.clear()
    calls = [
        ("GET", "/v1/requests?lora=secret", 200),
        ("GET", "/v1/usage", 200),
        ("POST", f"/v1/requests/{request_id}/cancel", 200),
        ("DELETE", f"/v1/requests/{request_id}?purge=true", 200),
        ("GET", f"/v1/requests/{'0' * 32}/status", 404),
    ]
    for method, path, status in calls:
        assert client.request(method, path, headers={"X-API-Key": boss}).status_code == status
    found = lines(caplog)
    assert [(line["action"], line["target"], line["outcome"]) for line in found] == [
        (method, path.partition("?lora")[0], str(status)) for method, path, status in calls
    ]
    assert {json.dumps(line["who"]) for line in found} == {json.dumps({"tenant": None, "key": key_id_of(boss)})}
    assert "secret" not in " ".join(line["target"] for line in found)
