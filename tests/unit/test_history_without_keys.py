"""The history of a service without API keys: who sees it, and where it is refused."""

import pytest
import yaml
from pydantic import ValidationError
from starlette.testclient import TestClient

from serve_app.app import build
from serve_app.commands.config_file import read_config_file
from serve_app.config import AppConfig
from serve_app.errors import ConfigRefused
from tests.unit.conftest import Application
from tests.unit.test_http_contract import finished

PATHS = ("/v1/requests", "/v1/sweeps", "/v1/usage")


@pytest.fixture
def open_client(config):
    application = Application(config.model_copy(update={"history_without_keys": True}))
    with TestClient(application.app, base_url="http://127.0.0.1:8000") as client:
        yield client


def test_history_lists_all_requests_on_the_machine_itself(open_client, make_body):
    result = finished(open_client, make_body())
    [entry] = open_client.get("/v1/requests").json()["requests"]
    assert (entry["request_id"], entry["tenant"]) == (result["request_id"], "")
    assert open_client.get("/v1/usage").json()["usage"] == [{"tenant": "", "gpu_seconds": 1.0, "images": 1}]


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1", "127.8.8.8:1", "[::1]:8000", "LOCALHOST"])
def test_history_is_shown_under_names_of_this_machine(open_client, host):
    for path in PATHS:
        assert open_client.get(path, headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        # A page whose host's name was made to lead to this machine.
        {"Host": "rebound.example:8000"},
        {"Host": "127.0.0.1.example"},
        # Pages of other origins.
        {"Origin": "https://other.example"},
        {"Origin": "http://127.0.0.1:9000"},
        {"Origin": "null"},
        # These cannot be read: brackets without an IPv6 address.
        {"Origin": "http://["},
        {"Origin": "http://[x]"},
        {"Host": "[.]"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        # A reverse proxy on this machine, which names it as the host for everybody.
        {"X-Forwarded-For": "203.0.113.9"},
        {"X-Forwarded-For": "127.0.0.1, 203.0.113.9"},
        {"X-Forwarded-For": "unknown"},
        {"X-Real-IP": "2001:db8::9"},
        {"Forwarded": "for=203.0.113.9"},
        {"Via": "1.1 proxy"},
    ],
)
def test_history_is_hidden_from_pages_of_others(open_client, headers):
    for path in PATHS:
        answer = open_client.get(path, headers=headers)
        assert (answer.status_code, answer.json()["detail"]["error"]["code"]) == (403, "HISTORY_UNAVAILABLE")
    assert open_client.get("/v1/operation", headers=headers).json()["sees_history"] is False


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://127.0.0.1:8000"},
        {"Sec-Fetch-Site": "same-origin"},
        # As the HTTP front says it.
        {"X-Forwarded-For": "127.0.0.1"},
        {"X-Forwarded-For": "::1, 127.0.0.1"},
    ],
)
def test_history_is_shown_to_pages_of_the_service(open_client, headers):
    for path in PATHS:
        assert open_client.get(path, headers=headers).status_code == 200


def write(folder, host: str, **args: object):
    (folder / "loras").mkdir(exist_ok=True)
    application = {"name": "edits", "import_path": "serve_app.app:build", "args": {"lora_root": "loras"} | args}
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump({"http_options": {"host": host}, "applications": [application]}))
    return file


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "edits.example"])
def test_the_command_refuses_it_where_others_can_connect(tmp_path, host):
    with pytest.raises(ConfigRefused, match=r"args\.history_without_keys: the service listens on .*, where"):
        read_config_file(write(tmp_path, host, history_without_keys=True))
    assert read_config_file(write(tmp_path, host)).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_the_command_accepts_it_on_loopback(tmp_path, host):
    assert read_config_file(write(tmp_path, host, history_without_keys=True)).config.history_without_keys


def test_plain_serve_refuses_it_where_others_can_connect(monkeypatch, tmp_path):
    monkeypatch.setattr("serve_app.app.http_host", lambda: "0.0.0.0")
    config = AppConfig(history_without_keys=True, config_folder=str(tmp_path))
    with pytest.raises(ConfigRefused, match=r"^history_without_keys: the service listens on 0\.0\.0\.0"):
        build(config)


def test_it_makes_no_sense_with_keys():
    with pytest.raises(ValidationError, match="each key sees its own history; leave it out"):
        AppConfig.model_validate({"history_without_keys": True, "auth": {"keys_file": "keys.yaml"}})
