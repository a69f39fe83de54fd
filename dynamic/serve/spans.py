"""A span of OpenTelemetry for each request, where its packages are installed."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import dynamic
from dynamic.serve.request_log import RequestRecord

try:
    from opentelemetry import trace
    from opentelemetry.trace import SpanKind, StatusCode
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ModuleNotFoundError:  # no extra brings it: who traces has it
    _propagator = None
else:
    _propagator = TraceContextTextMapPropagator()


@contextmanager
def span(name: str, headers: Mapping[str, str], record: RequestRecord | None = None) -> Iterator[str | None]:
    """A span around a request, on the tracer provider of the process. None is made where nobody set one.

    Its parent is that of the header `traceparent` (W3C Trace Context). Its attributes are the fields of the record.

    Args:
        name: Of the span.
        headers: Of the request, with names in lower case.
        record: Of the request. It is filled in when the block ends. None: it is a call of another service.

    Yields:
        Its own `traceparent`, for its children. None where there is no span.
    """
    if _propagator is None:
        yield headers.get("traceparent")
        return
    tracer = trace.get_tracer("dynamic", dynamic.__version__)
    kind = SpanKind.CLIENT if record is None else SpanKind.SERVER
    own = tracer.start_span(name, _propagator.extract(headers), kind)
    carrier: dict[str, str] = {}
    _propagator.inject(carrier, trace.set_span_in_context(own))
    try:
        yield carrier.get("traceparent")
    finally:
        if record is not None and own.is_recording():
            own.set_attributes(_attributes(record))
            if record.outcome != "answered":
                own.set_status(StatusCode.ERROR, record.error)
        own.end()


def _attributes(record: RequestRecord) -> dict[str, Any]:
    """What is known of a request, without its inputs and answers."""
    stages = record.stages or {}
    values = {
        "protocol": record.protocol,
        "id": record.id or None,
        "outcome": record.outcome,
        "rows": record.rows,
        "latency_ms": record.latency_ms,
        "waited_ms": record.waited_ms,
        "point": record.point,
        "certified": record.certified,
        "violated_limits": record.violated_limits,
        "rows_by_stage": [stages.get(stage, 0) for stage in range(max(stages) + 1)] if stages else None,
    }
    return {f"dynamic.{name}": value for name, value in values.items() if value is not None}
