"""Low-rank layers: against numpy's own decomposition, and energies worked out by hand."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import ConvNeXt, SwinTransformer, VisionTransformer, mobilenet_v3_small, resnet18
from torchvision.models.convnext import CNBlockConfig

import dynamic
from dynamic.models import CifarResNet
from dynamic.models.compress.factorization.low_rank import decompose, low_rank
from dynamic.policies.errors import CalibrationError, InputError, SettingError

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Small(nn.Module):
    """One layer of each kind: spatial, pointwise, linear."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.spatial = nn.Conv2d(3, 16, 3, padding=1)
        self.pointwise = nn.Conv2d(16, 24, 1, stride=2, bias=False)
        self.linear = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.pointwise(torch.relu(self.spatial(x))))
        return self.linear(x.mean((2, 3)))


def linear(*diagonal: float) -> nn.Linear:
    layer = nn.Linear(len(diagonal), len(diagonal))
    layer.weight = nn.Parameter(torch.diag(torch.tensor(diagonal)))
    return layer


LAYERS = [
    (nn.Linear(12, 7), (5, 12)),
    (nn.Linear(7, 12, bias=False), (5, 3, 7)),
    (nn.Conv2d(6, 9, 1, stride=2, bias=True), (2, 6, 7, 8)),
    (nn.Conv2d(6, 8, 1, groups=2, padding=1), (2, 6, 5, 5)),
    (nn.Conv2d(6, 9, 3, padding=1, bias=False), (2, 6, 7, 8)),
    (nn.Conv2d(6, 9, (3, 5), stride=(2, 3), padding=(1, 2), dilation=(2, 1)), (2, 6, 11, 13)),
    (nn.Conv2d(6, 9, (1, 3), stride=(2, 1)), (2, 6, 7, 8)),
    (nn.Conv2d(6, 12, 3, groups=3, stride=2, padding=(0, 1)), (2, 6, 7, 8)),
    (nn.Conv2d(6, 6, 5, groups=6, padding="same"), (2, 6, 7, 8)),
    (nn.Conv2d(4, 5, 3, padding=1, padding_mode="reflect"), (2, 4, 7, 8)),
    (nn.Conv2d(4, 5, 3, padding=2, padding_mode="circular"), (2, 4, 7, 8)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=str)
def test_full_rank_is_the_layer(layer: nn.Module, shape: tuple[int, ...]) -> None:
    layer = copy.deepcopy(layer).double()
    x = torch.randn(shape, dtype=torch.double)
    found = decompose(layer)
    torch.testing.assert_close(found.layers(found.full)(x), layer(x), rtol=1e-10, atol=1e-10)


def test_error_of_a_linear_layer_is_what_was_dropped() -> None:
    layer = nn.Linear(12, 7).double()
    values = np.linalg.svd(layer.weight.detach().numpy(), compute_uv=False)
    found = decompose(layer)
    for rank in range(1, 7):
        made = found.layers(rank)
        error = (made[1].weight @ made[0].weight - layer.weight).detach()
        assert float(error.norm()) == pytest.approx(np.sqrt((values[rank:] ** 2).sum()), rel=1e-9)
        assert torch.equal(made[1].bias, layer.bias)


def test_error_of_a_convolution_is_what_was_dropped() -> None:
    # the kernel of the two thin ones, read off an impulse: a 5 x 5 picture of one pixel
    layer = nn.Conv2d(2, 3, 3, padding=1, bias=False).double()
    matrix = layer.weight.detach().numpy().transpose(0, 3, 1, 2).reshape(9, 6)  # (output, column), (input, row)
    values = np.linalg.svd(matrix, compute_uv=False)
    impulses = torch.zeros(2, 2, 5, 5, dtype=torch.double)
    impulses[0, 0, 2, 2] = impulses[1, 1, 2, 2] = 1
    for rank in (1, 3, 5):
        made = decompose(layer).layers(rank)
        assert [tuple(part.kernel_size) for part in made] == [(3, 1), (1, 3)]
        error = (made(impulses) - layer(impulses)).detach()
        assert float(error.norm()) == pytest.approx(np.sqrt((values[rank:] ** 2).sum()), rel=1e-9)


def test_energy_by_hand() -> None:
    # squares 16, 4, 4, 1 of 25
    found = decompose(linear(4.0, 2.0, 2.0, 1.0))
    assert [found.energy(r) for r in (1, 2, 3, 4)] == pytest.approx([0.64, 0.8, 0.96, 1.0])
    for energy, rank in ((0.5, 1), (0.64 - 1e-9, 1), (0.7, 2), (0.9, 3), (0.97, 4), (1.0, 4)):
        assert found.rank_of("it", energy, None, False) == rank
    assert decompose(linear(0.0, 0.0)).energy(1) == 1.0


def test_groups_share_a_rank() -> None:
    # two groups of one 2 x 2 matrix each: squares 9, 1 and 4, 4; rank 1 keeps 13 of 18
    layer = nn.Conv2d(4, 4, 1, groups=2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[3.0, 0], [0, 1], [2, 0], [0, 2]])[:, :, None, None])
    assert decompose(layer).energy(1) == pytest.approx(13 / 18)


def test_network() -> None:
    network = Small()
    before = copy.deepcopy(network.state_dict())
    made = low_rank(network, X, rank=3, latency=False)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert made.network.training
    assert made.network(X).shape == (4, 10)
    told = made.report
    assert told.facts["ranks"]["linear"]["full"] == 10
    assert {name: row["rank"] for name, row in told.facts["ranks"].items()} == dict.fromkeys(
        ("spatial", "pointwise", "linear"), 3
    )
    # by hand, in multiply-adds: 64 pixels of 3x1 from 3 and 1x3 to 16; 16 of 16 and 24; 24 and 10
    assert told.after.macs == 64 * 3 * (9 + 48) + 16 * 3 * (16 + 24) + 3 * (24 + 10)
    assert told.before.macs == 64 * 27 * 16 + 16 * 16 * 24 + 240
    assert told.left_alone == {}


def test_only_what_saves() -> None:
    told = low_rank(Small(), X, rank=1.0, latency=False).report
    assert told.facts["ranks"] == {}
    assert told.after.macs == told.before.macs
    assert "rank 9 of 9 would cost 1.19" in told.left_alone["spatial"]  # 9 * (9 + 48) against 27 * 16


def test_shares_names_kinds_and_skip() -> None:
    ranks = {"linear": 2, "spatial": 0.34}
    made = low_rank(Small(), X, rank=ranks, latency=False)
    assert {n: row["rank"] for n, row in made.report.facts["ranks"].items()} == {"spatial": 3, "linear": 2}
    assert made.report.left_alone == {"pointwise": "rank does not name it"}
    made = low_rank(Small(), X, rank=2, kinds=("linear", "spatial"), skip=["linear"], latency=False)
    assert list(made.report.facts["ranks"]) == ["spatial"]
    assert made.report.left_alone == {"pointwise": "pointwise layers are not in kinds", "linear": "in skip"}


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({}, SettingError, "give one of the two"),
        ({"rank": 2, "energy": 0.5}, SettingError, "give one of the two"),
        ({"energy": 0.0}, SettingError, r"energy=0.0 is not in \(0, 1\]"),
        ({"energy": 1.5}, SettingError, "energy=1.5"),
        ({"energy": float("nan")}, SettingError, "energy=nan"),
        ({"rank": 0}, SettingError, "rank=0"),
        ({"rank": 1.5}, SettingError, "rank=1.5"),
        ({"rank": True}, SettingError, "rank=True"),
        ({"rank": "3"}, SettingError, "rank='3'"),
        ({"rank": {"linear": 11}}, SettingError, "rank=11 for linear, whose full rank is 10"),
        ({"rank": {"line": 1}}, InputError, "'line' is no module"),
        ({"rank": 1, "skip": ["nowhere"]}, InputError, "'nowhere' is no module"),
        ({"rank": 1, "skip": "linear"}, InputError, "is a string"),
        ({"rank": 1, "kinds": ("dense",)}, SettingError, "kinds="),
        ({"rank": 1, "calibration_loader": []}, CalibrationError, "no batch"),
    ],
)
def test_bad_settings(options: dict[str, object], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        low_rank(Small(), X, latency=False, **options)


def test_bad_inputs_and_weights() -> None:
    with pytest.raises(InputError, match="does not take example inputs"):
        low_rank(Small(), X[:, :2], rank=1, latency=False)
    network = Small()
    network.linear.weight.data[0, 0] = float("nan")
    with pytest.raises(InputError, match="the weights of linear hold NaN"):
        low_rank(network, X, rank=1, latency=False)
    sequence = nn.Sequential(nn.Sequential(nn.Linear(8, 8)), nn.ReLU())
    with pytest.raises(InputError, match="'1' is no linear layer"):
        low_rank(sequence, torch.ones(2, 8), rank={"1": 2}, latency=False)


class Odd(nn.Module):
    """A layer that stands twice, two layers with one weight, one whose weight another reads, and attention."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(16, 16)
        self.again = self.first
        self.one, self.two = nn.Linear(16, 16), nn.Linear(16, 16)
        self.two.weight = self.one.weight
        self.read = nn.Linear(16, 16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.pruned = nn.Linear(16, 16)
        self.pruned.register_forward_pre_hook(lambda module, args: None)
        self.sequence = nn.Conv1d(16, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.two(self.one(self.again(self.first(x))))
        x = nn.functional.linear(x, self.read.weight)
        x = self.pruned(x + self.attention(x, x, x)[0])
        return self.sequence(x.transpose(1, 2)).mean(2)


def test_what_is_left_alone_and_what_is_shared() -> None:
    x = torch.randn(2, 5, 16)
    made = low_rank(Odd(), x, rank=2, latency=False)
    assert made.network.first is made.network.again
    assert isinstance(made.network.first, nn.Sequential)
    assert made.network.one.weight is made.network.two.weight
    assert list(made.report.facts["ranks"]) == ["first"]
    left = made.report.left_alone
    assert left["one"] == "its weights are also two.weight's"
    assert left["two"] == "its weights are also one.weight's"
    assert "never called" in left["read"]
    assert left["attention.out_proj"].startswith("a NonDynamicallyQuantizableLinear")
    assert "hooks" in left["pruned"]
    assert left["sequence"].startswith("a Conv1d")
    assert made.network(x).shape == (2, 16)


def test_calibration_keeps_what_the_inputs_use() -> None:
    # inputs along the second axis alone, 3 on average: the first axis has the larger weight and is never used
    inputs = torch.zeros(64, 2)
    inputs[:, 1] = 3 + torch.randn(64, generator=torch.Generator().manual_seed(0))
    network = nn.Sequential(nn.Linear(2, 6, bias=False), nn.Flatten())
    network[0].weight.data = torch.zeros(6, 2).fill_diagonal_(1.0) * torch.tensor([5.0, 1.0])
    plain = low_rank(network, inputs, rank=1, latency=False).network
    assert float((plain(inputs) - network(inputs)).detach().abs().max()) > 1
    aware = low_rank(network, inputs, rank=1, calibration_loader=[inputs], latency=False).network
    torch.testing.assert_close(aware(inputs), network(inputs), rtol=1e-4, atol=1e-4)


def test_calibration_is_the_best_of_its_rank() -> None:
    # reduced-rank regression by another way: the principal components of the outputs (Zhang et al. 2015, eq. 5)
    generator = torch.Generator().manual_seed(2)
    mixing = torch.randn(6, 6, generator=generator, dtype=torch.double)
    x = torch.randn(500, 6, generator=generator, dtype=torch.double) @ mixing + 1
    network = nn.Sequential(nn.Linear(6, 8)).double()
    y = network(x).detach()
    made = low_rank(
        network, x, rank=2, calibration_loader=[(x, torch.zeros(500, dtype=torch.int64))], latency=False
    ).network
    values = np.linalg.svd((y - y.mean(0)).numpy(), compute_uv=False)
    assert float((made(x) - y).detach().norm()) == pytest.approx(np.sqrt((values[2:] ** 2).sum()), rel=1e-6)
    torch.testing.assert_close(made(x).mean(0), y.mean(0))


def test_calibration_of_strided_groups() -> None:
    network = nn.Sequential(nn.Conv2d(8, 16, 1, stride=2, groups=2, bias=False), nn.Flatten(), nn.LazyLinear(3))
    x = torch.randn(6, 8, 5, 5)
    network(x)
    plain, aware = (
        low_rank(network, x, rank={"0": 2}, calibration_loader=c, latency=False).network for c in (None, [x])
    )
    errors = [float((made[0](x) - network[0](x)).detach().norm()) for made in (plain, aware)]
    assert errors[1] < errors[0]
    with pytest.raises(CalibrationError, match="0 gets NaN"):
        low_rank(network, x, rank=2, calibration_loader=[x * float("nan")], latency=False)


def test_types_and_frozen_layers_stay() -> None:
    network = Small().eval().to(torch.bfloat16)
    network.spatial.requires_grad_(False)
    made = low_rank(network, X.bfloat16(), rank=2, latency=False).network
    assert {p.dtype for p in made.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in made.spatial.parameters())
    assert all(p.requires_grad for p in made.linear.parameters())
    assert not made.spatial.training


def test_exits() -> None:
    torch.manual_seed(0)
    net = dynamic.wrap(CifarResNet(8).eval(), torch.randn(2, 3, 32, 32), exits=2)
    made = low_rank(net, torch.randn(2, 3, 32, 32), rank=4, latency=False)
    assert "backbone.layer1.0.conv1" in made.report.facts["ranks"]
    x = torch.randn(3, 3, 32, 32)
    whole = made.network.eval()(x)
    carry: tuple[Tensor, ...] = (x,)
    for stage, logits in zip(made.network.exit_stages, whole, strict=True):  # the stages see the thin layers too
        answer, *rest = stage(*carry)
        carry = tuple(rest)
        torch.testing.assert_close(answer, logits)
    assert not torch.allclose(whole[-1], net.eval()(x)[-1])
    made.network.train()(x)[-1].sum().backward()
    assert made.network.backbone.layer1[0].conv1[0].weight.grad is not None


def test_latency_and_accuracy_are_reported() -> None:
    told = low_rank(Small(), X, rank=3, eval_loader=[(X, torch.zeros(4, dtype=torch.int64))]).report
    assert told.before.latency_ms is not None
    assert told.after.latency_ms is not None
    assert told.after.accuracy is not None


def tiny(name: str) -> nn.Module:
    """torchvision's networks, the large ones with fewer and thinner layers."""
    torch.manual_seed(0)
    if name == "convnext":
        return ConvNeXt([CNBlockConfig(16, 32, 1), CNBlockConfig(32, None, 1)], num_classes=7)
    if name == "swin":
        return SwinTransformer([4, 4], 16, [1, 1], [2, 4], [4, 4], num_classes=7)
    if name == "vit":
        return VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=7)
    return {"resnet18": resnet18, "mobilenet": mobilenet_v3_small}[name](weights=None, num_classes=7)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet", "convnext", "swin", "vit"])
def test_torchvision(name: str) -> None:
    network, x = tiny(name).eval(), torch.randn(2, 3, 32, 32)
    skip = ["layer3", "layer4"] if name == "resnet18" else []  # decompositions of large matrices take seconds
    made = low_rank(network, x, rank=0.3, skip=skip, latency=False)
    told = made.report
    assert made.network(x).shape == (2, 7)
    assert told.facts["ranks"]
    assert told.after.macs < told.before.macs
    layers = (nn.Linear, nn.Conv2d)
    assert len(told.facts["ranks"]) + len(told.left_alone) == sum(isinstance(m, layers) for m in network.modules())
    if name == "swin":  # attention reads these weights itself
        assert "never called" in told.left_alone["features.1.0.attn.qkv"]
