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
from dynamic.policies.errors import DynamicWarning


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


@pytest.mark.parametrize("padding", [float("nan"), float("inf"), -float("inf")])
def test_padding_may_hold_anything(padding: float) -> None:
    feature = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [padding, padding]], [[padding, 1.0], [7.0, 7.0], [9.0, 9.0]]])
    mask = torch.tensor([[1, 1, 0], [0, 0, 0]])
    assert mean_under_mask(feature, mask).tolist() == [[2.0, 3.0], [0.0, 0.0]]


class Additive(Words):
    """It adds its mask, as attention does to its scores."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mask = attention_mask.flatten(1)[:, -input_ids.shape[1] :]
        x = self.second(self.first(self.words(input_ids)))
        logits: Tensor = self.classifier((x * torch.exp(mask).unsqueeze(-1)).sum(1))
        return logits


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (torch.tensor([[0.0] * 5, [0.0] * 3 + [-1e4] * 2]), "down to -10000"),
        (torch.zeros(2, 5), "0 at every position"),
        (torch.ones(2, 1, 5, 5), r"shape \[2, 1, 5, 5\], expected \[B, N\]"),
    ],
)
def test_a_mask_of_another_kind_is_not_read_and_a_warning_says_so(mask: Tensor, says: str) -> None:
    ids = torch.randint(3, 60, (2, 5), generator=torch.Generator().manual_seed(0))
    with pytest.warns(DynamicWarning, match=f"attention_mask .*{says}.*1 at real positions"):
        wrapped = dynamic.wrap(Additive(), {"input_ids": ids, "attention_mask": mask}, exits=["first"]).eval()
    assert (wrapped.exits[0].shape, wrapped.exits[0].masked) == ((5, 8), False)


def test_no_warning_where_no_exit_reads_a_sequence() -> None:
    class Late(Words):
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            x = self.words(input_ids) * torch.exp(attention_mask).unsqueeze(-1)
            logits: Tensor = self.classifier(self.second(self.first(x.sum(1))))
            return logits

    example = {"input_ids": tokens(2)["input_ids"], "attention_mask": torch.full((2, 12), -1.0)}
    assert not dynamic.wrap(Late(), example, exits=["first"]).exits[0].masked


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


def test_what_lies_under_the_padding_changes_no_answer() -> None:
    wrapped = dynamic.wrap(bert(), tokens(2), exits=1).eval()
    batch = tokens(6, seed=5)
    other = {**batch, "input_ids": torch.where(batch["attention_mask"] == 1, batch["input_ids"], 7)}
    assert not torch.equal(batch["input_ids"], other["input_ids"])
    with torch.no_grad():
        for a, b in zip(wrapped(**batch), wrapped(**other), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


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
