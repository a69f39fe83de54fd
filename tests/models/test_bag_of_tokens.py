"""Bag of tokens: by hand, with a table to start from, trained, and in a bundle."""

import numpy as np
import pytest
import torch
from support.networks.texts import CLASSES, sentences, tokenizer
from torch import nn

import dynamic
from dynamic.models import BagOfTokens
from dynamic.policies.errors import SettingError

IDS, MASK = torch.tensor([[4, 6, 0], [5, 0, 0]]), torch.tensor([[1, 1, 0], [1, 0, 0]])


def test_logits_by_hand() -> None:
    network = BagOfTokens(7, 3, width=2).eval()
    table = network.embeddings.weight.detach().numpy()
    means = np.stack([(table[4] + table[6]) / 2, table[5]])
    centred = means - means.mean(1, keepdims=True)
    normal = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5)
    expected = normal @ network.classifier.weight.detach().numpy().T + network.classifier.bias.detach().numpy()
    np.testing.assert_allclose(network(IDS, MASK).detach().numpy(), expected, atol=1e-5)


def test_neither_order_nor_padding_counts() -> None:
    network = BagOfTokens(7, 3, width=4).eval()
    logits = network(IDS, MASK)
    turned, longer = IDS[:, [1, 0, 2]], nn.functional.pad(IDS, (0, 5), value=3)
    torch.testing.assert_close(network(turned[:1], MASK[:1]), logits[:1])
    torch.testing.assert_close(network(longer, nn.functional.pad(MASK, (0, 5))), logits)


def test_a_table_to_start_from() -> None:
    table = torch.randn(9, 5)
    same = BagOfTokens(7, 3, width=5, embeddings=table)
    assert torch.equal(same.embeddings.weight, table[:7])
    same.embeddings.weight.data.zero_()
    assert bool(table.abs().sum() > 0)  # it was copied
    fewer = BagOfTokens(9, 3, width=2, embeddings=table).embeddings.weight.detach()
    u, s, _ = np.linalg.svd((table - table.mean(0)).numpy(), full_matrices=False)
    np.testing.assert_allclose(np.abs(fewer.numpy()), np.abs(u[:, :2] * s[:2]), atol=1e-4)


def test_settings() -> None:
    for options in (
        {"width": 0},
        {"dropout": 1.0},
        {"embeddings": torch.zeros(6, 128)},
        {"embeddings": torch.zeros(7)},
    ):
        with pytest.raises(SettingError, match=next(iter(options))):
            BagOfTokens(7, 3, **options)
    with pytest.raises(SettingError, match="vocabulary=0"):
        BagOfTokens(0, 3)


def test_trained_and_deployed_before_a_larger_one() -> None:
    texts = dynamic.TextPreprocess.of(tokenizer())
    words, labels = sentences(400)
    batches = texts.batches(words, labels, size=50, length=9)
    networks = [BagOfTokens(texts.vocabulary, 2, width=width) for width in (4, 16)]
    for network in networks:
        optimizer = torch.optim.AdamW(network.train().parameters(), 0.03)
        for _ in range(12):
            for inputs, classes in batches[:4]:
                optimizer.zero_grad()
                logits = network(**{name: torch.from_numpy(array) for name, array in inputs.items()})
                nn.functional.cross_entropy(logits, torch.from_numpy(classes)).backward()
                optimizer.step()
        network.eval()
    bundle = dynamic.build(networks, batches[4:], preprocess=texts, classes=CLASSES, progress=False)
    assert [stage.name for stage in bundle.spec.stages] == ["BagOfTokens-0", "BagOfTokens-1"]
    with bundle.runtime() as run:
        assert run("please turn the lights on").name == "lights"
        assert run(["music off", "lights off"]).name == ("music", "lights")
