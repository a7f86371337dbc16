"""Every operation of the OpenAPI document is called, when all is well and while something fails.

`tests/conformity.py` fails on an answer that the document does not describe. These tests make sure that each operation
meets each failure, so that none of its errors can be forgotten. A new operation needs an entry here if its parameters
or its body are new.
"""

import time
from collections.abc import Callable, Iterator

import pytest
import yaml
from httpx2 import Response
from starlette.testclient import TestClient

from serve_app.adapters.lora_root import LoraRoot
from serve_app.concurrency.budget import Budget
from serve_app.config import AuthConfig
from serve_app.errors import LoraDownloadFailed, Overloaded, ServiceError, StorageFailed, StoreUnavailable
from serve_app.intake.keys import new_key
from serve_app.jobs.database import Database
from serve_app.storage.artifacts import Artifacts
from tests.conformity import JSON, code_of
from tests.conftest import as_png, noise_image
from tests.unit.conftest import Application
from tests.unit.test_http_contract import finished
from tests.unit.test_openapi import Json, operations

# What stops working: the methods that raise an error then.
FAULTS: dict[type[ServiceError], dict[type, tuple[str, ...]]] = {
    StoreUnavailable: {Database: ("reading", "writing")},
    StorageFailed: {
        Artifacts: ("get", "put", "put_missing", "put_new", "put_file", "exists", "get_json", "delete"),
        LoraRoot: ("files",),
    },
    LoraDownloadFailed: {LoraRoot: ("find",)},
    Overloaded: {Budget: ("hold",), LoraRoot: ("in_thread",)},
}


class Operations:
    """Calls operations of an application with keys, as a tenant that has a finished and a running request."""

    def __init__(self, client: TestClient, application: Application, make_body: Callable[..., Json]) -> None:
        self.document = application.app.openapi()
        self.names = {operation["operationId"]: place for place, operation in operations(self.document)}
        self.listed = {operation["operationId"]: _codes(operation) for _, operation in operations(self.document)}
        self._client = client
        self._finished = finished(client, make_body())["request_id"]
        client.portal.call(application.editors.gate.clear)
        self._running = client.post("/v1/inference", json=make_body()).json()["request_id"]
        self._wait_for_start()
        [record] = client.post("/v1/explain", json=make_body()).json()["effective"]
        # A stored image, so that the store and the storage are asked.
        stored = f"sha256:{record['control_images'][0]['sha256']}"
        self._bodies: dict[str, Json] = {"submit": make_body(), "explain": make_body(ctrl_img=stored)}
        # Not the image of a request: the file is deleted with its upload.
        self._file = as_png(noise_image(32, 32))
        self._upload = client.post("/v1/uploads", content=self._file).json()["id"]

    def call(self, operation: str) -> Response:
        """The answer to a call that succeeds if nothing fails."""
        method, path = self.names[operation].split(" ")
        # Only an image that is being made has previews. The others leave the running request alone.
        request_id = self._running if operation == "get_preview" else self._finished
        url = path.format(request_id=request_id, n=0, path="job/lora.safetensors", upload_id=self._upload)
        params = {"purge": True} if operation == "delete" else {}
        if operation == "upload":
            return self._client.request(method, url, content=self._file)
        body = self._bodies[operation] if self._has_body(operation) else None
        return self._client.request(method, url, params=params, json=body)

    def _has_body(self, operation: str) -> bool:
        method, path = self.names[operation].split(" ")
        return "requestBody" in self.document["paths"][path][method.lower()]

    def _wait_for_start(self) -> None:
        deadline = time.monotonic() + 10
        while self._client.get(f"/v1/requests/{self._running}/status").json()["status"] != "in_progress":
            assert time.monotonic() < deadline
            time.sleep(0.01)


def _codes(operation: Json) -> set[str]:
    answers = operation["responses"].values()
    return {code for answer in answers for code in answer.get("content", {}).get(JSON, {}).get("examples", {})}


@pytest.fixture
def calls(config, tmp_path, make_body) -> Iterator[Operations]:
    key, sha256 = new_key()
    file = tmp_path / "keys.yaml"
    file.write_text(yaml.safe_dump({"tenants": {"red": [sha256]}}))
    application = Application(config.model_copy(update={"auth": AuthConfig(keys_file=str(file))}))
    with TestClient(application.app, headers={"X-API-Key": key}) as client:
        yield Operations(client, application, make_body)
        client.portal.call(application.editors.gate.set)


def test_every_operation_succeeds(calls):
    statuses = {operation: calls.call(operation).status_code for operation in calls.names if operation != "get_preview"}
    assert {operation: status for operation, status in statuses.items() if status not in (200, 204)} == {}


@pytest.mark.parametrize("fault", [StoreUnavailable, StorageFailed, LoraDownloadFailed])
def test_operations_list_the_failures_of_what_they_use_and_no_others(calls, monkeypatch, fault):
    fail(monkeypatch, fault)
    failed = {operation for operation in calls.names if code_of_answer(calls.call(operation)) == fault.code}
    assert failed == {operation for operation, codes in calls.listed.items() if fault.code in codes}


def test_operations_list_that_the_service_is_overloaded(calls, monkeypatch):
    fail(monkeypatch, Overloaded)
    failed = {operation for operation in calls.names if code_of_answer(calls.call(operation)) == Overloaded.code}
    # The others that list it read a body, and this one call of them has none.
    assert failed == {"submit", "explain", "upload", "loras", "lora"}


def fail(monkeypatch: pytest.MonkeyPatch, fault: type[ServiceError]) -> None:
    def broken(*arguments: object, **named: object) -> None:
        raise fault("it is away")

    for kind, methods in FAULTS[fault].items():
        for method in methods:
            monkeypatch.setattr(kind, method, broken)


def code_of_answer(answer: Response) -> str | None:
    return code_of(answer.json()) if answer.is_error else None
