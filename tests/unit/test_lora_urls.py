"""What a POST reads of a LoRA that is named by URL: its header; or all of it, where an editor could not fetch it."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from serve_app.adapters.lora_root import BEGINNING_BYTES
from serve_app.config import AppConfig
from serve_app.storage.identity import identity
from tests.loraserver import LoraServer, lora_server
from tests.unit.conftest import PAIR, Application, safetensors_bytes
from tests.unit.test_http_contract import finished

SIZE = 40_000_000
# It fits the miniature, and most of it need not be read to know that.
FILE = safetensors_bytes(PAIR | {"emb_params": (SIZE // 4,)})
LONG_HEADER = safetensors_bytes(PAIR | {"emb_params": (SIZE // 4,)}, {"padding": "x" * 2 * BEGINNING_BYTES})


@pytest.fixture
def server() -> Iterator[LoraServer]:
    with lora_server(FILE) as server:
        yield server


@pytest.fixture
def application(config) -> Application:
    fetch = {"allow_private_addresses": True, "hub_hosts": ["127.0.0.1"], "timeout_s": 1}
    return Application(AppConfig.model_validate(config.model_dump() | {"fetch": fetch}))


@pytest.fixture
def submit(client, make_body) -> Callable[..., dict]:
    """POST a body that names one LoRA; the answer."""

    def submit(url: str, route: str = "/v1/inference") -> dict:
        return client.post(route, json=make_body(loras=[{"path": url}])).json()

    return submit


def kept(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in folder.glob("artifacts/loras/*")]


@pytest.mark.parametrize("route", ["/v1/explain", "/v1/inference"])
def test_header_alone_is_read(server, submit, tmp_path, route):
    assert "detail" not in submit(server.url, route)
    assert server.ranges == [f"bytes=0-{BEGINNING_BYTES - 1}"]
    assert server.sent <= BEGINNING_BYTES
    assert kept(tmp_path) == []


def test_long_header_is_read_to_its_end(server, submit):
    server.content = LONG_HEADER
    assert "detail" not in submit(server.url)
    length = 8 + int.from_bytes(LONG_HEADER[:8], "little")
    assert server.ranges[1:] == [f"bytes={BEGINNING_BYTES}-{length - 1}"]


@pytest.mark.parametrize("content", [FILE, LONG_HEADER])
def test_server_without_ranges_is_left_once_the_header_is_there(server, submit, content):
    server.content, server.knows_ranges = content, False
    assert "detail" not in submit(server.url)
    # What was under way is lost: some buffers full.
    assert server.sent < SIZE / 2


@pytest.mark.parametrize("version", [{"etag": '"x"'}, {"etag": None, "last_modified": "Sat, 21 Nov 2026 09:00:00 GMT"}])
def test_place_size_and_version_are_pinned(server, application, client, make_body, version):
    vars(server).update(version)
    finished(client, make_body(loras=[{"path": server.url}]))
    [use] = application.editors.tasks[0].plan.adapters
    [pinned] = [value for value in version.values() if value]
    assert (use.path, use.url, use.version) == (server.url, server.url, pinned)
    assert use.id == identity(server.url, len(FILE), pinned)
    assert use.receipt.size_bytes == len(FILE)


@pytest.mark.parametrize(
    "silence",
    [
        {"etag": None},
        {"etag": '"' + "x" * 300 + '"'},
        {"etag": '"\xe9"'},
        {"says_length": False, "knows_ranges": False},
    ],
)
def test_file_that_its_server_does_not_pin_down_is_kept(server, submit, tmp_path, silence):
    server.content = safetensors_bytes()
    vars(server).update(silence)
    assert "detail" not in submit(server.url)
    assert kept(tmp_path) == [server.content]


@pytest.mark.parametrize("secret", ["user:hunter2@", "?X-Signature=hunter2"])
def test_secrets_of_a_url_are_used_and_neither_stored_nor_returned(server, client, submit, make_body, tmp_path, secret):
    server.content = safetensors_bytes()
    url = server.url + secret if secret.startswith("?") else server.url.replace("//", "//" + secret)
    result = finished(client, make_body(loras=[{"path": url}]))
    path, _, authorization = server.requests[0]
    assert "hunter2" in path or authorization.startswith("Basic ")
    assert kept(tmp_path) == [server.content]
    assert "hunter2" not in str(result)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"hunter2" in path.read_bytes()]
    server.status = 403
    refused = submit(url)["detail"]["error"]
    assert (refused["code"], "hunter2" in str(refused)) == ("LORA_DOWNLOAD_FAILED", False)


def test_button_of_a_hub_page_is_no_secret(server, submit, tmp_path):
    assert "detail" not in submit(server.url + "?download=true")
    assert server.requests[0][0] == "/a.safetensors"
    assert kept(tmp_path) == []


@pytest.mark.parametrize(
    ("day", "code", "reason"),
    [
        ({"content": b""}, "LORA_INVALID_FILE", "is empty"),
        ({"content": b"<!DOCTYPE html><html></html>"}, "LORA_INVALID_FILE", "an HTML page"),
        ({"content": b"PK\x03\x04" + bytes(60)}, "LORA_INVALID_FILE", "a pickle"),
        ({"content": FILE[:-1]}, "LORA_INVALID_FILE", "but its header describes"),
        ({"content": FILE[:60]}, "LORA_INVALID_FILE", "truncated within its header"),
        ({"content": LONG_HEADER[: BEGINNING_BYTES + 5]}, "LORA_INVALID_FILE", "truncated within its header"),
        ({"status": 403}, "LORA_DOWNLOAD_FAILED", "answered 403"),
        ({"status": 500}, "LORA_DOWNLOAD_FAILED", "answered 500"),
        ({"silent_after": 0}, "LORA_DOWNLOAD_FAILED", "longer than 1 s"),
        ({"breaks_off_after": 0}, "LORA_DOWNLOAD_FAILED", "broke the connection off"),
    ],
)
def test_bad_day_is_a_clear_error(server, submit, day, code, reason):
    vars(server).update(day)
    error = submit(server.url)["detail"]["error"]
    assert (error["code"], error["details"]) == (code, {"lora_path": server.url})
    assert reason in error["message"]
    assert server.sent < BEGINNING_BYTES * 2


def test_file_that_changes_between_two_reads_of_its_header_is_refused(server, submit):
    server.content, server.later = LONG_HEADER, {"etag": '"2"'}
    error = submit(server.url)["detail"]["error"]
    assert (error["code"], "changed while it was read" in error["message"]) == ("LORA_DOWNLOAD_FAILED", True)


def test_file_larger_than_allowed_is_refused_before_it_is_fetched(config, server, make_body):
    fetch = {"allow_private_addresses": True, "max_lora_bytes": SIZE}
    application = Application(AppConfig.model_validate(config.model_dump() | {"fetch": fetch}))
    with TestClient(application.app) as client:
        error = client.post("/v1/inference", json=make_body(loras=[{"path": server.url}])).json()["detail"]["error"]
    assert f"larger than {SIZE} bytes" in error["message"]


@pytest.mark.parametrize("url", ["http://[", "http://127.0.0.1:1/\0", "HTTP:///x"])
def test_invalid_url_is_a_clear_error(client, make_body, url):
    body = json.dumps(make_body(loras=[{"path": url}]))
    answer = client.post("/v1/inference", content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["detail"]["error"]["code"]) == (400, "LORA_DOWNLOAD_FAILED")
