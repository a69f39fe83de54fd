"""Lottery tickets: masks by hand, weights back where they began, and runs that go on."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support.networks.fitting_networks import digits_loader
from torch import Tensor, nn

import dynamic
from dynamic.models import CifarResNet
from dynamic.models.compress.pruning.lottery_ticket import Lottery, left_by, lottery_ticket
from dynamic.policies.errors import BundleError, InputError, SettingError

X = torch.zeros(1, 4)


def line() -> nn.Module:
    return nn.Linear(4, 1, bias=False)


def pull(network: nn.Module, towards: Tensor) -> None:
    """Training whose end is known: half the way to some weights, masks holding."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    weight: Any = network.weight
    (weight - towards).square().sum().mul(0.5).backward()
    optimizer.step()


def drawn(train: Callable[[nn.Module], object], **options: Any) -> Lottery:
    return lottery_ticket(line, X, train=train, **({"sparsity": 0.75, "rounds": 2, "latency": False} | options))


def test_by_hand() -> None:
    """Four weights, half of those left go each round; each training ends halfway to the target."""
    target = torch.tensor([[100.0, -200.0, 300.0, -400.0]])
    found = drawn(partial(pull, towards=target))
    start = found.start.weight
    assert torch.equal(found.dense.weight, start + 0.5 * (target - start))
    assert found.masks["weight"].tolist() == [[False, False, False, True]]  # first the two smallest, then the next
    assert torch.equal(found.ticket.weight, torch.where(found.masks["weight"], start + 0.5 * (target - start), 0.0))
    free = found.control.weight[0, 3]
    assert free != found.ticket.weight[0, 3]
    assert abs(2 * free + 400) <= 0.5  # from other random weights within 1 / sqrt(4), the same way
    assert (found.control.weight[0, :3] == 0).all()


def test_each_round_starts_from_the_same_weights() -> None:
    seen: list[Tensor] = []

    def train(network: nn.Module) -> None:
        seen.append(network.weight.detach().clone())
        pull(network, torch.tensor([[4.0, 3.0, 2.0, 1.0]]))

    found = drawn(train)
    start = found.start.weight.detach()
    assert torch.equal(seen[0], start)
    assert torch.equal(seen[1], start * torch.tensor([[1.0, 1.0, 0.0, 0.0]]))
    assert torch.equal(seen[2], start * torch.tensor([[1.0, 0.0, 0.0, 0.0]]))
    assert seen[3][0, 1:].tolist() == [0.0, 0.0, 0.0]
    assert len(seen) == 4


def test_rewinding_to_early_weights() -> None:
    def warm(network: nn.Module) -> None:
        pull(network, torch.full((1, 4), 1000.0))

    cold, late = drawn(lambda network: None), drawn(lambda network: None, warm=warm)
    assert torch.equal(late.start.weight, cold.start.weight + 0.5 * (1000 - cold.start.weight))
    kept = late.masks["weight"]
    assert torch.equal(late.ticket.weight, torch.where(kept, late.start.weight, 0.0))
    assert (late.control.weight[kept] > 400).all()  # warmed as well


def test_masks_hold_in_real_training_and_runs_go_on(tmp_path: Path) -> None:
    def make() -> nn.Module:
        return CifarResNet(8, in_channels=1, width=4)

    picture, calls = torch.zeros(1, 1, 8, 8), []

    def train(network: nn.Module) -> None:
        calls.append(network)
        if len(calls) == 3:
            raise KeyboardInterrupt
        dynamic.fit(network, digits_loader(count=200), mode="joint", epochs=1, lr=0.1, progress=False)

    options: dict[str, Any] = {"sparsity": 0.8, "rounds": 2, "skip": ("conv1",), "latency": False}
    with pytest.raises(KeyboardInterrupt):
        lottery_ticket(make, picture, train=train, checkpoint=tmp_path, **options)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "round-0.safetensors",
        "round-1.safetensors",
        "start.safetensors",
    ]
    again = lottery_ticket(make, picture, train=train, checkpoint=tmp_path, **options)
    assert len(calls) == 5  # the ticket and the control, the others were there
    whole = lottery_ticket(make, picture, train=train, **options)
    for name in ("dense", "ticket", "control", "start"):
        one, other = (getattr(run, name).state_dict() for run in (again, whole))
        assert all(torch.equal(one[key], other[key]) for key in one)
    for name, mask in again.masks.items():
        for network in (again.ticket, again.control):
            weight = network.get_parameter(name)
            assert torch.equal(weight != 0, mask)
    assert "conv1.weight" not in again.masks
    assert again.report.facts["left"]["all"] == pytest.approx(0.2, abs=1e-3)
    assert again.report.after.nonzero < again.report.before.nonzero / 3
    with pytest.raises(BundleError, match="of another run"):
        lottery_ticket(make, picture, train=train, checkpoint=tmp_path, **(options | {"rounds": 3}))


def test_a_folder_of_another_training_is_refused_by_its_key(tmp_path: Path) -> None:
    far, near = (partial(pull, towards=torch.full((1, 4), scale)) for scale in (100.0, 1.0))
    first = drawn(far, checkpoint=tmp_path / "keyed", key="far")
    with pytest.raises(BundleError, match="'key': 'far'"):
        drawn(near, checkpoint=tmp_path / "keyed", key="near")
    with pytest.raises(BundleError, match="of another run"):
        drawn(far, checkpoint=tmp_path / "keyed")
    again = drawn(near, checkpoint=tmp_path / "keyed", key="far")  # the same key: taken as it is
    assert torch.equal(again.ticket.weight, first.ticket.weight)
    drawn(far, checkpoint=tmp_path / "plain")
    drawn(far, checkpoint=tmp_path / "plain")  # no key, as before there were any
    with pytest.raises(BundleError, match="of another run"):
        drawn(far, checkpoint=tmp_path / "plain", key="far")


def test_shares_that_are_left() -> None:
    masks = {"a": torch.tensor([True, False]), "b": torch.tensor([[True, True, False, True]] * 2)}
    assert left_by(masks) == {"a": 0.5, "b": 0.75, "all": 0.7}


def test_bad_settings() -> None:
    with pytest.raises(SettingError, match=r"sparsity=1\.0"):
        drawn(lambda network: None, sparsity=1.0)
    with pytest.raises(SettingError, match="rounds=0: give at least 1"):
        drawn(lambda network: None, rounds=0)
    kept = line()
    with pytest.raises(InputError, match="returns the same weights each time"):
        lottery_ticket(lambda: kept, X, train=lambda network: None)
