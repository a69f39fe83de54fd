"""A bundle of texts that takes any length up to a limit: torch's answers from texts, on both engines."""

from typing import Any

import numpy as np
import pytest
import torch
from support.networks.texts import CLASSES, WORDS, networks, sentences, tokenizer
from torch.export import Dim

import dynamic
from dynamic.bundle.bundle_reader import load
from dynamic.policies.errors import InputError

EXAMPLE, LIMIT = 7, 12


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def bundle(request: Any, tmp_path_factory: pytest.TempPathFactory) -> dynamic.Bundle:
    texts = dynamic.TextPreprocess.of(tokenizer(special=False))
    length = Dim("length", min=1, max=LIMIT)
    shapes = {"input_ids": {1: length}, "attention_mask": {1: length}}
    words, labels = sentences(300)
    made = dynamic.build(
        dynamic.Cascade(networks(), dynamic_shapes=shapes),
        [*texts.batches(words[:60], labels[:60], length=EXAMPLE), *texts.batches(words[60:], labels[60:], size=48)],
        engine=request.param,
        preprocess=texts,
        classes=CLASSES,
        max_drops=(0.05,),
        progress=False,
    )
    folder = tmp_path_factory.mktemp(request.param) / "shelf"
    made.save(folder)
    return load(folder)


def text_of(length: int, last: str) -> str:
    return " ".join([*(WORDS[i % 2] for i in range(length - 1)), last])


@pytest.mark.parametrize("lengths", [[1], [EXAMPLE], [LIMIT], [LIMIT, 1, 3], [2, 5]])
def test_the_numbers_of_torch_at_every_length(bundle: dynamic.Bundle, lengths: list[int]) -> None:
    words = [text_of(length, CLASSES[row % 2]) for row, length in enumerate(lengths)]
    ids = torch.zeros(len(words), max(lengths), dtype=torch.long)
    for row, sentence in enumerate(words):
        tokens = [4 + WORDS.index(word) for word in sentence.split()]
        ids[row, : len(tokens)] = torch.tensor(tokens)
    with torch.no_grad():
        expected = torch.stack([network(ids, (ids != 0).long()) for network in networks()], 1).numpy()
    assert bundle.preprocess is not None
    arrays = bundle.preprocess.arrays(words, bundle.spec.inputs)
    assert arrays["input_ids"].tolist() == ids.tolist()
    opened = bundle.open()
    try:
        np.testing.assert_allclose(opened.all_logits(arrays), expected, atol=1e-5)
    finally:
        opened.close()
    with bundle.runtime() as run:
        assert list(run(words).name) == [CLASSES[row % 2] for row in range(len(words))]
        assert [run(one).name for one in words] == [CLASSES[row % 2] for row in range(len(words))]


def test_a_text_beyond_the_limit(bundle: dynamic.Bundle) -> None:
    with bundle.runtime() as run:
        for x in (text_of(LIMIT + 1, "music"), ["on", text_of(LIMIT + 1, "music")]):
            with pytest.raises(InputError, match=r"has 13 tokens, and the network takes up to 12: shorten it, or"):
                run(x)
        assert run(text_of(LIMIT, "music")).name == "music"
