"""Heads trained on what the frozen backbone computes anew: as by hand, as from the cache, and the same after a stop."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.networks.fitting_networks import ExitNet, WholeHead, digits, digits_loader, fit
from torch import Tensor, nn
from torch.nn import functional as F

import dynamic
from dynamic.models import CifarResNet, ConvHead
from dynamic.offline.training.fit_report import FitReport
from dynamic.policies.errors import BundleError, InputError, SettingError, WrapError

PLAIN: dict[str, Any] = {"optimizer": "sgd", "lr": 0.1, "autocast": False, "channels_last": False, "progress": False}


def fitted(network: nn.Module, loader: Any, **options: Any) -> FitReport:
    return fit(network, loader, cache=False, **(PLAIN | options))


def weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Moving:
    """Two batches a pass, other ones in each pass, as augmentation gives; or an interrupt in the pass `stop`."""

    def __init__(self, stop: int | None = None) -> None:
        self.passes, self.stop = 0, stop

    def __len__(self) -> int:
        return 2

    def batches(self, number: int) -> list[tuple[Tensor, Tensor]]:
        x, y, _, _ = digits()
        rows = torch.arange(120) + 120 * number
        return list(zip(x[rows].split(60), y[rows].split(60), strict=True))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.passes += 1
        first, second = self.batches(self.passes - 1)
        yield first
        if self.passes == self.stop:
            raise KeyboardInterrupt
        yield second


def test_as_by_hand_on_data_that_differ_in_every_epoch() -> None:
    network, other, loader, epochs = ExitNet(), ExitNet(), Moving(), 3
    report = fitted(network, loader, epochs=epochs, weight_decay=0.0)
    assert loader.passes == epochs
    net = other.backbone.eval()
    optimizer = torch.optim.SGD(other.heads.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    losses: list[list[float]] = []
    for epoch in range(epochs):
        sums = torch.zeros(2)
        for step, (x, y) in enumerate(loader.batches(epoch)):
            optimizer.param_groups[0]["lr"] = 0.1 * (1 + math.cos(math.pi * (epoch + step / 2) / epochs)) / 2
            with torch.no_grad():
                first = net.layer1(torch.relu(net.bn1(net.conv1(x))))
                second = net.layer2(first)
            each = torch.stack([F.cross_entropy(other.heads[i](f), y) for i, f in enumerate((first, second))])
            optimizer.zero_grad()
            each.sum().backward()
            optimizer.step()
            sums += each.detach() / 2
        losses.append(sums.tolist())
    for found, wanted in zip(report.history_loss, losses, strict=True):
        assert found == pytest.approx(wanted, rel=1e-4)
    for name, wanted_tensor in other.heads.state_dict().items():
        torch.testing.assert_close(network.heads.state_dict()[name], wanted_tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head", [None, WholeHead])
def test_as_from_the_cache_where_the_loader_gives_one_batch(head: Any) -> None:
    x, y, _, _ = digits()
    kept, seen = (ExitNet() if head is None else ExitNet(head) for _ in range(2))
    one = fit(kept, [(x[:200], y[:200])], epochs=4, batch_size=200, **PLAIN)
    other = fitted(seen, [(x[:200], y[:200])], epochs=4)
    assert one.features_mb > 0
    assert other.features_mb == 0
    assert not other.features_on_disk
    assert one.exits == other.exits
    for found, wanted in zip(other.history_loss, one.history_loss, strict=True):
        assert found == pytest.approx(wanted, rel=1e-4)
    for name, tensor in kept.state_dict().items():
        torch.testing.assert_close(seen.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)
    assert not same(weights(seen), weights(ExitNet() if head is None else ExitNet(head)))


def test_nothing_but_the_heads_is_touched() -> None:
    network = ExitNet().train()
    network.backbone.layer2.eval()  # a mixed state has to come back as it was
    before, modes = weights(network), [m.training for m in network.modules()]
    state = torch.get_rng_state()
    fitted(network, digits_loader(count=300), epochs=2, autocast=True, channels_last=True)
    after = weights(network)
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in network.modules()] == modes
    assert {n for n in before if not torch.equal(before[n], after[n])} == {n for n in before if n.startswith("heads.")}
    assert int(after["heads.0.norm.num_batches_tracked"]) == 6  # the steps, and no look at the network beside them
    assert all(p.grad is None for p in network.parameters())
    assert network.backbone.layer1[0].conv1.weight.is_contiguous()


def test_interrupted_and_resumed_ends_with_the_same_weights(tmp_path: Path) -> None:
    def images() -> Any:
        return digits_loader(count=300)  # shuffled: each epoch's order is drawn from the seed

    class Interrupted:
        passes = 0

        def __iter__(self) -> Any:
            self.passes += 1
            if self.passes == 3:
                raise KeyboardInterrupt
            return iter(images())

        def __len__(self) -> int:
            return 3

    path, options = tmp_path / "run.safetensors", {"epochs": 4, "seed": 3, "optimizer": "adamw", "lr": 0.01}
    whole = ExitNet()
    fitted(whole, images(), **options)
    with pytest.raises(KeyboardInterrupt):
        fitted(ExitNet(), Interrupted(), checkpoint=path, **options)
    resumed = ExitNet()
    report = fitted(resumed, images(), checkpoint=path, **options)
    assert report.resumed == 2
    assert same(weights(whole), weights(resumed))
    with pytest.raises(BundleError, match="order of the data=not cached"):
        fit(ExitNet(), images(), checkpoint=path, **(PLAIN | options))
    with pytest.raises(BundleError, match="backbone weights="):
        fitted(ExitNet(seed=1), images(), checkpoint=path, **options)


def test_heads_on_large_features_of_a_wrapped_network() -> None:
    torch.manual_seed(0)
    x = digits()[0]
    network = dynamic.wrap(CifarResNet(8, in_channels=1, width=8), x[:2], exits=["layer1", "layer2"], head=ConvHead)
    network.heads[0].requires_grad_(False)  # stays; what is behind it is still given the right feature
    before = weights(network)
    report = fitted(network, digits_loader(), epochs=4)
    assert report.exits == ("layer2",)
    assert report.accuracy[-1] > 0.5
    changed = {n for n in before if not torch.equal(before[n], network.state_dict()[n])}
    assert all(n.startswith("heads.1.") for n in changed)


def test_settings_and_loaders_that_do_not_fit() -> None:
    with pytest.raises(SettingError, match="batch_size=64 is for cached features"):
        fitted(ExitNet(), digits_loader(count=200), batch_size=64)
    with pytest.raises(InputError, match="is an iterator"):
        fitted(ExitNet(), iter(digits_loader(count=200)))
    with pytest.raises(WrapError, match="no exit head"):
        fitted(ExitNet().requires_grad_(False), digits_loader(count=200))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x, y: [], "gave no batch"),
        (lambda x, y: [x], "without labels"),
        (lambda x, y: [(x, y + 1)], "labels run from 1 to 10. The network has 10 classes"),
        (lambda x, y: [(x, y), (x, y + 1)], "labels run from 1 to 10. The network has 10 classes"),
        (lambda x, y: [(x, y - 1)], "labels run from -1 to 8"),
        (lambda x, y: [(x, y[:-1])], "20 inputs and 19 labels"),
        (lambda x, y: [(x * float("nan"), y)], "inputs hold NaN"),
    ],
)
def test_data_that_do_not_fit(spoil: Any, message: str) -> None:
    x, y, _, _ = digits()
    network = ExitNet()
    with pytest.raises(InputError, match=message):
        fitted(network, spoil(x[:20], y[:20]), epochs=1)
    assert all(p.grad is None for p in network.parameters())
