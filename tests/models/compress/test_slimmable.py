"""Slimmable networks: what is shared, what each width computes, and their training."""

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import VisionTransformer, mobilenet_v3_small, resnet18

import dynamic
from dynamic.models import CifarResNet
from dynamic.models.compress.report import measure
from dynamic.models.compress.slimmable import SlimConv2d, Slimmable, slimmable
from dynamic.policies.errors import InputError, SettingError, WrapError

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
WIDTHS = (0.25, 0.5, 1.0)


def small() -> nn.Sequential:
    """Convolutions (one depthwise), batch norm, and a linear layer behind a flattened picture."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
        nn.Conv2d(8, 12, 1),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(48, 5),
    )


def trained_norms(net: Slimmable) -> Slimmable:
    """With statistics of each width's own."""
    net.train()
    with torch.no_grad():
        for scale in (1.0, 2.0):
            net(scale * X)
    return net


def test_each_width_by_hand() -> None:
    network = small().eval()
    net = slimmable(network, X, widths=WIDTHS).eval()
    narrow, half, full = net(X)
    assert torch.equal(full, network(X))
    for share, logits in ((0.25, narrow), (0.5, half)):
        a, b = int(8 * share), int(12 * share)
        w = {name: p.detach() for name, p in network.named_parameters()}
        y = F.conv2d(X, w["0.weight"][:a], w["0.bias"][:a], padding=1)
        y = F.relu(y / (1 + 1e-5) ** 0.5)  # fresh norms: mean 0, variance 1
        y = F.conv2d(y, w["3.weight"][:a], padding=1, groups=a)
        y = F.conv2d(y, w["4.weight"][:b, :a], w["4.bias"][:b])
        y = F.adaptive_avg_pool2d(y, 2).flatten(1)
        y = F.linear(y, w["7.weight"][:, : 4 * b], w["7.bias"])  # all classes, four pixels a channel
        torch.testing.assert_close(logits, y)


def test_sharing_is_counted_once() -> None:
    network = small()
    net = slimmable(network, X, widths=WIDTHS)
    own = sum(p.numel() for p in network.parameters())
    assert sum(p.numel() for p in net.parameters()) == own + 2 * (2 + 4)  # norms of 2 and 4 channels
    assert net.at(0.25)[0].weight is net.at(1.0)[0].weight
    assert net.at(0.25)[0].weight is not network[0].weight
    assert net.at(0.25)[1].weight is not net.at(0.5)[1].weight


@pytest.mark.parametrize("kind", ["small", "cifar", "factory", "resnet18", "mobilenet"])
def test_extracted_is_the_shared_bit_for_bit(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    x = X if kind == "small" else torch.randn(4, 3, 32, 32)
    made = {
        "small": small,
        "cifar": lambda: CifarResNet(8, width=8),
        "factory": lambda: lambda width: CifarResNet(8, width=int(8 * width)),
        "resnet18": lambda: resnet18(weights=None, num_classes=7),
        "mobilenet": lambda: mobilenet_v3_small(weights=None, num_classes=7),
    }[kind]()
    net = slimmable(made, x, widths=(0.5, 1.0))
    net.train()
    with torch.no_grad():
        net(x)
    net.eval()
    for width, logits in zip(net.widths, net(x), strict=True):
        plain = net.extract(width)
        assert not any(type(m).__name__.startswith("Slim") for m in plain.modules())
        assert torch.equal(plain(x), logits)
        shared = {p.data_ptr() for p in net.parameters()}
        assert not any(p.data_ptr() in shared for p in plain.parameters())
    sizes = [sum(p.numel() for p in net.extract(w).parameters()) for w in net.widths]
    assert sizes[0] < 0.5 * sizes[1]


def test_extracted_cifar_resnet_is_one_of_that_width() -> None:
    x = torch.randn(2, 3, 32, 32)
    plain = slimmable(CifarResNet(14, width=16), x, widths=(0.5, 1.0)).extract(0.5).eval()
    other = CifarResNet(14, width=8).eval()
    other.load_state_dict(plain.state_dict())
    assert torch.equal(other(x), plain(x))


def test_channels_are_rounded() -> None:
    net = slimmable(
        nn.Sequential(nn.Conv2d(3, 24, 1), nn.Flatten(), nn.Linear(24 * 64, 5)), X, widths=(0.1, 0.5, 1.0), round_to=8
    )
    assert [net.at(w)[0].out_channels for w in net.widths] == [8, 16, 24]  # 2.4 -> 8, 12 -> 16
    assert [net.at(w)[2].out_features for w in net.widths] == [5, 5, 5]


def test_groups_stay_whole() -> None:
    def network() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 3, groups=2), nn.Flatten(), nn.Linear(16 * 36, 5))

    net = slimmable(network(), X, widths=(0.5, 1.0))
    assert (net.at(0.5)[1].groups, net.at(0.5)[1].in_channels, net.at(0.5)[1].out_channels) == (1, 4, 8)
    with pytest.raises(WrapError, match="1 has groups of 4 channels and would get 2"):
        slimmable(network(), X, widths=(0.25, 1.0))


def test_gradient_is_that_of_the_sum() -> None:
    net = trained_norms(slimmable(small(), X, widths=WIDTHS))
    labels = torch.tensor([0, 1, 2, 3])
    twin = copy.deepcopy(net)
    sum(F.cross_entropy(logits, labels) for logits in twin(X)).backward()
    before = net.at(1.0)[0].weight.detach().clone()
    expected = before - 0.1 * 1.9 * twin.at(1.0)[0].weight.grad  # the first step of Nesterov's momentum of 0.9
    training = dataclasses.replace(net.summed, weight_decay=0.0, autocast=False, channels_last=False)
    dynamic.fit(net, [(X, labels)], mode="joint", epochs=1, lr=0.1, training=training, progress=False)
    torch.testing.assert_close(net.at(0.25)[0].weight.detach(), expected)


def test_training_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    labels = torch.tensor([0, 1, 2, 3])
    batches = [(X, labels), (2 * X, labels)]

    def fitted(name: str, epochs: int, stop: int | None = None) -> Slimmable:
        net = slimmable(small(), X, widths=WIDTHS)
        seen = iter(range(10))

        class Killed(list):  # type: ignore[type-arg]
            def __iter__(self):  # type: ignore[no-untyped-def]
                if stop is not None and next(seen) > stop:
                    raise KeyboardInterrupt
                return super().__iter__()

        options = {"mode": "distill", "epochs": epochs, "lr": 0.02, "checkpoint": tmp_path / name, "progress": False}
        try:
            dynamic.fit(net, Killed(batches), training=net.summed, **options)
        except KeyboardInterrupt:
            return fitted(name, epochs)
        return net

    whole, resumed = fitted("a", 3), fitted("b", 3, stop=2)
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    )
    assert resumed.at(0.25)[0].weight is resumed.at(1.0)[0].weight


def test_stages_of_a_cascade() -> None:
    net = trained_norms(slimmable(small(), X, widths=WIDTHS)).eval()
    carry: tuple[Tensor, ...] = (X,)
    for stage, logits in zip(net.exit_stages, net(X), strict=True):
        answer, *rest = stage(*carry)
        carry = tuple(rest)
        assert torch.equal(answer, logits)
    assert [stage.name for stage in net.exit_stages] == ["width 0.25", "width 0.5", "width 1"]
    (measured,) = measure([slimmable(small(), X, widths=(0.5, 1.0))], X)  # exports it
    assert measured.latency_ms is not None


def test_copies_and_weights_stay_shared(tmp_path: Path) -> None:
    net = copy.deepcopy(slimmable(small(), X, widths=WIDTHS)).double().float()
    assert isinstance(net.at(0.25)[0], SlimConv2d)
    assert net.at(0.25)[0].weight is net.at(1.0)[0].weight
    dynamic.models.save_weights(net, tmp_path / "it.safetensors")
    other = slimmable(nn.Sequential(*small()).apply(lambda m: getattr(m, "reset_parameters", int)()), X, widths=WIDTHS)
    dynamic.models.load_weights(other, tmp_path / "it.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(net.eval()(X), other.eval()(X), strict=True))


def test_the_network_is_not_touched() -> None:
    network = small().train()
    before = copy.deepcopy(network.state_dict())
    slimmable(network, X, widths=WIDTHS)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert network.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


@pytest.mark.parametrize(
    "widths", [(), (0.5,), (0.0, 1.0), (-0.5, 1.0), (0.5, 2.0), (1.0, 0.5), (0.5, 0.5, 1.0), (float("nan"), 1.0)]
)
def test_bad_widths(widths: tuple[float, ...]) -> None:
    with pytest.raises(SettingError, match="widths="):
        slimmable(small(), X, widths=widths)


def test_bad_input() -> None:
    with pytest.raises(SettingError, match="round_to=0"):
        slimmable(small(), X, round_to=0)
    with pytest.raises(InputError, match="does not take example inputs"):
        slimmable(small(), X[:, :2])
    with pytest.raises(SettingError, match=r"width 0.3 is none of \(0.25, 0.5, 1.0\)"):
        slimmable(small(), X, widths=WIDTHS).at(0.3)
    with pytest.raises(WrapError, match="has exits"):
        slimmable(slimmable(small(), X, widths=WIDTHS), X)
    with pytest.raises(InputError, match=r"logits \[B, C\] are needed"):
        slimmable(nn.Conv2d(3, 4, 1), X)


def test_layers_that_cannot_be_narrowed_are_named() -> None:
    with pytest.raises(WrapError, match=r"ln_1 \(LayerNorm\)"):
        slimmable(VisionTransformer(32, 16, 1, 2, 16, 16), torch.randn(1, 3, 32, 32))
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Unflatten(1, (8, 1)), nn.Flatten(), nn.Linear(512, 5))
    with pytest.raises(WrapError, match=r"does not run at width 0\.5"):
        slimmable(network, X, widths=(0.5, 1.0))


def test_factories_that_do_not_correspond() -> None:
    with pytest.raises(WrapError, match="conv1 has weights"):
        slimmable(
            lambda width: CifarResNet(8, width=8 if width == 1 else 16), torch.randn(2, 3, 32, 32), widths=(0.5, 1.0)
        )
    with pytest.raises(WrapError, match="gives 5 classes, at full width 10"):
        slimmable(lambda width: CifarResNet(8, 10 if width == 1 else 5), torch.randn(2, 3, 32, 32), widths=(0.5, 1.0))
