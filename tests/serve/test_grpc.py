"""The protocol over gRPC, with `tritonclient[grpc]` and with messages that no client of good will sends."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from google.protobuf import descriptor_pb2
from support.serving.gates import gated, metric, until
from support.serving.serve_cases import (
    PIXELS,
    X,
    encoded,
    image_bundle,
    number_bundle,
    packed,
    served,
    server_is_well,
    text_bundle,
)
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

import dynamic
from dynamic.serve import Server
from dynamic.serve.grpc_v2 import messages
from dynamic.serve.grpc_v2.messages import METHODS, SERVICE, message_classes
from dynamic.serve.grpc_v2.wire_format import has_few_fields

Request, Response = message_classes("ModelInfer")


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Any]]:
    with served(number_bundle(tmp_path_factory), grpc_port=0, max_batch=8) as (server, run):
        yield server, run


def client_of(server: Server) -> triton.InferenceServerClient:
    return triton.InferenceServerClient(f"127.0.0.1:{server.grpc_port}")


def test_metadata(numbers: tuple[Server, Any]) -> None:
    with client_of(numbers[0]) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("model")
        about = client.get_server_metadata()
        assert (about.name, about.version, about.extensions) == ("dynamic", dynamic.__version__, ["binary_tensor_data"])
        model = client.get_model_metadata("model", "1")
        assert (model.name, model.versions, model.platform) == ("model", ["1"], "dynamic_cascade")
        assert [(one.name, one.datatype, one.shape) for one in model.inputs] == [("input", "FP32", [-1, 12])]
        outputs = ["label", "name", "probabilities", "stage", "score", "certified", "point"]
        assert [one.name for one in model.outputs] == outputs
        for name, version in (("other", ""), ("model", "2")):
            for call in (client.get_model_metadata, client.is_model_ready):
                with pytest.raises(InferenceServerException, match="there is no") as raised:
                    call(name, version)
                assert raised.value.status() == "StatusCode.NOT_FOUND"


def test_numbers_by_triton(numbers: tuple[Server, Any]) -> None:
    server, run = numbers
    tensor = triton.InferInput("input", [3, 12], "FP32")
    tensor.set_data_from_numpy(X)
    with client_of(server) as client:
        reply = client.infer("model", [tensor], request_id="mine")
        assert reply.get_response().id == "mine"
        answer = run(X)
        np.testing.assert_array_equal(reply.as_numpy("label"), answer.label)
        np.testing.assert_array_equal(reply.as_numpy("probabilities"), answer.probabilities)
        np.testing.assert_array_equal(reply.as_numpy("stage"), answer.stage)
        np.testing.assert_array_equal(reply.as_numpy("certified"), [answer.certified] * 3)
        assert reply.as_numpy("name").tolist() == [str(name).encode() for name in answer.name]
        chosen = [triton.InferRequestedOutput("score"), triton.InferRequestedOutput("point")]
        reply = client.infer("model", [tensor], outputs=chosen)
        assert [one.name for one in reply.get_response().outputs] == ["score", "point"]
        assert reply.as_numpy("score").shape == (3,)


def test_images_and_texts(tmp_path_factory: pytest.TempPathFactory) -> None:
    with served(image_bundle(tmp_path_factory), grpc_port=0) as (server, run), client_of(server) as client:
        tensor = triton.InferInput("image", [2], "BYTES")
        tensor.set_data_from_numpy(np.array([encoded(pixels) for pixels in PIXELS], object))
        expected = run(list(PIXELS)).probabilities
        np.testing.assert_array_equal(client.infer("model", [tensor]).as_numpy("probabilities"), expected)
    with served(text_bundle(tmp_path_factory), grpc_port=0) as (server, _), client_of(server) as client:
        tensor = triton.InferInput("text", [1], "BYTES")
        tensor.set_data_from_numpy(np.array([b"lights on"], object))
        assert client.infer("model", [tensor]).as_numpy("name").tolist() == [b"lights"]


def asked(server: Server, message: Any, timeout: float | None = None) -> Any:
    """The answer to a message that is built by hand."""
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        call = channel.unary_unary(f"/{SERVICE}/ModelInfer", Request.SerializeToString, Response.FromString)
        return call(message, timeout=timeout)


def request(**changes: Any) -> Any:
    tensor = {"name": "input", "datatype": "FP32", "shape": [1, 12], "contents": {"fp32_contents": [0.0] * 12}}
    return Request(model_name="model", inputs=[{k: v for k, v in (tensor | changes).items() if v is not None}])


def with_raw(*blobs: bytes, **changes: Any) -> Any:
    message = request(contents=None, **changes)
    message.raw_input_contents.extend(blobs)
    return message


def test_contents_are_those_of_bytes(numbers: tuple[Server, Any]) -> None:
    server, _ = numbers
    values = X[:1].ravel().tolist()
    by_contents = asked(server, request(contents={"fp32_contents": values}))
    assert by_contents.outputs == asked(server, with_raw(X[:1].tobytes())).outputs
    assert (by_contents.model_name, by_contents.model_version) == ("model", "1")


def changed(change: Callable[[Any], Any]) -> Any:
    message = request()
    change(message)
    return message


SHARED = {"shared_memory_region": {"string_param": "a"}}
WRONG = {
    "another model": (changed(lambda m: setattr(m, "model_name", "other")), "NOT_FOUND", "there is no model 'other'"),
    "no inputs": (Request(model_name="model"), "INVALID_ARGUMENT", "there are 0 inputs"),
    "datatype": (request(datatype="FP33"), "INVALID_ARGUMENT", "has datatype 'FP33'"),
    "FP16": (request(datatype="FP16"), "INVALID_ARGUMENT", "give raw_input_contents"),
    "no values": (request(contents=None), "INVALID_ARGUMENT", "has 0 values, and its shape [1, 12] needs 12"),
    "other values": (
        request(contents={"int_contents": [0] * 12}),
        "INVALID_ARGUMENT",
        "has int_contents, and FP32 is in fp32_contents",
    ),
    "shape": (request(shape=[-1, 12]), "INVALID_ARGUMENT", "has shape [-1, 12]"),
    "huge shape": (request(shape=[2**62, 2**62]), "INVALID_ARGUMENT", "has shape"),
    "no shape": (request(shape=[]), "INVALID_ARGUMENT", "has shape []"),
    "rows": (
        request(shape=[9, 12], contents={"fp32_contents": [0.0] * 108}),
        "INVALID_ARGUMENT",
        "has 9 rows, and a request has 1 to 8",
    ),
    "range": (
        request(datatype="INT8", contents={"int_contents": [200] * 12}),
        "INVALID_ARGUMENT",
        "holds 200, and INT8 goes from -128 to 127",
    ),
    "raw and contents": (
        changed(lambda m: m.raw_input_contents.append(b"")),
        "INVALID_ARGUMENT",
        "has contents beside raw_input_contents",
    ),
    "more raw": (with_raw(b"", b""), "INVALID_ARGUMENT", "there are 2 raw_input_contents for 1 inputs"),
    "short raw": (with_raw(b"\0" * 47), "INVALID_ARGUMENT", "has 47 bytes, and FP32 [1, 12] needs 48"),
    "raw BYTES": (with_raw(packed(b"a")[:-1], datatype="BYTES", shape=[1]), "INVALID_ARGUMENT", "of BYTES ends"),
    "long name": (request(name="ä" * 10**6), "INVALID_ARGUMENT", "this model takes 'input' of FP32"),
    "long output": (changed(lambda m: m.outputs.add(name="ä" * 10**6)), "INVALID_ARGUMENT", "no output 'ää"),
    "long datatype": (request(datatype="ä" * 10**6), "INVALID_ARGUMENT", "give one of BOOL"),
    "long model": (changed(lambda m: setattr(m, "model_name", "ä" * 10**6)), "NOT_FOUND", "no model 'ää"),
    "many fields": (
        changed(lambda m: [m.inputs.add() for _ in range(100_000)]),
        "INVALID_ARGUMENT",
        "the message has too many fields",
    ),
    "outputs": (
        changed(lambda m: [m.outputs.add(name="label") for _ in range(65)]),
        "INVALID_ARGUMENT",
        "there are 65 outputs: ask for at most 64",
    ),
    "output": (changed(lambda m: m.outputs.add(name="logits")), "INVALID_ARGUMENT", "no output 'logits'"),
    "extension": (request(parameters=SHARED), "INVALID_ARGUMENT", "an extension that this server does not have"),
    "id": (changed(lambda m: setattr(m, "id", "x" * 201)), "INVALID_ARGUMENT", "at most 200 characters"),
    "timeout": (
        changed(lambda m: m.parameters["timeout"].MergeFrom(type(m.parameters["timeout"])(int64_param=-1))),
        "INVALID_ARGUMENT",
        "give a positive number of microseconds",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_messages(numbers: tuple[Server, Any], case: str) -> None:
    message, status, words = WRONG[case]
    with pytest.raises(grpc.RpcError) as raised:
        asked(numbers[0], message)
    assert raised.value.code().name == status
    assert words in raised.value.details()
    assert server_is_well(numbers[0].port)


@pytest.mark.parametrize("content", [b"\x2a\xff", b"\xff" * 100, b"\x0a\x02\xff\xff", b"\x2a" * 20_000])
def test_bytes_that_are_no_message(numbers: tuple[Server, Any], content: bytes) -> None:
    address = f"127.0.0.1:{numbers[0].grpc_port}"
    with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as raised:
        channel.unary_unary(f"/{SERVICE}/ModelInfer")(content)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "the message does not read" in raised.value.details()
    assert server_is_well(numbers[0].port)


def test_a_large_message_is_parsed_when_its_turn_comes(tmp_path_factory: pytest.TempPathFactory) -> None:
    other = request(shape=[500, 12], contents={"fp32_contents": [0.0] * 6000})
    other.model_name = "other"
    with (
        gated(number_bundle(tmp_path_factory), grpc_port=0) as (server, gate, engine),
        ThreadPoolExecutor(2) as clients,
    ):
        running = clients.submit(asked, server, request())
        until(lambda: gate.entered == 1, "the first runs")
        waiting = clients.submit(asked, server, other)
        until(lambda: metric(server.port, "dynamic_queue_length") == 1, "it waits, not parsed")
        gate.open.set()
        assert len(running.result().outputs) == 7
        error = waiting.exception()
        assert isinstance(error, grpc.RpcError)
        assert error.code() is grpc.StatusCode.NOT_FOUND
        assert len(engine.calls) == 1


def test_fields_are_counted() -> None:
    message = request()
    # the name of the model, the tensor, its fields, and that in its contents
    fields_of_it = 2 + len(message.inputs[0].ListFields()) + 1
    content = message.SerializeToString()
    assert has_few_fields(content, Request.DESCRIPTOR, fields_of_it)
    assert not has_few_fields(content, Request.DESCRIPTOR, fields_of_it - 1)
    numbered = b"\x08\x96\x01" + b"\x09" + b"\0" * 8 + b"\x0d" + b"\0" * 4  # a varint, 8 bytes, 4 bytes
    assert has_few_fields(numbered, Request.DESCRIPTOR, 3)
    assert not has_few_fields(numbered, Request.DESCRIPTOR, 2)


def test_a_message_over_the_limit(tmp_path_factory: pytest.TempPathFactory) -> None:
    with served(number_bundle(tmp_path_factory), grpc_port=0, max_request_mb=0.001) as (server, _):
        with pytest.raises(grpc.RpcError) as raised:
            asked(server, with_raw(b"\0" * 1001))
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert len(asked(server, with_raw(b"\0" * 48)).outputs) == 7


def test_a_deadline_of_the_client(tmp_path_factory: pytest.TempPathFactory) -> None:
    with gated(number_bundle(tmp_path_factory), grpc_port=0) as (server, gate, _):
        with pytest.raises(grpc.RpcError) as raised:
            asked(server, request(), timeout=0.2)
        assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        gate.open.set()
        until(
            lambda: metric(server.port, "dynamic_requests_total", protocol="grpc", outcome="expired") == 1,
            "the request is counted",
        )
        assert len(asked(server, request(), timeout=1000.0).outputs) == 7


def test_the_compiled_messages_are_those_of_the_source() -> None:
    ours = descriptor_pb2.FileDescriptorSet.FromString(messages.COMPILED.read_bytes())
    assert descriptor_pb2.FileDescriptorSet.FromString(messages.compiled()) == ours


def fields(descriptor: Any) -> dict[str, tuple[int, int]]:
    """The number and the type of each field, of messages inside too."""
    found = {one.name: (one.number, one.type) for one in descriptor.fields}
    for one in descriptor.fields:
        if one.message_type is not None:
            found |= {f"{one.name}.{name}": value for name, value in fields(one.message_type).items()}
    return found


@pytest.mark.parametrize("method", METHODS)
def test_names_and_numbers_are_those_of_triton(method: str) -> None:
    for ours in message_classes(method):
        theirs = getattr(service_pb2, ours.DESCRIPTOR.name).DESCRIPTOR
        assert theirs.full_name == ours.DESCRIPTOR.full_name
        own, other = fields(ours.DESCRIPTOR), fields(theirs)
        assert {name: other.get(name) for name in own} == own
