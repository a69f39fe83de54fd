"""Answers over HTTP are those of the runtime, in every form. `tritonclient` is the reference client."""

import base64
import json

import numpy as np
import pytest
import tritonclient.http as triton
from support.serving.serve_cases import (
    CLASSES,
    INFER,
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

import dynamic
from dynamic.runtime.result import BatchResult

OUTPUTS = ["label", "name", "probabilities", "stage", "score", "certified", "point"]
DATATYPES = ["INT64", "BYTES", "FP32", "INT64", "FP32", "BOOL", "BYTES"]


def expected(bundle: dynamic.Bundle, x: object) -> BatchResult:
    with bundle.runtime(monitor=dynamic.FixedMonitor()) as run:
        answer = run(x)
    assert isinstance(answer, BatchResult)
    return answer


def test_metadata(tmp_path_factory: pytest.TempPathFactory) -> None:
    with served(number_bundle(tmp_path_factory)) as (server, run), triton_client(server.port) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("model")
        assert client.is_model_ready("model", "1")
        assert not client.is_model_ready("model", "2")
        assert not client.is_model_ready("other")
        about = client.get_server_metadata()
        assert about == {"name": "dynamic", "version": dynamic.__version__, "extensions": ["binary_tensor_data"]}
        model = client.get_model_metadata("model")
        assert model == client.get_model_metadata("model", "1")
        assert (model["name"], model["versions"], model["platform"]) == ("model", ["1"], "dynamic_cascade")
        (name,) = (i.name for i in run.bundle.spec.inputs)
        assert model["inputs"] == [{"name": name, "datatype": "FP32", "shape": [-1, 12]}]
        assert [one["name"] for one in model["outputs"]] == OUTPUTS
        assert [one["datatype"] for one in model["outputs"]] == DATATYPES
        assert model["outputs"][2]["shape"] == [-1, 4]
        for path in ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", "/v2", "/v2/"):
            assert ask(server.port, path).status == 200
        assert ask(server.port, "/readyz").json == {"ready": True}


def triton_client(port: int) -> triton.InferenceServerClient:
    return triton.InferenceServerClient(f"127.0.0.1:{port}")


@pytest.mark.parametrize("is_binary", [True, False])
@pytest.mark.parametrize("chosen", [(), ("probabilities", "label"), ("name",)])
def test_numbers_by_triton(tmp_path_factory: pytest.TempPathFactory, is_binary: bool, chosen: tuple[str, ...]) -> None:
    bundle = number_bundle(tmp_path_factory)
    answer = expected(bundle, X)
    rows = {
        "label": answer.label,
        "name": np.array([str(name).encode() for name in answer.name], object),
        "probabilities": answer.probabilities,
        "stage": answer.stage,
        "score": answer.score,
        "certified": np.full(3, answer.certified),
        "point": np.array([answer.decision.point.name.encode()] * 3, object),
    }
    with served(bundle) as (server, run), triton_client(server.port) as client:
        tensor = triton.InferInput(run.bundle.spec.inputs[0].name, [3, 12], "FP32")
        tensor.set_data_from_numpy(X, binary_data=is_binary)
        outputs = [triton.InferRequestedOutput(name, binary_data=is_binary) for name in chosen]
        reply = client.infer("model", [tensor], request_id="mine", outputs=outputs or None)
        assert reply.get_response()["id"] == "mine"
        assert [one["name"] for one in reply.get_response()["outputs"]] == (list(chosen) or OUTPUTS)
        for name in chosen or OUTPUTS:
            value = reply.as_numpy(name)
            if not is_binary and rows[name].dtype == object and chosen:  # texts of JSON
                value = np.array([one.encode() if isinstance(one, str) else one for one in value], object)
            np.testing.assert_array_equal(value, rows[name])
            assert value.shape == rows[name].shape


def test_flat_and_nested_json_and_one_row(tmp_path_factory: pytest.TempPathFactory) -> None:
    bundle = number_bundle(tmp_path_factory)
    labels = expected(bundle, X).label.tolist()
    with served(bundle) as (server, run):
        name = run.bundle.spec.inputs[0].name
        assert ask(server.port, INFER, numbers(name=name)).output("label") == labels
        assert ask(server.port, INFER, numbers(name=name, data=X.tolist())).output("label") == labels
        one = ask(server.port, INFER, numbers(X[:1], name=name))
        assert one.output("label") == labels[:1]
        assert one.json["outputs"][2]["shape"] == [1, 4]
        version = ask(server.port, "/v2/models/model/versions/1/infer", numbers(name=name))
        assert version.output("label") == labels
        assert (version.json["model_name"], version.json["model_version"]) == ("model", "1")
        # what curl --data sends
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        assert ask(server.port, INFER, json.dumps(numbers(name=name)), headers=form).status == 200


def test_an_answer_that_is_not_finite_is_json(tmp_path_factory: pytest.TempPathFactory) -> None:
    with served(number_bundle(tmp_path_factory)) as (server, run):
        name = run.bundle.spec.inputs[0].name
        values = np.full((1, 12), np.nan, np.float32)
        tensor = {"name": name, "datatype": "FP32", "shape": [1, 12], "parameters": {"binary_data_size": 48}}
        body, headers = binary({"inputs": [tensor]}, values.tobytes())
        reply = ask(server.port, INFER, body, headers=headers)
        assert reply.status == 200
        assert (reply.output("label"), reply.output("name"), reply.output("certified")) == ([-1], [""], [False])
        assert reply.output("probabilities") == [None] * 4


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_images_in_every_form_give_one_answer(tmp_path_factory: pytest.TempPathFactory, kind: str) -> None:
    bundle = image_bundle(tmp_path_factory)
    files = [encoded(pixels, kind) for pixels in PIXELS]
    decoded = [dynamic.data.picture_decoding.read_picture(file, "it") for file in files]
    labels = expected(bundle, decoded).label.tolist()
    probabilities = expected(bundle, decoded).probabilities
    with served(bundle) as (server, run), triton_client(server.port) as client:
        assert client.get_model_metadata("model")["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
        tensor = triton.InferInput("image", [2], "BYTES")
        tensor.set_data_from_numpy(np.array(files, object))
        reply = client.infer("model", [tensor])
        np.testing.assert_array_equal(reply.as_numpy("probabilities"), probabilities)
        columns = triton.InferInput("image", [2, 1], "BYTES")
        columns.set_data_from_numpy(np.array(files, object)[:, None])
        assert client.infer("model", [columns]).as_numpy("label").tolist() == labels
        pixels = triton.InferInput("image", list(np.stack(decoded).shape), "UINT8")
        pixels.set_data_from_numpy(np.stack(decoded))
        np.testing.assert_array_equal(client.infer("model", [pixels]).as_numpy("probabilities"), probabilities)
        texts = [base64.b64encode(file).decode() for file in files]
        content = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [2], "data": texts}]}
        assert ask(server.port, INFER, content).output("label") == labels
        arrays = run.bundle.preprocess.arrays(decoded, run.bundle.spec.inputs)
        ((name, ready),) = arrays.items()
        own = triton.InferInput(name, list(ready.shape), "FP32")
        own.set_data_from_numpy(ready)
        np.testing.assert_array_equal(client.infer("model", [own]).as_numpy("probabilities"), probabilities)
        for row, file in enumerate(files):  # as curl sends a file
            one = ask(server.port, INFER, file, headers={"Content-Type": f"image/{kind.lower()}"})
            assert one.output("label") == labels[row : row + 1]
            assert one.output("name") == [CLASSES[labels[row]]]


def test_texts(tmp_path_factory: pytest.TempPathFactory) -> None:
    bundle, words = text_bundle(tmp_path_factory), ["lights on", "please play some music"]
    with served(bundle) as (server, run), triton_client(server.port) as client:
        assert client.get_model_metadata("model")["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
        content = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [2], "data": words}]}
        assert ask(server.port, INFER, content).output("name") == ["lights", "music"]
        tensor = triton.InferInput("text", [2], "BYTES")
        tensor.set_data_from_numpy(np.array([word.encode() for word in words], object))
        assert client.infer("model", [tensor]).as_numpy("name").tolist() == [b"lights", b"music"]
        plain = {"Content-Type": "text/plain; charset=utf-8"}
        assert ask(server.port, INFER, words[1], headers=plain).output("name") == ["music"]
        arrays = run.bundle.preprocess.arrays(words, run.bundle.spec.inputs)
        own = [triton.InferInput(name, list(array.shape), "INT64") for name, array in arrays.items()]
        for tensor, array in zip(own, arrays.values(), strict=True):
            tensor.set_data_from_numpy(array)
        assert client.infer("model", own).as_numpy("name").tolist() == [b"lights", b"music"]


def test_binary_and_json_outputs_of_one_answer(tmp_path_factory: pytest.TempPathFactory) -> None:
    with served(image_bundle(tmp_path_factory)) as (server, _):
        content = packed(encoded(PIXELS[0]))
        size = {"binary_data_size": len(content)}
        head = {
            "parameters": {"binary_data_output": True},
            "inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "parameters": size}],
            "outputs": [{"name": "label"}, {"name": "stage", "parameters": {"binary_data": False}}, {"name": "name"}],
        }
        body, headers = binary(head, content)
        reply = ask(server.port, INFER, body, headers=headers | {"Content-Type": "application/octet-stream"})
        assert reply.headers["content-type"] == "application/octet-stream"
        length = int(reply.headers["inference-header-content-length"])
        label, stage, name = json.loads(reply.body[:length])["outputs"]
        assert (label["parameters"], "data" in label) == ({"binary_data_size": 8}, False)
        assert (stage["data"], "parameters" in stage) == ([1], False) or stage["data"] == [0]
        value = int.from_bytes(reply.body[length : length + 8], "little", signed=True)
        assert reply.body[length + 8 :] == packed(CLASSES[value].encode())
        assert name["parameters"]["binary_data_size"] == 5
