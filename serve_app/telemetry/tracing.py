"""Which request is being worked on: spans of OpenTelemetry, and the ids in every log line. No Ray here.

A request is one trace, from the POST (or from where its client's `traceparent` began) to the last image. What
crosses to another process is the W3C `traceparent` of the span there is; it is stored with the request, so that the
trace goes on whoever takes the request up. Without an exporter spans cost next to nothing and a client's trace id still
gets into the logs.
"""

import logging
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from opentelemetry import context, trace
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from serve_app.config import wants_spans

logger = logging.getLogger(__name__)

TRACEPARENT = "traceparent"
# A UUID in hex behind the route of a request.
_OF_REQUEST = re.compile("/v1/requests/([0-9a-f]{32})")

_tracer = trace.get_tracer("serve_app")
_propagator = TraceContextTextMapPropagator()
_request_id: ContextVar[str | None] = ContextVar("request_id", default=None)


def export_spans(role: str) -> None:
    """Have this process' spans sent by OTLP over HTTP, where the standard OTEL_* variables say; nowhere without."""
    if not wants_spans():
        return
    try:
        # The extra `otel`: only who exports needs it.
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        logger.warning("OTEL_* variables ask for spans, but `serve-app[otel]` is not installed: there are none")
        return
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource({"service.name": "edits", "edits.role": role}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


@contextmanager
def about(request_id: str | None, traceparent: str | None = None) -> Iterator[None]:
    """Everything in here is for this request: log lines say so, and spans belong to its trace."""
    token = _request_id.set(request_id or _request_id.get())
    continued = _propagator.extract({TRACEPARENT: traceparent}) if traceparent else context.get_current()
    attached = context.attach(continued)
    try:
        yield
    finally:
        context.detach(attached)
        _request_id.reset(token)


@contextmanager
def about_http(path: str, headers: Mapping[str, str]) -> Iterator[None]:
    """The same for an HTTP request: its path may name a request of ours, its headers a trace of the client's."""
    found = _OF_REQUEST.search(path)
    with about(found and found.group(1), headers.get(TRACEPARENT)):
        yield


@contextmanager
def span(
    name: str, kind: SpanKind = SpanKind.INTERNAL, link: SpanContext | None = None, **facts: Any
) -> Iterator[Span]:
    """A span around what happens in here. An error that leaves it is noted in it."""
    links = [Link(link)] if link else []
    with _tracer.start_as_current_span(name, kind=kind, links=links, attributes=_attributes(facts)) as current:
        yield current


def waited(name: str, seconds: float, **facts: Any) -> SpanContext:
    """A span for what ends now and began so long ago, whoever waited."""
    now = time.time_ns()
    past = _tracer.start_span(name, start_time=now - int(seconds * 1e9), attributes=_attributes(facts))
    past.end(now)
    return past.get_span_context()


def _attributes(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {f"edits.{key}": value for key, value in facts.items()} | {"edits.request_id": _request_id.get() or ""}


def failed(current: Span, code: str) -> None:
    """Note that what the span is around did not succeed."""
    current.set_status(StatusCode.ERROR, code)


def traceparent() -> str | None:
    """The span that this is in, for another process to go on from. None outside of any trace."""
    carrier: dict[str, str] = {}
    _propagator.inject(carrier)
    return carrier.get(TRACEPARENT)


def name_requests_in_logs() -> None:
    """Have each log record of this process carry `edit_request_id` and `trace_id`, where there are such.

    Serve's JSON lines have whatever a record carries. Its own `request_id` is of one HTTP request or one call.
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
