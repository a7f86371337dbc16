"""What operators see of real edits: Ray's metrics endpoint, log lines, spans at an OTLP receiver."""

import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from ray import serve

from serve_app.config import MINIATURE_RANDOM, AppConfig
from serve_app.replicas.editor import load_engine
from serve_app.replicas.http_host import http_host
from serve_app.telemetry.metrics import EDITOR_LOOPS, INGRESS_LOOPS, METRICS, Kind
from tests.cluster.test_monitoring import RAYS
from tests.conftest import LORAS, THREADS
from tests.service.conftest import Deployed, declare

NAME = "told"
JSON_LINES = {"encoding": "JSON", "enable_access_log": False, "additional_log_standard_attrs": ["name"]}
LORA = {"path": "my_lora_job/my_lora.safetensors"}
# The client's own trace, of which the POST becomes a part.
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SECRET = "whsec_" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
# Ray tells something new every four seconds, and writing and reading all of it takes a tenth of a second.
POLL_S = 1.0
Samples = dict[str, list[Sample]]
STAGES = {"apply_adapters", "encode_prompt", "encode_control", "denoise", "decode"}


class Receiver(ThreadingHTTPServer):
    """Takes spans at /v1/traces, and webhooks anywhere else."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Posts)
        self.spans: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def take(self, data: bytes) -> None:
        for of_process in ExportTraceServiceRequest.FromString(data).resource_spans:
            resource = {pair.key: pair.value.string_value for pair in of_process.resource.attributes}
            for scope in of_process.scope_spans:
                for span in scope.spans:
                    known = {"name": span.name, "id": span.span_id.hex(), "parent": span.parent_span_id.hex()}
                    known |= {"role": resource["edits.role"], "links": [link.span_id.hex() for link in span.links]}
                    known |= {
                        "status": span.status.message,
                        "seconds": (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
                    }
                    self.spans[span.trace_id.hex()].append(known)


class _Posts(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["content-length"]))
        if self.path == "/v1/traces":
            self.server.take(data)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@dataclass
class Told:
    """What was done: a request of two images, one more when it had ended, and one that was refused."""

    service: Deployed
    receiver: Receiver
    request_id: str


@pytest.fixture(scope="module")
def told(cluster: int, tmp_path_factory: pytest.TempPathFactory, make_body: Any) -> Iterator[Told]:
    folder = tmp_path_factory.mktemp(NAME)
    receiver = Receiver()
    threading.Thread(target=receiver.serve_forever, daemon=True).start()
    args = {
        "lora_root": str(LORAS),
        "artifacts_url": f"{folder}/artifacts",
        "models": [{"checkpoint": MINIATURE_RANDOM, "threads": THREADS, "device": "cpu"}],
        "jobs": {"database_url": f"sqlite+aiosqlite:///{folder}/jobs.sqlite3"},
        "webhooks": {"secret": "${WEBHOOK_SECRET}", "allow_private_addresses": True},
        "history_without_keys": True,
    }
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}
    variables["WEBHOOK_SECRET"] = SECRET
    application = {
        "name": NAME,
        "route_prefix": f"/{NAME}",
        "import_path": "serve_app.app:build",
        "args": args,
        "logging_config": JSON_LINES,
        "deployments": [{"name": "Ingress", "logging_config": JSON_LINES}],
        "runtime_env": {"env_vars": variables},
    }
    declare(application)
    client = httpx.Client(base_url=f"http://127.0.0.1:{cluster}/{NAME}", timeout=30)
    service = Deployed(NAME, client, folder, AppConfig.model_validate(args | {"webhooks": {}}), load_engine)
    service.wait_until_ready()
    # Ray loses what is counted before it has begun to export a process' metrics, which on a busy machine takes seconds.
    eventually(lambda: told_by(samples()) == (2, 1), 60)
    try:
        yield Told(service, receiver, _work(service, receiver.url, make_body))
    finally:
        serve.delete(NAME)
        client.close()
        receiver.shutdown()


def _work(service: Deployed, receiver_url: str, make_body: Any) -> str:
    body = make_body(loras=[LORA]) | {"webhook_url": f"{receiver_url}/hook"}
    body["prompts"] *= 2
    answer = service.client.post("/v1/inference", json=body, headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
    request_id = answer.json()["request_id"]
    assert service.result(request_id)["status"] == "succeeded"
    service.edit(make_body(loras=[LORA]))
    assert service.client.post("/v1/inference", json=make_body(model="flux")).status_code == 400
    return request_id


def samples() -> Samples:
    """What Ray's endpoint tells of the application, by name."""
    port = ray.nodes()[0]["MetricsExportPort"]
    text = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=30).text
    found = defaultdict(list)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.labels.get("application") == NAME:
                found[sample.name].append(sample)
    return found


def told_by(found: Samples) -> tuple[int, ...]:
    """How many ingresses and how many editors have told anything."""
    names = ("ray_edits_editors", "ray_edits_adapter_cache_bytes")
    return tuple(len({sample.labels["WorkerId"] for sample in found[name]}) for name in names)


def eventually(is_so: Any, seconds: float = 30) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := is_so()):
        assert time.monotonic() < deadline
        time.sleep(POLL_S)
    return found


def told_once(is_so: Callable[[Samples], bool]) -> Samples:
    """What is told once it is so, or half a minute later: Ray takes a second or two to tell what was counted."""
    deadline = time.monotonic() + 30
    while not is_so(found := samples()) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return found


def total(found: Samples, name: str, **tags: str) -> float:
    """The sum of a metric's samples that have these tags."""
    return sum(sample.value for sample in having(found, name, **tags))


def having(found: Samples, name: str, **tags: str) -> list[Sample]:
    """A metric's samples that have these tags."""
    return [sample for sample in found[f"ray_{name}"] if tags.items() <= sample.labels.items()]


def test_history_without_keys_is_shown_where_serve_listens_on_loopback(told: Told) -> None:
    """Elsewhere, the application's builder refuses it."""
    assert http_host() == "127.0.0.1"
    shown = told.service.client.get("/v1/requests").json()["requests"]
    assert told.request_id in [request["request_id"] for request in shown]


MODEL = {"model": "qwen_image_edit"}


# Ray may lose an export, so not exactly: without Ray, tests/unit/test_telemetry.py counts what is written there.
COUNTS = [
    ("edits_submissions_total", MODEL | {"code": "ACCEPTED"}, 2),
    ("edits_submissions_total", {"model": "none", "code": "MODEL_NOT_FOUND"}, 1),
    ("edits_requests_total", MODEL | {"status": "succeeded"}, 2),
    ("edits_requests_total", MODEL | {"status": "failed"}, 0),
    ("edits_attempts_total", MODEL | {"outcome": "made"}, 3),
    ("edits_adapter_edits_total", MODEL, 3),
    ("edits_swaps_total", MODEL, 1),
    ("edits_webhooks_total", {"outcome": "delivered"}, 1),
    ("edits_sweeps_total", {"outcome": "finished"}, 1),
    ("edits_leases_lost_total", MODEL, 0),
    ("edits_adapter_evictions_total", MODEL, 0),
    ("edits_compilations_total", MODEL, 0),
    *[("edits_stage_seconds_count", MODEL | {"stage": stage}, 3) for stage in sorted(STAGES | {"queue", "save"})],
]


@pytest.fixture(scope="module")
def counted(told: Told) -> Samples:
    return told_once(lambda found: all(total(found, name, **tags) >= min(most, 1) for name, tags, most in COUNTS))


@pytest.mark.parametrize(("name", "tags", "most"), COUNTS)
def test_a_counter_says_what_happened(counted: Samples, name: str, tags: dict[str, str], most: float) -> None:
    # One that has counted nothing is there too, at 0, so that its first count is an increase.
    assert having(counted, name, **tags), counted[f"ray_{name}"]
    assert min(most, 1) <= total(counted, name, **tags) <= most, counted[f"ray_{name}"]


def test_cold_and_warm_edits_are_counted_separately(told: Told) -> None:
    # The first images are prepared at the same time, so that both may find the adapter missing; the last does not.
    assert eventually(
        lambda: min(total(samples(), "edits_adapter_edits_total", warm=warm) for warm in ("false", "true")) >= 1
    )


def test_a_gauge_says_how_it_stands(told: Told) -> None:
    ingresses = 2
    # Ingresses look every few seconds: what they told last may be of when there was work.
    at_rest = ("edits_waiting", "edits_claimed", "edits_oldest_waiting_seconds")
    found = told_once(
        lambda found: total(found, "edits_editors") == ingresses and not any(total(found, name) for name in at_rest)
    )
    assert total(found, "edits_editors") == ingresses
    assert total(found, "edits_waiting") == 0
    assert total(found, "edits_claimed") == 0
    assert total(found, "edits_oldest_waiting_seconds") == 0
    assert eventually(lambda: total(samples(), "edits_adapter_cache_bytes") > 10_000)


def test_seconds_are_those_of_the_edits(told: Told) -> None:
    swapping = eventually(lambda: total(samples(), "edits_swap_seconds_total"))
    assert 0 < swapping < total(samples(), "edits_gpu_seconds_total") < 120


def test_every_metric_is_exported_with_its_tags_and_no_others(told: Told) -> None:
    endings = {Kind.HISTOGRAM: "_count"}
    names = {f"ray_{metric.name}{endings.get(metric.kind, '')}" for metric in METRICS}
    found = told_once(lambda found: names <= found.keys())
    assert names - found.keys() == set()
    assert found.keys() >= RAYS
    added = {"application", "deployment", "replica", "Component", "NodeAddress", "SessionName", "Version", "WorkerId"}
    for metric in METRICS:
        for sample in found[f"ray_{metric.name}{endings.get(metric.kind, '')}"]:
            tags = {key for key in sample.labels if key not in added and not key.startswith("otel_scope")}
            assert tags == set(metric.tags), metric.name
            assert all(sample.labels[key] in known for key, known in metric.tags.items() if known), sample


def test_each_process_counts_the_failures_of_its_own_loops(told: Told) -> None:
    processes = {"Ingress": INGRESS_LOOPS, "Editor-qwen_image_edit": EDITOR_LOOPS}
    expected = {(deployment, loop) for deployment, loops in processes.items() for loop in loops}

    def counted(found: Samples) -> set[tuple[str, str]]:
        labels = [sample.labels for sample in found["ray_edits_loop_failures_total"]]
        return {(each["deployment"], each["loop"]) for each in labels}

    assert counted(told_once(lambda found: expected <= counted(found))) == expected


def test_every_line_about_a_request_has_its_ids(told: Told) -> None:
    ours = [line for line in log_lines() if line["name"].startswith("serve_app.")]
    about = [line for line in ours if line.get("edit_request_id") == told.request_id]
    assert {line["deployment"] for line in about} == {f"{NAME}_Ingress", f"{NAME}_Editor-qwen_image_edit"}
    assert {line["name"] for line in about} == {
        "serve_app.audit",
        "serve_app.intake.submission",
        "serve_app.workers.attempts",
        "serve_app.replicas.editor",
    }
    assert {line["trace_id"] for line in about} == {TRACE}
    assert [line for line in ours if told.request_id in line["message"] and line not in about] == []


def log_lines() -> list[dict[str, Any]]:
    logs = Path(ray._private.worker._global_node.get_logs_dir_path()) / "serve"
    lines = [line for file in logs.glob(f"replica_{NAME}_*.log") for line in file.read_text().splitlines()]
    return [json.loads(line) for line in lines if line.startswith("{")]


def test_a_request_is_one_trace_across_its_processes(told: Told) -> None:
    spans = eventually(lambda: (s := told.receiver.spans[TRACE]) and len(s) >= 2 * (5 + 3 + len(STAGES)) and s)
    [post] = [span for span in spans if span["name"] == "POST /v1/inference"]
    assert (post["parent"], post["role"]) == (PARENT, "ingress")
    queues, attempts = children(spans, post, "queue"), children(spans, post, "attempt")
    assert len(queues) == len(attempts) == 2
    assert sorted(link for attempt in attempts for link in attempt["links"]) == sorted(span["id"] for span in queues)
    for attempt in attempts:
        [edit] = children(spans, attempt, "edit")
        assert edit["role"] == "editor"
        [generate] = children(spans, edit, "generate")
        assert {span["name"] for span in spans if span["parent"] == edit["id"]} == {"prepare", "generate", "store"}
        assert {span["name"] for span in spans if span["parent"] == generate["id"]} == STAGES
        assert generate["seconds"] < edit["seconds"] < attempt["seconds"]


def children(spans: list[dict[str, Any]], parent: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return [span for span in spans if span["parent"] == parent["id"] and span["name"] == name]
