"""A family of a small network that has learned digits: made, fine-tuned, measured, built, and run."""

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.networks.fitting_networks import digits
from torch import Tensor, nn

import dynamic
from dynamic.errors import (
    BundleError,
    CalibrationError,
    CorruptError,
    DynamicError,
    EngineError,
    InputError,
    SettingError,
    WrapError,
)
from dynamic.models import CifarResNet
from dynamic.models.compress.families import engine_comparison
from dynamic.models.compress.families.cascade_advice import advice, networks_alone
from dynamic.models.compress.families.family import Family
from dynamic.models.compress.families.recipes import Recipe
from dynamic.models.compress.report import Compressed, Measured, Report
from dynamic.policies.certification.replay import replay
from dynamic.policies.ladder import OperatingPoint

NOTHING = Report("by hand", Measured(1, 1, file_bytes=1, macs=1.0), after=Measured(1, 1, file_bytes=1, macs=1.0))
QUICK: dict[str, Any] = {"engine": "torch", "memory": False, "cost": "macs", "progress": False}


class Slim(nn.Module):
    """Mean over blocks of pixels, then two layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def slim(width: int) -> Compressed:
    torch.manual_seed(width)
    return Compressed(Slim(width), NOTHING)


def thin(network: nn.Module, example_inputs: Any) -> Compressed:
    return slim(24)


def fails(network: nn.Module, example_inputs: Any) -> Compressed:
    raise WrapError("this network cannot be made smaller")


def batches(part: str, count: int = 600) -> list[tuple[Tensor, Tensor]]:
    x, y, test_x, test_y = digits()
    x, y = {"train": (x, y), "choose": (test_x[:300], test_y[:300]), "certify": (test_x[300:], test_y[300:])}[part]
    return list(zip(x[:count].split(100), y[:count].split(100), strict=True))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    made = CifarResNet(8, in_channels=1, width=8)
    dynamic.fit(made, batches("train"), mode="joint", epochs=4, progress=False)
    return made.eval()


@pytest.fixture(scope="module")
def made(network: nn.Module) -> Family:
    """Of three kinds: fine-tuned by the network, int8, and given."""
    before = copy.deepcopy(network.state_dict())
    found = dynamic.family(
        network,
        batches("choose"),
        train_loader=batches("train"),
        methods=[thin, "quantize"],
        others={"untrained": Slim(4)},
        epochs=3,
        fit_options={"optimizer": "adamw", "autocast": False},
        progress=False,
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not network.training
    return found


@pytest.fixture(scope="module")
def bundle(made: Family) -> dynamic.Bundle:
    """All members, whatever beats them: f32, int8 and f32."""
    cascade = dynamic.Cascade([m.network for m in made.members], names=[m.name for m in made.members])
    return dynamic.build(cascade, batches("certify"), max_drops=(0.05,), progress=False)


@pytest.fixture(scope="module")
def profiled(bundle: dynamic.Bundle) -> dynamic.Bundle:
    return bundle.profile(batch=(1,), seconds=0.05, progress=False)


def test_every_network_is_measured(made: Family, network: nn.Module) -> None:
    by_name = {m.name: m for m in made.members}
    assert set(by_name) == {"thin", "quantize", "untrained", "CifarResNet"}
    assert made.reference.network is network
    assert {m.name: m.role for m in made.members} == {
        "thin": "sub-model",
        "quantize": "sub-model",
        "untrained": "other",
        "CifarResNet": "reference",
    }
    x, y = (torch.cat(parts) for parts in zip(*batches("choose"), strict=True))
    with torch.no_grad():
        own = (network(x).argmax(1) == y).numpy()
    np.testing.assert_array_equal(made.reference.right, own)
    assert made.reference.accuracy > 0.8
    assert by_name["untrained"].accuracy < 0.4
    assert abs(by_name["quantize"].accuracy - made.reference.accuracy) < 0.05
    assert by_name["thin"].measured.parameters == 64 * 24 + 24 + 24 * 10 + 10
    assert by_name["thin"].measured.macs == 64 * 24 + 24 * 10
    assert all(m.memory_mb is not None and m.memory_mb >= 0 for m in made.members)
    assert made.failed == {}


def test_sub_models_learn_from_the_network(made: Family) -> None:
    thin_one = next(m for m in made.members if m.name == "thin")
    assert thin_one.accuracy > 0.6  # it began with random weights


def test_the_cascade_goes_from_fast_to_the_reference(made: Family) -> None:
    cascade = made.cascade()
    assert cascade.names[-1] == "CifarResNet"
    assert cascade.networks[-1] is made.reference.network
    took = [m.latency_ms for m in made.cascade_members]
    assert took == sorted(took)
    assert len({m.latency_ms for m in made.members}) == 4


def test_an_int8_network_and_f32_ones_are_one_bundle(profiled: dynamic.Bundle, tmp_path: Path) -> None:
    assert profiled.costs is not None
    assert len(profiled.costs.memory_mb) == 4
    assert sum(profiled.costs.memory_mb) > 0
    loaded = dynamic.load(profiled.save(tmp_path / "shelf").folder)
    images, labels = batches("certify", 60)[0]
    with loaded.runtime(dynamic.Budget(max_drop=0.05), monitor=dynamic.FixedMonitor()) as run:
        results = [run(x[None].numpy()) for x in images[:60]]
    point = results[0].decision.point.operating_point
    assert {result.decision.point.name for result in results} == {point.name}
    # calibration saw the same images in the same order: only what lies at a tie may come out otherwise, one by one
    records = loaded.records
    expected = replay(
        records.logits[:60], loaded.combiner(), thresholds=point.thresholds, backbone=records.backbone
    ).prediction
    assert (np.array([int(result.label[0]) for result in results]) == expected).mean() >= 0.95
    assert records.label is not None
    assert (records.label[:60] == labels[:60].numpy()).all()


def test_memory_of_each_network_reaches_the_policy(profiled: dynamic.Bundle) -> None:
    assert profiled.costs is not None
    costed = replace(profiled, costs=replace(profiled.costs, memory_mb=(1.0, 2.0, 4.0, 8.0)))
    for point in costed.frontier.points:
        assert point.memory_mb == sum((1.0, 2.0, 4.0, 8.0)[b] for b in point.operating_point.backbones)
    assert costed.frontier.points[0].memory_mb == 8.0  # the reference, alone


def hand_made(profiled: dynamic.Bundle, accuracy: float) -> dynamic.Bundle:
    """Networks of 1, 2, 3 and 10 ms; beside the reference a point at which half leave at the first and half go on."""
    inf, last = float("inf"), profiled.ladder.points[0]
    point = OperatingPoint(
        "half", (0.5, inf, inf), (0, 3), 0.1, 0.1, None, None, last.n, (0.0, accuracy, 1.0), (0.5, 0, 0, 0.5)
    )
    assert profiled.costs is not None
    nothing = ((0.0,),) * 4
    costs = replace(
        profiled.costs,
        latency_ms=((1.0,), (2.0,), (3.0,), (10.0,)),
        latency_p95_ms=nothing,
        cpu_ms=nothing,
        head_ms=nothing,
        call_ms=(0.0,),
        memory_mb=(1.0, 2.0, 4.0, 8.0),
    )
    # never dropped: it promises less accuracy lost than it costs time
    return replace(profiled, ladder=replace(profiled.ladder, points=(last, point)), costs=costs)


def test_advice_compares_with_every_network_alone(profiled: dynamic.Bundle) -> None:
    alone = networks_alone(hand_made(profiled, 0.5))
    assert [a.mean_ms for a in alone] == [1.0, 2.0, 3.0, 10.0]
    assert [a.memory_mb for a in alone] == [1.0, 2.0, 4.0, 8.0]
    records = profiled.records
    assert records.label is not None
    certify = records.part == 1
    for stage, a in enumerate(alone):
        own = (records.logits[certify, stage].argmax(1) == records.label[certify]).mean()
        assert a.accuracy == pytest.approx(own)
        assert a.name == records.stage_names[stage]
    # half leave after 1 ms, half after 11
    best = max(a.accuracy for a in alone)
    said = advice(hand_made(profiled, best + 0.001))
    assert "6.000 ms, 9.0 MB: no network alone is as accurate" in said
    # the network itself is as accurate as the point, which takes 6 of its 10 ms, or one that is faster than it is
    bundle = hand_made(profiled, alone[-1].accuracy)
    rivals = [a for a in alone if a.accuracy >= alone[-1].accuracy]
    fastest = min(rivals, key=lambda a: a.mean_ms)
    expected = (
        f"{fastest.name} alone is no less accurate in {fastest.mean_ms / 6:.2f} of the time: USE THAT"
        if fastest.mean_ms <= 6
        else f"0.60 of the time of {fastest.name}"
    )
    assert expected in advice(bundle)
    low = advice(hand_made(profiled, 0.0))
    assert f"{alone[0].name} alone is no less accurate in 0.17 of the time: USE THAT" in low


@pytest.mark.parametrize(("alone_ms", "close"), [(3.2, True), (3.5, False)])
def test_advice_does_not_sell_what_a_profile_cannot_tell(
    profiled: dynamic.Bundle, alone_ms: float, close: bool
) -> None:
    eight = networks_alone(hand_made(profiled, 0.5))[2]
    bundle = hand_made(profiled, eight.accuracy)
    assert bundle.costs is not None
    # half leave after 1 ms, half after 5: 3 ms, 0.94 or 0.86 of the time of the int8 network, which is as accurate
    costs = replace(bundle.costs, latency_ms=((1.0,), (2.0,), (alone_ms,), (4.0,)))
    said = advice(replace(bundle, costs=costs))
    assert f"3.000 ms, 9.0 MB: {3 / alone_ms:.2f} of the time of {eight.name}" in said
    assert ("too close" in said) is close


def test_advice_needs_costs_and_labels(bundle: dynamic.Bundle, made: Family, profiled: dynamic.Bundle) -> None:
    with pytest.raises(BundleError, match="profile"):
        made.advice(bundle)
    unlabelled = replace(profiled)
    unlabelled.__dict__["records"] = replace(profiled.records, label=None)
    with pytest.raises(CalibrationError, match="no labels"):
        made.advice(unlabelled)
    only = replace(profiled, ladder=replace(profiled.ladder, points=profiled.ladder.points[:1]))
    assert "ship that network, no cascade is needed" in made.advice(only)


def test_the_chart_is_a_picture(
    made: Family, profiled: dynamic.Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, bundle in enumerate((None, hand_made(profiled, 0.9))):
        path = made.chart(tmp_path / "deep" / f"{number}.png", bundle)
        assert path.read_bytes().startswith(b"\x89PNG")
    svg = made.chart(tmp_path / "family.svg", hand_made(profiled, 0.9)).read_text(encoding="utf-8")
    assert svg.count("<!-- ") >= 4  # text is drawn, each with what it says as a comment
    for name in ("thin", "quantize", "CifarResNet", "half", "reference"):
        assert f"<!-- {name} -->" in svg
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(DynamicError, match=r"dynamic-inference\[plot\]"):
        made.chart(tmp_path / "none.png")


def shrunk(network: nn.Module, example_inputs: Any, amount: int) -> Compressed:
    return slim(64 - amount)


SHRINK = Recipe("shrink", shrunk, amounts=tuple(range(0, 64, 4)))


def test_targets_are_shares_of_multiply_adds() -> None:
    torch.manual_seed(0)
    wide = Slim(64)
    found = dynamic.family(wide, batches("choose"), targets=(0.5, 0.2), methods=[SHRINK], **QUICK)
    # a width of w costs 74 w; 32 is the first at half of 64, 12 the first at a fifth (12.8)
    assert {m.name: m.measured.macs for m in found.members} == {
        "shrink-50": 74 * 32,
        "shrink-20": 74 * 12,
        "Slim": 74 * 64,
    }


def test_int8_is_tried_by_itself(network: nn.Module) -> None:
    found = dynamic.family(network, batches("choose"), targets=(0.7,), cost="macs", memory=False, progress=False)
    made = {m.name.split("-")[0] for m in found.members}
    assert {"quantize", "prune_channels", "prune_blocks"} <= made
    assert "quantize" not in found.failed


def test_a_target_out_of_reach_is_noted_and_not_made() -> None:
    found = dynamic.family(Slim(64), batches("choose"), targets=(0.5, 0.01), methods=[SHRINK], **QUICK)
    assert [m.name for m in found.members if m.role == "sub-model"] == ["shrink-50"]
    assert "shrink does not reach the target, 0.06 of the cost is the least" in str(found)
    with pytest.raises(InputError, match="beside Slim: shrink-1 was not made: shrink does not reach the target"):
        dynamic.family(Slim(64), batches("choose"), targets=(0.01,), methods=[SHRINK], **QUICK)


def test_what_comes_last_counts_towards_the_target() -> None:
    def narrowed(network: nn.Module, example_inputs: Any, amount: None) -> Compressed:
        return slim(network.layers[1].out_features // 2)

    both = Recipe("both", shrunk, amounts=SHRINK.amounts, then=Recipe("halve", narrowed))
    found = dynamic.family(Slim(64), batches("choose"), targets=(0.25,), methods=[both], **QUICK)
    assert [m.measured.macs for m in found.members if m.role == "sub-model"] == [74 * 16]  # 32 before it was halved


def test_one_sub_model_is_not_made_twice() -> None:
    two = Recipe("two", shrunk, amounts=(0, 60))
    found = dynamic.family(Slim(64), batches("choose"), targets=(0.5, 0.2), methods=[two], **QUICK)
    assert [m.name for m in found.members if m.role == "sub-model"] == ["two-50"]
    assert "two-20 was not made: the sub-model for a larger target reaches this one too" in found.notes


def test_latency_is_a_target_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns as they are taken, each timed by the layers that it ran: 1 ms a layer, on every machine."""
    ran = [0]

    def layers_ms(calls: Sequence[Callable[[], object]]) -> list[list[float]]:
        found = []
        for call in calls:
            ran[0] = 0
            call()
            found.append([float(ran[0])] * 3)
        return found

    monkeypatch.setattr(engine_comparison, "turns_ms", layers_ms)

    def repeated(network: nn.Module, example_inputs: Any, amount: int) -> Compressed:
        return Compressed(nn.Sequential(*[Layer() for _ in range(60 - amount)], Slim(4)), NOTHING)

    class Layer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            ran[0] += 1
            return x + torch.tanh(x) * 1e-3

    method = Recipe("shorten", repeated, amounts=(5, 40, 55))
    whole = repeated(nn.Identity(), None, 0).network
    found = dynamic.family(whole, batches("choose"), targets=(0.6,), methods=[method], engine="torch", memory=False)
    (sub,) = (m for m in found.members if m.role == "sub-model")
    # 20 of 60 layers are the most that take no more than 0.6 of the time: 55 take 0.92
    assert len(sub.network) == 21
    assert (sub.latency_ms, found.reference.latency_ms) == (20.0, 60.0)


def test_a_run_that_was_killed_goes_on(tmp_path: Path) -> None:
    def run(epochs: int, **options: Any) -> dict[str, Tensor]:
        torch.manual_seed(0)
        found = dynamic.family(
            Slim(64), batches("choose"), targets=(0.5,), methods=[SHRINK], train_loader=batches("train"), epochs=epochs,
            fit_options={"optimizer": "adamw", "autocast": False} | options, checkpoint=tmp_path, **QUICK,
        )  # fmt: skip
        (sub,) = (m for m in found.members if m.role == "sub-model")
        return sub.network.state_dict()

    first = run(2)
    checkpoint = (tmp_path / "shrink-50.checkpoint").read_bytes()
    again = run(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert (tmp_path / "shrink-50.checkpoint").read_bytes() == checkpoint
    with pytest.raises(BundleError, match="lr"):
        run(2, lr=0.5)
    (tmp_path / "shrink-50.json").write_text("{")
    with pytest.raises(CorruptError, match=r"shrink-50.json does not read .* remove it"):
        run(2)


def test_a_choice_of_another_run_is_refused(tmp_path: Path) -> None:
    def run(width: int = 64, seed: int = 0, target: float = 0.5, **settings: Any) -> None:
        torch.manual_seed(seed)
        dynamic.family(
            Slim(width),
            batches("choose"),
            targets=(target,),
            methods=[SHRINK],
            checkpoint=tmp_path,
            **(QUICK | settings),
        )

    run()
    run()
    for other, said in (
        ({"seed": 1}, "network"),
        ({"width": 48}, "network"),
        ({"target": 0.501}, "target=0.5 .now 0.501"),
        ({"cost": "latency"}, "cost=macs .now latency"),
        ({"engine": "onnxruntime"}, "engine=torch .now onnxruntime"),
    ):
        with pytest.raises(BundleError, match=rf"shrink-50.json was chosen with {said}"):
            run(**other)
    (tmp_path / "shrink-50.json").write_text('{"amount": 32}')  # of nobody knows what
    with pytest.raises(BundleError, match="network=None"):
        run()


def test_what_fails_is_listed(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="dynamic"):
        found = dynamic.family(Slim(16), batches("choose"), methods=[thin, fails], **QUICK)
    assert found.failed == {"fails": "this network cannot be made smaller"}
    assert "fails could not be made: this network cannot be made smaller" in str(found)
    assert "fails could not be made" in caplog.text
    with pytest.raises(InputError, match="no network beside Slim: fails: this network cannot be made smaller"):
        dynamic.family(Slim(16), batches("choose"), methods=[fails], **QUICK)
    with pytest.raises(InputError, match="no methods and no others"):
        dynamic.family(Slim(16), batches("choose"), methods=[], **QUICK)


def test_networks_with_exits_belong_to_a_family(network: nn.Module) -> None:
    x, _ = batches("choose")[0]
    net = dynamic.wrap(network, x[:2], exits=1)
    small = dynamic.wrap(CifarResNet(8, in_channels=1, width=4).eval(), x[:2], exits=1)
    found = dynamic.family(net, batches("choose"), methods=[], others=[small, Slim(4)], **QUICK)
    names = {m.name: m for m in found.members}
    assert set(names) == {"CifarResNet", "CifarResNet-2", "Slim"}
    assert found.reference.network is net
    with torch.no_grad():
        right = np.concatenate([(network(x).argmax(1) == y).numpy() for x, y in batches("choose")])
    np.testing.assert_array_equal(found.reference.right, right)  # its last exit
    whole = dynamic.Cascade([small, net])
    assert len(whole.stages) == 4


def test_a_single_reading_of_the_data_is_enough() -> None:
    found = dynamic.family(Slim(16), iter(batches("choose")), methods=[thin], **QUICK)
    assert len(found.reference.right) == 300


def test_bad_settings_are_named() -> None:
    data, net = batches("choose"), Slim(8)
    for wrong, error, said in (
        ({"targets": (2.0,)}, SettingError, "targets holds 2.0"),
        ({"targets": ()}, SettingError, "targets is empty"),
        ({"cost": "energy"}, SettingError, "cost='energy'"),
        ({"min_confidence": 1.0}, SettingError, "min_confidence=1.0"),
        ({"min_confidence": float("nan")}, SettingError, "min_confidence=nan"),
        ({"epochs": -1}, SettingError, "epochs=-1"),
        ({"epochs": 1.5}, SettingError, "epochs=1.5"),
        ({"engine": "abacus"}, EngineError, "abacus"),
        ({"precision": "f8"}, EngineError, "f8"),
        ({"methods": "thin"}, InputError, "give a list"),
        ({"methods": ["squeeze"]}, SettingError, "squeeze"),
        ({"train_loader": iter(data)}, InputError, "read once"),
        ({"others": [nn.Linear(3, 10)]}, InputError, "Linear does not take the inputs"),
        ({"others": [nn.Flatten()]}, InputError, "Flatten has 64 classes, the network 10"),
        ({"others": [nn.Identity()]}, InputError, "Identity gives"),
    ):
        with pytest.raises(error, match=said):
            dynamic.family(net, data, **({"methods": [SHRINK]} | QUICK | wrong))  # type: ignore[arg-type]
    with pytest.raises(CalibrationError, match="empty"):
        dynamic.family(net, [], methods=[thin], **QUICK)
    with pytest.raises(InputError, match="without labels"):
        dynamic.family(net, [data[0][0]], methods=[thin], **QUICK)


def test_a_member_that_nobody_would_accept_is_not_in_the_cascade() -> None:
    # untrained: right in one of ten
    found = dynamic.family(
        Trained().eval(), batches("choose"), targets=(), methods=[], others={"untrained": Slim(2)}, **QUICK
    )
    assert found.floor == pytest.approx(0.1 + 0.5 * (found.reference.accuracy - 0.1), abs=0.05)
    assert [m.name for m in found.cascade_members] == ["Trained"]
    assert "below the floor of accuracy" in str(found)
    lower = dynamic.family(
        Trained().eval(), batches("choose"), targets=(), methods=[], others={"untrained": Slim(2)}, floor=0, **QUICK
    )
    assert "below the floor" not in str(lower)
    with pytest.raises(SettingError, match="floor=7 must be an accuracy"):
        dynamic.family(Trained().eval(), batches("choose"), targets=(), methods=[], floor=7, **QUICK)


class Trained(nn.Module):
    """The nearest mean of each class of digits, which is right in some nine of ten; made slow by idle layers."""

    def __init__(self) -> None:
        super().__init__()
        x, y, _, _ = digits()
        means = torch.stack([x[y == number].flatten(1).mean(0) for number in range(10)])
        self.means = nn.Linear(64, 10)
        with torch.no_grad():
            self.means.weight.copy_(means)
            self.means.bias.copy_(-0.5 * means.square().sum(1))
        self.idle = nn.Sequential(*[nn.Linear(64, 64) for _ in range(30)])

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        return self.means(flat) + 0.0 * self.idle(flat).sum()
