"""Pruning in steps on real digits: targets, what is undone, and runs that were killed."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from support.networks import fitting_networks as networks
from torch import nn

import dynamic
from dynamic.models import CifarResNet
from dynamic.models.compress.pruning import iterative_pruning
from dynamic.models.compress.pruning.channel_pruning import prune_channels
from dynamic.models.compress.pruning.iterative_pruning import Target, prune_until
from dynamic.models.compress.pruning.pruned_structure import restructured, structure
from dynamic.models.compress.pruning.weight_pruning import masks, prune_weights
from dynamic.policies.errors import BundleError, CorruptError, InputError, SettingError, WrapError

EXAMPLE = torch.zeros(1, 1, 8, 8)


@cache
def _learned() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    net = CifarResNet(14, in_channels=1, width=8)
    dynamic.fit(net, networks.digits_loader(), mode="joint", epochs=3)
    return net.state_dict()


def learned() -> CifarResNet:
    net = CifarResNet(14, in_channels=1, width=8)
    net.load_state_dict(_learned())
    return net


def held_out() -> list[tuple[torch.Tensor, torch.Tensor]]:
    _, _, x, y = networks.digits()
    return [(x, y)]


def run(**settings: object):
    chosen = {"target": Target(macs=0.6), "epochs": 1, "latency": False, "selection_loader": held_out(), **settings}
    return prune_until(learned(), EXAMPLE, train_loader=networks.digits_loader(count=600), **chosen)


@pytest.mark.parametrize("how", ["channels", "blocks", "weights"])
def test_the_target_is_met_with_little_lost(how: str) -> None:
    target = Target(nonzero=0.4) if how == "weights" else Target(macs=0.7)
    options = {"round_to": 1} if how == "channels" else {}
    done = run(how=how, target=target, amount=None if how == "blocks" else 0.3, method_options=options, epochs=3)
    before, after = done.report.before, done.report.after
    assert done.report.facts["met"]
    assert len(done.report.facts["steps"]) > 1
    if how == "weights":
        assert after.nonzero <= 0.4 * before.nonzero
        assert masks(done.network)
    else:
        assert after.macs <= 0.7 * before.macs
        assert after.parameters < before.parameters
    assert before.accuracy is not None
    assert after.accuracy is not None
    assert after.accuracy > before.accuracy - 0.05


def test_steps_end_where_nothing_is_met() -> None:
    done = run(how="blocks", steps=1, target=Target(macs=0.1))
    assert not done.report.facts["met"]
    assert len(done.report.facts["steps"]) == 1


def test_blocks_run_out() -> None:
    done = run(how="blocks", amount=3, target=Target(macs=0.01), selection_loader=None)  # there are 4
    assert len(done.report.facts["steps"]) == 1
    assert not done.report.facts["met"]


def test_a_step_that_drops_too_far_is_undone() -> None:
    def ruins(network: nn.Module, example_inputs: torch.Tensor, amount: float, latency: bool):
        done = prune_channels(network, example_inputs, amount=amount, round_to=1, latency=latency)
        nn.init.zeros_(done.network.linear.weight)
        done.network.linear.weight.requires_grad_(False)
        return done

    done = run(how=ruins, amount=0.5, target=Target(macs=0.1, drop=0.02), mode="joint")
    assert [step["undone"] for step in done.report.facts["steps"]] == [True]
    assert done.report.after == done.report.before
    for name, value in done.network.state_dict().items():
        assert torch.equal(value, _learned()[name])


class KilledError(Exception):
    pass


@pytest.mark.parametrize("how", ["channels", "blocks", "weights"])
@pytest.mark.parametrize("killed_in", [1, 2])
def test_killed_and_started_again_gives_the_same_network(
    how: str, killed_in: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {
        "how": how, "steps": 2, "epochs": 2, "selection_loader": None, "target": Target(nonzero=0.01),
        "method_options": {"round_to": 1} if how == "channels" else {},
    }  # fmt: skip
    whole = run(**settings)
    fit, calls = iterative_pruning.fit, []

    def dies(network: nn.Module, loader: object, **kwargs):
        calls.append(1)
        if len(calls) < killed_in:
            return fit(network, loader, **kwargs)
        steps = 0

        def penalty() -> torch.Tensor:
            nonlocal steps
            steps += 1
            if steps > 8:  # six batches an epoch: in the second
                raise KilledError
            return torch.zeros(())

        return fit(network, loader, training=dynamic.TrainingConfig(penalty=penalty), **kwargs)

    monkeypatch.setattr(iterative_pruning, "fit", dies)
    with pytest.raises(KilledError):
        run(**settings, checkpoint=tmp_path)
    resumed = []

    def watched(*args, **kwargs):
        report = fit(*args, **kwargs)
        resumed.append(report.resumed)
        return report

    monkeypatch.setattr(iterative_pruning, "fit", watched)
    again = run(**settings, checkpoint=tmp_path)
    assert resumed == ([1, 0] if killed_in == 1 else [1])
    assert again.report.facts == whole.report.facts
    theirs = whole.network.state_dict()
    assert list(again.network.state_dict()) == list(theirs)
    for name, value in again.network.state_dict().items():
        assert torch.equal(value, theirs[name]), name
    assert run(**settings, checkpoint=tmp_path).report.facts == whole.report.facts  # all done: nothing is trained
    assert len(resumed) == (2 if killed_in == 1 else 1)


@pytest.mark.parametrize("depth", [8, 20])
def test_narrow_layers_reach_half_of_the_multiply_adds(depth: int) -> None:
    """Widths of 16 and 32, of which a fifth rounds to nothing, step after step."""
    torch.manual_seed(0)
    net, x = CifarResNet(depth).eval(), torch.zeros(1, 3, 32, 32)
    loader = [(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])) for _ in range(2)]
    done = prune_until(net, x, train_loader=loader, target=Target(macs=0.5), epochs=1, latency=False)
    shares = [step["macs"] / done.report.before.macs for step in done.report.facts["steps"]]
    assert done.report.facts["met"]
    assert all(later < sooner for sooner, later in zip([1.0, *shares], shares, strict=False))
    assert shares[-1] <= 0.5 < shares[-2]
    assert len(shares) <= 5
    assert done.network.layer1[0].conv1.out_channels == 8
    assert net.layer1[0].conv1.out_channels == 16


def test_widths_are_counted_from_the_first_ones() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10))
    loader = networks.digits_loader(count=20)
    widths = []
    for steps in (1, 2, 3, 4, 5, 9):
        done = prune_until(
            net, EXAMPLE, train_loader=loader, target=Target(macs=0.01), steps=steps, epochs=1, latency=False
        )
        widths.append((done.network[1].out_features, done.network[3].out_features))
    # of 64: 0.8 and 0.64 are 48, 0.512 and 0.41 are 32, 0.33 is 16; of 32: 0.64 is 16, the least multiple of 16. Then
    # of 16: 0.64 is 8; of 8, with no multiples: 6, 5, 4, 3
    assert widths == [(32, 48), (16, 48), (16, 32), (16, 16), (8, 8), (3, 3)]
    with pytest.raises(InputError, match="no such modules"):
        prune_until(net, EXAMPLE, train_loader=loader, target=Target(macs=0.5), method_options={"skip": ["nowhere"]})


def test_latency_is_timed_in_turns_at_each_step_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure, timed = iterative_pruning.measure, []
    clock = iter([(10.0, 9.0), (20.0, 9.5)])  # the machine got slower: 9.5 of 20 is what counts

    def scripted(nets, example, latency: bool):
        assert latency
        timed.append([sum(p.numel() for p in net.parameters()) for net in nets])
        found = measure(nets, example, latency=False)
        return [replace(m, latency_ms=ms) for m, ms in zip(found, next(clock), strict=True)]

    monkeypatch.setattr(iterative_pruning, "measure", scripted)
    settings = {"how": "blocks", "target": Target(latency=0.5), "steps": 4, "checkpoint": tmp_path}
    done = run(**settings)
    steps = done.report.facts["steps"]
    assert [(s["latency_ms_before"], s["latency_ms"], s["met"]) for s in steps] == [(10, 9, False), (20, 9.5, True)]
    assert [pair[0] for pair in timed] == [done.report.before.parameters] * 2
    assert timed[1][1] == done.report.after.parameters
    again = run(**settings)  # nothing is timed: the clock has no more to say
    assert again.report.facts == done.report.facts


def test_the_header_tells_teachers_and_options(tmp_path: Path) -> None:
    settings = {"how": "blocks", "steps": 1, "selection_loader": None}
    wise = learned()
    options = {"skip": ("layer1",), "importance": "norm", "selection_loader": held_out()}
    fitting = {"lr": 0.01, "penalty": lambda: torch.zeros(()), "device": torch.device("cpu")}
    run(**settings, checkpoint=tmp_path, teacher=wise, method_options=options, fit_options=fitting)
    same = {"method_options": {"skip": ("layer1",), "importance": "norm"}, "fit_options": {"lr": 0.01, "device": "cpu"}}
    run(**settings, checkpoint=tmp_path, teacher=learned(), **same)  # equal weights
    nn.init.zeros_(wise.linear.weight)
    for teacher in (wise, None):
        with pytest.raises(BundleError, match="teacher="):
            run(**settings, checkpoint=tmp_path, teacher=teacher, **same)
    with pytest.raises(BundleError, match="method_options="):
        run(**settings, checkpoint=tmp_path, teacher=learned(), fit_options=same["fit_options"])
    for name in ("method_options", "fit_options"):
        with pytest.raises(InputError, match=rf"{name}\['odd'\] is a object, which JSON cannot hold"):
            run(**settings, checkpoint=tmp_path / "new", **{name: {"odd": object()}})


def test_another_run_and_damaged_files_are_refused(tmp_path: Path) -> None:
    run(how="blocks", steps=1, checkpoint=tmp_path, selection_loader=None)
    with pytest.raises(BundleError, match="epochs=1"):
        run(how="blocks", steps=1, epochs=2, checkpoint=tmp_path, selection_loader=None)
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(kept.read_bytes()[:-10])
    with pytest.raises(CorruptError):
        run(how="blocks", steps=1, checkpoint=tmp_path, selection_loader=None)


def test_errors() -> None:
    for bad in ({"macs": 1.0}, {"nonzero": 0.0}, {"latency": -1.0}, {"drop": 1.0}, {}):
        with pytest.raises(SettingError):
            Target(**bad)
    with pytest.raises(SettingError, match="how='magic'"):
        run(how="magic")
    for name, value in (("steps", 0), ("epochs", 0), ("mode", "heads"), ("amount", 1.5)):
        with pytest.raises(SettingError, match=f"{name}="):
            run(**{name: value})
    with pytest.raises(SettingError, match="give the number of blocks"):
        run(how="blocks", amount=0.5)
    with pytest.raises(SettingError, match="give selection_loader="):
        run(target=Target(drop=0.1), selection_loader=None)
    with pytest.raises(SettingError, match="takes no teacher"):
        run(mode="joint", teacher=learned())
    with pytest.raises(WrapError, match="no channels"):
        prune_until(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), EXAMPLE, train_loader=[], target=Target(macs=0.5))
    with pytest.raises(WrapError, match="prune its backbone"):
        prune_until(dynamic.wrap(learned(), EXAMPLE, exits=1), EXAMPLE, train_loader=[], target=Target(macs=0.5))


def test_structures_are_told_and_rebuilt() -> None:
    net = learned().eval()
    thin = prune_channels(net, EXAMPLE, amount=0.5, latency=False).network
    gone = iterative_pruning.prune_blocks(thin, EXAMPLE, count=["layer2.1"], latency=False).network
    held = prune_weights(gone, EXAMPLE, amount=0.5, latency=False).network
    told = structure(net, held)
    assert told["replaced"] == {"layer2.1": "identity"}
    assert told["shapes"]["layer3.0.conv1.weight"] == [16, 16, 3, 3]
    made = restructured(net, told).eval()
    made.load_state_dict(held.state_dict())
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(made(x), held.eval()(x))
    assert made.layer3[0].conv1.out_channels == 16
    with pytest.raises(InputError, match="not one of a"):
        restructured(nn.Sequential(), told)
    with pytest.raises(InputError, match="one network alone"):
        structure(net, nn.Linear(3, 3))
