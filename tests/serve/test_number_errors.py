"""Wrong tensors of numbers get a 400 that names value, limit and remedy."""

from typing import Any

import numpy as np
import pytest
from support.serving.serve_cases import (
    INFER,
    X,
    ask,
    binary,
    number_bundle,
    numbers,
    served,
    server_is_well,
)

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
    "huge whole": (numbers(data=[10**400] * 36), "beyond FP32"),
    "true among numbers": (numbers(data=[1.0] * 35 + [True]), "holds true or false"),
    "a list among numbers": (numbers(data=[1.0] * 35 + [[1.0]]), "holds lists or objects"),
    "UINT64 range": (numbers(datatype="UINT64", data=[2**64] * 36), "holds 18446744073709551616, and UINT64"),
    "seventeen levels": (
        b'{"inputs": [{"name": "NAME", "datatype": "FP32", "shape": [1], "data": '
        + b"[" * 17
        + b"1"
        + b"]" * 17
        + b"}]}",
        "lists in more than 16 levels",
    ),
    "timeout huge": (numbers() | {"parameters": {"timeout": 10**400}}, "at most 1e+15"),
    "long names": (numbers(name="y" * 10**6), "this model takes 'NAME'"),
    "a long output": (numbers() | {"outputs": [{"name": "y" * 10**6}]}, "there is no output 'yyy"),
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
            assert len(reply.error) < 1000, case
        assert ask(server.port, INFER, named(numbers(), name)).status == 200
        assert server_is_well(server.port)


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
