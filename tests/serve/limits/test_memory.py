"""What a request may take of the server's memory: JSON, bodies that are open, and calls of gRPC."""

import json
import tracemalloc
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from support.serving.gates import gated, metric, until
from support.serving.serve_cases import INFER, Reply, X, ask, binary, number_bundle, numbers, served
from tritonclient.utils import InferenceServerException

from dynamic.serve.protocol.datatypes import json_array
from dynamic.serve.request_errors import RequestError

ONE = numbers(X[:1], name="input")
LARGE = json.dumps(ONE).encode() + b" " * 20_000  # more than is parsed on the event loop


@pytest.mark.parametrize("shape", [(1,), (20_001,)])
@pytest.mark.parametrize("datatype", ["FP32", "INT8", "BOOL"])
def test_texts_do_not_become_an_array(shape: tuple[int, ...], datatype: str) -> None:
    """As an array of texts these are 400 MB: each is as long as the longest."""
    data: list[Any] = ["a" * 5000, *[""] * 20_000]
    tracemalloc.start()
    try:
        with pytest.raises(RequestError, match=r"holds text|has 20001 values, and its shape \[1\] needs 1"):
            json_array(data, datatype, shape, "it")
        assert tracemalloc.get_traced_memory()[1] < 2e6
    finally:
        tracemalloc.stop()


def test_values_of_json_are_those_that_were_sent() -> None:
    whole = [[0, 255], [7, 1]]
    for datatype, dtype in (("UINT8", np.uint8), ("INT64", np.int64), ("FP16", np.float16), ("FP64", np.float64)):
        array = json_array(whole, datatype, (2, 2), "it")
        assert array.dtype == dtype
        assert array.tolist() == whole
    assert json_array([2**64 - 1, 0], "UINT64", (2,), "it").tolist() == [2**64 - 1, 0]
    assert json_array([0.1, 10**30], "FP64", (2,), "it").tolist() == [0.1, 1e30]
    assert json_array([[True], [False]], "BOOL", (2, 1), "it").tolist() == [[True], [False]]
    assert json_array([[], []], "FP32", (2, 0), "it").shape == (2, 0)


def test_json_has_a_limit_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    with served(number_bundle(tmp_path_factory), max_json_mb=0.001, max_batch=100) as (server, _):
        body = json.dumps(ONE).encode()
        assert ask(server.port, INFER, body.ljust(1000)).status == 200
        reply = ask(server.port, INFER, body.ljust(1001))
        assert reply.status == 413
        assert "has 1001 bytes of JSON, and the limit is 1000: send values as binary tensor data" in reply.error
        values = np.zeros((100, 12), np.float32)
        tensor = {"name": "input", "datatype": "FP32", "shape": [100, 12], "parameters": {"binary_data_size": 4800}}
        content, headers = binary({"inputs": [tensor], "outputs": [{"name": "label"}]}, values.tobytes())
        assert len(ask(server.port, INFER, content, headers=headers).output("label")) == 100
        content, headers = binary({"inputs": [tensor], "id": "x" * 1000}, values.tobytes())
        assert ask(server.port, INFER, content, headers=headers).status == 413


def test_large_json_is_parsed_when_its_turn_comes(tmp_path_factory: pytest.TempPathFactory) -> None:
    with gated(number_bundle(tmp_path_factory)) as (server, gate, engine), ThreadPoolExecutor(3) as clients:
        port = server.port
        running = clients.submit(ask, port, INFER, ONE)
        until(lambda: gate.entered == 1, "the first runs")
        damaged = clients.submit(ask, port, INFER, LARGE + b"{")
        until(lambda: metric(port, "dynamic_queue_length") == 1, "it waits, not parsed")
        late = clients.submit(ask, port, INFER, json.dumps(ONE | {"parameters": {"timeout": 1}}).encode().ljust(20_000))
        until(lambda: metric(port, "dynamic_queue_length") == 2, "it waits too")
        reply = ask(port, INFER, LARGE, headers={"Timeout-Ms": "50"})
        assert reply.status == 504, "a header is read at once, and the gate is still closed"
        gate.open.set()
        assert running.result().status == 200
        assert damaged.result().status == 400
        assert "no JSON" in damaged.result().error
        assert late.result().status == 504, "a timeout of a microsecond is read then, and is over"
        assert len(engine.calls) == 1
        assert ask(port, INFER, LARGE).status == 200


def test_open_bodies_are_bounded(tmp_path_factory: pytest.TempPathFactory) -> None:
    """16 bodies of the largest size. They are open until their requests are answered."""
    body = json.dumps(ONE).encode().ljust(2000)
    with (
        gated(number_bundle(tmp_path_factory), max_request_mb=0.002, grpc_port=0) as (server, gate, _),
        ThreadPoolExecutor(16) as clients,
    ):
        port = server.port
        replies: list[Future[Reply]] = [clients.submit(ask, port, INFER, body) for _ in range(16)]
        until(lambda: metric(port, "dynamic_queue_length") == 15, "one runs, the others wait")
        refused = ask(port, INFER, body)
        assert (refused.status, refused.headers["retry-after"]) == (503, "1")
        assert "have 32000 bytes, and the limit is 32000: send again after 1 s" in refused.error
        with triton_grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
            tensor = triton_grpc.InferInput("input", [1, 12], "FP32")
            tensor.set_data_from_numpy(X[:1])
            with pytest.raises(InferenceServerException, match="and the limit is 32000") as raised:
                client.infer("model", [tensor])
            assert raised.value.status() == "StatusCode.UNAVAILABLE"
            gate.open.set()
            assert [reply.result().status for reply in replies] == [200] * 16
            assert client.infer("model", [tensor]).as_numpy("label").shape == (1,)
        assert ask(port, INFER, body).status == 200


def test_calls_of_grpc_are_bounded(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dynamic.serve.grpc_v2.servicer._MORE_CALLS", 0)
    with (
        gated(number_bundle(tmp_path_factory), queue=1, grpc_port=0) as (server, gate, _),
        triton_grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client,
        ThreadPoolExecutor(2) as clients,
    ):
        tensor = triton_grpc.InferInput("input", [1, 12], "FP32")
        tensor.set_data_from_numpy(X[:1])
        first = clients.submit(client.infer, "model", [tensor])
        until(lambda: gate.entered == 1, "the first runs")
        second = clients.submit(client.infer, "model", [tensor])
        until(lambda: metric(server.port, "dynamic_queue_length") == 1, "the second waits")
        with pytest.raises(InferenceServerException) as raised:
            client.infer("model", [tensor])
        assert raised.value.status() == f"StatusCode.{grpc.StatusCode.RESOURCE_EXHAUSTED.name}"
        gate.open.set()
        for reply in (first, second):
            assert reply.result().as_numpy("label").shape == (1,)
