"""Sounds over HTTP: wav files as elements of BYTES or as the body, and samples."""

import base64
import io
import wave
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.serving.serve_cases import INFER, ask, served
from torch import nn

import dynamic
from dynamic.data import SoundPreprocess
from dynamic.serve import Server

SOUNDS = np.random.default_rng(3).integers(-9000, 9000, (2, 400)).astype(np.int16)


def wav(samples: NDArray[np.int16], channels: int = 1, rate_hz: int = 8000) -> bytes:
    """A wav file."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((channels, 2, rate_hz, 0, "NONE", ""))
        writer.writeframes(np.repeat(samples, channels).tobytes())
    return file.getvalue()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, list[int]]]:
    """A server of a bundle of sounds, and the labels of SOUNDS."""
    torch.manual_seed(0)
    networks = [nn.Sequential(nn.Linear(400, width), nn.ReLU(), nn.Linear(width, 4)) for width in (2, 16)]
    held_out = [(torch.randn(300, 400), torch.arange(300) % 4)]
    preprocess = SoundPreprocess(8000, 400, features=None)
    bundle = dynamic.build(networks, held_out, preprocess=preprocess, progress=False)
    bundle = bundle.save(tmp_path_factory.mktemp("sounds") / "shelf").profile(batch=(1, 4), seconds=0.02)
    with served(bundle) as (opened, run):
        yield opened, run(list(SOUNDS)).label.tolist()


def test_every_form_gives_one_answer(server: tuple[Server, list[int]]) -> None:
    port, labels = server[0].port, server[1]
    about = ask(port, "/v2/models/model").json
    assert about["inputs"] == [{"name": "sound", "datatype": "BYTES", "shape": [-1]}]
    assert "name" not in [one["name"] for one in about["outputs"]], "classes have no names"
    files = [wav(samples) for samples in SOUNDS]
    texts = [base64.b64encode(file).decode() for file in files]
    content = {"inputs": [{"name": "sound", "datatype": "BYTES", "shape": [2], "data": texts}]}
    assert ask(port, INFER, content).output("label") == labels
    samples = {"name": "sound", "datatype": "INT16", "shape": [2, 400], "data": SOUNDS.tolist()}
    assert ask(port, INFER, {"inputs": [samples]}).output("label") == labels
    one = samples | {"shape": [400], "data": SOUNDS[0].tolist()}
    assert ask(port, INFER, {"inputs": [one]}).output("label") == labels[:1]
    for row, file in enumerate(files):
        for body in (file, wav(SOUNDS[row], channels=2)):  # the mean of equal channels
            reply = ask(port, INFER, body, headers={"Content-Type": "audio/wav"})
            assert reply.output("label") == labels[row : row + 1]


def test_sounds_that_do_not_fit(server: tuple[Server, list[int]]) -> None:
    port = server[0].port
    cases = {
        "no wav": (b"hello", "sound 0 of input 'sound': the wav file does not read"),
        "rate": (wav(SOUNDS[0], rate_hz=16_000), "has 16000 samples a second, expected 8000"),
        "short": (wav(SOUNDS[0][:300]), "300"),
        "empty": (b"", "does not read"),
    }
    for case, (body, words) in cases.items():
        reply = ask(port, INFER, body, headers={"Content-Type": "audio/x-wav"})
        assert reply.status == 400, case
        assert words in reply.error, case
