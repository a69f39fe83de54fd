"""Weights pruned by size: which ones go, that they stay gone, and what is left alone."""

import copy

import pytest
import torch
from support.networks import fitting_networks as networks
from support.networks.fitting_networks import fit
from torch import nn

import dynamic
from dynamic.models import CifarResNet
from dynamic.models.compress.pruning.weight_pruning import baked, masked, masks, prune_weights
from dynamic.policies.errors import InputError, SettingError, WrapError


def small() -> nn.Sequential:
    """Weights 1 to 6 and 10 to 40, no biases."""
    net = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, -2.0, 3.0], [-4.0, 5.0, -6.0]]))
        net[1].weight.copy_(torch.tensor([[10.0, -20.0], [30.0, 40.0]]))
    return net


X = torch.ones(1, 3)


def test_global_takes_the_smallest_of_all() -> None:
    net = small()
    done = prune_weights(net, X, amount=0.5, latency=False)
    assert masks(done.network)["0.weight"].tolist() == [[False, False, False], [False, False, True]]
    assert masks(done.network)["1.weight"].all()
    assert baked(done.network)(X).tolist() == [[120.0, -240.0]]  # -6 times (-20, 40)
    assert (done.report.before.nonzero, done.report.after.nonzero) == (10, 5)
    assert done.report.facts["sparsity"] == pytest.approx({"0.weight": 5 / 6, "1.weight": 0.0})
    assert torch.equal(net[0].weight, small()[0].weight)  # the original stays as it was


def test_layer_takes_the_share_of_each() -> None:
    done = prune_weights(small(), X, amount=0.5, scope="layer", latency=False)
    assert masks(done.network)["0.weight"].tolist() == [[False, False, False], [True, True, True]]
    assert masks(done.network)["1.weight"].tolist() == [[False, False], [True, True]]


def test_equals_go_in_order_and_an_emptied_layer_is_told() -> None:
    net = small()
    nn.init.ones_(net[0].weight)
    done = prune_weights(net, X, amount=0.6, latency=False)
    assert not masks(done.network)["0.weight"].any()
    assert done.report.facts["emptied"] == ["0.weight"]
    assert baked(prune_weights(net, X, amount=0.3, latency=False).network)[0].weight.tolist() == [[0, 0, 0], [1, 1, 1]]


@pytest.mark.parametrize("settings", [{}, {"autocast": True, "channels_last": True}, {"optimizer": "adamw"}])
def test_masks_hold_while_the_network_is_trained(settings: dict[str, object]) -> None:
    torch.manual_seed(0)
    net = CifarResNet(8, in_channels=1, width=8)
    done = prune_weights(net, torch.zeros(1, 1, 8, 8), amount=0.7, latency=False)
    before, weight = masks(done.network), done.network.layer3[0].conv1.weight.detach().clone()
    fit(done.network, networks.digits_loader(count=200), mode="joint", epochs=1, **settings)
    trained = baked(done.network)
    assert not torch.equal(trained.layer3[0].conv1.weight, weight)
    for name, mask in before.items():
        assert torch.equal(masks(done.network)[name], mask)
        assert not trained.get_parameter(name)[~mask].any()
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(trained.eval()(x), done.network.eval()(x))


def test_a_checkpoint_goes_on_with_masks(tmp_path) -> None:
    torch.manual_seed(0)
    start = prune_weights(
        CifarResNet(8, in_channels=1, width=8), torch.zeros(1, 1, 8, 8), amount=0.5, latency=False
    ).network
    loader = networks.digits_loader(count=200)
    whole, cut = copy.deepcopy(start), copy.deepcopy(start)
    dynamic.fit(whole, loader, mode="joint", epochs=2)

    class StoppedError(Exception):
        pass

    calls = 0

    def stop() -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls > 3:  # in the second epoch
            raise StoppedError
        return torch.zeros(())

    with pytest.raises(StoppedError):
        dynamic.fit(
            cut,
            loader,
            mode="joint",
            epochs=2,
            checkpoint=tmp_path / "c",
            training=dynamic.TrainingConfig(penalty=stop),
        )
    again = copy.deepcopy(start)
    report = dynamic.fit(again, loader, mode="joint", epochs=2, checkpoint=tmp_path / "c")
    assert report.resumed == 1
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_pruned_again_counts_what_is_gone_already() -> None:
    once = prune_weights(small(), X, amount=0.2, latency=False).network
    twice = prune_weights(once, X, amount=0.5, latency=False).network
    assert {n: m.tolist() for n, m in masks(twice).items()} == {
        n: m.tolist() for n, m in masks(prune_weights(small(), X, amount=0.5, latency=False).network).items()
    }
    assert sum(int((~m).sum()) for m in masks(once).values()) == 2  # untouched


def test_baked_leaves_the_masked_network_and_its_copies_as_they_are() -> None:
    done = prune_weights(small(), X, amount=0.5, latency=False).network
    other = copy.deepcopy(done)
    plain = baked(done)
    assert masks(plain) == {}
    assert sorted(plain.state_dict()) == ["0.weight", "1.weight"]
    assert type(plain[0]) is nn.Linear
    assert torch.equal(done(X), plain(X))
    assert torch.equal(other(X), plain(X))


def test_shared_weights_are_masked_once_and_stay_shared() -> None:
    net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.ReLU(), nn.Linear(3, 3, bias=False))
    net[2].weight = net[0].weight
    done = prune_weights(net, X, amount=0.5, latency=False)
    assert list(masks(done.network)) == ["0.weight"]
    assert done.report.before.parameters == done.report.after.parameters == 9
    assert torch.equal(done.network[0].weight, done.network[2].weight)
    plain = baked(done.network)
    assert plain[0].weight is plain[2].weight
    assert int(plain[0].weight.count_nonzero()) == 5  # round(4.5) is 4


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out, self.free = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False), nn.Linear(4, 4)
        self.out.weight = self.embed.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.free(self.embed(x).mean(1)))


def test_weights_of_other_layers_are_left_alone() -> None:
    done = prune_weights(Tied(), torch.zeros(2, 3, dtype=torch.long), amount=0.5, latency=False)
    assert list(masks(done.network)) == ["free.weight"]
    assert "another kind" in done.report.left_alone["out"]


def test_skip_and_what_is_not_of_floats() -> None:
    done = prune_weights(small(), X, amount=0.5, skip=["0"], latency=False)
    assert list(masks(done.network)) == ["1.weight"]
    assert done.report.left_alone == {"0": "in skip"}
    net = small()
    net[1].weight = nn.Parameter(torch.ones(2, 2, dtype=torch.int64), requires_grad=False)
    net.forward = lambda x: net[0](x)  # integers do not run
    assert "int64" in prune_weights(net, X, amount=0.5, latency=False).report.left_alone["1"]


def test_works_on_the_exits_as_on_the_backbone() -> None:
    net = dynamic.wrap(CifarResNet(8), torch.zeros(1, 3, 32, 32), exits=2)
    done = prune_weights(net, torch.zeros(1, 3, 32, 32), amount=0.5, latency=False)
    assert {name.split(".")[0] for name in masks(done.network)} == {"backbone", "heads"}
    x = torch.randn(2, 3, 32, 32)
    plain = baked(done.network)
    for a, b in zip(done.network.eval()(x), plain.eval()(x), strict=True):
        assert torch.equal(a, b)
    dynamic.fit(done.network, [(x, torch.tensor([1, 2]))], mode="joint", epochs=1)
    for name, mask in masks(done.network).items():
        assert not baked(done.network).get_parameter(name)[~mask].any()


@pytest.mark.parametrize("amount", [0.0, 1.0, -1.0, float("nan")])
def test_amounts_out_of_range(amount: float) -> None:
    with pytest.raises(SettingError, match=r"not in \(0, 1\)"):
        prune_weights(small(), X, amount=amount)


def test_bad_settings_and_networks() -> None:
    with pytest.raises(SettingError, match=r"scope='row' is not known\. Use one of global, layer"):
        prune_weights(small(), X, amount=0.5, scope="row")
    with pytest.raises(InputError, match="no such modules"):
        prune_weights(small(), X, amount=0.5, skip=["7"])
    with pytest.raises(WrapError, match="no convolution"):
        prune_weights(nn.Sequential(nn.ReLU()), X, amount=0.5)
    broken = small()
    nn.init.constant_(broken[0].weight, float("nan"))
    with pytest.raises(InputError, match=r"0\.weight holds NaN"):
        prune_weights(broken, X, amount=0.5)
    with pytest.raises(InputError, match="no parameter"):
        masked(small(), {"9.weight": torch.ones(2, 2, dtype=torch.bool)})
    with pytest.raises(InputError, match="give torch"):
        masked(small(), {"0.weight": torch.ones(2, 3)})
