"""Certified bundles from end to end: what they say, what voids them, and another ladder for the same records."""

import logging
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.policy_cases import make_costs
from torch import Tensor, nn

import dynamic
from dynamic.bundle.tables import ladder_text
from dynamic.errors import CalibrationError, InputError, SettingError
from dynamic.policies import Decision

COUNT, THREADS = 2400, 1


def task(seed: int, count: int) -> tuple[Tensor, Tensor]:
    """Points around one of four corners, with noise: some are easy, none is impossible to tell."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (count,), generator=random)
    corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    return corners[labels] + 0.55 * torch.randn(count, 2, generator=random), labels


class Corner(nn.Module):
    """The nearest corner, as sure as it is far from the axes, of a plane that is turned by `turned` radians."""

    def __init__(self, turned: float) -> None:
        super().__init__()
        corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        turn = torch.tensor([[math.cos(turned), -math.sin(turned)], [math.sin(turned), math.cos(turned)]])
        self.layer = nn.Linear(2, 4)
        with torch.no_grad():
            self.layer.weight.copy_(3 * corners @ turn)
            self.layer.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layer(x)
        return logits


class Deep(nn.Module):
    """The same of the plane as it is, with more work."""

    def __init__(self) -> None:
        super().__init__()
        self.there, self.back = nn.Linear(2, 64, bias=False), nn.Linear(64, 2, bias=False)
        self.corner = Corner(0.0)
        with torch.no_grad():
            self.there.weight.copy_(torch.eye(64, 2))
            self.back.weight.copy_(torch.eye(2, 64))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.corner(self.back(self.there(x)))
        return logits


def cascade(turned: float = 0.4) -> dynamic.Cascade:
    return dynamic.Cascade([Corner(turned), Deep()], combine="last")


@pytest.fixture(scope="module")
def bundle() -> dynamic.Bundle:
    loader = [task(seed, 400) for seed in range(COUNT // 400)]
    built = dynamic.build(cascade(), loader, max_drops=(0.01, 0.05))
    # what two such layers take is all overhead: as if the second took five times as long
    costs = make_costs([[1.0], [5.0]], threads=THREADS, memory_mb=(1.0, 1.0))
    return replace(built, costs=replace(costs, engine="onnxruntime"))


def test_a_certified_bundle_says_what_it_rests_on(bundle: dynamic.Bundle) -> None:
    certificate = bundle.ladder.certificate
    assert bundle.ladder.certified
    assert certificate is not None
    assert (certificate.images, certificate.search_images) == (1800, 600)
    assert re.search(r"^drop 0\.01 +0\.01 ", str(bundle), re.MULTILINE)
    text = " ".join(str(bundle).split())
    for part in (
        "drop <=",
        "probability 0.9",
        "1800 inputs",
        certificate.date,
        bundle.ladder.fingerprint[:12],
    ):
        assert part in text
    point = next(p for p in bundle.ladder.points if p.target == 0.01)
    inputs, labels = task(99, 20_000)  # fresh ones: the promise is about those
    with bundle.runtime(dynamic.Budget(max_drop=0.01), monitor=still(), drift_alpha=None, threads=THREADS) as run:
        result = run(inputs.numpy())
    assert result.certified
    assert result.decision.point.operating_point == point
    with torch.no_grad():
        alone = Deep()(inputs).argmax(1)
    drop = (alone == labels).float().mean().item() - (result.label == labels.numpy()).mean()
    assert drop <= 0.01
    assert (result.stage == 0).mean() > 0.1, "and something was saved"


def test_another_fingerprint_voids_it(bundle: dynamic.Bundle) -> None:
    altered = replace(bundle, ladder=replace(bundle.ladder, fingerprint="another"))
    inputs = task(5, 4)[0].numpy()
    with altered.runtime(dynamic.Budget(max_drop=0.01), monitor=still(), threads=THREADS) as run:
        assert not run(inputs).certified
    with replace(bundle, modules=tuple(cascade().stages)).runtime(
        engine="torch", monitor=still(), threads=THREADS
    ) as run:
        assert not run(inputs).certified


def test_other_targets_for_the_same_records(bundle: dynamic.Bundle, tmp_path: Path) -> None:
    saved = bundle.profile((1,), seconds=0.02).save(tmp_path / "shelf")
    other = dynamic.recertify(saved, (0.03,), delta=0.05, score="margin")
    assert [p.target for p in other.ladder.points if p.target] == [0.03]
    assert other.ladder.certificate is not None
    assert (other.ladder.certificate.delta, other.ladder.score) == (0.05, "margin")
    assert other.costs == saved.costs
    loaded = dynamic.load(other.save(tmp_path / "other").folder)
    assert loaded.ladder == other.ladder
    assert loaded.costs == saved.costs, "measured here, whatever the ladder"
    inputs = task(7, 64)[0].numpy()
    thresholds = np.array([0.5], np.float32)
    for route in ("graph", "stages"):  # the graphs score by margin now
        found = loaded.open(route=route).run({"input": inputs}, thresholds)
        top = np.sort(np.exp(found.logits), axis=1)
        here = found.stage == 0
        assert 0 < here.sum() < 64
        assert found.score[here] == pytest.approx((top[:, -1] - top[:, -2])[here], abs=1e-4)
    assert dynamic.load(saved.folder).ladder == bundle.ladder, "the one given stays as it was"


def test_newer_records_and_those_of_something_else(bundle: dynamic.Bundle) -> None:
    newer = dynamic.calibrate(cascade(), [task(50, 1200)])
    again = dynamic.recertify(bundle, records=newer)
    assert again.ladder.certificate is not None
    assert again.ladder.certificate.images == 900
    assert len(again.records) == 1200
    for records in (
        dynamic.calibrate(cascade(0.5), [task(50, 400)]),
        dynamic.calibrate(cascade(), [task(50, 400)], engine="torch"),
    ):
        with pytest.raises(CalibrationError, match="of other networks, another preprocessing, engine or precision"):
            dynamic.recertify(bundle, records=records)


def test_few_labels_give_a_bundle_that_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "dynamic"):
        few = dynamic.build(cascade(), [task(1, 60)], max_drops=(0.001,))
    assert not few.ladder.certified
    assert "nothing could be certified" in caplog.text
    assert "NOT CERTIFIED" in str(few)
    with few.runtime(monitor=still()) as run:
        assert not run(task(2, 3)[0].numpy()).certified
    with pytest.raises(CalibrationError, match="nothing can be certified"):
        dynamic.build(cascade(), [task(1, 60)], max_drops=(0.001,), strict=True)


def test_without_labels(bundle: dynamic.Bundle) -> None:
    inputs = [task(seed, 400)[0] for seed in range(6)]
    with pytest.raises(CalibrationError, match="disagreement"):
        dynamic.build(cascade(), inputs)
    built = dynamic.build(cascade(), inputs, risk="disagreement", max_drops=(0.05,))
    assert built.ladder.certified
    assert "agreement" in ladder_text(built.ladder)
    point = next(p for p in built.ladder.points if p.target == 0.05)
    fresh = task(99, 20_000)[0]
    found = built.open().run({"input": fresh.numpy()}, np.array(point.thresholds, np.float32))
    with torch.no_grad():
        alone = Deep()(fresh).argmax(1).numpy()
    assert (found.logits.argmax(1) != alone).mean() <= 0.05


def still() -> Any:
    return dynamic.FixedMonitor(dynamic.Snapshot(0.0))


def test_points_without_a_bound_are_not_certified(bundle: dynamic.Bundle) -> None:
    class Last:
        def initial(self) -> None:
            return None

        def decide(self, frontier: Any, budget: Any, snapshot: Any, state: None) -> tuple[Decision, None]:
            return Decision(frontier.points[-1], True, (), "the last"), None

        def observe(self, state: None, feedback: Any) -> None:
            return None

    bare = tuple(replace(p, bound=None) if i else p for i, p in enumerate(bundle.ladder.points))
    altered = replace(bundle, ladder=replace(bundle.ladder, points=bare))
    with altered.runtime(monitor=still(), policy=Last(), threads=THREADS) as run:
        assert not run(task(5, 4)[0].numpy()).certified


def test_what_was_chosen_before_stays_unless_given(bundle: dynamic.Bundle) -> None:
    careful = dynamic.recertify(bundle, (0.05,), delta=0.01, risk="harm")
    again = dynamic.recertify(careful, (0.04,))
    assert again.ladder.certificate is not None
    assert (again.ladder.certificate.delta, again.ladder.certificate.risk) == (0.01, "harm")


def test_recertify_of_something_else(bundle: dynamic.Bundle) -> None:
    for arguments in (("shelf", (0.01,)), (bundle, (0.01,))):
        records: Any = None if arguments[0] == "shelf" else "records.npz"
        with pytest.raises(InputError, match=r"dynamic\.load.*dynamic\.calibrate"):
            dynamic.recertify(*arguments, records=records)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_drops": 0.01}, "must be a sequence"),
        ({"max_drops": [None]}, "holds None"),
        ({"delta": None}, "delta=None"),
        ({"score": "entropy"}, "auto"),
        ({"risk": "loss"}, "risk='loss'"),
    ],
)
def test_settings_are_checked_before_anything_is_exported(settings: dict[str, Any], message: str) -> None:
    class Untouched:
        def __iter__(self) -> Any:
            raise AssertionError("the loader was read")

    with pytest.raises(SettingError, match=message):
        dynamic.build(cascade(), Untouched(), **settings)


def test_a_budget_that_is_none(bundle: dynamic.Bundle) -> None:
    with bundle.runtime(monitor=still(), threads=THREADS) as run, pytest.raises(SettingError, match="budget=20"):
        run.budget = 20  # type: ignore[assignment]
    with pytest.raises(SettingError, match="budget=20"):
        bundle.runtime(20, monitor=still(), threads=THREADS)  # type: ignore[arg-type]


def test_an_uncertified_ladder_says_so_in_the_reason() -> None:
    few = dynamic.build(cascade(), [task(1, 60)], max_drops=(0.001,))
    with few.runtime(dynamic.Budget(max_drop=0.01), monitor=still()) as run:
        assert "It is not certified" in run(task(2, 3)[0].numpy()).decision.reason


def test_groups_of_none() -> None:
    with pytest.raises(InputError, match="groups hold"):
        dynamic.calibrate(cascade(), [task(1, 60)], groups=[None] * 60)
