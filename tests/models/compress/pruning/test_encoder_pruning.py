"""Encoders with fewer heads and hidden neurons give the logits of the same network with zeros in their place."""

import re
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
def test_logits_are_those_with_zeros_in_place_of_what_was_removed(family: str) -> None:
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


def test_small_norms_are_removed() -> None:
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


def test_what_changes_the_loss_least_is_removed_by_taylor() -> None:
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


def test_what_cannot_be_removed_is_left_alone_and_says_why() -> None:
    ids = torch.randint(0, 30, (5, 7))
    fixed = compress.prune_encoder(Attention(fixed=True), ids, heads=0.5, neurons=0.5, latency=False)
    assert fixed.report.left_alone["qkv"] == "its code has the number of heads fixed"
    assert fixed.report.facts["widths"] == {"first": [64, 32]}
    with pytest.raises(WrapError, match=r"no heads and neurons that can be removed: .*fixed"):
        compress.prune_encoder(Attention(fixed=True), ids, heads=0.5)
    tied = compress.prune_encoder(Attention(tied=True), ids, heads=0.5, neurons=0.5, latency=False)
    assert "weights that are shared, or run several times" in tied.report.left_alone.values()
    assert tied.report.facts["widths"] == {"first": [64, 32]}
    skipped = compress.prune_encoder(Attention(), ids, heads=0.5, neurons=0.5, skip=["first"], latency=False)
    assert skipped.report.left_alone["first"] == "in skip"
    with pytest.raises(WrapError, match="no heads and neurons that can be removed"):
        compress.prune_encoder(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(2, 4), heads=0.5)


class Layers(nn.Module):
    """Attentions and an MLP whose shapes are those of `kind`."""

    def __init__(self, kind: str, heads: int = 4, size: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        width = heads * size
        self.kind, self.heads, self.size = kind, heads, size
        self.embeddings, self.classes = nn.Embedding(30, width), nn.Linear(width, 3)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.q2, self.k2, self.v2, self.o2 = (nn.Linear(width, width) for _ in range(4))
        self.first, self.second = nn.Linear(width, 64), nn.Linear(64, width)
        self.scale = nn.Parameter(torch.rand(heads, 1, 1))

    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        sizes = (self.heads, -1) if self.kind == "fixed heads" else (-1, self.size)
        parts = [part.view(len(part), part.shape[1], *sizes).transpose(1, 2) for part in (q, k, v)]
        parts[0] = parts[0] * self.scale if self.kind == "scale" else parts[0]
        return F.scaled_dot_product_attention(*parts).transpose(1, 2)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embeddings(input_ids)
        batch, count, _ = x.shape
        k, v = self.k(x), self.v(x)
        y = self.attention(self.q(x), k, v)
        if self.kind == "flat":
            x = x + self.o(y.reshape(batch * count, -1)).view(batch, count, -1)
        elif self.kind == "sequence first":
            x = x + self.o(y.reshape(batch, count, -1).transpose(0, 1)).transpose(0, 1)
        else:
            x = x + self.o(y.reshape(batch, count, -1))
        if self.kind in ("two", "common"):
            k, v = (self.k2(x), self.v2(x)) if self.kind == "two" else (k, v)
            z = self.attention(self.q2(x), k, v)
            x = x + self.o2(z.reshape(batch, count, -1))
        if self.kind == "sequence first":
            return self.classes((x.transpose(0, 1) + self.second(F.gelu(self.first(x.transpose(0, 1))))).mean(0))  # type: ignore[no-any-return]
        return self.classes((x + self.second(F.gelu(self.first(x)))).mean(1))  # type: ignore[no-any-return]


IDS = torch.arange(35).reshape(5, 7) % 30


@pytest.mark.parametrize(
    ("kind", "sizes", "why"),
    [
        ("fixed heads", (8, 8), "its code has the number of heads fixed"),
        ("fixed heads", (4, 8), "its code has the number of heads fixed"),
        ("scale", (4, 8), "mul has a number for each head"),
        ("common", (4, 8), "what makes its heads is read by .* too"),
    ],
)
def test_heads_that_the_code_fixes_remain_and_neurons_are_removed(kind: str, sizes: tuple[int, int], why: str) -> None:
    small = compress.prune_encoder(Layers(kind, *sizes), IDS, heads=0.5, neurons=0.5, latency=False)
    assert small.report.facts["widths"] == {"first": [64, 32]}
    reasons = [re.sub(r"_\d+", "", small.report.left_alone[name]) for name in ("q", "k", "v")]  # numbers of nodes
    assert all(re.fullmatch(why, reason) for reason in reasons), reasons


def test_two_attentions_in_one_module_have_names_of_their_own() -> None:
    small = compress.prune_encoder(Layers("two"), IDS, heads=0.5, latency=False)
    assert list(small.report.facts["widths"]) == ["q", "q2"]

    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Layers("two")

        def forward(self, input_ids: Tensor) -> Any:
            return self.inner(input_ids)

    small = compress.prune_encoder(Around(), IDS, heads=0.5, latency=False)
    assert small.report.facts["widths"] == {"inner.q": [4, 2], "inner.q2": [4, 2]}


def test_a_linear_layer_in_skip_keeps_its_heads_and_neurons() -> None:
    network = encoder("bert", layers=1)
    layer = "bert.encoder.layer.0"
    for name in ("attention.self.query", "attention.self.value", "attention.output.dense", "attention.output"):
        small = compress.prune_encoder(
            network, tokens(2), heads=0.5, neurons=0.5, skip=[f"{layer}.{name}"], latency=False
        )
        assert list(small.report.facts["widths"]) == [f"{layer}.intermediate.dense"]
        assert small.report.left_alone[f"{layer}.attention.self"] == "in skip"
    small = compress.prune_encoder(
        network, tokens(2), heads=0.5, neurons=0.5, skip=[f"{layer}.output.dense", "classifier"], latency=False
    )
    assert list(small.report.facts["widths"]) == [f"{layer}.attention.self"]
    with pytest.raises(InputError, match=r"'bert\.embeddings', which holds no linear layer of heads or neurons"):
        compress.prune_encoder(network, tokens(2), heads=0.5, skip=["bert.embeddings"], latency=False)


@pytest.mark.parametrize("layer", ["o", "second"])
def test_taylor_takes_each_text_where_the_sequence_comes_first(layer: str) -> None:
    """Michel et al. 2019, eq. 2 by hand: the derivative by a factor on each head or neuron, of each text."""
    network, labels = Layers("sequence first").eval(), torch.arange(5) % 3
    reader, units = network.get_submodule(layer), 4 if layer == "o" else 64
    sums = torch.zeros(units)
    for row in range(5):
        factor = torch.ones(units, requires_grad=True)
        handle = reader.register_forward_pre_hook(
            lambda _, args, f=factor: (args[0] * f.repeat_interleave(args[0].shape[-1] // units),)
        )
        loss = F.cross_entropy(network(IDS[row : row + 1]), labels[row : row + 1])
        (slope,) = torch.autograd.grad(loss, factor)
        handle.remove()
        sums += slope.abs()
    share: dict[str, Any] = {"heads": 0.5} if layer == "o" else {"neurons": 0.5, "round_to": 1}
    small = compress.prune_encoder(
        network, IDS, importance="taylor", selection_loader=[(IDS, labels)], latency=False, **share
    )
    kept = kept_columns(reader, small.network.get_submodule(layer)).reshape(units, -1).all(1)
    assert kept.nonzero().flatten().tolist() == sorted(sums.argsort(descending=True)[: units // 2].tolist())


def test_taylor_leaves_alone_where_texts_and_positions_are_one_dimension() -> None:
    how: dict[str, Any] = {"heads": 0.5, "neurons": 0.5, "latency": False}
    loader = [(IDS, torch.arange(5) % 3)]
    by_loss = compress.prune_encoder(Layers("flat"), IDS, importance="taylor", selection_loader=loader, **how)
    assert by_loss.report.facts["widths"] == {"first": [64, 32]}
    assert "use importance='norm'" in by_loss.report.left_alone["q"]
    assert compress.prune_encoder(Layers("flat"), IDS, **how).report.facts["widths"]["q"] == [4, 2]


def test_eager_attention_keeps_its_heads_and_says_why() -> None:
    network = encoder("bert", layers=1)
    network.set_attn_implementation("eager")
    small = compress.prune_encoder(network, tokens(2), heads=0.5, neurons=0.5, latency=False)
    assert list(small.report.facts["widths"]) == ["bert.encoder.layer.0.intermediate.dense"]
    reason = small.report.left_alone["bert.encoder.layer.0.attention.self.query"]
    assert "scaled_dot_product_attention" in reason


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
