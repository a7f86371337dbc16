"""OpenTelemetry spans, and the ids of request and trace in every log line. Does not import Ray.

A request is one trace, from the POST (or from the start of the client's own trace) to its last image. Processes hand
over the W3C `traceparent` of the current span. It is also stored with the request, so that a dispatcher that takes over
the request continues the trace. Without an exporter spans cost next to nothing, and the client's trace id still appears
in the logs.
"""

import logging
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from opentelemetry import context, trace
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from serve_app.config import wants_spans

logger = logging.getLogger(__name__)

TRACEPARENT = "traceparent"
# The path of a request: its id is a UUID in hex.
_REQUEST_PATH = re.compile("/v1/requests/([0-9a-f]{32})")

# The attribute `gen_ai.provider.name` of spans.
PROVIDER = "edits"

_tracer = trace.get_tracer("serve_app")
_propagator = TraceContextTextMapPropagator()
_request_id: ContextVar[str | None] = ContextVar("request_id", default=None)


@dataclass(frozen=True)
class Generation:
    """What a span generates, for the `gen_ai.*` attributes of OpenTelemetry's semantic conventions.

    `images` is their number where the span makes all images of a request, `seed` that of the one that it makes.
    """

    model: str
    images: int | None = None
    seed: int | None = None

    @property
    def attributes(self) -> dict[str, Any]:
        known = {"gen_ai.request.choice.count": self.images, "gen_ai.request.seed": self.seed}
        return {
            # The conventions have no operation for images alone: this is "multimodal content generation".
            "gen_ai.operation.name": "generate_content",
            "gen_ai.provider.name": PROVIDER,
            "gen_ai.request.model": self.model,
            "gen_ai.output.type": "image",
            **{name: value for name, value in known.items() if value is not None},
        }


def export_spans(role: str) -> None:
    """Send this process' spans by OTLP over HTTP, as the standard OTEL_* variables say. Without them, do nothing.

    `role` is the attribute `edits.role` of the spans.
    """
    if not wants_spans():
        return
    try:
        # Part of the extra `otel`, which is only needed to export spans.
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        logger.warning("OTEL_* variables ask for spans, but `serve-app[otel]` is not installed: no spans are sent")
        return
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource({"service.name": "edits", "edits.role": role}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


@contextmanager
def for_request(request_id: str | None, traceparent: str | None = None) -> Iterator[None]:
    """While the block runs, log lines carry this request's id and spans belong to its trace.

    None leaves the current id or the current trace as it is.
    """
    token = _request_id.set(request_id or _request_id.get())
    continued = _propagator.extract({TRACEPARENT: traceparent}) if traceparent else context.get_current()
    attached = context.attach(continued)
    try:
        yield
    finally:
        context.detach(attached)
        _request_id.reset(token)


@contextmanager
def for_http_request(path: str, headers: Mapping[str, str]) -> Iterator[None]:
    """`for_request` with the id in the path of an HTTP request and the trace in its headers, if there are any."""
    match = _REQUEST_PATH.search(path)
    request_id = match.group(1) if match else None
    with for_request(request_id, headers.get(TRACEPARENT)):
        yield


@contextmanager
def span(
    name: str,
    kind: SpanKind = SpanKind.INTERNAL,
    link: SpanContext | None = None,
    makes: Generation | None = None,
    **facts: Any,
) -> Iterator[Span]:
    """A span around the block. An exception that leaves the block is recorded in the span. `facts` are attributes.

    `makes` says what the span generates.
    """
    links = [Link(link)] if link else []
    attributes = _attributes(facts) | (makes.attributes if makes else {})
    with _tracer.start_as_current_span(name, kind=kind, links=links, attributes=attributes) as current:
        yield current


def record_wait(name: str, seconds: float, **facts: Any) -> SpanContext:
    """Record a span that ends now and began `seconds` ago. Returns its context, for links from other spans."""
    now = time.time_ns()
    past = _tracer.start_span(name, start_time=now - int(seconds * 1e9), attributes=_attributes(facts))
    past.end(now)
    return past.get_span_context()


def _attributes(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {f"edits.{key}": value for key, value in facts.items()} | {"edits.request_id": _request_id.get() or ""}


def mark_failed(current: Span, code: str) -> None:
    """Mark a span as failed, with an error code."""
    current.set_status(StatusCode.ERROR, code)


def traceparent() -> str | None:
    """The current span as a W3C `traceparent`, for another process to continue. None outside of any trace."""
    carrier: dict[str, str] = {}
    _propagator.inject(carrier)
    return carrier.get(TRACEPARENT)


def add_ids_to_logs() -> None:
    """Add `edit_request_id` and `trace_id` to each log record of this process, if they are known.

    Serve writes all attributes of a record to its JSON lines. Its own `request_id` names one HTTP request or one call.
    """
    plain = logging.getLogRecordFactory()

    def with_ids(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = plain(*args, **kwargs)
        if (request_id := _request_id.get()) is not None:
            record.edit_request_id = request_id
        if (current := trace.get_current_span().get_span_context()).is_valid:
            record.trace_id = trace.format_trace_id(current.trace_id)
        return record

    logging.setLogRecordFactory(with_ids)
