"""Encoders with fewer heads and hidden neurons give the logits of the same network with zeros in their place."""

from typing import Any

import pytest
import torch
from support.networks.encoders import CLASSES, LAYERS, LIMIT, encoder, tokens
from torch import Tensor, nn
from torch.nn import functional as F

import dynamic
from dynamic.models import compress
from dynamic.offline.networks.used_data import hashes_of
from dynamic.policies.errors import InputError, SettingError, WrapError

# what reads heads and neurons in the first layer of each family
READERS = {
    "bert": ("bert.encoder.layer.0.attention.output.dense", "bert.encoder.layer.0.output.dense"),
    "distilbert": ("distilbert.transformer.layer.0.attention.out_lin", "distilbert.transformer.layer.0.ffn.lin2"),
    "roberta": ("roberta.encoder.layer.0.attention.output.dense", "roberta.encoder.layer.0.output.dense"),
    "modernbert": ("model.layers.0.attn.Wo", "model.layers.0.mlp.Wo"),
}


def kept_columns(whole: Any, fewer: Any) -> Tensor:
    """Which columns of a weight are in a smaller one."""
    same = (whole.weight.T.unsqueeze(1) == fewer.weight.T.unsqueeze(0)).all(-1)
    assert bool((same.sum(0) == 1).all())
    return same.any(1)


@pytest.mark.parametrize("family", LAYERS)
def test_logits_are_those_with_zeros_in_place_of_what_went(family: str) -> None:
    network = encoder(family)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(2.0)  # answers that differ
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    inputs = tokens(6, length=9, seed=3)
    pruned = compress.prune_encoder(network, tokens(2), heads=0.5, neurons=0.25, latency=False)
    small: Any = pruned.network
    widths = pruned.report.facts["widths"]
    assert sorted(map(tuple, widths.values())) == [(4, 2)] * 2 + [(64, 48)] * 2
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    removed = 0
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear) and (fewer := small.get_submodule(name)).in_features < module.in_features:
            kept = kept_columns(module, fewer)
            removed += int((~kept).sum())
            if module.in_features == 32:
                assert kept.reshape(4, 8).all(1).tolist() == kept.reshape(4, 8).any(1).tolist()  # whole heads
            module.register_forward_pre_hook(lambda _, args, kept=kept: (args[0] * kept,))
    assert removed == 2 * (2 * 8 + 16)
    with torch.no_grad():
        expected = network(**inputs).logits
        torch.testing.assert_close(small(**inputs).logits, expected, rtol=0, atol=1e-5)
        for module in network.modules():
            module._forward_pre_hooks.clear()
        assert not torch.allclose(network(**inputs).logits, expected, atol=1e-3)
    for reader, columns in zip(READERS[family], (16, 48), strict=True):
        assert small.get_submodule(reader).weight.shape == (32, columns)


def test_parameters_and_multiply_adds_by_hand() -> None:
    small = compress.prune_encoder(encoder("bert"), tokens(2), heads=0.5, neurons=0.5, latency=False)
    before, after = small.report.before, small.report.after
    # of both layers: rows of query, key and value with their biases, columns of the output, the same of the MLP
    attention, mlp = 3 * 16 * 32 + 3 * 16 + 32 * 16, 32 * 32 + 32 + 32 * 32
    assert before.parameters - after.parameters == 2 * (attention + mlp)
    # of 12 tokens: four products, and scores and sums of 12 x 12 positions
    assert before.macs - after.macs == 2 * (12 * (4 * 32 * 16 + 2 * 32 * 32) + 2 * 12 * 12 * 16)
    assert "no layer" not in str(small.report)
    assert small.report.left_alone["classifier"] == "it is not a layer on tokens"


def test_small_norms_go() -> None:
    network = encoder("bert", layers=1)
    attention, mlp = network.bert.encoder.layer[0].attention, network.bert.encoder.layer[0]
    with torch.no_grad():
        for part in (attention.self.query, attention.self.key, attention.self.value):
            part.weight[8:16] *= 0.01  # the second head
        mlp.intermediate.dense.weight[::2] *= 0.01
    small: Any = compress.prune_encoder(network, tokens(2), heads=0.25, neurons=0.5, round_to=1, latency=False).network
    layer = small.bert.encoder.layer[0]
    rest = [*range(8), *range(16, 32)]
    assert torch.equal(layer.attention.self.value.weight, attention.self.value.weight[rest])
    assert torch.equal(layer.attention.output.dense.weight, attention.output.dense.weight[:, rest])
    assert torch.equal(layer.intermediate.dense.bias, mlp.intermediate.dense.bias[1::2])
    assert torch.equal(layer.output.dense.weight, mlp.output.dense.weight[:, 1::2])


def test_what_changes_the_loss_least_goes_by_taylor() -> None:
    """Michel et al. 2019, eq. 2 by hand: the derivative by a factor on each head, of each text."""
    network = encoder("bert", layers=1)
    inputs, labels = tokens(10, seed=2), torch.arange(10) % CLASSES
    reader = network.bert.encoder.layer[0].attention.output.dense
    sums = torch.zeros(4)
    for row in range(10):
        factor = torch.ones(4, requires_grad=True)
        handle = reader.register_forward_pre_hook(lambda _, args, f=factor: (args[0] * f.repeat_interleave(8),))
        logits = network(**{name: tensor[row : row + 1] for name, tensor in inputs.items()}).logits
        (slope,) = torch.autograd.grad(F.cross_entropy(logits, labels[row : row + 1]), factor)
        handle.remove()
        sums += slope.abs()
    loader = [({n: t[i : i + 5] for n, t in inputs.items()}, labels[i : i + 5]) for i in (0, 5)]
    small: Any = compress.prune_encoder(
        network, tokens(2), heads=0.5, importance="taylor", selection_loader=loader, latency=False
    ).network
    kept = kept_columns(reader, small.bert.encoder.layer[0].attention.output.dense).reshape(4, 8).all(1)
    assert kept.nonzero().flatten().tolist() == sorted(sums.argsort(descending=True)[:2].tolist())
    assert len(hashes_of(small)) == 2


def test_the_smaller_network_is_wrapped_trained_and_runs_at_any_length() -> None:
    network = compress.prune_encoder(encoder("bert"), tokens(2), heads=0.5, neurons=0.5, latency=False).network
    length = torch.export.Dim("length", min=1, max=LIMIT)
    shapes = {"input_ids": {1: length}, "attention_mask": {1: length}}
    net = dynamic.wrap(network, tokens(2), exits=["bert.encoder.layer.0"], dynamic_shapes=shapes)
    loader = [(tokens(8, seed=1), torch.arange(8) % CLASSES)]
    training = dynamic.TrainingConfig(optimizer="adamw")
    report = dynamic.fit(net, loader, mode="joint", epochs=8, lr=5e-3, training=training, progress=False)
    assert report.loss[-1] < report.history_loss[0][-1]
    inputs = tokens(5, length=LIMIT)
    with torch.no_grad():
        torch.testing.assert_close(net.eval()(**inputs)[-1], network.eval()(**inputs).logits, rtol=0, atol=1e-5)


class Attention(nn.Module):
    """An encoder layer of 4 heads of 8, whose number of heads the code infers, or has fixed."""

    def __init__(self, fixed: bool = False, tied: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.heads = 4 if fixed else -1
        self.embeddings, self.qkv, self.out = nn.Embedding(30, 32), nn.Linear(32, 96), nn.Linear(32, 32)
        self.first, self.second, self.classes = nn.Linear(32, 64), nn.Linear(64, 32), nn.Linear(32, 3)
        if tied:
            self.qkv.weight = nn.Parameter(self.qkv.weight.detach())
            self.twin = nn.Linear(32, 96)
            self.twin.weight = self.qkv.weight

    def forward(self, input_ids: Tensor) -> Any:
        x = self.embeddings(input_ids)
        batch, count, _ = x.shape
        # heads first, then query, key and value of each
        parts = self.qkv(x).view(batch, count, self.heads, 24).transpose(1, 2)
        y = F.scaled_dot_product_attention(*parts.chunk(3, dim=-1))
        x = x + self.out(y.transpose(1, 2).reshape(batch, count, -1))
        x = x + self.second(F.gelu(self.first(x), approximate="tanh"))
        return self.classes(x.mean(1))


def test_heads_that_lie_side_by_side_in_one_layer() -> None:
    network, ids = Attention(), torch.randint(0, 30, (5, 7), generator=torch.Generator().manual_seed(0))
    small = compress.prune_encoder(network, ids, heads=0.25, latency=False)
    assert small.report.facts["widths"] == {"qkv": [4, 3]}
    assert small.report.left_alone["first"] == "neurons=None"
    kept = kept_columns(network.out, small.network.out)
    with torch.no_grad():
        network.out.weight[:, ~kept] = 0.0
        torch.testing.assert_close(small.network(ids), network(ids), rtol=0, atol=1e-5)


def test_what_cannot_go_is_left_alone_and_says_why() -> None:
    ids = torch.randint(0, 30, (5, 7))
    fixed = compress.prune_encoder(Attention(fixed=True), ids, heads=0.5, neurons=0.5, latency=False)
    assert fixed.report.left_alone["qkv"] == "its code has the number of heads fixed"
    assert fixed.report.facts["widths"] == {"first": [64, 32]}
    with pytest.raises(WrapError, match=r"no heads and neurons that can go: .*fixed"):
        compress.prune_encoder(Attention(fixed=True), ids, heads=0.5)
    tied = compress.prune_encoder(Attention(tied=True), ids, heads=0.5, neurons=0.5, latency=False)
    assert "weights that are shared, or run several times" in tied.report.left_alone.values()
    assert tied.report.facts["widths"] == {"first": [64, 32]}
    skipped = compress.prune_encoder(Attention(), ids, heads=0.5, neurons=0.5, skip=["first"], latency=False)
    assert skipped.report.left_alone["first"] == "in skip"
    with pytest.raises(WrapError, match="no heads and neurons that can go"):
        compress.prune_encoder(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(2, 4), heads=0.5)


def test_settings() -> None:
    network, ids = Attention(), torch.zeros(2, 5, dtype=torch.long)
    for options, says in (
        ({}, "give the share of one"),
        ({"heads": 1.0}, "heads=1.0"),
        ({"neurons": 0}, "neurons=0"),
        ({"heads": 0.5, "importance": "taylor"}, "give selection_loader"),
        ({"heads": 0.5, "round_to": 0}, "round_to=0"),
    ):
        with pytest.raises(SettingError, match=says):
            compress.prune_encoder(network, ids, **options)
    with pytest.raises(InputError, match="no such modules"):
        compress.prune_encoder(network, ids, heads=0.5, skip=["nowhere"])
    with pytest.raises(WrapError, match="prune its backbone"):
        compress.prune_encoder(
            dynamic.wrap(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(2, 4), exits=["0"]),
            ids,
            heads=0.5,
        )
    with pytest.raises(InputError, match="gave no batch"):
        compress.prune_encoder(network, ids, heads=0.5, importance="taylor", selection_loader=[])
