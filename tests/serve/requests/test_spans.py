"""A span of OpenTelemetry for each request, with the parent that the client names."""

from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from support.serving.serve_cases import INFER, X, ask, number_bundle, numbers, served

from dynamic.serve.grpc_v2.messages import SERVICE, message_classes

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"  # of W3C's own example
HEADERS = {"traceparent": f"00-{TRACE}-{PARENT}-01"}


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """The spans that have ended. A process sets its provider once, so that the test takes its place."""
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    yield exporter
    provider.shutdown()


def test_a_span_has_the_parent_of_its_request(
    tmp_path_factory: pytest.TempPathFactory, spans: InMemorySpanExporter
) -> None:
    with served(number_bundle(tmp_path_factory)) as (server, run):
        assert ask(server.port, INFER, numbers(name="input") | {"id": "seven"}, headers=HEADERS).status == 200
        stages = run(X).stage
        (one,) = spans.get_finished_spans()
    assert one.name == "infer model"
    assert one.kind is SpanKind.SERVER
    assert one.parent is not None
    assert (f"{one.context.trace_id:032x}", f"{one.parent.span_id:016x}") == (TRACE, PARENT)
    assert one.attributes is not None
    assert one.attributes["dynamic.outcome"] == "answered"
    assert one.attributes["dynamic.protocol"] == "http"
    assert one.attributes["dynamic.id"] == "seven"
    assert one.attributes["dynamic.rows"] == 3
    assert one.attributes["dynamic.rows_by_stage"] == tuple(np.bincount(stages).tolist())
    assert one.attributes["dynamic.latency_ms"] > 0  # type: ignore[operator]
    assert one.status.status_code is StatusCode.UNSET
    assert one.end_time is not None
    assert one.start_time is not None
    assert one.end_time > one.start_time


def test_spans_of_requests_without_an_answer(
    tmp_path_factory: pytest.TempPathFactory, spans: InMemorySpanExporter
) -> None:
    with served(number_bundle(tmp_path_factory)) as (server, _):
        assert ask(server.port, INFER, numbers(X[:, :5], name="input")).status == 400
        (one,) = spans.get_finished_spans()
    assert one.parent is None
    assert one.attributes is not None
    assert one.attributes["dynamic.outcome"] == "invalid"
    assert one.status.status_code is StatusCode.ERROR
    assert one.status.description is not None
    assert "[3, 5]" in one.status.description


def test_spans_of_grpc(tmp_path_factory: pytest.TempPathFactory, spans: InMemorySpanExporter) -> None:
    request, response = message_classes("ModelInfer")
    message = request(model_name="model", raw_input_contents=[X.tobytes()])
    message.inputs.add(name="input", datatype="FP32", shape=X.shape)
    with (
        served(number_bundle(tmp_path_factory), grpc_port=0) as (server, _),
        grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        call = channel.unary_unary(
            f"/{SERVICE}/ModelInfer",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )
        assert len(call(message, metadata=tuple(HEADERS.items()), timeout=60).outputs) > 0
        (one,) = spans.get_finished_spans()
    assert one.parent is not None
    assert f"{one.parent.span_id:016x}" == PARENT
    assert one.attributes is not None
    assert one.attributes["dynamic.protocol"] == "grpc"
