"""Every operation of the OpenAPI document is called, when all is well and while something fails.

`tests/conformity.py` fails on an answer that the document does not describe. These tests make sure that each operation
meets each failure, so that none of its errors can be forgotten. A new operation needs an entry here if its parameters
or its body are new.
"""

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from httpx2 import Response
from starlette.testclient import TestClient

from serve_app.adapters.lora_root import LoraRoot
from serve_app.concurrency.budget import Budget
from serve_app.config import MINIATURE_RANDOM, AuthConfig, ModelConfig, TierConfig
from serve_app.errors import LoraDownloadFailed, Overloaded, ServiceError, StorageFailed, StoreUnavailable
from serve_app.intake.keys import new_key
from serve_app.jobs.database import Database
from serve_app.storage.artifacts import Artifacts
from tests.conformity import JSON, code_of
from tests.conftest import as_base64, as_png, noise_image
from tests.training_folder import sample_name, trainer_config, write_checkpoints, write_config, write_sample_image
from tests.unit.conftest import SHARES_AN_APPLICATION, Application, safetensors_bytes
from tests.unit.sweeps import ended, started
from tests.unit.test_http_contract import finished
from tests.unit.test_openapi import Json, operations

pytestmark = SHARES_AN_APPLICATION

# What stops working: the methods that raise an error then.
FAULTS: dict[type[ServiceError], dict[type, tuple[str, ...]]] = {
    StoreUnavailable: {Database: ("reading", "writing")},
    StorageFailed: {
        Artifacts: ("get", "put", "put_missing", "put_new", "put_file", "exists", "get_json", "delete"),
        LoraRoot: ("files", "listing"),
    },
    LoraDownloadFailed: {LoraRoot: ("find",)},
    Overloaded: {Budget: ("hold",), LoraRoot: ("in_thread",)},
}
MODELS = ("qwen_image_edit", "qwen_image", "qwen_image_2512")
WITHOUT_EDITOR = "qwen_image_2512"
# Of a training job.
SAMPLE = {"prompt": "a cat", "ctrl_img": "/home/me/cat.png", "width": 64, "height": 64, "sample_steps": 2}


class Operations:
    """Calls operations of an application with keys, as a tenant that has a finished and a waiting request."""

    def __init__(
        self, client: TestClient, application: Application, make_body: Callable[..., Json], operator: str
    ) -> None:
        """`operator` is an operator's key, for what no tenant may do."""
        self._operator = operator
        self.document = application.app.openapi()
        self.names = {operation["operationId"]: place for place, operation in operations(self.document)}
        self.listed = {operation["operationId"]: _codes(operation) for _, operation in operations(self.document)}
        self._client = client
        self._finished = finished(client, make_body())["request_id"]
        # This model has no editor, so its images wait.
        application.running[WITHOUT_EDITOR] = 0
        self._waiting = client.post("/v1/inference", json=make_body(model=WITHOUT_EDITOR)).json()["request_id"]
        [record] = client.post("/v1/explain", json=make_body()).json()["effective"]
        # A stored image, so that the store and the storage are asked.
        stored = f"sha256:{record['control_images'][0]['sha256']}"
        call = {"prompt": "at night", "size": "64x64", "steps": 2, "loras": make_body()["loras"]}
        image = {"image_url": f"data:image/png;base64,{as_base64(as_png(noise_image(64, 64)))}"}
        self._bodies: dict[str, Json] = {
            "submit": make_body(),
            "explain": make_body(ctrl_img=stored),
            "edit_images": call | {"model": "qwen_image_edit", "images": [image]},
            "generate_images": call | {"model": "qwen_image"},
            "create_sweep": {"base": make_body(ctrl_img=stored), "axes": {"checkpoints": ["job/*"], "seeds": [1, 2]}},
            "start_calibration": {
                "model": "qwen_image_edit",
                "base": False,
                "loras": [make_body()["loras"]],
                "prompts": [{"prompt": "p", "ctrl_img": stored}],
            },
            "extend_sweep": {"axes": {"checkpoints": ["job/*"], "seeds": [3]}},
        }
        self._sweep, self._deleted_sweep = (
            ended(client, started(client, self._bodies["create_sweep"])["sweep_id"])["sweep_id"] for _ in range(2)
        )
        folder = Path(application.config.lora_root) / "my_job"
        write_config(folder, trainer_config(sample={"samples": [SAMPLE]}))
        write_checkpoints(folder, safetensors_bytes())
        buffer = io.BytesIO()
        noise_image(64, 64).save(buffer, "JPEG")
        self._sample = write_sample_image(folder, sample_name(250, 0), buffer.getvalue()).name
        self._bodies["make_previews"] = {"step": 250, "control_images": {"cat.png": stored}}
        self._previews = client.post("/v1/training-jobs/my_job/previews", json=self._bodies["make_previews"]).json()[
            "id"
        ]
        # Not the image of a request: the file is deleted with its upload.
        self._file = as_png(noise_image(32, 32))
        self._upload = client.post("/v1/uploads", content=self._file).json()["id"]

    def call(self, operation: str) -> Response:
        """The answer to a call that succeeds if nothing fails."""
        method, path = self.names[operation].split(" ")
        # Only an image that is not finished has previews.
        request_id = self._waiting if operation == "get_preview" else self._finished
        # What was purged cannot go on.
        sweep_id = self._deleted_sweep if operation == "delete_sweep" else self._sweep
        names = {"request_id": request_id, "n": 0, "upload_id": self._upload, "sweep_id": sweep_id}
        names |= {"name": "my_job", "file": self._sample, "previews_id": self._previews}
        url = path.format(path="job/lora.safetensors", **names)
        params = {"purge": True} if operation in ("delete", "delete_sweep") else {}
        if operation == "upload":
            return self._client.request(method, url, content=self._file)
        body = self._bodies[operation] if self._has_body(operation) else None
        headers = {"X-API-Key": self._operator} if operation == "start_calibration" else {}
        return self._client.request(method, url, params=params, json=body, headers=headers)

    def _has_body(self, operation: str) -> bool:
        method, path = self.names[operation].split(" ")
        return "requestBody" in self.document["paths"][path][method.lower()]


def _codes(operation: Json) -> set[str]:
    answers = operation["responses"].values()
    return {code for answer in answers for code in answer.get("content", {}).get(JSON, {}).get("examples", {})}


@pytest.fixture
def calls(config, tmp_path, make_body) -> Iterator[Operations]:
    (key, sha256), (operator, of_operator) = new_key(), new_key()
    file = tmp_path / "keys.yaml"
    file.write_text(yaml.safe_dump({"operators": [of_operator], "tenants": {"red": [sha256]}}))
    tiers = {"fast": TierConfig(steps=2)}
    models = tuple(ModelConfig(id=model, checkpoint=MINIATURE_RANDOM, tiers=tiers) for model in MODELS)
    application = Application(config.model_copy(update={"models": models, "auth": AuthConfig(keys_file=str(file))}))
    with TestClient(application.app, headers={"X-API-Key": key}) as client:
        yield Operations(client, application, make_body, operator)


def test_every_operation_succeeds(calls):
    statuses = {operation: calls.call(operation).status_code for operation in calls.names if operation != "get_preview"}
    # A model has no editor.
    assert {operation: status for operation, status in statuses.items() if status not in (200, 202, 204)} == {
        "ready": 503
    }


@pytest.mark.parametrize("fault", [StoreUnavailable, StorageFailed, LoraDownloadFailed])
def test_operations_list_the_failures_of_what_they_use_and_no_others(calls, monkeypatch, fault):
    fail(monkeypatch, fault)
    # Without a control image it is accepted, and its edit waits for the storage.
    waiting = ["generate_images"] if fault is StorageFailed else []
    called = [operation for operation in calls.names if operation not in waiting]
    failed = [operation for operation in called if code_of_answer(calls.call(operation)) == fault.code]
    assert failed == [operation for operation in called if fault.code in calls.listed[operation]]


def test_operations_list_that_the_service_is_overloaded(calls, monkeypatch):
    fail(monkeypatch, Overloaded)
    failed = {operation for operation in calls.names if code_of_answer(calls.call(operation)) == Overloaded.code}
    # The others that list it read a body, and this one call of them has none.
    of_training = {"training_jobs", "training_job", "get_sample_image", "make_previews", "get_previews"}
    assert failed == {"submit", "explain", "edit_images", "generate_images", "upload", "loras", "lora"} | {
        "create_sweep",
        "extend_sweep",
        "get_sheet",
        *of_training,
        "start_calibration",
    }


def fail(monkeypatch: pytest.MonkeyPatch, fault: type[ServiceError]) -> None:
    def broken(*arguments: object, **named: object) -> None:
        raise fault("it is away")

    for kind, methods in FAULTS[fault].items():
        for method in methods:
            monkeypatch.setattr(kind, method, broken)


def code_of_answer(answer: Response) -> str | None:
    return code_of(answer.json()) if answer.is_error else None
