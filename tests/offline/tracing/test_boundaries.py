"""Shares of exactly 0 and 1, one class, one stage, one record, and ties: each builds, or says why not."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dynamic
from dynamic.bundle.golden_vectors import golden, to_text
from dynamic.errors import CalibrationError
from dynamic.policies.certification.certificates import certify
from dynamic.policies.records import Records, split

CLASSES = 3


class Scaled(nn.Module):
    """Logits are the first pixels times a factor: right on every one-hot picture where the factor is positive."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :CLASSES] * self.factor


def one_hot(count: int = 300) -> list[tuple[Tensor, Tensor]]:
    labels = torch.arange(count) % CLASSES
    inputs = torch.zeros(count, 6)
    inputs[torch.arange(count), labels] = 1.0
    return [(inputs.reshape(count, 1, 2, 3), labels)]


def records(kind: str, count: int, stages: int, classes: int = CLASSES, labels: bool = True) -> Records:
    """All stages right, all wrong, all tied, or the first wrong and the last right."""
    label = np.arange(count) % classes
    logits = np.zeros((count, stages, classes), np.float32)
    for stage in range(stages):
        right = kind == "right" or (kind == "first wrong" and stage == stages - 1)
        if kind != "tied":
            logits[np.arange(count), stage, label if right else (label + 1) % classes] = 4.0
    return Records(
        logits,
        label if labels else None,
        None,
        split(None, count, search_share=0.25),
        tuple(range(stages)),
        tuple(1e6 * (stage + 1) for stage in range(stages)),
        (0.0,) * stages,
        tuple(f"stage {stage}" for stage in range(stages)),
        "fingerprint",
    )


@pytest.mark.parametrize("risk", ["drop", "harm", "disagreement", "error"])
def test_a_network_that_is_always_right_builds_and_takes_its_own_accuracy_as_a_limit(risk: str) -> None:
    bundle = dynamic.build([Scaled(2.0), Scaled(4.0)], one_hot(), risk=risk)
    assert {point.accuracy.mid for point in bundle.ladder.points} == {1.0}
    budget = dynamic.Budget(min_accuracy=1.0)
    assert dynamic.Budget.from_json(json.loads(json.dumps(budget.to_json()))) == budget
    with bundle.profile((1,), seconds=0.02, progress=False).runtime(budget, monitor=dynamic.FixedMonitor()) as run:
        result = run(one_hot(3)[0][0].numpy())
    assert result.label.tolist() == [0, 1, 2]
    assert result.decision.feasible


def test_a_reference_agrees_with_itself_without_labels() -> None:
    inputs = one_hot()[0][0]
    bundle = dynamic.build(Scaled(4.0), [inputs], risk="disagreement")
    assert [point.accuracy.mid for point in bundle.ladder.points] == [1.0]


@pytest.mark.parametrize("kind", ["right", "wrong", "tied", "first wrong"])
@pytest.mark.parametrize("stages", [1, 2])
@pytest.mark.parametrize("risk", ["drop", "disagreement"])
def test_golden_cases_are_written_at_every_end(kind: str, stages: int, risk: str) -> None:
    ladder = certify(records(kind, 60, stages), risk=risk)
    measured = ladder.points[0].accuracy[1]
    if kind != "tied":  # of ties the first class wins, and how many records have it is the lot's
        assert measured == (0.0 if kind == "wrong" else 1.0)
    data = json.loads(to_text(golden(ladder)))
    accuracies = {point["accuracy"] for device in ("slow", "fast") for point in data["devices"][device]["points"]}
    assert measured in accuracies


def test_one_record_is_an_uncertified_ladder_without_labels_and_an_error_with_them() -> None:
    ladder = certify(records("right", 1, 2, labels=False), risk="disagreement")
    assert not ladder.certified
    assert to_text(golden(ladder))
    with pytest.raises(CalibrationError, match="all 1 calibration labels are class 0"):
        certify(records("right", 1, 2))


@pytest.mark.parametrize("score", ["max_probability", "margin", "negative_entropy", "patience", "auto"])
def test_one_class_is_named_whatever_the_score(score: str) -> None:
    with pytest.raises(CalibrationError, match=r"the logits have 1 class.*a logit for each class"):
        certify(records("right", 20, 2, classes=1, labels=False), risk="disagreement", score=score)


@pytest.mark.parametrize("field", ["battery_floor", "max_drop", "min_accuracy"])
def test_both_ends_of_a_fraction_are_limits(field: str) -> None:
    for value in (0, 0.0, 1, 1.0):
        limits: dict[str, Any] = {field: value}
        assert getattr(dynamic.Budget(**limits), field) == value
    for value in (math.nextafter(1.0, 2.0), -math.ulp(0.0)):
        with pytest.raises(dynamic.DynamicError, match=rf"{field}=.* must be a fraction in \[0, 1\]"):
            dynamic.Budget(**{field: value})
