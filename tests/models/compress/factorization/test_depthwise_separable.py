"""Depthwise separable layers: separable originals come back, and errors are the singular values dropped."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import mobilenet_v3_small, resnet18

import dynamic
from dynamic.models import CifarResNet
from dynamic.models.compress.factorization.depthwise_separable import separate, separate_convolution
from dynamic.policies.errors import InputError, SettingError

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def small() -> nn.Sequential:
    """A small first convolution, a wide one, one of 1x1, a depthwise one, and a linear layer."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
        nn.Conv2d(32, 32, 1),
        nn.Conv2d(32, 32, 3, groups=32),
        nn.Flatten(),
        nn.Linear(32 * 36, 5),
    )


CONVS = [
    nn.Conv2d(4, 6, 3),
    nn.Conv2d(4, 6, (3, 5), stride=(2, 1), padding=(1, 2), dilation=(1, 2), bias=False),
    nn.Conv2d(4, 8, 3, groups=2, padding="same"),
    nn.Conv2d(4, 6, 3, stride=2, padding=1, padding_mode="reflect"),
]


def separable_of(conv: nn.Conv2d) -> nn.Conv2d:
    """The same convolution with a weight p[o, i] d[i]."""
    made = copy.deepcopy(conv).double()
    generator = torch.Generator().manual_seed(3)
    groups, outs, each = conv.groups, conv.out_channels // conv.groups, conv.in_channels // conv.groups
    pointwise = torch.randn(groups, outs, each, 1, 1, generator=generator, dtype=torch.double)
    depthwise = torch.randn(groups, 1, each, *conv.kernel_size, generator=generator, dtype=torch.double)
    made.weight = nn.Parameter((pointwise * depthwise).reshape(conv.weight.shape))
    return made


@pytest.mark.parametrize("conv", CONVS, ids=str)
def test_a_separable_one_comes_back(conv: nn.Conv2d) -> None:
    conv = separable_of(conv)
    x = torch.randn(2, 4, 11, 12, dtype=torch.double)
    made, kept = separate_convolution(conv, 1)
    assert kept == pytest.approx(1)
    assert [part.groups for part in made] == [4, conv.groups]
    torch.testing.assert_close(made(x), conv(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("conv", CONVS, ids=str)
def test_full_rank_is_the_convolution(conv: nn.Conv2d) -> None:
    conv = copy.deepcopy(conv).double()
    x = torch.randn(2, 4, 11, 12, dtype=torch.double)
    made, kept = separate_convolution(conv, 100)
    assert kept == pytest.approx(1)
    torch.testing.assert_close(made(x), conv(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("rank", [1, 2])
def test_error_is_what_was_dropped(rank: int) -> None:
    conv = nn.Conv2d(2, 5, 3, padding=1, bias=False).double()
    dropped = total = 0.0
    for channel in conv.weight.detach().numpy().transpose(1, 0, 2, 3):
        values = np.linalg.svd(channel.reshape(5, 9), compute_uv=False)
        dropped, total = dropped + (values[rank:] ** 2).sum(), total + (values**2).sum()
    made, kept = separate_convolution(conv, rank)
    impulses = torch.zeros(2, 2, 5, 5, dtype=torch.double)  # the answers are the kernels
    impulses[0, 0, 2, 2] = impulses[1, 1, 2, 2] = 1
    error = (made(impulses) - conv(impulses)).detach()
    assert float(error.norm()) == pytest.approx(np.sqrt(dropped), rel=1e-9)
    assert kept == pytest.approx(1 - dropped / total, rel=1e-9)


def test_no_other_factors_are_nearer() -> None:
    # gradient descent on the factors from where they are finds nothing better
    conv = nn.Conv2d(3, 4, 3, bias=False).double()
    made, _ = separate_convolution(conv, 1)
    depthwise, pointwise = made[0].weight, made[1].weight
    product = pointwise.reshape(4, 3, 1, 1) * depthwise.reshape(1, 3, 3, 3)
    (product - conv.weight.detach()).square().sum().backward()
    assert float(depthwise.grad.abs().max()) < 1e-12
    assert float(pointwise.grad.abs().max()) < 1e-12


def test_network() -> None:
    network = small()
    before = copy.deepcopy(network.state_dict())
    made = separate(network, X, latency=False)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    told = made.report
    assert list(told.facts["kept"]) == ["0", "2"]
    assert "1.11 of its multiply-adds" in told.left_alone["4"]  # (9 + 1) / 9
    assert "2.00 of its multiply-adds" not in told.left_alone["3"]
    # by hand: 16x16 pixels of 3 depthwise and 3 to 16; 8x8 of 16 depthwise and 16 to 32; the rest as it was
    rest = 64 * 32 * 32 + 36 * 32 * 9 + 32 * 36 * 5
    assert told.before.macs == 256 * 27 * 16 + 64 * 144 * 32 + rest
    assert told.after.macs == 256 * (27 + 48) + 64 * (144 + 512) + rest
    assert torch.equal(made.network[0][1].bias, network[0].bias)


def test_rank_layers_and_skip() -> None:
    kept = [separate(small(), X, rank=r, layers=["2"], latency=False).report.facts["kept"]["2"] for r in (1, 2, 3)]
    assert kept == sorted(set(kept))
    made = separate(small(), X, layers=["2"], latency=False)
    assert made.report.left_alone == {}
    made = separate(small(), X, skip=["2"], latency=False)
    assert made.report.left_alone["2"] == "in skip"
    assert list(made.report.facts["kept"]) == ["0"]


def test_shared_weights_stay_shared() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1))
    network.append(network[1])
    network[2].weight = network[1].weight
    network.extend([nn.Flatten(), nn.Linear(8 * 256, 5)])
    made = separate(network, X, latency=False)
    assert made.network[1].weight is made.network[2].weight
    assert made.report.left_alone["1"] == "its weights are also 2.weight's"
    network[2].weight = nn.Parameter(network[1].weight.detach().clone())
    made = separate(network, X, latency=False)
    assert made.network[1] is made.network[3]
    assert made.network(X).shape == (2, 5)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"rank": 0}, SettingError, "rank=0"),
        ({"rank": 1.0}, SettingError, "rank=1.0"),
        ({"rank": True}, SettingError, "rank=True"),
        ({"skip": ["9"]}, InputError, "'9' is no module"),
        ({"layers": "2"}, InputError, "is a string"),
        ({"layers": ["6"]}, InputError, "'6' is no convolution and holds none"),
    ],
)
def test_bad_settings(options: dict[str, object], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        separate(small(), X, latency=False, **options)


def test_bad_inputs_and_weights() -> None:
    with pytest.raises(InputError, match="does not take example inputs"):
        separate(small(), X[:, :2], latency=False)
    network = small()
    network[2].weight.data[0, 0, 0, 0] = float("inf")
    with pytest.raises(InputError, match="the weights of 2 hold NaN or infinity"):
        separate(network, X, latency=False)


@pytest.mark.parametrize("make", [resnet18, mobilenet_v3_small])
def test_torchvision(make: type[nn.Module]) -> None:
    torch.manual_seed(0)
    network, x = make(weights=None, num_classes=7).eval(), torch.randn(2, 3, 32, 32)
    made = separate(network, x, latency=False)
    assert made.network(x).shape == (2, 7)
    assert made.report.after.macs < made.report.before.macs
    counted = len(made.report.facts["kept"]) + len(made.report.left_alone)
    assert counted == sum(isinstance(m, nn.Conv2d) for m in network.modules())


def test_exits_and_fine_tuning() -> None:
    torch.manual_seed(0)
    x, labels = torch.randn(8, 3, 16, 16), torch.arange(8)
    network = CifarResNet(8)
    dynamic.fit(network, [(x, labels)], mode="joint", epochs=3, progress=False)
    made = separate(network, x, latency=False).network
    first = dynamic.fit(
        made,
        [(x, labels)],
        mode="distill",
        epochs=8,
        lr=0.01,
        distillation=dynamic.DistillationConfig(teacher=network),
        progress=False,
    )
    assert first.history_loss[-1][0] < first.history_loss[0][0]
    net = dynamic.wrap(network.eval(), x, exits=1)
    wrapped = separate(net, x, latency=False).network.eval()
    carry: tuple[Tensor, ...] = (x,)
    for stage, logits in zip(wrapped.exit_stages, wrapped(x), strict=True):
        answer, *rest = stage(*carry)
        carry = tuple(rest)
        torch.testing.assert_close(answer, logits)
    torch.testing.assert_close(wrapped(x)[-1], separate(network, x, latency=False).network.eval()(x))
