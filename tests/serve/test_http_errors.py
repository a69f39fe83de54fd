"""Images, texts, addresses and headers that do not fit get a 4xx that names them."""

import base64
import socket
from typing import Any

import numpy as np
import pytest
from support.serving.serve_cases import (
    INFER,
    LIMIT_S,
    PIXELS,
    ask,
    binary,
    encoded,
    image_bundle,
    number_bundle,
    numbers,
    packed,
    served,
    server_is_well,
    text_bundle,
)


def image(*files: bytes, shape: list[int] | None = None, **changes: Any) -> dict[str, Any]:
    data = [base64.b64encode(file).decode() for file in files]
    return {"inputs": [{"name": "image", "datatype": "BYTES", "shape": shape or [len(files)], "data": data} | changes]}


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
            "no image": (400, image(b"hello"), {}, "it is none of JPEG, PNG, WEBP"),
            "another format": (400, image(encoded(PIXELS[0], "GIF")), {}, "it is none of JPEG, PNG, WEBP"),
            "an icon": (400, image(encoded(PIXELS[0], "ICO", sizes=[(11, 9)])), {}, "it is none of JPEG, PNG, WEBP"),
            "second": (400, image(file, file[:50]), {}, "image 1 of input 'image'"),
            "large": (413, image(large), {}, "more than the 1000000 pixels"),
            "large together": (413, image(*[encoded(np.zeros((800, 800), np.uint8))] * 2), {}, "image 1 of"),
            "no base64": (400, image(file, data=["*"]), {}, "no base64"),
            "no texts": (400, image(file, data=[3]), {}, "BYTES in JSON are strings"),
            "half a surrogate": (400, image(file, data=["\ud800"]), {}, "whole characters"),
            "mixed": (400, image(file, data=[["a"], "b"]), {}, "mixes lists and values"),
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
    with served(text_bundle(tmp_path_factory)) as (server, run):
        plain = {"Content-Type": "text/plain"}
        assert "is no UTF-8" in ask(server.port, INFER, b"\xff", headers=plain).error
        numbered = {"inputs": [{"name": "text", "datatype": "INT64", "shape": [1], "data": [1]}]}
        assert "give texts as BYTES" in ask(server.port, INFER, numbered).error
        ids = {"name": "input_ids", "datatype": "INT64", "shape": [1, 9], "data": [2] * 9}
        mask = {"name": "attention_mask", "datatype": "INT64", "shape": [1, 9], "data": [1] * 9}
        for one in (10**9, 14, -1):  # of 14 ids
            reply = ask(server.port, INFER, {"inputs": [ids | {"data": [one, *[2] * 8]}, mask]})
            assert reply.status == 400
            assert f"holds the token id {one}, and the ids of this tokenizer are 0 to 13" in reply.error
        reply = ask(server.port, INFER, {"inputs": [ids, mask | {"data": [2, *[1] * 8]}]})
        assert "a mask is 1 at tokens and 0 at padding" in reply.error
        assert ask(server.port, INFER, {"inputs": [ids, mask]}).status == 200
        # nobody else notices: no engine failed, and so no backbone is skipped
        assert ask(server.port, INFER, b"lights on", headers=plain).status == 200
        assert run.stats().engine_failures == 0
        assert server_is_well(server.port)


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
