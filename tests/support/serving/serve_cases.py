"""Bundles and servers that the tests of `dynamic.serve` share, and a client of the standard library."""

import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from support.networks import texts
from support.runtime_cases import shared_blobs
from torch import nn

import dynamic
from dynamic.runtime.runtime import Runtime
from dynamic.serve import ServeOptions, Server

LIMIT_S = 120
CLASSES = tuple("wxyz")
X = np.random.default_rng(0).standard_normal((3, 12)).astype(np.float32)
PIXELS = np.random.default_rng(1).integers(0, 256, (2, 9, 11, 3), np.uint8)
_images: list[dynamic.Bundle] = []
_texts: list[dynamic.Bundle] = []


def image_bundle(folders: pytest.TempPathFactory) -> dynamic.Bundle:
    """Of images of any size, which become 8 x 8."""
    if not _images:
        torch.manual_seed(0)
        networks = [nn.Sequential(nn.Flatten(), nn.Linear(192, w), nn.ReLU(), nn.Linear(w, 4)) for w in (2, 16)]
        held_out = [(torch.randn(300, 3, 8, 8), torch.arange(300) % 4)]
        preprocess = dynamic.Preprocess.of(resize=(8, 8))
        bundle = dynamic.build(networks, held_out, preprocess=preprocess, classes=CLASSES, progress=False)
        _images.append(bundle.save(folders.mktemp("pictures") / "images").profile(batch=(1, 4), seconds=0.02))
    return _images[0]


def text_bundle(folders: pytest.TempPathFactory) -> dynamic.Bundle:
    """Of texts."""
    if not _texts:
        preprocess = dynamic.TextPreprocess.of(texts.tokenizer())
        words, labels = texts.sentences(300)
        bundle = dynamic.build(
            texts.networks(),
            preprocess.batches(words, labels, length=9),
            preprocess=preprocess,
            classes=texts.CLASSES,
            max_drops=(0.05,),
            progress=False,
        )
        _texts.append(bundle.save(folders.mktemp("words") / "texts").profile(batch=(1, 4), seconds=0.02))
    return _texts[0]


def number_bundle(folders: pytest.TempPathFactory) -> dynamic.Bundle:
    """Of rows of 12 numbers, without preprocessing."""
    return shared_blobs(folders)


@contextmanager
def served(
    bundle: dynamic.Bundle, *, policy: Any = None, drift_alpha: float | None = None, **options: Any
) -> Iterator[tuple[Server, Runtime]]:
    """A server on free ports, and its runtime, which no sensor disturbs. The same inputs again and again are drift."""
    options = {"port": 0, "name": "model"} | options
    serve_options = ServeOptions(**options)
    monitor = dynamic.FixedMonitor()
    with (
        bundle.runtime(monitor=monitor, policy=policy, workers=serve_options.workers, drift_alpha=drift_alpha) as run,
        Server(run, serve_options) as server,
    ):
        yield server, run


@dataclass(frozen=True)
class Reply:
    """What HTTP answers."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))

    @property
    def error(self) -> str:
        """The one field of an error."""
        content = self.json
        assert list(content) == ["error"]
        return str(content["error"])

    def output(self, name: str) -> Any:
        """The values of an output."""
        (data,) = (one["data"] for one in self.json["outputs"] if one["name"] == name)
        return data


INFER = "/v2/models/model/infer"


def ask(
    port: int,
    path: str = INFER,
    content: Any = None,
    *,
    method: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Reply:
    """The answer to one request. `content`: bytes as they are, or what becomes JSON. None: GET."""
    body = content if content is None or isinstance(content, (bytes, str)) else json.dumps(content)
    connection = HTTPConnection("127.0.0.1", port, timeout=LIMIT_S)
    try:
        connection.request(method or ("GET" if body is None else "POST"), path, body, dict(headers or {}))
        reply = connection.getresponse()
        return Reply(reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read())
    finally:
        connection.close()


def numbers(values: Any = X, **changes: Any) -> dict[str, Any]:
    """A request of rows of numbers, with changes of its tensor."""
    array = np.asarray(values, np.float32)
    tensor = {"name": "x", "datatype": "FP32", "shape": list(array.shape), "data": array.ravel().tolist()}
    return {"inputs": [tensor | changes]}


def encoded(pixels: NDArray[np.uint8], kind: str = "PNG", **options: Any) -> bytes:
    """An image file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def packed(*elements: bytes) -> bytes:
    """Elements of BYTES as binary tensor data: each after its length."""
    return b"".join(len(element).to_bytes(4, "little") + element for element in elements)


def binary(head: Mapping[str, Any], *blobs: bytes) -> tuple[bytes, dict[str, str]]:
    """A body with binary tensor data, and its header."""
    text = json.dumps(head).encode()
    return b"".join([text, *blobs]), {"Inference-Header-Content-Length": str(len(text))}


def folder_of(bundle: dynamic.Bundle, place: Path) -> Path:
    """A copy of a bundle in a folder of its own, with its costs."""
    return bundle.save(place).folder


def server_is_well(port: int) -> bool:
    """Whether no request of the server so far failed for a fault of its own."""
    return 'outcome="failed"' not in ask(port, "/metrics").body.decode()
