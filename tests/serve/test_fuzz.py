"""No request, however wrong, gets a 5xx or stops the server. The same requests in each run."""

import base64
import copy
import json
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.serving.serve_cases import (
    INFER,
    LIMIT_S,
    PIXELS,
    X,
    ask,
    encoded,
    image_bundle,
    number_bundle,
    numbers,
    packed,
    served,
    server_is_well,
)

FILE = encoded(PIXELS[0], "JPEG")
MANY = settings(max_examples=150)
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8) | st.just("BYTES")
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
NUMBERS = numbers(X[:1], name="input", parameters={}) | {
    "id": "mine",
    "parameters": {"timeout": 10**9, "binary_data_output": False},
    "outputs": [{"name": "label", "parameters": {"binary_data": False}}],
}
IMAGE = {
    "inputs": [
        {
            "name": "image",
            "datatype": "BYTES",
            "shape": [1],
            "data": [base64.b64encode(FILE).decode()],
            "parameters": {},
        }
    ],
    "outputs": [{"name": "label"}],
}


@pytest.fixture(scope="module", params=["numbers", "images"])
def port(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    bundle = number_bundle if request.param == "numbers" else image_bundle
    with served(bundle(tmp_path_factory), max_batch=4, max_request_mb=0.1, max_megapixels=0.01) as (server, _):
        yield server.port
        valid = NUMBERS if request.param == "numbers" else IMAGE
        assert ask(server.port, INFER, valid).status == 200, "it still answers"
        assert server_is_well(server.port)


def checked(port: int, body: bytes, headers: dict[str, str]) -> None:
    """Send a request, and check that its answer is one in words."""
    connection = HTTPConnection("127.0.0.1", port, timeout=LIMIT_S)
    try:
        connection.request("POST", INFER, body, headers)
        reply = connection.getresponse()
        content = reply.read()
    finally:
        connection.close()
    assert reply.status in (200, 400, 404, 413, 415), content
    if reply.status != 200:
        (message,) = json.loads(content).values()
        assert 10 < len(message) < 1000


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value of a request."""
    found = [path]
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(entries)[:4]:
        found += places(inner, (*path, key))
    return found


def with_change(valid: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy of a request with another value at a path."""
    if not path:
        return value
    content = copy.deepcopy(valid)
    holder = content
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    return content


@MANY
@given(data=st.data())
def test_another_value_anywhere(port: int, data: st.DataObject) -> None:
    valid = data.draw(st.sampled_from([NUMBERS, IMAGE]))
    content = valid
    for _ in range(data.draw(st.integers(1, 2))):
        content = with_change(content, data.draw(st.sampled_from(places(content))), data.draw(VALUES))
    checked(port, json.dumps(content).encode(), {"Content-Type": "application/json"})


@MANY
@given(data=st.data())
def test_other_bytes_anywhere(port: int, data: st.DataObject) -> None:
    valid, blob = data.draw(st.sampled_from([(NUMBERS, X[:1].tobytes()), (IMAGE, packed(FILE))]))
    head = copy.deepcopy(valid)
    del head["inputs"][0]["data"]
    size = data.draw(st.sampled_from([len(blob), len(blob) - 1, 0, 4, 10**9]))
    head["inputs"][0]["parameters"] = {"binary_data_size": size}
    head["inputs"][0]["datatype"] = data.draw(st.sampled_from(["FP32", "BYTES", "UINT8", "BOOL", "FP16", "INT64"]))
    text = json.dumps(head).encode()
    body = bytearray(text + blob)
    for place in data.draw(st.lists(st.integers(0, len(body) - 1), max_size=4)):
        body[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(body)) | st.just(len(body)))
    length = data.draw(st.just(str(len(text))) | st.integers(-2, 2 * len(body)).map(str) | st.just("x"))
    checked(port, bytes(body[:cut]), {"Inference-Header-Content-Length": length})


@MANY
@given(data=st.data())
def test_damaged_files(port: int, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]))
    file = bytearray(encoded(PIXELS[0], kind))
    for place in data.draw(st.lists(st.integers(0, len(file) - 1), max_size=6)):
        file[place] = data.draw(st.integers(0, 255))
    file = file[: data.draw(st.integers(0, len(file)) | st.just(len(file)))]
    headers = {"Content-Type": data.draw(st.sampled_from(["image/jpeg", "image/png", "image/", "text/plain", "x", ""]))}
    checked(port, bytes(file), headers)


@settings(max_examples=60)
@given(body=st.binary(max_size=300), length=st.none() | st.integers(0, 300))
def test_any_bytes(port: int, body: bytes, length: int | None) -> None:
    headers = {} if length is None else {"Inference-Header-Content-Length": str(length)}
    checked(port, body, headers)


def test_a_valid_request_of_both(port: int) -> None:
    """What is changed above is valid, for one of both bundles."""
    statuses = sorted(ask(port, INFER, content).status for content in (NUMBERS, IMAGE))
    assert statuses == [200, 400]
    assert np.prod(PIXELS[0].shape[:2]) < 10_000, "below the limit on pixels"
