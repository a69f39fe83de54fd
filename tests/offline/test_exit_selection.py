"""Exits that pay are kept, the others go; what stays answers as before."""

from typing import Any

import pytest
import torch
from support.networks.dynamic_sizes import Convolutions, image_shapes
from torch import Tensor, nn
from torch.export import Dim

import dynamic
from dynamic.engines.inputs.dimensions import DimRange
from dynamic.models import BlockHead, CifarResNet, ConvHead
from dynamic.offline.exit_selection import keep_exits, select_exits
from dynamic.offline.tracing.exit_heads import ExitHead
from dynamic.policies.errors import ExitError, InputError, LayoutError

HEIGHT, WIDTH = DimRange("height", 1, 64), DimRange("width", 1, 64)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Sequential(nn.Conv2d(3 if i == 0 else 8, 8, 3, padding=1), nn.ReLU()) for i in range(4)),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Linear(8, 4),
    ).eval()


def test_what_is_kept_answers_as_before() -> None:
    net = dynamic.wrap(network(), torch.randn(2, 3, 16, 16), exits=["0", "1", "2"]).eval()
    fewer = keep_exits(net, torch.randn(2, 3, 16, 16), names=["2", "0"])
    assert [e.name for e in fewer.exits] == ["0", "2"]
    assert fewer.heads[1] is net.heads[2]
    x = torch.randn(5, 3, 16, 16)
    with torch.no_grad():
        before, after = net(x), fewer(x)
    for old, new in zip((before[0], before[2], before[3]), after, strict=True):
        assert torch.equal(old, new)


def test_dynamic_dimensions_remain() -> None:
    backbone, images = Convolutions().eval(), torch.randn(2, 3, 12, 10)
    net = dynamic.wrap(backbone, images, exits=["stem", "block"], dynamic_shapes=image_shapes()).eval()
    fewer = keep_exits(net, images, names=["block"])
    assert fewer.traced_sizes.ranges == net.traced_sizes.ranges == ((None, HEIGHT, WIDTH),)
    for size in ((1, 1), (64, 5), (20, 28)):
        x = torch.randn(2, 3, *size)
        with torch.no_grad():
            for old, new in zip(net(x)[1:], fewer(x), strict=True):
                assert torch.equal(old, new)
    with pytest.raises(InputError, match="65 is beyond the limit of 64"):
        fewer(torch.randn(1, 3, 65, 8))


class Counted(nn.Module):
    """Has its length as a number in the graph of torch.fx, and not in that of torch.export."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        features = torch.relu(self.one(x))
        return self.two(features.sum(1) / length(x))  # type: ignore[no-any-return]


def length(x: Tensor) -> Any:
    return x.shape[1] if isinstance(x.shape, torch.Size) else 12


def test_heads_are_there_for_the_second_tracer_too() -> None:
    torch.manual_seed(0)
    x, shapes = torch.randn(2, 12, 4), ({1: Dim("n", min=2, max=40)},)
    net = dynamic.wrap(Counted().eval(), x, exits=["one"], dynamic_shapes=shapes).eval()
    fewer = keep_exits(net, x, names=["one"])
    assert fewer.heads[0] is net.heads[0]


@pytest.mark.parametrize("names", [[], ["9"]])
def test_exits_that_are_not_there(names: list[str]) -> None:
    net = dynamic.wrap(network(), torch.randn(2, 3, 16, 16), exits=["1"])
    with pytest.raises(ExitError, match=r"The network has \['1'\]"):
        keep_exits(net, torch.randn(2, 3, 16, 16), names=names)


class Knows(nn.Module):
    """A head that reads the answer off the feature's first pixel; unless `all_sure`, it knows even ones alone."""

    def __init__(self, all_sure: bool) -> None:
        super().__init__()
        self.all_sure = all_sure

    def forward(self, feature: Tensor) -> Tensor:
        label = feature[:, 0, 0, 0].long()
        sure = torch.ones(len(label)) if self.all_sure else (label % 2 == 0).float()
        said = torch.where(sure > 0, label, (label + 1) % 4)
        return nn.functional.one_hot(said, 4).float() * (0.1 + 8 * sure[:, None])


class Echo(nn.Module):
    """Hands the image on, at a price; its logits say the label that is written in the image."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 1, 1, bias=False), nn.Conv2d(1, 1, 1, bias=False)
        self.third = nn.Conv2d(1, 1, 5, padding=2, bias=False)
        for conv in (self.first, self.second):
            nn.init.ones_(conv.weight)
        nn.init.dirac_(self.third.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.third(self.second(self.first(x)))
        return 9 * torch.exp(-((x[:, 0, 0, :1] - torch.arange(4.0)) ** 2) * 8)


def test_an_exit_that_adds_nothing_is_removed() -> None:
    labels = torch.arange(40) % 4
    images = labels.float()[:, None, None, None].expand(40, 1, 4, 4).contiguous()
    heads = iter([Knows(all_sure=False), Knows(all_sure=False)])
    net = dynamic.wrap(Echo(), images[:2], exits=["first", "second"], head=lambda *_: next(heads)).eval()
    found = select_exits(net, images[:2], selection_loader=[(images, labels)], max_drops=(0.0,), progress=False)
    # the second exit is sure of the very inputs that the first has let go
    assert [e.name for e in found.network.exits] == ["first"]
    assert [step.exit for step in found.choice.removals] == ["network@second"]
    assert str(found).startswith("network@second removed: a request costs ")
    assert "exits: network@first. A request costs " in str(found)


def test_where_no_exit_pays_this_is_said() -> None:
    labels = torch.arange(40) % 4
    images = labels.float()[:, None, None, None].expand(40, 1, 4, 4).contiguous()
    net = dynamic.wrap(Echo(), images[:2], exits=["first"], head=lambda *_: Knows(all_sure=False)).eval()
    with pytest.raises(ExitError, match="Use the plain network"):
        select_exits(
            net, images[:2], selection_loader=[(images, labels)], max_drops=(0.0,), exit_cost=1e9, progress=False
        )


@pytest.mark.parametrize(
    ("shape", "channel", "layers", "width"),
    [((16, 32, 32), 1, 2, 64), ((32, 16, 16), 1, 1, 64), ((64, 8, 8), 1, 1, 64), ((32, 32, 16), 3, 2, 64)],
)
def test_conv_heads_by_shape(shape: Any, channel: int, layers: int, width: int) -> None:
    head = ConvHead(shape, channel, 10).eval()
    convolutions = [m for m in head.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == layers
    assert head.classifier.in_features == width
    with torch.no_grad():
        found = head(torch.randn(3, *shape))
        image = torch.randn(3, *shape)
        # an independent way: the same layers one by one, channels first
        x = image if channel == 1 else image.permute(0, 3, 1, 2)
        by_hand = head.classifier(nn.functional.adaptive_avg_pool2d(head.features(x), 1).flatten(1))
        assert torch.allclose(head(image), by_hand, atol=1e-6)
    assert found.shape == (3, 10)


@pytest.mark.parametrize(("shape", "strides"), [((16, 32, 32), [2, 2]), ((32, 16, 16), [2]), ((64, 8, 8), [1])])
def test_conv_heads_with_extra_convolutions(shape: Any, strides: list[int]) -> None:
    plain, longer = (ConvHead(shape, 1, 10, extra=extra) for extra in (0, 2))
    kinds = [[type(m) for m in head.features] for head in (plain, longer)]
    assert kinds[0] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU] * len(strides)
    assert kinds[1] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU] * (len(strides) + 2)
    convolutions = [m for m in longer.features if isinstance(m, nn.Conv2d)]
    assert [c.stride[0] for c in convolutions] == [*strides, 1, 1]
    for last in convolutions[-2:]:  # neither size nor width changes
        assert (last.in_channels, last.out_channels) == (64, 64)
    with torch.no_grad():
        assert longer.eval().features(torch.randn(1, *shape)).shape == (1, 64, 8, 8)
        assert longer(torch.randn(3, *shape)).shape == (3, 10)


def residual(channels: int, wider: int, stride: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, wider, 3, stride, 1), nn.BatchNorm2d(wider), nn.ReLU())


def test_block_heads_are_copies_that_learn_for_themselves() -> None:
    torch.manual_seed(0)
    first, second = residual(8, 16, 2).requires_grad_(False), residual(16, 16, 1)
    second.eval()
    before = [t.clone() for b in (first, second) for t in b.state_dict().values()]
    head = BlockHead([first, second], (8, 6, 6), 1, 10)
    assert head.classifier.in_features == 16
    assert all(m.training for m in head.modules())
    assert all(p.requires_grad for p in head.parameters())
    x = torch.randn(4, 8, 6, 6)
    with torch.no_grad():
        by_hand = head.classifier(nn.functional.adaptive_avg_pool2d(second.eval()(first.eval()(x)), 1).flatten(1))
        assert torch.allclose(head.eval()(x), by_hand, atol=1e-6)
    head.train()(x).sum().backward()
    torch.optim.SGD(head.parameters(), lr=1.0).step()
    after = [t for b in (first, second) for t in b.state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)), "the network is not touched"
    assert not first.training
    assert not second.training


def test_block_heads_on_tokens_and_without_blocks() -> None:
    layer = nn.TransformerEncoderLayer(12, 2, 24, batch_first=True).eval()
    tokens = torch.randn(3, 7, 12)
    for blocks in ([layer], []):
        head = BlockHead(blocks, (7, 12), 2, 5).eval()
        with torch.no_grad():
            by_hand = head.classifier((layer(tokens) if blocks else tokens).mean(1))
            assert torch.allclose(head(tokens), by_hand, atol=1e-5)
    assert BlockHead([], (12,), 1, 5)(torch.randn(3, 12)).shape == (3, 5)


@pytest.mark.parametrize(
    ("blocks", "says"),
    [
        ([residual(16, 16, 1)], r"block 0 of the head, Sequential, does not take \[1, 8, 6, 6\]"),
        ([residual(8, 16, 1), residual(8, 8, 1)], r"block 1 of the head, Sequential, does not take \[1, 16, 6, 6\]"),
        ([nn.Flatten()], "block 0 of the head, Flatten, gives no tensor of 4 dimensions"),
    ],
)
def test_blocks_that_do_not_follow_on_each_other_are_named(blocks: list[nn.Module], says: str) -> None:
    with pytest.raises(LayoutError, match=says):
        BlockHead(blocks, (8, 6, 6), 1, 10)


def test_wrapped_with_block_heads() -> None:
    backbone = CifarResNet(14, in_channels=3, width=4).eval()
    after = {"layer1": ["layer2.0", "layer3.0"], "layer2.0": ["layer3.0", "layer3.1"]}
    given = iter(after.values())  # heads are asked for in the order of the exits

    def head(shape: tuple[int, ...], channel: int, classes: int) -> nn.Module:
        return BlockHead([backbone.get_submodule(name) for name in next(given)], shape, channel, classes)

    x = torch.randn(2, 3, 16, 16)
    net = dynamic.wrap(backbone, x, exits=list(after), head=head).eval()
    with torch.no_grad():
        first, second, last = net(x)
        assert torch.equal(last, backbone(x))
        stem = torch.relu(backbone.bn1(backbone.conv1(x)))
        feature = backbone.layer3[0](backbone.layer2[0](backbone.layer1(stem)))
        assert torch.allclose(first, net.heads[0].classifier(feature.mean((2, 3))), atol=1e-5)
        feature = backbone.layer3[1](backbone.layer3[0](backbone.layer2[0](backbone.layer1(stem))))
        assert torch.allclose(second, net.heads[1].classifier(feature.mean((2, 3))), atol=1e-5)


def test_conv_heads_want_images() -> None:
    with pytest.raises(LayoutError, match="use ExitHead"):
        ConvHead((7, 64), 2, 10)


def test_a_head_and_a_classifier_exclude_each_other() -> None:
    with pytest.raises(ExitError, match="both classifier and head"):
        dynamic.wrap(
            network(), torch.randn(2, 3, 16, 16), exits=["1"], head=ConvHead, classifier=lambda w, c: nn.Linear(w, c)
        )


def test_wrapped_with_conv_heads_all_exits_train() -> None:
    net = dynamic.wrap(network(), torch.randn(2, 3, 16, 16), exits=["0", "2"], head=ConvHead)
    assert not any(isinstance(head, ExitHead) for head in net.heads)
    before = [p.detach().clone() for p in net.parameters()]
    data = [(torch.randn(16, 3, 16, 16), torch.randint(0, 4, (16,)))]
    dynamic.fit(net, data, mode="joint", epochs=1, progress=False)
    moved = [not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True)]
    assert sum(moved) > 0.9 * len(moved)
