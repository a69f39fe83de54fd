"""A ladder has a floor of accuracy, and stages at chance are named."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from support.policy_cases import make_records

from dynamic.bundle.tables import ladder_text
from dynamic.policies.certification.certificates import certify
from dynamic.policies.certification.floor import floor_of, levels
from dynamic.policies.errors import SettingError
from dynamic.policies.ladder import Ladder
from dynamic.policies.records import Records

CLASSES = 10


def networks(*accuracies: float, count: int = 3000, seed: int = 0, classes: int = CLASSES) -> Records:
    """Records of networks that are right in these shares, each a stage and a backbone, each twice as expensive.

    Their scores say nothing of whether they are right.
    """
    random = np.random.default_rng(seed)
    label = np.arange(count) % classes
    logits = random.normal(size=(count, len(accuracies), classes)) * 0.1
    for stage, accuracy in enumerate(accuracies):
        right = random.permutation(count) < round(accuracy * count)
        answer = np.where(right, label, (label + 1 + random.integers(classes - 1, size=count)) % classes)
        logits[np.arange(count), stage, answer] += 2.0 + random.uniform(size=count)
    part = (np.arange(count) // classes % 4 > 0).astype(np.int8)
    body = [2.0**stage for stage in range(len(accuracies))]
    return make_records(logits, label, tuple(range(len(accuracies))), part, body)


def least(ladder: Ladder) -> float:
    """The lowest accuracy of any point."""
    return min(point.accuracy.mid for point in ladder.points)


def test_a_member_of_21_percent_is_no_point() -> None:
    records = networks(0.21, 0.8, 0.9)
    ladder = certify(records, combine="last")
    assert ladder.floor == pytest.approx(0.1 + 0.5 * (0.9 - 0.1), abs=0.03)
    assert least(ladder) >= 0.7
    assert any("floor" in line for line in ladder.left_out)
    assert f"floor of accuracy {ladder.floor:.4f}" in ladder_text(ladder)
    assert ladder.left_out[0] in " ".join(ladder_text(ladder).split())
    assert Ladder.from_json(ladder.to_json()) == ladder


def test_what_the_floor_leaves_is_certified_to_keep_it() -> None:
    ladder = certify(networks(0.21, 0.8, 0.9), (0.15, 0.4), combine="last")
    assert ladder.certified
    assert ladder.floor is not None
    bounds = [point.bound for point in ladder.points]
    assert all(bound is not None and bound <= 0.9 - ladder.floor + 0.03 for bound in bounds)
    # a floor that the second network keeps, but not for certain
    close = certify(networks(0.8, 0.9), (0.15,), combine="last", floor=0.79)
    assert all(point.bound is None or point.bound < 0.13 or point.target for point in close.points)


def test_uncertified_too() -> None:
    ladder = certify(networks(0.21, 0.8, 0.9, count=120), (0.0,), combine="last")
    assert not ladder.certified
    assert least(ladder) > 0.5
    whole = networks(0.21, 0.8, 0.9, count=400)
    ladder = certify(replace(whole, part=np.zeros(400, np.int8)), combine="last")  # all choose, none certifies
    assert least(ladder) > 0.5


@pytest.mark.parametrize(("floor", "lowest"), [(0.0, 0.21), (0.1, 0.21), (0.5, 0.8), (0.85, 0.9)])
def test_another_floor(floor: float, lowest: float) -> None:
    ladder = certify(networks(0.21, 0.8, 0.9), combine="last", floor=floor)
    assert least(ladder) == pytest.approx(lowest, abs=0.03)
    assert ladder.floor == (floor or None)


@pytest.mark.parametrize("risk", ["drop", "harm", "disagreement", "error"])
def test_under_every_risk(risk: str) -> None:
    ladder = certify(networks(0.21, 0.8, 0.9), combine="last", risk=risk)
    assert least(ladder) > 0.5


def test_two_classes_of_which_one_is_common() -> None:
    # always answering the commoner class is right in 80%: a point that is right in 0.81 knows nothing
    records = networks(0.55, 0.97, classes=2)
    assert floor_of(records, None) == pytest.approx(0.5 + 0.5 * 0.47, abs=0.01)
    assert least(certify(records, combine="last")) > 0.72
    unlabelled = replace(records, label=None)
    assert floor_of(unlabelled, None) == pytest.approx(0.75, abs=0.02)


def test_where_the_reference_is_at_chance_there_is_no_floor() -> None:
    ladder = certify(networks(0.1, 0.1), combine="last")
    assert ladder.floor is None
    assert ladder.points[-1].shares[0] == 1


@pytest.mark.parametrize("floor", [-0.1, 1.0, 90, True, "half"])
def test_a_floor_is_a_fraction(floor: Any) -> None:
    with pytest.raises(SettingError, match="must be an accuracy in"):
        certify(networks(0.8, 0.9, count=100), floor=floor)


def test_stages_at_chance_by_hand() -> None:
    found = levels(networks(0.1, 0.13, 0.3, 0.9))
    assert [round(level.right, 2) for level in found] == [0.1, 0.13, 0.3, 0.9]
    assert [level.at_chance for level in found] == [True, False, False, False]
    assert "'stage0' is right in 10.0% of 3000 inputs, where the commonest class alone is 10.0%" in str(found[0])
    few = levels(networks(0.1, 0.15, 0.9, count=100))
    assert [level.at_chance for level in few] == [True, True, False]  # 100 inputs do not tell 0.15 from 0.1


def test_the_best_is_not_below_the_reference() -> None:
    # by chance the search part likes what the certifying part does not
    found = [certify(networks(0.9, 0.9, count=400, seed=seed)) for seed in range(4)]
    for ladder in found:
        for point in ladder.points:
            assert point.name != "best" or (point.drop is not None and point.drop <= 0)
    assert any("best: measured" in line for ladder in found for line in ladder.left_out)
