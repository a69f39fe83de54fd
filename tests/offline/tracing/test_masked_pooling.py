"""Exit heads of encoders read the mean over real tokens: padding changes nothing."""

from collections import OrderedDict

import numpy as np
import pytest
import torch
from support.networks.encoders import bert, tokens
from torch import Tensor, nn

import dynamic
from dynamic.offline.exit_selection import keep_exits
from dynamic.offline.tracing.masked_pooling import mean_under_mask

EXPORTED = "ignore:captured with torch.export:dynamic.policies.errors.DynamicWarning"


class Words(nn.Module):
    """An embedding and two layers, which torch.fx traces, with a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(60, 8)
        self.first = nn.Sequential(OrderedDict(linear=nn.Linear(8, 8), relu=nn.ReLU()))
        self.second = nn.Linear(8, 8)
        self.classifier = nn.Linear(8, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.second(self.first(self.words(input_ids)))
        logits: Tensor = self.classifier(mean_under_mask(x, attention_mask))
        return logits


def test_the_mean_by_hand() -> None:
    feature = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [100.0, 100.0]], [[5.0, 6.0], [7.0, 7.0], [9.0, 9.0]]])
    mask = torch.tensor([[1, 1, 0], [0, 0, 0]])
    assert mean_under_mask(feature, mask).tolist() == [[2.0, 3.0], [0.0, 0.0]]


@pytest.mark.filterwarnings(EXPORTED)
def test_heads_of_an_encoder_read_real_tokens_alone() -> None:
    network = bert()
    wrapped = dynamic.wrap(network, tokens(2), exits=["bert.encoder.layer.0"]).eval()
    (place,) = wrapped.exits
    assert (place.shape, place.channel, place.masked) == ((32,), 1, True)
    batch = tokens(6, seed=5)
    with torch.no_grad():
        hidden = network(**batch, output_hidden_states=True).hidden_states[1].numpy()
        stage = wrapped.exit_stages[0]
        feature = stage.body(*batch.values())[0].numpy()
        first, last = (logits.numpy() for logits in wrapped(**batch))
        expected = network(**batch).logits.numpy()
    lengths = batch["attention_mask"].sum(1).tolist()
    by_hand = np.stack([row[:length].mean(0) for row, length in zip(hidden, lengths, strict=True)])
    np.testing.assert_allclose(feature, by_hand, atol=1e-5)
    np.testing.assert_allclose(last, expected, atol=1e-5)
    with torch.no_grad():
        np.testing.assert_allclose(wrapped.heads[0](torch.from_numpy(by_hand)).numpy(), first, atol=1e-5)


@pytest.mark.filterwarnings(EXPORTED)
def test_what_lies_under_the_padding_changes_no_answer() -> None:
    wrapped = dynamic.wrap(bert(), tokens(2), exits=1).eval()
    batch = tokens(6, seed=5)
    other = {**batch, "input_ids": torch.where(batch["attention_mask"] == 1, batch["input_ids"], 7)}
    assert not torch.equal(batch["input_ids"], other["input_ids"])
    with torch.no_grad():
        for a, b in zip(wrapped(**batch), wrapped(**other), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings(EXPORTED)
def test_fewer_exits_read_the_same_means() -> None:
    wrapped = dynamic.wrap(bert(3), tokens(2), exits=2).eval()
    fewer = keep_exits(wrapped, tokens(2), names=[wrapped.exits[1].name])
    assert [place.masked for place in fewer.exits] == [True]
    batch = tokens(6, seed=5)
    with torch.no_grad():
        torch.testing.assert_close(fewer(**batch)[0], wrapped(**batch)[1], rtol=0, atol=1e-5)


def test_a_network_that_torch_fx_traces_is_trained_with_its_exits() -> None:
    network = Words()
    wrapped = dynamic.wrap(network, tokens(2), exits=["first"])
    assert wrapped.trainable_backbone
    assert wrapped.exits[0].masked
    batch = tokens(6, seed=5)
    padded = {name: nn.functional.pad(tensor, (0, 5)) for name, tensor in batch.items()}
    for mode in (True, False):
        wrapped.train(mode)
        wrapped.heads.eval()
        for a, b in zip(wrapped(**batch), wrapped(**padded), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_without_a_mask_heads_pool_all_positions() -> None:
    class Plain(Words):
        def forward(self, input_ids: Tensor) -> Tensor:  # type: ignore[override]
            logits: Tensor = self.classifier(self.second(self.first(self.words(input_ids))).mean(1))
            return logits

    wrapped = dynamic.wrap(Plain(), tokens(2)["input_ids"], exits=["first"])
    assert (wrapped.exits[0].shape, wrapped.exits[0].masked) == ((12, 8), False)
