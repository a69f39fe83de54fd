"""Channels and neurons removed: which go, that layers are really thinner, and what is left alone."""

import json
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

import dynamic
from dynamic.models import CifarResNet
from dynamic.models.compress.pruning.channel_pruning import prunable, prune_channels
from dynamic.policies.errors import InputError, SettingError, WrapError

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
DATA = [(X, torch.tensor([1, 0]))]


def plain() -> nn.Sequential:
    """Four channels, of weights 1, 4, 2, 3, made of one and read by another layer."""
    net = nn.Sequential(nn.Conv2d(1, 4, 1, bias=False), nn.ReLU(), nn.Conv2d(4, 2, 1, bias=False), nn.Flatten())
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([1.0, 4.0, 2.0, 3.0]).reshape(4, 1, 1, 1))
        nn.init.ones_(net[2].weight)
    return net.eval()


ONE = torch.ones(2, 1, 1, 1)


def test_norm_keeps_the_largest_and_the_rest_computes_as_before() -> None:
    net = plain()
    done = prune_channels(net, ONE, amount=0.5, latency=False)
    assert done.network[0].weight.flatten().tolist() == [4.0, 3.0]
    assert (done.network[0].out_channels, done.network[2].in_channels) == (2, 2)
    assert done.network(ONE).tolist() == [[7.0, 7.0]] * 2
    assert done.report.facts["widths"] == {"0": [4, 2]}
    assert (done.report.before.macs, done.report.after.macs) == (12, 6)
    assert "network's output" in done.report.left_alone["2"]
    assert net[0].weight.shape[0] == 4


def test_activation_keeps_what_is_rarely_zero() -> None:
    net = plain()
    with torch.no_grad():
        net[0].weight[1] = -4  # never, after the rectifier
    data = [(torch.tensor([1.0, -1.0, 1.0, 1.0]).reshape(4, 1, 1, 1), torch.zeros(4, dtype=torch.long))]
    done = prune_channels(net, ONE, amount=0.25, importance="activation", selection_loader=data, latency=False)
    assert done.network[0].weight.flatten().tolist() == [1.0, 2.0, 3.0]  # busy 3/4 each, the other 1/4


def test_taylor_is_gradient_times_weight() -> None:
    net = plain()
    with torch.no_grad():  # what the second layer reads decides: channel 0 alone tells the classes apart
        net[2].weight.copy_(torch.tensor([[1.0, 0, 0.1, 0], [-1.0, 0, 0.1, 0]]).reshape(2, 4, 1, 1))
    data = [(ONE, torch.tensor([0, 0]))]
    done = prune_channels(net, ONE, amount=0.75, importance="taylor", selection_loader=data, latency=False)
    assert done.network[0].weight.flatten().tolist() == [1.0]


def test_only_inside_the_branches_of_a_network_whose_shortcuts_pad() -> None:
    net = CifarResNet(8).eval()
    done = prune_channels(net, X, amount=0.5, latency=False)
    small = done.network
    assert done.report.facts["widths"] == {
        "layer1.0.conv1": [16, 8],
        "layer2.0.conv1": [32, 16],
        "layer3.0.conv1": [64, 32],
    }
    assert small.layer3[0].conv1.weight.shape == (32, 32, 3, 3)
    assert small.layer3[0].bn1.running_mean.shape == (32,)
    assert small.layer3[0].conv2.weight.shape == (64, 32, 3, 3)
    assert "stream" in done.report.left_alone["conv1"]
    with pytest.raises(WrapError, match="sliced or padded"):
        prune_channels(net, X, amount={"conv1": 0.5}, stream=True, latency=False)


def test_what_is_removed_is_what_the_report_says() -> None:
    """Against zeroing the same channels by hand: the same logits."""
    net = CifarResNet(8).eval()
    done = prune_channels(net, X, amount={"layer2": 0.5}, latency=False)
    block, small = net.layer2[0], done.network.layer2[0]
    kept = [i for i in range(32) if any(torch.equal(block.conv1.weight[i], w) for w in small.conv1.weight)]
    assert len(kept) == 16
    with torch.no_grad():
        block.conv2.weight[:, [i for i in range(32) if i not in kept]] = 0
    assert torch.allclose(net(X), done.network(X), atol=1e-5)


@pytest.mark.parametrize(("width", "amount", "round_to", "left"), [
    (64, 0.5, None, 32), (64, 0.6, None, 32), (64, 0.9, None, 16), (24, 0.5, None, 16), (16, 0.5, None, 8),
    (12, 0.5, None, 6), (64, 0.5, 8, 32), (64, 0.6, 1, 26), (64, 0.99, 4, 4),
])  # fmt: skip
def test_widths_suit_engines(width: int, amount: float, round_to: int | None, left: int) -> None:
    net = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))
    done = prune_channels(net, torch.ones(2, 4), amount=amount, round_to=round_to, latency=False)
    assert done.report.facts["widths"] == {"0": [width, left]}
    assert done.network[0].out_features == done.network[2].in_features == left


@pytest.mark.parametrize(
    ("network", "size"),
    [(models.resnet18, 64), (models.mobilenet_v3_small, 64)],
    ids=["resnet18", "mobilenet"],
)
@pytest.mark.parametrize("importance", ["norm", "activation", "taylor"])
def test_convolutional_networks(network, size: int, importance: str) -> None:
    net = network(num_classes=4).eval()
    x = torch.randn(2, 3, size, size)
    data = [(x, torch.tensor([0, 3]))]
    done = prune_channels(net, x, amount=0.5, importance=importance, selection_loader=data, latency=False)
    assert done.report.after.macs < 0.7 * done.report.before.macs
    assert done.report.after.parameters < 0.7 * done.report.before.parameters
    done.network.train()(x).sum().backward()
    assert all(p.requires_grad for p in done.network.parameters())


def test_the_stream_too_where_asked() -> None:
    net = models.resnet18(num_classes=4).eval()
    x = torch.randn(2, 3, 64, 64)
    done = prune_channels(net, x, amount=0.5, stream=True, latency=False)
    assert done.network.conv1.out_channels == 32
    assert done.network.fc.in_features == 256
    assert done.report.after.macs < 0.35 * done.report.before.macs


def vit() -> nn.Module:
    return models.VisionTransformer(32, 8, 2, 2, 16, 64, num_classes=5)


def convnext() -> nn.Module:
    return models.convnext.ConvNeXt([models.convnext.CNBlockConfig(16, None, 2)], num_classes=4)


@pytest.mark.parametrize("network", [vit, convnext], ids=["vit", "convnext"])
@pytest.mark.parametrize("importance", ["norm", "activation", "taylor"])
def test_networks_on_tokens_lose_hidden_neurons(network, importance: str) -> None:
    net = network().eval()
    done = prune_channels(net, X, amount=0.5, importance=importance, selection_loader=DATA, latency=False)
    assert all(after == 32 for _, after in done.report.facts["widths"].values())
    assert len(done.report.facts["widths"]) == 2
    assert done.report.after.macs < done.report.before.macs
    assert done.network(X).shape == net(X).shape


def test_hidden_neurons_that_do_nothing_can_go_without_a_trace() -> None:
    net = vit().eval()
    mlp = net.encoder.layers[0].mlp
    dead = [1, 5, *range(10, 40)]
    with torch.no_grad():
        mlp[0].weight[dead] = 0
        mlp[0].bias[dead] = 0
        mlp[3].weight[:, dead] = 0
    done = prune_channels(net, X, amount={"encoder.layers.encoder_layer_0": 0.5}, latency=False)
    assert torch.allclose(done.network(X), net(X), atol=1e-5)


_SWIN = """
import json, resource, torch
from torchvision import models
from dynamic.models.compress.pruning.channel_pruning import prune_channels

torch.set_num_threads(1)
net = models.SwinTransformer([2, 2], 32, [2, 2], [2, 4], [4, 4], num_classes=5).eval()
with open("/proc/self/statm", encoding="ascii") as file:
    mapped = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (mapped + 2**30, mapped + 2**30))  # what is mapped now, and 1 GB
x = torch.ones(2, 3, 32, 32)
done = prune_channels(net, x, amount=0.5, latency=False)
print(json.dumps([list(done.report.facts["widths"].values()), list(done.network(x).shape)]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc and a limit on memory")
def test_swin_stays_within_memory() -> None:
    # a process of its own, and a fresh one: torch's threads do not survive a fork
    done = subprocess.run([sys.executable, "-c", _SWIN], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    widths, shape = json.loads(done.stdout)
    assert shape == [2, 5]
    assert widths == [[128, 64], [128, 64], [256, 128], [256, 128]]


def test_shared_layers_grouped_convolutions_and_skipped_ones_are_left_alone() -> None:
    layers = [layer for _ in range(3) for layer in (nn.Linear(16, 16), nn.ReLU())]
    shared = nn.Sequential(*layers, nn.Linear(16, 3))
    shared[2].weight = shared[0].weight
    done = prune_channels(shared, torch.ones(2, 16), amount={"4": 0.5}, latency=False)
    assert "shared" in done.report.left_alone["0"]
    assert done.network[0].weight is done.network[2].weight
    grouped = nn.Sequential(nn.Conv2d(4, 16, 1), nn.Conv2d(16, 16, 3, groups=4), nn.Flatten(), nn.Linear(16, 3))
    with pytest.raises(WrapError, match="grouped"):
        prune_channels(grouped, torch.ones(2, 4, 3, 3), amount=0.5, latency=False)
    done = prune_channels(CifarResNet(8), X, amount=0.5, skip=["layer1"], latency=False)
    assert done.report.left_alone["layer1.0.conv1"] == "in skip"
    assert "layer1.0.conv1" not in done.report.facts["widths"]


def test_what_scores_does_not_give_the_accuracy() -> None:
    net = plain()  # two equal logits: class 0 is what it answers
    scoring, held_out = [(ONE, torch.tensor([0, 0]))], [(ONE, torch.tensor([1, 1]))]
    for importance in ("norm", "activation", "taylor"):
        found = prune_channels(
            net, ONE, amount=0.5, importance=importance, selection_loader=scoring, latency=False
        ).report
        assert (found.before.accuracy, found.after.accuracy) == (None, None)
        given = {"importance": importance, "selection_loader": scoring, "eval_loader": held_out}
        found = prune_channels(net, ONE, amount=0.5, **given, latency=False).report
        assert (found.before.accuracy, found.after.accuracy) == (0.0, 0.0)


def test_what_can_be_pruned_is_told() -> None:
    net = CifarResNet(8)
    widths = {"layer1.0.conv1": 16, "layer2.0.conv1": 32, "layer3.0.conv1": 64}
    assert prunable(net, X) == widths
    assert list(prunable(net, X, skip=["layer2", "layer3.0.conv1"])) == ["layer1.0.conv1"]
    assert prunable(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.ones(2, 4)) == {}


def test_frozen_parameters_stay_frozen_and_modes_as_they_were() -> None:
    net = plain().train()
    net[2].weight.requires_grad_(False)
    done = prune_channels(net, ONE, amount=0.5, latency=False)
    assert [p.requires_grad for p in done.network.parameters()] == [True, False]
    assert [p.requires_grad for p in net.parameters()] == [True, False]
    assert all(module.training for module in done.network.modules())


def test_it_can_be_wrapped() -> None:
    done = prune_channels(CifarResNet(8), X, amount=0.5, latency=False)
    assert len(dynamic.wrap(done.network, X, exits=1)(X)) == 2


def test_errors() -> None:
    net = plain()
    for amount in (0.0, 1.0, float("nan")):
        with pytest.raises(SettingError, match=r"not in \(0, 1\)"):
            prune_channels(net, ONE, amount=amount)
    with pytest.raises(SettingError, match="for 0 is not in"):
        prune_channels(net, ONE, amount={"0": 2.0})
    with pytest.raises(SettingError, match="importance='age'"):
        prune_channels(net, ONE, amount=0.5, importance="age")
    with pytest.raises(SettingError, match="give selection_loader="):
        prune_channels(net, ONE, amount=0.5, importance="taylor")
    with pytest.raises(SettingError, match="round_to=0"):
        prune_channels(net, ONE, amount=0.5, round_to=0)
    with pytest.raises(InputError, match="no such modules"):
        prune_channels(net, ONE, amount=0.5, skip=["9"])
    with pytest.raises(InputError, match="no such modules"):
        prune_channels(net, ONE, amount={"9": 0.5})
    with pytest.raises(InputError, match="no batch"):
        prune_channels(net, ONE, amount=0.5, importance="taylor", selection_loader=[])
    with pytest.raises(WrapError, match="nothing to prune in"):
        prune_channels(net, ONE, amount={"2": 0.5})
    with pytest.raises(WrapError, match="too few"):
        prune_channels(net, ONE, amount=0.5, round_to=16)
    with pytest.raises(SettingError, match="works on tokens"):
        prune_channels(vit(), X, amount=0.5, stream=True)
    with pytest.raises(WrapError, match="prune its backbone"):
        prune_channels(dynamic.wrap(CifarResNet(8), X, exits=1), X, amount=0.5)
    broken = plain()
    nn.init.constant_(broken[0].weight, float("nan"))
    with pytest.raises(InputError, match="not finite"):
        prune_channels(broken, ONE, amount=0.5)


def test_a_network_that_counts_on_its_widths_is_told() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            found = self.one(x)
            assert found.shape[1] == 16, "sixteen, please"
            return self.two(found).mean((2, 3))

    with pytest.raises(WrapError, match="sixteen, please"):
        prune_channels(Counts(), X, amount=0.5)
