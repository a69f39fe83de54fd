"""Residual branches left out: which can go, which go first, and what is left."""

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

import dynamic
from dynamic.models import CifarResNet
from dynamic.models.compress.pruning.block_pruning import Branch, branches, prune_blocks
from dynamic.policies.errors import InputError, SettingError, TraceError, WrapError

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Adds(nn.Module):
    """x plus scale times x."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * x


class Inline(nn.Module):
    """Sums in the network's own code."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.first(x)
        return self.out(self.second(x) + x)


def chain() -> nn.Sequential:
    return nn.Sequential(Adds(0.5), Adds(0.1), Adds(3.0), nn.Linear(4, 2))


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (lambda: CifarResNet(20), ["layer1.0", "layer1.1", "layer1.2", "layer2.1", "layer2.2", "layer3.1", "layer3.2"]),
        (lambda: models.resnet18(), ["layer1.0", "layer1.1", "layer2.1", "layer3.1", "layer4.1"]),
        (
            lambda: models.mobilenet_v3_small(),
            [f"features.{i}" for i in (3, 5, 6, 8, 10, 11)],
        ),
        (
            lambda: models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=5),
            ["encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_1"],
        ),
        (
            lambda: models.SwinTransformer([2, 2], 16, [2, 2], [2, 4], [4, 4], num_classes=5),
            ["features.1.0", "features.1.1", "features.3.0", "features.3.1"],
        ),
    ],
    ids=["cifar", "resnet18", "mobilenet", "vit", "swin"],
)
def test_every_branch_is_found_and_really_goes(network, expected: list[str]) -> None:
    net = network().eval()
    found = branches(net, X)
    assert [b.name for b in found] == expected
    assert {b.instead for b in found} <= {"identity", "relu"}
    done = prune_blocks(net, X, count=expected[-1:], latency=False)
    gone = net.get_submodule(expected[-1])
    assert done.report.after.parameters == done.report.before.parameters - sum(p.numel() for p in gone.parameters())
    assert done.report.after.macs < done.report.before.macs
    assert not [name for name in done.network.state_dict() if name.startswith(f"{expected[-1]}.")]
    done.network.train()(X).sum().backward()  # it trains


def test_convnext_blocks() -> None:
    net = models.convnext.ConvNeXt(
        [models.convnext.CNBlockConfig(8, 16, 2), models.convnext.CNBlockConfig(16, None, 1)], num_classes=4
    ).eval()
    assert [b.name for b in branches(net, X)] == ["features.1.0", "features.1.1", "features.3.0"]
    assert prune_blocks(net, X, count=2, latency=False).network(X).shape == (2, 4)


def test_what_stands_instead_gives_what_the_sum_without_the_branch_gives() -> None:
    net = CifarResNet(8).eval()
    block = net.layer1[0]
    for parameter in block.bn2.parameters():
        nn.init.zeros_(parameter)  # the branch adds nothing: leaving it out changes nothing
    done = prune_blocks(net, X, count=["layer1.0"], latency=False)
    assert torch.equal(done.network(X), net(X))
    assert type(done.network.layer1[0]) is nn.Identity
    assert net.layer1[0] is block


def test_a_rectifier_after_the_sum_stays_where_the_stream_is_not_rectified() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branch = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.branch(x) + x)

    net = nn.Sequential(Block(), Block())
    x = torch.randn(3, 4)
    assert branches(net, x) == [Branch("0", "relu"), Branch("1", "identity")]
    done = prune_blocks(net, x, count=2, latency=False)
    assert torch.equal(done.network(x), x.relu())


def test_a_sum_in_the_networks_own_code() -> None:
    net = Inline().eval()
    x = torch.randn(3, 4)
    assert branches(net, x) == [Branch("first", "zero"), Branch("second", "zero")]
    done = prune_blocks(net, x, count=["second"], latency=False)
    assert torch.allclose(done.network(x), net.out(x + net.first(x)))


def test_norm_leaves_out_what_changes_least() -> None:
    done = prune_blocks(chain(), torch.ones(2, 4), count=2, latency=False)
    assert list(done.report.facts["removed"]) == ["1", "0"]
    assert done.report.facts["costs"] == pytest.approx({"0": 0.5, "1": 0.1, "2": 3.0})


def test_loss_leaves_out_what_is_missed_least_one_after_another() -> None:
    net = nn.Sequential(Adds(0.5), Adds(-0.5), Adds(-2.0), nn.Linear(4, 2))  # factors 1.5, 0.5, -1
    with torch.no_grad():
        net[3].weight.copy_(torch.tensor([[1.0] * 4, [-1.0] * 4]))
        net[3].bias.zero_()
    data = [(torch.ones(2, 4), torch.tensor([0, 0]))]
    # logits 4 f and -4 f with f = -0.75: the loss is softplus(-8 f). Without -1 f is 0.75, then without 0.5 it is 1.5
    soft = nn.functional.softplus
    done = prune_blocks(net, torch.ones(2, 4), count=2, selection_loader=data, eval_loader=data, latency=False)
    assert list(done.report.facts["removed"]) == ["2", "1"]
    whole = soft(torch.tensor(6.0))
    assert done.report.facts["costs"] == pytest.approx(
        {"2": float(soft(torch.tensor(-6.0)) - whole), "1": float(soft(torch.tensor(-12.0)) - whole)}, abs=1e-5
    )
    assert done.report.after.accuracy == 1.0
    assert done.report.before.accuracy == 0.0
    other = [(-torch.ones(2, 4), torch.tensor([0, 0]))]  # the other way round; what scores is not what is reported
    for given, before, after in (({}, None, None), ({"eval_loader": other}, 1.0, 0.0)):
        found = prune_blocks(net, torch.ones(2, 4), count=2, selection_loader=data, latency=False, **given).report
        assert list(found.facts["removed"]) == ["2", "1"]
        assert (found.before.accuracy, found.after.accuracy) == (before, after)


def test_skip_keeps_modules() -> None:
    done = prune_blocks(chain(), torch.ones(2, 4), count=1, skip=["1"], latency=False)
    assert list(done.report.facts["removed"]) == ["0"]
    assert done.report.left_alone == {"1": "in skip"}


def test_it_can_be_wrapped_and_trained() -> None:
    done = prune_blocks(CifarResNet(14), X, count=2, latency=False)
    net = dynamic.wrap(done.network, X, exits=1)
    dynamic.fit(net, [(X, torch.tensor([0, 1]))], mode="joint", epochs=1)
    assert len(net(X)) == 2


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.out = Adds(0.5), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.block(self.block(x)))


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x) if x.sum() > 0 else self.out(-x)


def test_errors() -> None:
    x = torch.ones(2, 4)
    with pytest.raises(SettingError, match="3 branches can go"):
        prune_blocks(chain(), x, count=4)
    with pytest.raises(SettingError, match="count=0"):
        prune_blocks(chain(), x, count=0)
    with pytest.raises(SettingError, match="cannot go"):
        prune_blocks(chain(), x, count=["3"])
    with pytest.raises(InputError, match="no such modules"):
        prune_blocks(chain(), x, count=1, skip=["nowhere"])
    with pytest.raises(SettingError, match="importance='age'"):
        prune_blocks(chain(), x, count=1, importance="age")
    with pytest.raises(SettingError, match="give selection_loader="):
        prune_blocks(chain(), x, count=1, importance="loss")
    with pytest.raises(InputError, match="no batch"):
        prune_blocks(chain(), x, count=1, selection_loader=[])
    with pytest.raises(WrapError, match="no residual branch"):
        prune_blocks(nn.Sequential(nn.Linear(4, 2)), x, count=1)
    with pytest.raises(WrapError, match="no residual branch"):
        prune_blocks(Twice(), x, count=1)  # runs twice: not one branch
    with pytest.raises(TraceError, match="cannot trace"):
        prune_blocks(Branching(), x, count=1)
    with pytest.raises(WrapError, match="prune its backbone"):
        prune_blocks(dynamic.wrap(CifarResNet(8), X, exits=1), X, count=1)


def test_arguments_with_defaults() -> None:
    class Optional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = chain()

        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            return self.body(x if mask is None else x * mask)

    done = prune_blocks(Optional(), torch.ones(2, 4), count=1, latency=False)
    assert list(done.report.facts["removed"]) == ["body.1"]
