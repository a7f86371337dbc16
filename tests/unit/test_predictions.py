"""What was predicted at the POST and came true, as a metric; and the attributes of spans."""

from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from serve_app.jobs import tables
from serve_app.jobs.store import JobStore
from serve_app.policy.predictions import GRACE_S, TOLERANCE, is_kept
from serve_app.telemetry import tracing
from serve_app.telemetry.metrics import PREDICTIONS
from tests.unit.conftest import ON_BOTH_DATABASES
from tests.unit.serving import wait_until
from tests.unit.test_telemetry import Observed

MODEL = "qwen_image_edit"


@pytest.fixture
def observed(config) -> Iterator[Observed]:
    observed = Observed(config)
    with observed.client:
        yield observed


def test_a_prediction_allows_for_half_as_much_again_and_some_seconds():
    assert is_kept(100.0, 100.0 * TOLERANCE + GRACE_S)
    assert not is_kept(100.0, 100.0 * TOLERANCE + GRACE_S + 0.1)
    assert is_kept(0.1, GRACE_S)


@ON_BOTH_DATABASES
def test_requests_are_counted_by_whether_they_took_as_long_as_predicted(observed, make_body):
    store = observed.service.resources.store
    observed.post(make_body())
    # Before the first edit, nothing can be predicted.
    assert observed.meter.of(PREDICTIONS) == {}
    first = observed.post(make_body())
    wait_until(lambda: observed.meter.of(PREDICTIONS) == {(MODEL, "true"): 1.0}, 30)
    predicted_s, took_s = observed.client.portal.call(store.queue.prediction, first["request_id"])
    # An instant edit says that it took a second.
    assert predicted_s == pytest.approx(1.0, rel=0.3)
    assert 0.0 < took_s < GRACE_S

    late = make_body()
    observed.client.portal.call(observed.editors.gate.clear)
    request_id = observed.client.post("/v1/inference", json=late).json()["request_id"]
    observed.client.portal.call(make_late, store, request_id)
    observed.client.portal.call(observed.editors.gate.set)
    wait_until(lambda: observed.meter.of(PREDICTIONS) == {(MODEL, "true"): 1.0, (MODEL, "false"): 1.0}, 30)


async def make_late(store: JobStore, request_id: str) -> None:
    """Let the request have been accepted a minute ago."""
    requests = tables.requests.c
    async with store._database.writing() as connection:
        earlier = tables.requests.update().where(requests.id == request_id)
        await connection.execute(earlier.values(created_at=requests.created_at - 60.0))
        found = sa.select(requests.predicted_s).where(requests.id == request_id)
        assert (await connection.execute(found)).scalar_one() < 10.0


def test_the_work_ahead_counts(observed, make_body):
    store = observed.service.resources.store
    observed.post(make_body())
    observed.client.portal.call(observed.editors.gate.clear)
    ids = [observed.client.post("/v1/inference", json=make_body()).json()["request_id"] for _ in range(3)]
    observed.client.portal.call(observed.editors.gate.set)
    wait_until(lambda: sum(observed.meter.of(PREDICTIONS).values()) == 3, 30)
    first, _, last = (observed.client.portal.call(store.queue.prediction, each)[0] for each in ids)
    assert last == pytest.approx(3 * first, rel=0.4)


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "_tracer", provider.get_tracer("test"))
    return exporter


def test_spans_have_the_attributes_of_opentelemetrys_conventions(spans, observed, make_body):
    observed.post(make_body(seed=7))
    wait_until(lambda: {"attempt", "POST /v1/inference"} <= {span.name for span in spans.get_finished_spans()}, 30)
    found = {span.name: dict(span.attributes) for span in spans.get_finished_spans()}
    always = {
        "gen_ai.operation.name": "generate_content",
        "gen_ai.provider.name": "edits",
        "gen_ai.request.model": MODEL,
        "gen_ai.output.type": "image",
    }
    for name, more in (
        ("POST /v1/inference", {"gen_ai.request.choice.count": 1}),
        ("attempt", {"gen_ai.request.seed": 7}),
    ):
        assert {key: value for key, value in found[name].items() if key.startswith("gen_ai.")} == always | more
    assert "gen_ai.operation.name" not in found["queue"]
