"""Wrong requests get a 4xx that names value, limit and remedy, and the server goes on."""

import base64
import socket
from typing import Any

import numpy as np
import pytest
from support.serving.serve_cases import (
    INFER,
    LIMIT_S,
    PIXELS,
    X,
    ask,
    binary,
    encoded,
    image_bundle,
    number_bundle,
    numbers,
    packed,
    served,
    text_bundle,
)


def image(*files: bytes, shape: list[int] | None = None, **changes: Any) -> dict[str, Any]:
    data = [base64.b64encode(file).decode() for file in files]
    return {"inputs": [{"name": "image", "datatype": "BYTES", "shape": shape or [len(files)], "data": data} | changes]}


ROW = [[0.0] * 12]
WRONG_NUMBERS: dict[str, tuple[Any, str]] = {
    "no object": ([1, 2], "the body is [1, 2]: give an object"),
    "no JSON": (b'{"inputs": [', "no JSON"),
    "no UTF-8": (b"\xff\xfe{}", "no JSON"),
    "NaN": (b'{"inputs": [{"name": "NAME", "datatype": "FP32", "shape": [1], "data": [NaN]}]}', "binary tensor data"),
    "deep": (b"[" * 100_000, "no JSON"),
    "long number": (b"[" + b"1" * 5000 + b"]", "no JSON"),
    "nothing": ({}, "'inputs' is missing"),
    "no inputs": ({"inputs": []}, "at least one tensor"),
    "inputs a number": ({"inputs": 3}, "'inputs' is missing, or no list"),
    "too many inputs": ({"inputs": [{}] * 65}, "at most 64"),
    "input no object": ({"inputs": [3]}, "give an object"),
    "no name": (numbers(name=None), "has the name None"),
    "another name": (numbers(name="other"), "inputs are ['other']: this model takes 'NAME' of FP32 [-1, 12]"),
    "a name twice": ({"inputs": numbers()["inputs"] * 2}, "this model takes 'NAME'"),
    "no datatype": (numbers(datatype=None), "has datatype None: give one of BOOL, UINT8"),
    "unknown datatype": (numbers(datatype="BF16"), "has datatype 'BF16': give one of"),
    "another datatype": (numbers(datatype="FP64"), "has datatype FP64, expected FP32"),
    "BYTES": (numbers(datatype="BYTES", data=["a"] * 36), "has datatype BYTES, expected FP32"),
    "no shape": (numbers(shape=None), "has shape None"),
    "a negative shape": (numbers(shape=[-1, 12]), "has shape [-1, 12]: give 1 to 16 whole numbers"),
    "a fraction as shape": (numbers(shape=[3.0, 12]), "has shape [3.0, 12]"),
    "true as shape": (numbers(shape=[True, 12]), "has shape [True, 12]"),
    "a huge shape": (numbers(shape=[2**30, 2**30, 2**30]), "needs 1237940039285380274899124224"),
    "another shape": (numbers(shape=[4, 9]), "has shape [4, 9], expected [B, 12]"),
    "rank": (numbers(shape=[36]), "has shape [36], expected [-1, 12], rows first"),
    "no rows": (numbers(shape=[0, 12], data=[]), "has 0 rows, and a request has 1 to 8"),
    "many rows": (numbers(np.zeros((9, 12))), "has 9 rows, and a request has 1 to 8: send fewer at a time"),
    "no data": ({"inputs": [{"name": "NAME", "datatype": "FP32", "shape": [1, 12]}]}, "has no data"),
    "data a number": (numbers(data=3), "has data 3: give a list"),
    "few data": (numbers(data=[1.0]), "has 1 values, and its shape [3, 12] needs 36"),
    "nested otherwise": (numbers(data=X.T.tolist()), "nested data of shape [12, 3]"),
    "ragged": (numbers(data=[[1.0], [1.0, 2.0]]), "make no tensor"),
    "texts": (numbers(data=["a"] * 36), "holds text"),
    "null": (numbers(data=[None] * 36), "holds null"),
    "true": (numbers(data=[True] * 36), "holds true or false"),
    "huge": (numbers(data=[1e39] * 36), "beyond FP32"),
    "infinite": (b'{"inputs": [{"name": "NAME", "datatype": "FP32", "shape": [1], "data": [1e999]}]}', "beyond FP32"),
    "huge whole": (numbers(data=[10**30] * 36), "beyond 64 bits"),
    "INT8 range": (numbers(datatype="INT8", data=[200] * 36), "holds 200, and INT8 goes from -128 to 127"),
    "fractions": (numbers(datatype="INT8", data=[0.5] * 36), "holds fractions, and its datatype is INT8"),
    "output unknown": (
        numbers() | {"outputs": [{"name": "logits"}]},
        "there is no output 'logits': this model has label",
    ),
    "output twice": (numbers() | {"outputs": [{"name": "label"}] * 2}, "name one twice"),
    "outputs a text": (numbers() | {"outputs": "label"}, "'outputs' is missing, or no list"),
    "binary_data a number": (numbers() | {"outputs": [{"name": "label", "parameters": {"binary_data": 1}}]}, "true or"),
    "parameters a list": (numbers() | {"parameters": []}, "'parameters' is []: give an object"),
    "id a number": (numbers() | {"id": 3}, "'id' is 3"),
    "id too long": (numbers() | {"id": "x" * 201}, "at most 200 characters"),
    "timeout a text": (numbers() | {"parameters": {"timeout": "soon"}}, "'timeout' is 'soon'"),
    "timeout 0": (numbers() | {"parameters": {"timeout": 0}}, "a positive number of microseconds"),
    "shared memory": (numbers(parameters={"shared_memory_region": "a"}), "an extension that this server does not have"),
    "classification": (numbers() | {"outputs": [{"name": "label", "parameters": {"classification": 2}}]}, "extension"),
    "binary size without bytes": (numbers(parameters={"binary_data_size": 144}), "binary_data_size 144, and 0 bytes"),
    "binary size a text": (numbers(parameters={"binary_data_size": "144"}), "binary_data_size '144'"),
    "binary size negative": (numbers(parameters={"binary_data_size": -1}), "binary_data_size -1"),
}


def named(content: Any, name: str) -> Any:
    """A request with the name of the bundle's input in place of `x` and of NAME."""
    if isinstance(content, bytes):
        return content.replace(b"NAME", name.encode())
    if isinstance(content, dict) and isinstance(content.get("inputs"), list):
        inputs = [
            one | {"name": name} if isinstance(one, dict) and one.get("name") in ("x", "NAME") else one
            for one in content["inputs"]
        ]
        return content | {"inputs": inputs}
    return content


def test_wrong_numbers(tmp_path_factory: pytest.TempPathFactory) -> None:
    with served(number_bundle(tmp_path_factory), max_batch=8) as (server, run):
        name = run.bundle.spec.inputs[0].name
        for case, (content, words) in WRONG_NUMBERS.items():
            reply = ask(server.port, INFER, named(content, name))
            assert reply.status == 400, (case, reply)
            assert words.replace("NAME", name) in reply.error, case
        assert ask(server.port, INFER, named(numbers(), name)).status == 200
        assert server_is_well(server.port)


def server_is_well(port: int) -> bool:
    return 'outcome="failed"' not in ask(port, "/metrics").body.decode()


def test_wrong_binary_data(tmp_path_factory: pytest.TempPathFactory) -> None:
    with served(number_bundle(tmp_path_factory)) as (server, run):
        name = run.bundle.spec.inputs[0].name
        tensor = {"name": name, "datatype": "FP32", "shape": [3, 12], "parameters": {"binary_data_size": 144}}
        head, values = {"inputs": [tensor]}, X.tobytes()
        body, headers = binary(head, values)
        assert ask(server.port, INFER, body, headers=headers).status == 200
        length = int(headers["Inference-Header-Content-Length"])
        cases = {
            "cut": (body[:-1], headers, "binary_data_size 144, and 143 bytes are left"),
            "longer": (body + b"x", headers, "1 bytes are left behind the last tensor"),
            "no header": (body, {}, "no JSON"),
            "header too long": (body, {"Inference-Header-Content-Length": str(len(body) + 1)}, "the body has"),
            "header negative": (body, {"Inference-Header-Content-Length": "-1"}, "is '-1'"),
            "header a word": (body, {"Inference-Header-Content-Length": "all"}, "is 'all'"),
            "header too short": (body, {"Inference-Header-Content-Length": str(length - 1)}, "no JSON"),
            "header 0": (body, {"Inference-Header-Content-Length": "0"}, "no JSON"),
            "another shape": (
                *binary({"inputs": [tensor | {"shape": [3, 13]}]}, values),
                "has 144 bytes, and FP32 [3, 13] needs 156",
            ),
            "another datatype": (
                *binary({"inputs": [tensor | {"datatype": "FP64"}]}, values),
                "FP64 [3, 12] needs 288",
            ),
            "BOOL": (
                *binary({"inputs": [tensor | {"datatype": "BOOL", "shape": [144]}]}, values),
                "other than 0 and 1",
            ),
        }
        for case, (content, more, words) in cases.items():
            reply = ask(server.port, INFER, content, headers=more)
            assert reply.status == 400, (case, reply)
            assert words in reply.error, case


def test_wrong_images(tmp_path_factory: pytest.TempPathFactory) -> None:
    file = encoded(PIXELS[0], "JPEG")
    broken = "does not read as an image"
    large = encoded(np.zeros((1001, 1000), np.uint8))
    with served(image_bundle(tmp_path_factory), max_batch=2, max_megapixels=1.0) as (server, _):
        blob = packed(file)
        tensor = {"name": "image", "datatype": "BYTES", "shape": [1]}

        def sized(size: int, content: bytes) -> tuple[bytes, dict[str, str]]:
            return binary({"inputs": [tensor | {"parameters": {"binary_data_size": size}}]}, content)

        lies = len(file) + 1
        wrong_length = lies.to_bytes(4, "little") + file
        cases: dict[str, tuple[int, Any, dict[str, str], str]] = {
            "cut": (400, image(file[: len(file) // 2]), {}, broken),
            "empty": (400, image(b""), {}, "it is empty"),
            "no image": (400, image(b"hello"), {}, "no format of Pillow"),
            "second": (400, image(file, file[:50]), {}, "image 1 of input 'image'"),
            "large": (413, image(large), {}, "more than the 1000000 pixels"),
            "large together": (413, image(*[encoded(np.zeros((800, 800), np.uint8))] * 2), {}, "image 1 of"),
            "no base64": (400, image(file, data=["*"]), {}, "no base64"),
            "no texts": (400, image(file, data=[3]), {}, "BYTES in JSON are strings"),
            "half a surrogate": (400, image(file, data=["\ud800"]), {}, "whole characters"),
            "mixed": (400, image(file, data=[["a"], "b"]), {}, "mixes lists and strings"),
            "three": (400, image(file, file, file), {}, "has 3 rows, and a request has 1 to 2"),
            "rank": (400, image(file, file, shape=[1, 2]), {}, "has shape [1, 2], expected [B]"),
            "floats": (400, image(file, datatype="FP32", data=[1.0]), {}, "pixels as UINT8 [B, H, W, C]"),
            "channels": (400, image(file, datatype="UINT8", shape=[1, 2, 2, 2], data=[1] * 8), {}, "[B, H, W, C]"),
            "another name": (400, image(file, name="picture"), {}, "this model takes 'image' of BYTES [B], or"),
            "body cut": (400, file[:100], {"Content-Type": "image/jpeg"}, broken),
            "body empty": (400, b"", {"Content-Type": "image/jpeg"}, "it is empty"),
            "length": (400, *sized(lies + 3, wrong_length), "of BYTES ends 1 bytes behind"),
            "more elements": (400, *sized(2 * len(blob), blob + blob), "more than the 1 elements"),
            "half a length": (400, *sized(2, b"\1\0"), "of BYTES ends"),
            "sound": (415, b"RIFF", {"Content-Type": "audio/wav"}, "send application/json, or one input as image/*"),
            "gzip": (415, b"\x1f\x8b", {"Content-Encoding": "gzip"}, "Content-Encoding 'gzip' is not read"),
        }
        for case, (status, content, headers, words) in cases.items():
            reply = ask(server.port, INFER, content, headers=headers)
            assert reply.status == status, (case, reply)
            assert words in reply.error, case
        assert ask(server.port, INFER, image(file)).status == 200
        assert server_is_well(server.port)


def test_wrong_texts(tmp_path_factory: pytest.TempPathFactory) -> None:
    with served(text_bundle(tmp_path_factory)) as (server, _):
        plain = {"Content-Type": "text/plain"}
        assert "is no UTF-8" in ask(server.port, INFER, b"\xff", headers=plain).error
        numbered = {"inputs": [{"name": "text", "datatype": "INT64", "shape": [1], "data": [1]}]}
        assert "give texts as BYTES" in ask(server.port, INFER, numbered).error
        ids = {"name": "input_ids", "datatype": "INT64", "shape": [1, 2], "data": [10**9, 1]}
        mask = {"name": "attention_mask", "datatype": "INT64", "shape": [1, 2], "data": [1, 1]}
        reply = ask(server.port, INFER, {"inputs": [ids, mask]})
        assert reply.status == 400


def test_addresses_methods_and_models(tmp_path_factory: pytest.TempPathFactory) -> None:
    with served(number_bundle(tmp_path_factory)) as (server, _):
        port = server.port
        cases = {
            ("GET", "/nothing"): (404, "GET '/nothing': Not Found, see /openapi.json"),
            ("GET", INFER): (405, "Method Not Allowed"),
            ("DELETE", "/v2"): (405, "Method Not Allowed"),
            ("GET", "/v2/models/other"): (404, "there is no model 'other': this server has 'model'"),
            ("GET", "/v2/models/model/versions/2"): (404, "there is no version '2' of 'model': it has '1'"),
            ("GET", "/v2/models/model/versions/2/ready"): (404, "there is no version"),
            ("POST", "/v2/models/other/infer"): (404, "there is no model 'other'"),
            ("POST", "/v2/models/model/versions/x/infer"): (404, "there is no version 'x'"),
        }
        for (method, path), (status, words) in cases.items():
            reply = ask(port, path, b"{}" if method == "POST" else None, method=method)
            assert reply.status == status, path
            assert words in reply.error, path


@pytest.mark.parametrize("header", ["0", "-1", "soon", "inf", "nan", "1e999"])
def test_a_timeout_that_is_none(tmp_path_factory: pytest.TempPathFactory, header: str) -> None:
    with served(number_bundle(tmp_path_factory)) as (server, _):
        reply = ask(server.port, INFER, numbers(), headers={"Timeout-Ms": header})
        assert reply.status == 400
        assert "the header Timeout-Ms is" in reply.error


def test_what_is_no_http(tmp_path_factory: pytest.TempPathFactory) -> None:
    with served(number_bundle(tmp_path_factory)) as (server, _):
        for content in (b"\0" * 100, b"GET\r\n\r\n", b"\x16\x03\x01 hello", b"POST " + b"/x" * 5000):
            with socket.create_connection(("127.0.0.1", server.port), LIMIT_S) as client:
                client.sendall(content)
                client.shutdown(socket.SHUT_WR)
                reply = client.recv(100)
                assert not reply or b" 400 " in reply
        assert ask(server.port, "/readyz").status == 200
