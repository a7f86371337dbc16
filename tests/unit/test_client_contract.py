"""The Python client and the OpenAPI document: requests, answers and errors, without a service.

Requests are checked by a transport that knows the document. Its answers have every field that the document names, and
the client must keep each of them.
"""

import base64
import inspect
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, get_type_hints

import httpx2
import pytest
from edits_client import AsyncClient, AsyncJob, Client, Job, Lora, Options, errors, events, models
from edits_client.answers import answer_as
from edits_client.bodies import TOP_FIELDS
from edits_client.models import InferenceRequest
from fastapi import FastAPI

from serve_app.errors import EditError
from tests.conformity import EVENTS, JSON, Document
from tests.unit.test_errors import every_error
from tests.unit.test_openapi import operations
from tests.unit.test_recorded_answers import VERSIONS, read
from tools.openapi import openapi_document

ID = "0f8fad5bd9cb469fa16570867728950e"
PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg==")
# Larger than what the client sends without asking whether it is there.
LARGE = bytes(300_000)
SINCE = datetime(2026, 11, 1, tzinfo=UTC)

# Every option of a request.
EVERY_OPTION: Options = {
    "model": "qwen_image_edit",
    "preset": "house-style",
    "loras": [Lora("a.safetensors", 0.5)],
    "size": "input",
    "steps": 8,
    "guidance": 1.0,
    "negative_prompt": "fog",
    "seeds": [1, -1],
    "sampler": "lightning",
    "trigger_word": "auto",
    "profile": "trainer",
    "quality": "exact",
    "max_loss": {"psnr_db": 35.0},
    "output_format": "png",
    "priority": "bulk",
    "exif": "apply",
    "vae_tiling": True,
    "deadline_s": 60.0,
    "webhook_url": "https://example.com/hook",
    "webhook_events": ["image"],
    "hf_token": "hf_x",
}
SWEEP_BASE = {"model": "qwen_image_edit", "prompts": [{"prompt": "p"}], "loras": [{"path": "a"}]}
SWEEP_AXES = {"checkpoints": [None, "a/*"], "multipliers": [0.5], "control_images": ["upload:x", ["upload:y"]]}
# The calls of the client, by the operation that each is for.
CALLS: dict[str, list[Callable[[Client], Any]]] = {
    "models": [lambda client: client.models()],
    "presets": [lambda client: client.presets()],
    "loras": [lambda client: list(client.loras("job"))],
    "lora": [lambda client: client.lora("job/a b.safetensors")],
    "submit": [lambda client: client.submit([PNG, PNG, PNG], ["one", "two"], **EVERY_OPTION)],
    "explain": [lambda client: client.explain([PNG], "one", **EVERY_OPTION)],
    "upload": [lambda client: client.upload(PNG)],
    "get_upload": [lambda client: client.upload(LARGE)],
    "delete_upload": [lambda client: client.delete_upload(ID)],
    "get_status": [lambda client: client.job(ID).status()],
    "get_result": [lambda client: client.job(ID).record()],
    "get_image": [lambda client: client.job(ID).images()],
    "get_control_image": [lambda client: client.job(ID).control_images()],
    "get_preview": [lambda client: client.job(ID).preview(2)],
    "delete": [lambda client: client.job(ID).cancel(), lambda client: client.job(ID).cancel(purge=True)],
    "events": [lambda client: list(client.job(ID).events(previews=False))],
    "history": [
        lambda client: list(
            client.history(status="failed", model="m", lora="l", tenant="t", since=SINCE, until=SINCE),
        )
    ],
    "usage": [lambda client: client.usage()],
    "operation": [lambda client: client.operation()],
    "calibrations": [lambda client: client.calibrations()],
    "start_calibration": [lambda client: client.start_calibration({"model": "m", "prompts": [{"prompt": "p"}]})],
    "training_jobs": [lambda client: list(client.training_jobs("job"))],
    "training_job": [lambda client: client.training_job("people/my job")],
    "get_sample_image": [lambda client: client.sample_image("people/my job", "a.jpg", thumbnail=True)],
    "make_previews": [
        lambda client: client.start_previews(
            "my_job", 500, samples=[0], control_images={"a.png": PNG}, priority="interactive"
        )
    ],
    "get_previews": [lambda client: client.previews_status("people/my job", ID)],
}
CALLS |= {
    "create_sweep": [
        lambda client: client.sweep(SWEEP_BASE, SWEEP_AXES, max_cells=9),
        lambda client: client.plan_sweep(SWEEP_BASE, SWEEP_AXES),
    ],
    "extend_sweep": [lambda client: client.open_sweep(ID).extend(SWEEP_AXES, max_cells=9, dry_run=True)],
    "sweeps": [lambda client: list(client.sweeps())],
    "get_sweep": [lambda client: client.open_sweep(ID).status()],
    "delete_sweep": [lambda client: client.open_sweep(ID).cancel(purge=True)],
    "resume_sweep": [lambda client: client.open_sweep(ID).resume()],
    "sweep_events": [lambda client: list(client.open_sweep(ID).changes())],
    "get_sheet": [
        lambda client: client.open_sweep(ID).sheet(
            page=2, format="webp", rows="seeds", columns="prompts", cell=64, rows_per_page=3, columns_per_page=4
        )
    ],
    "get_table": [lambda client: list(client.open_sweep(ID)._chunks("cells.csv"))],
    "get_archive": [lambda client: list(client.open_sweep(ID)._chunks("archive"))],
}
NOT_COVERED = {
    "health": "a probe",
    "ready": "a probe",
    "cancel": "the same as `delete`",
    "cancel_sweep": "the same as `delete_sweep`",
    "edit_images": "for OpenAI's own client",
    "generate_images": "for OpenAI's own client",
}
# Added by whatever traces the process of the caller.
OF_TRACING = "traceparent"
# Parameters that no call sends, and why.
NOT_SENT = {
    "submit: wait": "the client waits by itself, so that a connection that breaks loses nothing",
    "get_image: if-none-match": "the client keeps no images",
    "get_control_image: if-none-match": "the client keeps no images",
    "get_sample_image: if-none-match": "the client keeps no images",
    "loras: limit": "the client reads all pages",
    "training_jobs: limit": "the client reads all pages",
    "history: limit": "the client reads all pages",
    "sweeps: limit": "the client reads all pages",
    # Sent for a second page, and by a stream that is resumed: see test_client_by_http.py.
    "loras: cursor": "",
    "training_jobs: cursor": "",
    "history: cursor": "",
    "events: last-event-id": "",
    "sweeps: cursor": "",
    "sweep_events: last-event-id": "",
}
# Texts, the first of which is used that matches a field's pattern, if it has one.
TEXTS = (ID, "input")
# Fields of a prompt that are no options: they say the same as an option or have no effect on these models. Callers can
# send them by `prompt_extra`.
NO_OPTION = {
    *("width", "height", "resolution", "num_frames", "fps", "ctrl_img"),
    # One trigger word for all prompts.
    "trigger_word",
}
# Errors that only stop a command of the service.
OF_COMMANDS = {
    *("CHECKPOINT_REFUSED", "CONFIG_REFUSED", "FETCH_FAILED", "FRONT_FAILED", "KEYS_REFUSED"),
    *("START_FAILED", "STORAGE_REFUSED"),
}


def sample(document: dict[str, Any], schema: dict[str, Any]) -> Any:
    """A value with every field that a schema names."""
    if "$ref" in schema:
        return sample(document, document["components"]["schemas"][schema["$ref"].rpartition("/")[2]])
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return sample(document, next(choice for choice in schema[key] if choice.get("type") != "null"))
    if "const" in schema or "enum" in schema:
        return schema["const"] if "const" in schema else schema["enum"][0]
    kind = schema.get("type", "object")
    if kind == "object":
        fields = {name: sample(document, inner) for name, inner in schema.get("properties", {}).items()}
        more = schema.get("additionalProperties")
        return fields | ({"a_key": sample(document, more)} if isinstance(more, dict) and more else {})
    if kind == "array":
        return [sample(document, schema.get("items", {}))] * schema.get("minItems", 1)
    if kind == "string":
        if schema.get("format") == "date-time":
            return "2026-11-30T00:00:00Z"
        return next(text for text in TEXTS if re.search(schema.get("pattern", ""), text))
    number = min(1.5, schema.get("maximum", 1.5))
    return {"integer": max(1, schema.get("minimum", 1)), "number": number, "boolean": True, "null": None}[kind]


@dataclass
class ByDocument:
    """A transport that answers what the document says to requests that the document allows, and fails on others."""

    document: Document
    # The parameters and media types of the bodies that were sent, by operation.
    sent: dict[str, set[str]] = field(default_factory=dict)
    # The JSON of the answers, and of the bodies.
    answered: dict[str, Any] = field(default_factory=dict)
    bodies: dict[str, Any] = field(default_factory=dict)

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        operation = self.document.operation(request.method, request.url.path)
        assert operation is not None, f"{request.method} {request.url.path}"
        name = operation["operationId"]
        self.sent.setdefault(name, set())
        self._check_parameters(name, operation, request)
        if "requestBody" in operation:
            self._check_body(name, operation, request)
        return self._answer(name, operation)

    def _check_parameters(self, name: str, operation: dict[str, Any], request: httpx2.Request) -> None:
        described = {parameter["name"]: parameter for parameter in operation.get("parameters", [])}
        assert set(request.url.params) <= described.keys(), name
        for parameter in described.values():
            given = request.headers if parameter["in"] == "header" else request.url.params
            if (value := given.get(parameter["name"])) is not None:
                parsed: Any = {"true": True, "false": False}.get(value, value)
                if parameter["schema"].get("type") == "integer":
                    parsed = int(value)
                assert not list(self.document.problems(parameter["schema"], parsed))
                self.sent[name].add(parameter["name"])

    def _check_body(self, name: str, operation: dict[str, Any], request: httpx2.Request) -> None:
        media_type = request.headers["content-type"]
        described = operation["requestBody"]["content"][media_type]
        self.sent[name].add(media_type)
        if media_type == JSON:
            self.bodies[name] = json.loads(request.content)
            assert not list(self.document.problems(described["schema"], self.bodies[name]))

    def _answer(self, name: str, operation: dict[str, Any]) -> httpx2.Response:
        content = self.document.content
        status = next((code for code in ("200", "202") if code in operation["responses"]), None)
        if status is None:
            return httpx2.Response(204)
        media_type, described = next(iter(operation["responses"][status]["content"].items()))
        if media_type == EVENTS:
            return httpx2.Response(200, headers={"content-type": EVENTS}, text=self._events(described))
        if media_type != JSON:
            return httpx2.Response(200, headers={"content-type": media_type}, content=PNG)
        value = sample(content, described["schema"])
        if "next_cursor" in value:
            value["next_cursor"] = None
        if name == "get_result":
            value["status"] = "succeeded"
        if name == "models":
            value["models"][0]["requires_control_image"] = True
        assert not list(self.document.problems(described["schema"], value))
        self.answered[name] = value
        return httpx2.Response(200, json=value)

    def _events(self, described: dict[str, Any]) -> str:
        """One event of each kind; of the ends, the success."""
        text = ""
        for kind in described["itemSchema"]["oneOf"]:
            event = kind["properties"]["event"]["const"]
            data = sample(self.document.content, kind["properties"]["data"]["contentSchema"])
            data |= {"status": event} if event in events.ENDS else {}
            if event not in ("failed", "canceled"):
                text += f"event: {event}\nid: 1\ndata: {json.dumps(data)}\n\n"
        return text


@pytest.fixture(scope="module")
def document() -> Document:
    return Document(Described())


class Described(FastAPI):
    """Stands for the application with the default config."""

    def openapi(self) -> dict[str, Any]:
        return openapi_document()


@pytest.fixture
def by_document(document) -> ByDocument:
    return ByDocument(document)


@pytest.fixture
def client(by_document) -> Iterator[Client]:
    with Client("http://service", transport=httpx2.MockTransport(by_document)) as client:
        yield client


def test_every_operation_has_a_call_or_a_reason(by_document):
    names = {operation["operationId"] for _, operation in operations(by_document.document.content)}
    assert names - CALLS.keys() - NOT_COVERED.keys() == set()
    assert CALLS.keys() - names == set()


@pytest.mark.parametrize("name", CALLS)
def test_calls_are_as_the_document_says(client, by_document, name):
    for call in CALLS[name]:
        call(client)
    assert name in by_document.sent, "the call is for another operation"
    operation = next(
        operation for _, operation in operations(by_document.document.content) if operation["operationId"] == name
    )
    for parameter in operation.get("parameters", []):
        if parameter["in"] == "path" or parameter["name"] == OF_TRACING:
            continue
        if f"{name}: {parameter['name']}" not in NOT_SENT:
            assert parameter["name"] in by_document.sent[name]


def answers(client: Client) -> dict[str, Any]:
    """The answers of the methods that return one as it is, by operation."""
    return {
        "lora": client.lora("a"),
        "get_upload": client.upload(LARGE),
        "upload": client.upload(PNG),
        "explain": client.explain([], "one", preset="x"),
        "get_status": client.job(ID).status(),
        "get_result": client.job(ID).record(),
        "delete": client.job(ID).cancel(),
        "operation": client.operation(),
        "calibrations": client.calibrations(),
        "start_calibration": client.start_calibration({"model": "m", "prompts": [{"prompt": "p"}]}),
        "training_job": client.training_job("a"),
        "make_previews": client.start_previews("a", 1),
        "get_previews": client.previews_status("a", ID),
    }


def test_answers_keep_every_field(client, by_document):
    for name, answer in answers(client).items():
        assert answer.model_dump(mode="json", by_alias=True, exclude_unset=True) == by_document.answered[name], name
    pages = {
        "models": ("models", client.models()),
        "presets": ("presets", client.presets()),
        "loras": ("loras", list(client.loras())),
        "history": ("requests", list(client.history())),
        "usage": ("usage", client.usage()),
        "training_jobs": ("training_jobs", list(client.training_jobs())),
    }
    for name, (key, items) in pages.items():
        kept = [item.model_dump(mode="json", by_alias=True, exclude_unset=True) for item in items]
        assert kept == by_document.answered[name][key], name


def test_every_kind_of_event_is_read(client):
    kinds = [type(event) for event in client.job(ID).events()]
    assert kinds == [
        *(events.Queued, events.Started, events.Step, events.Preview, events.ImageFinished),
        # The one image of the result, whose number is another one than that of the event.
        events.ImageFinished,
        events.Ended,
    ]


def test_every_event_of_the_document_has_a_class(by_document):
    [stream] = [
        operation["responses"]["200"]["content"][EVENTS]
        for _, operation in operations(by_document.document.content)
        if operation["operationId"] == "events"
    ]
    for kind in stream["itemSchema"]["oneOf"]:
        name, data = kind["properties"]["event"]["const"], kind["properties"]["data"]["contentSchema"]
        value = sample(by_document.document.content, data)
        assert events.event_of(name, value) is not None, name


def test_every_field_of_a_request_is_an_option(client, by_document):
    client.submit([PNG, PNG, PNG], "one", **EVERY_OPTION)
    schemas = by_document.document.content["components"]["schemas"]
    body = by_document.bodies["submit"]
    assert schemas["InferenceRequest"]["properties"].keys() == body.keys()
    assert schemas["Prompt"]["properties"].keys() - body["prompts"][0].keys() == NO_OPTION
    assert set(EVERY_OPTION) == set(get_type_hints(Options)) - {"seed", "extra", "prompt_extra"}
    assert set(TOP_FIELDS) <= body.keys()


def test_effective_request_can_be_sent_again(client, by_document):
    request = InferenceRequest.model_validate({"model": "m", "prompts": [{"prompt": "p", "seed": 3}], "new_field": 1})
    client.submit_body(request)
    assert by_document.bodies["submit"] == {"model": "m", "prompts": [{"prompt": "p", "seed": 3}], "new_field": 1}


def test_every_error_code_has_a_class_and_none_is_left_over(by_document):
    known = {kind.code for kind in every_error()} - OF_COMMANDS
    in_document = set(codes_in(by_document.document.content))
    assert in_document <= known
    # The service's 422 has no code.
    assert errors.ApiError.by_code.keys() - {"VALIDATION_FAILED"} == known


def test_errors_of_accepted_requests_are_edit_failures():
    of_service = {kind.code for kind in every_error(EditError)}
    of_client = {code for code, kind in errors.ApiError.by_code.items() if issubclass(kind, errors.EditFailed)}
    assert of_client == of_service


def codes_in(node: Any) -> Iterator[str]:
    """The codes of the errors that a part of the document has as examples."""
    if isinstance(node, list):
        for inner in node:
            yield from codes_in(inner)
    elif isinstance(node, dict):
        error = node.get("error")
        if isinstance(error, dict) and "code" in error and "message" in error:
            yield error["code"]
        for inner in node.values():
            yield from codes_in(inner)


@pytest.mark.parametrize(("of_async", "of_sync"), [(AsyncClient, Client), (AsyncJob, Job)])
def test_both_clients_have_the_same_methods(of_async, of_sync):
    def methods(kind: type) -> dict[str, list[str]]:
        return {
            name: list(inspect.signature(method).parameters)
            for name, method in inspect.getmembers(kind, inspect.isfunction)
            if not name.startswith("_")
        }

    assert methods(of_async) == methods(of_sync)


def test_models_of_the_client_take_fields_that_they_do_not_know():
    known = {"tenant": "t", "gpu_seconds": 1.0, "images": 1}
    assert models.TenantUsage.model_validate(known | {"new": 1}).images == 1


@pytest.mark.parametrize("version", VERSIONS)
def test_results_that_earlier_versions_stored_are_read(version):
    answered = [json.loads(text) for path, text in read(version)["answers"].items() if path.endswith("/result")]
    assert answered
    for answer in answered:
        assert answer_as(models.RequestResult, answer).request_id == answer["request_id"]
