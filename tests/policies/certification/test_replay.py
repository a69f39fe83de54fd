"""Replay against a plain loop, record by record, in float64."""

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.policy_cases import INF, learned

from dynamic.policies.certification.replay import cost_to, predictions, replay, shares
from dynamic.policies.errors import SettingError
from dynamic.policies.scores import COMBINE, SCORES, Combiner
from dynamic.policies.stage_plan import plan

TEMPERATURE = (1.0, 1.7, 0.8, 1.2)
BACKBONE = (0, 0, 1, 2)
THRESHOLDS = [
    (0.7, 0.5, 0.45),
    (-INF, 0.5, 0.5),
    (INF, 0.6, INF),
    (INF, INF, INF),
    (2.0, 2.0, 2.0),
    (INF, -INF, 0.5),
    (0.5, INF, 0.5),
    (0.5, 1.5, 1.5),
]


def score_of(p: list[float], kind: str) -> float:
    if kind == "max_probability":
        return max(p)
    if kind == "margin":
        return sorted(p)[-1] - sorted(p)[-2]
    return sum(q * math.log(q) for q in p if q > 0)


def patience(labels: list[int]) -> int:
    """How many of the labels directly before the last are the same."""
    return next((i for i, label in enumerate(labels[-2::-1]) if label != labels[-1]), len(labels) - 1)


def one_by_one(
    logits: NDArray[Any], thresholds: tuple[float, ...], combine: str, kind: str
) -> list[tuple[int, int, float]]:
    """(stage, class, score) of each record; class -1 and score NaN where no stage gave anything."""
    found = []
    for record in logits.astype(float).tolist():
        answers: dict[int, list[float]] = {}  # by what has one vote
        labels: list[int] = []
        for s, z in enumerate(record):
            if s < 3 and thresholds[s] == INF:
                continue
            good = all(map(math.isfinite, z))
            if good:
                top = max(z)
                e = [math.exp((v - top) / TEMPERATURE[s]) for v in z]
                answers[{"mean": s, "last": 0, "backbones": BACKBONE[s]}[combine]] = [v / sum(e) for v in e]
            chosen = list(answers.values())
            p = [sum(column) / len(chosen) for column in zip(*chosen, strict=True)]
            labels += [p.index(max(p))] if good else []
            sure = math.nan
            if good:
                sure = patience(labels) if kind == "patience" else score_of(p, kind)
            if s == 3 or sure > thresholds[s]:
                found.append((s, p.index(max(p)) if p else -1, sure))
                break
    return found


@pytest.mark.parametrize("combine", COMBINE)
@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize("thresholds", THRESHOLDS)
def test_one_by_one(combine: str, kind: str, thresholds: tuple[float, ...]) -> None:
    logits, _ = learned(150, 4)
    logits[::7, 1, 2] = np.nan
    logits[::5, 3] = np.inf
    logits[3] = np.nan
    if kind == "negative_entropy":
        thresholds = tuple(t - 1.2 if abs(t) < 1 else t for t in thresholds)
    expected = one_by_one(logits, thresholds, combine, kind)
    found = replay(
        logits,
        Combiner(TEMPERATURE, kind, combine=combine, backbone=BACKBONE),
        thresholds=thresholds,
        backbone=BACKBONE,
    )
    assert found.stage.tolist() == [stage for stage, _, _ in expected]
    assert found.prediction.tolist() == [answer for _, answer, _ in expected]
    np.testing.assert_allclose(found.score, [score for _, _, score in expected], rtol=1e-4, atol=1e-5)
    assert found.prediction[3] == -1


def test_the_cases_above_spread_over_the_stages() -> None:
    logits, _ = learned(150, 4)
    left = {
        t: set(replay(logits, Combiner(TEMPERATURE, "margin", combine="mean"), thresholds=t, backbone=BACKBONE).stage)
        for t in THRESHOLDS
    }
    assert left[0.7, 0.5, 0.45] == {0, 1, 2, 3}
    assert left[-INF, 0.5, 0.5] == {0}
    patient = Combiner(TEMPERATURE, "patience", combine="last")
    assert set(replay(logits, patient, thresholds=(0.5, 0.5, 0.5), backbone=BACKBONE).stage) == {1, 2, 3}
    assert set(replay(logits, patient, thresholds=(0.5, 1.5, 1.5), backbone=BACKBONE).stage) == {2, 3}


@pytest.mark.parametrize("combine", COMBINE)
def test_an_exit_that_is_off_might_as_well_not_exist(combine: str) -> None:
    logits, _ = learned(200, 4)
    off = replay(
        logits,
        Combiner(TEMPERATURE, "margin", combine=combine, backbone=BACKBONE),
        thresholds=(0.5, INF, 0.4),
        backbone=BACKBONE,
    )
    kept = [0, 2, 3]
    without = replay(
        logits[:, kept],
        Combiner(tuple(TEMPERATURE[s] for s in kept), "margin", combine=combine, backbone=(0, 1, 2)),
        thresholds=(0.5, 0.4),
        backbone=(0, 1, 2),
    )
    assert off.stage.tolist() == [kept[s] for s in without.stage]
    assert off.prediction.tolist() == without.prediction.tolist()
    assert off.score.tolist() == without.score.tolist()


def test_a_score_on_the_threshold_stays() -> None:
    logits = np.array([[[0.0, 0.0], [3.0, 0.0]]], np.float32)  # a margin of exactly 0
    one = Combiner((1.0, 1.0), "margin", combine="last")
    assert replay(logits, one, thresholds=(0.0,), backbone=(0, 0)).stage.tolist() == [1]
    assert replay(logits, one, thresholds=(-1e-6,), backbone=(0, 0)).stage.tolist() == [0]


def test_wrong_thresholds_are_named() -> None:
    logits, _ = learned(5, 3)
    with pytest.raises(SettingError, match="need \\(2,\\)"):
        replay(logits, Combiner((1.0,) * 3, "margin", combine="mean"), thresholds=(0.5,), backbone=(0, 0, 0))


def test_no_records() -> None:
    found = replay(
        np.zeros((0, 2, 3), np.float32),
        Combiner((1.0, 1.0), "margin", combine="mean"),
        thresholds=(0.5,),
        backbone=(0, 0),
    )
    assert len(found.stage) == len(found.prediction) == len(found.score) == 0
    assert shares(found.stage, 2) == (0.0, 0.0)


def test_costs_by_hand() -> None:
    body, head = (1.0, 2.0, 4.0, 8.0), (0.1, 0.2, 0.4, 0.8)

    def to(*thresholds: float) -> list[float]:
        return cost_to(plan(np.array(thresholds, np.float32), (0, 0, 1, 1)), body, head).tolist()

    assert to(0.5, 0.5, 0.5) == pytest.approx([1.1, 3.3, 7.7, 16.5])
    assert to(INF, 0.5, INF) == pytest.approx([1.0, 3.2, 7.2, 16.0])  # bodies are needed, two heads are not
    assert to(0.5, INF, 0.5) == pytest.approx([1.1, 1.1, 5.5, 14.3])  # the second body leads nowhere
    assert to(INF, INF, INF) == pytest.approx([0, 0, 4.0, 12.8])  # the first network is not run


def test_shares_and_predictions_by_hand() -> None:
    assert shares(np.array([0, 2, 2, 2]), 4) == (0.25, 0.0, 0.75, 0.0)
    p = np.array([[0.2, 0.8], [0.5, 0.5], [np.nan, 0.1]], np.float32)
    assert predictions(p).tolist() == [1, 0, -1]
