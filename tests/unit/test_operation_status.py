"""How the service is doing, as each caller may see it."""

import pytest
import yaml
from starlette.testclient import TestClient

from serve_app.errors import OutOfMemory
from serve_app.intake.keys import new_key
from serve_app.intake.operation import wait_s
from serve_app.policy.scaling import Backlog
from serve_app.tasks import Status
from tests.unit.conftest import SHARES_AN_APPLICATION, Application
from tests.unit.test_http_contract import finished
from tests.unit.test_watching import submit, wait_for

pytestmark = SHARES_AN_APPLICATION


def test_an_idle_service_says_so(client):
    said = client.get("/v1/operation").json()
    assert said["version"][0].isdigit()
    [model] = said["models"]
    assert model == {
        "id": "qwen_image_edit",
        "model": "qwen_image_edit",
        "tier": None,
        "editors_running": 1,
        "editors_starting": 0,
        "waiting": 0,
        "working": 0,
        "predicted_wait_s": None,
    }
    assert (said["waiting"], said["working"], said["recent_errors"], said["sees_history"]) == (0, 0, [], False)
    assert client.get(said["links"]["docs"]).status_code == 200
    assert client.get(said["links"]["openapi"]).json()["paths"]["/v1/operation"]


def test_waiting_images_and_those_that_editors_work_on_are_counted(client, application, make_body):
    finished(client, make_body())
    client.portal.call(application.editors.gate.clear)
    running = [submit(client, make_body()) for _ in range(2)]
    for request_id in running:
        wait_for(client, request_id, Status.IN_PROGRESS)
    submit(client, make_body())
    said = client.get("/v1/operation").json()
    [model] = said["models"]
    assert (model["waiting"], model["working"]) == (said["waiting"], said["working"]) == (1, 2)
    # Each takes 1 s, as the first one did.
    assert model["predicted_wait_s"] == pytest.approx(3.0, rel=0.2)
    client.portal.call(application.editors.gate.set)


def test_starting_editors_are_counted(config):
    application = Application(config)
    application.service.workload.editors_starting = lambda: {"qwen_image_edit": 2}
    with TestClient(application.app) as client:
        assert client.get("/v1/operation").json()["models"][0]["editors_starting"] == 2


@pytest.mark.parametrize(
    ("backlog", "editors", "seconds"),
    [
        (Backlog(), 0, None),
        (Backlog(), 1, 0.0),
        (Backlog(running_s=4.0, images=1), 2, 0.0),
        (Backlog(running_s=4.0, images=1), 1, 4.0),
        (Backlog(waiting_s=10.0, running_s=6.0, images=6), 2, 8.0),
    ],
)
def test_the_wait_is_the_work_of_all_divided_by_the_editors(backlog, editors, seconds):
    assert wait_s(backlog, editors) == seconds


@pytest.fixture
def keyed(config, tmp_path):
    keys = {name: new_key() for name in ("red", "blue", "boss")}
    hashes = {name: sha256 for name, (_, sha256) in keys.items()}
    file = tmp_path / "keys.yaml"
    tenants = {name: [hashes[name]] for name in ("red", "blue")}
    file.write_text(yaml.safe_dump({"tenants": tenants, "operators": [hashes["boss"]]}))
    application = Application(
        config.model_copy(update={"auth": config.auth.model_copy(update={"keys_file": str(file)})})
    )
    with TestClient(application.app) as client:
        yield client, application, {name: {"X-API-Key": key} for name, (key, _) in keys.items()}


def test_a_tenant_sees_its_own_images_and_failures_and_an_operator_all(keyed, make_body):
    client, application, headers = keyed
    application.editors.errors.append(OutOfMemory("this edit does not fit on the device"))
    client.headers.update(headers["red"])
    failed = submit(client, make_body())
    wait_for(client, failed, Status.FAILED)
    client.portal.call(application.editors.gate.clear)
    wait_for(client, submit(client, make_body()), Status.IN_PROGRESS)
    said = {name: client.get("/v1/operation", headers=header).json() for name, header in headers.items()}
    for name in ("red", "boss"):
        [error] = said[name]["recent_errors"]
        assert (error["request_id"], error["tenant"], error["code"]) == (failed, "red", "OUT_OF_MEMORY")
        assert error["message"] == "prompt 0: this edit does not fit on the device"
        assert said[name]["working"] == 1
    assert (said["blue"]["recent_errors"], said["blue"]["working"]) == ([], 0)
    assert said["blue"]["sees_history"] is True
    client.portal.call(application.editors.gate.set)


def test_without_a_key_it_is_refused_where_there_are_keys(keyed):
    client, _, _ = keyed
    assert client.get("/v1/operation").status_code == 401


def test_without_keys_failures_are_shown_only_with_the_history(config, make_body):
    application = Application(config.model_copy(update={"history_without_keys": True}))
    application.editors.errors.append(OutOfMemory("this edit does not fit on the device"))
    with TestClient(application.app, base_url="http://127.0.0.1:8000") as client:
        wait_for(client, submit(client, make_body()), Status.FAILED)
        assert len(client.get("/v1/operation").json()["recent_errors"]) == 1
        assert client.get("/v1/operation", headers={"Host": "other.example"}).json()["recent_errors"] == []
