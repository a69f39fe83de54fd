"""What sets of exits would have answered: against replay, by hand, and label by label."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.policy_cases import INF, learned, make_records

from dynamic.policies.certification import answers
from dynamic.policies.certification.answers import Answers
from dynamic.policies.certification.replay import replay
from dynamic.policies.certification.risks import RISKS
from dynamic.policies.errors import CalibrationError
from dynamic.policies.records import Records
from dynamic.policies.scores import COMBINE, SCORES, Combiner, softmax

TEMPERATURE = (1.0, 1.7, 0.8, 1.2)
BACKBONE = (0, 0, 1, 2)
BODY, HEAD = (1.0, 2.0, 4.0, 8.0), (0.1, 0.2, 0.4, 0.8)

# risks once more, of one answer, that of the reference and the label
LOSSES: dict[str, Callable[[int, int, int], int]] = {
    "drop": lambda own, reference, label: (reference == label) - (own == label),
    "harm": lambda own, reference, label: int(reference == label and own != label),
    "disagreement": lambda own, reference, label: int(own != reference),
    "error": lambda own, reference, label: int(own != label),
}


def some_records(count: int = 150, broken: bool = False) -> Records:
    """Four stages, three backbones; some without finite logits, of one even all."""
    logits, label = learned(count, 4)
    if broken:
        logits[::7, 1, 2] = np.nan
        logits[::5, 3] = np.inf
        logits[::11, 0] = np.nan
        logits[3] = np.nan
    return make_records(logits, label, BACKBONE, body=BODY, head=HEAD)


def combiner(score: str = "max_probability", combine: str = "mean") -> Combiner:
    return Combiner(TEMPERATURE, score, combine=combine, backbone=BACKBONE)


def believing(monkeypatch: pytest.MonkeyPatch, table: NDArray[Any]) -> None:
    """Make `table [N, C]` what is believed of the labels."""
    monkeypatch.setattr(answers, "belief", lambda *_: table.astype(np.float32))


def some_thresholds(records: Records, one: Combiner) -> list[tuple[float, ...]]:
    """Exits off, everybody leaves, scores that occur, and what lies between."""
    random = np.random.default_rng(0)
    seen = [
        replay(records.logits, one, thresholds=on, backbone=BACKBONE).score
        for on in itertools.product((INF, 9.0), repeat=3)
    ]
    scores = np.concatenate(seen)
    scores = scores[np.isfinite(scores)]
    found = []
    for _ in range(60):
        kind = random.integers(6, size=3)
        value = random.choice(scores, size=3)
        blurred = value + random.normal(size=3) * scores.std() / 4
        by_kind = [[INF] * 3, [-INF] * 3, value, blurred, blurred, [9.0] * 3]
        found.append(tuple(float(np.float32(by_kind[k][j])) for j, k in enumerate(kind)))
    return found


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("combine", COMBINE)
@pytest.mark.parametrize("score", SCORES)
def test_leaving_is_what_replay_does(score: str, combine: str, broken: bool) -> None:
    records, one = some_records(broken=broken), combiner(score, combine)
    assert records.label is not None
    found = {name: Answers(records, one, risk) for name, risk in RISKS.items()}
    reference = replay(records.logits, one, thresholds=(INF,) * 3, backbone=BACKBONE).prediction
    stages = set()
    for thresholds in some_thresholds(records, one):
        expected = replay(records.logits, one, thresholds=thresholds, backbone=BACKBONE)
        rows = list(zip(expected.prediction.tolist(), reference.tolist(), records.label.tolist(), strict=True))
        for name in RISKS:
            stage, loss = found[name].exits_under(thresholds)
            assert stage.tolist() == expected.stage.tolist()
            assert loss.tolist() == [LOSSES[name](*row) for row in rows]
        stages |= set(expected.stage.tolist())
    assert stages == {0, 1, 2, 3}
    assert (reference[3] == -1) == broken


def test_ties_are_decided_as_replay_decides_them() -> None:
    random = np.random.default_rng(0)
    logits = random.integers(2, size=(300, 4, 3)).astype(np.float32)
    records = make_records(logits, random.integers(3, size=300), BACKBONE)
    assert records.label is not None
    for combine in COMBINE:
        one = combiner("margin", combine)
        reference = replay(logits, one, thresholds=(INF,) * 3, backbone=BACKBONE).prediction == records.label
        for thresholds in ((0.0, 0.0, 0.0), (0.1, 0.0, 0.2), (-INF, 0.0, 0.0), (INF, 0.05, INF)):
            expected = replay(logits, one, thresholds=thresholds, backbone=BACKBONE)
            stage, loss = Answers(records, one, RISKS["drop"]).exits_under(thresholds)
            assert stage.tolist() == expected.stage.tolist()
            assert loss.tolist() == (reference.astype(int) - (expected.prediction == records.label)).tolist()


def test_ties_and_nothing_at_all_side_by_side() -> None:
    # the exit says 0 (as likely as 1), nothing, and 2; the last stage 0, 1, and nothing
    logits = np.array([[[1, 1, 0], [2, 0, 0]], [[np.nan, 0, 0], [0, 2, 0]], [[0, 0, 3], [0, np.inf, 0]]])
    one = Combiner((1.0, 1.0), "max_probability", combine="last")
    by_label = Answers(make_records(logits, [1, 1, 2]), one, RISKS["error"])
    assert by_label.exits((0,)).loss.tolist() == [[1, 1, 0], [1, 0, 0]]  # the exit's answer stands
    assert by_label.exits(()).loss.tolist() == [[1, 0, 1]]
    by_reference = Answers(make_records(logits, None), one, RISKS["disagreement"])
    assert by_reference.exits((0,)).loss.tolist() == [[0, 1, 1], [0, 0, 1]]
    assert by_reference.exits(()).loss.tolist() == [[0, 0, 0]]
    alone = Answers(make_records(logits[2:], None), one, RISKS["disagreement"])
    assert alone.exits((0,)).loss.tolist() == [[1], [1]]


def test_a_label_is_asked_for_only_where_the_risk_needs_it() -> None:
    records = some_records()
    without, thresholds = replace(records, label=None), (0.6, 0.5, INF)
    known = Answers(records, combiner(), RISKS["disagreement"]).exits_under(thresholds)[1]
    assert Answers(without, combiner(), RISKS["disagreement"]).exits_under(thresholds)[1].tolist() == known.tolist()
    assert known.any()
    for expected in (False, True):
        with pytest.raises(CalibrationError, match="needs labels"):
            Answers(without, combiner(), RISKS["harm"], expected=expected)


def test_costs_of_a_set_by_hand() -> None:
    found = Answers(some_records(), combiner(), RISKS["drop"])
    assert found.exits(()).cost.tolist() == pytest.approx([8.8])  # other backbones are not run
    assert found.exits((0, 1, 2)).cost.tolist() == pytest.approx([1.1, 3.3, 7.7, 16.5])
    assert found.exits((1,)).cost.tolist() == pytest.approx([3.2, 12.0])  # the first body is needed, its head is not
    assert found.exits((0, 2)).cost.tolist() == pytest.approx([1.1, 5.5, 14.3])
    given = Answers(some_records(), combiner(), RISKS["drop"], body=(10.0,) * 4, head=(0.0, 1.0, 2.0, 3.0))
    assert given.exits((1,)).cost.tolist() == pytest.approx([21.0, 34.0])


def test_sets_asked_for_before_do_not_matter() -> None:
    records, one = some_records(broken=True), combiner("patience", "backbones")
    order = [(0, 1, 2), (0, 1), (1, 2), (0, 1, 2), (), (0, 2), (2,)]
    asked = Answers(records, one, RISKS["drop"])
    for chosen in order:
        found, fresh = asked.exits(chosen), Answers(records, one, RISKS["drop"]).exits(chosen)
        assert [stage.stage for stage in found.stages] == [*chosen, 3]
        for own, other in zip(found.stages, fresh.stages, strict=True):
            np.testing.assert_array_equal(own.score, other.score)
            np.testing.assert_array_equal(own.loss, other.loss)


def test_real_losses_are_small_numbers_and_their_own_squares() -> None:
    for stage in Answers(some_records(), combiner(), RISKS["drop"]).exits((0, 1)).stages:
        assert stage.loss.dtype == stage.square.dtype == np.int8
        assert stage.square.tolist() == [loss**2 for loss in stage.loss.tolist()]


# expected losses


def by_hand() -> Records:
    """Two stages of three classes: the reference says 0, 0, 1 and 1, the exit 0, 2, 1 and 0."""
    logits = np.zeros((4, 2, 3), np.float32)
    logits[range(4), 0, [0, 2, 1, 0]] = 1
    logits[range(4), 1, [0, 0, 1, 1]] = 1
    return make_records(logits, [0, 1, 2, 0])


BELIEF = np.array([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [0.1, 0.9, 0.0], [0.25, 0.25, 0.5]])
BY_HAND: dict[str, tuple[list[float], list[float]]] = {
    # in turn: the same answer, 0.5 right and 0.2 won, the same again, as likely won as lost. For "disagreement" the
    # belief is about the reference's answer, without a look at it: a few hundred of them tie at most thresholds
    "drop": ([0, 0.3, 0, 0], [0, 0.7, 0, 0.5]),
    "harm": ([0, 0.5, 0, 0.25], [0, 0.5, 0, 0.25]),
    "disagreement": ([0.5, 0.8, 0.1, 0.75], [0.5, 0.8, 0.1, 0.75]),
    "error": ([0.5, 0.8, 0.1, 0.75], [0.5, 0.8, 0.1, 0.75]),
}


@pytest.mark.parametrize("name", RISKS)
def test_expected_losses_by_hand(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    believing(monkeypatch, BELIEF)
    one = Combiner((1.0, 1.0), "max_probability", combine="last")
    found = Answers(by_hand(), one, RISKS[name], expected=True)
    exit_, last = found.exits((0,)).stages
    loss, square = BY_HAND[name]
    assert exit_.loss.tolist() == pytest.approx(loss, abs=1e-6)
    assert exit_.square.tolist() == pytest.approx(square, abs=1e-6)
    of_reference = [0.5, 0.5, 0.1, 0.75] if name == "error" else [0, 0, 0, 0]
    assert last.loss.tolist() == pytest.approx(of_reference, abs=1e-6)
    assert found.exits_under((-INF,))[1].tolist() == pytest.approx(loss, abs=1e-6)
    assert found.exits_under((INF,))[1].tolist() == pytest.approx(of_reference, abs=1e-6)


@pytest.mark.parametrize("combine", COMBINE)
@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("name", ["drop", "harm", "error"])
def test_expected_losses_label_by_label(name: str, broken: bool, combine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    records, one = some_records(60, broken), combiner(combine=combine)
    table = np.random.default_rng(0).dirichlet([0.5] * 4, size=60)
    believing(monkeypatch, table)
    reference = replay(records.logits, one, thresholds=(INF,) * 3, backbone=BACKBONE).prediction.tolist()
    found = Answers(records, one, RISKS[name], expected=True).exits((0, 2))
    for j, thresholds in enumerate([(-INF, INF, -INF), (9.0, INF, -INF), (9.0, INF, 9.0)]):
        stage, at = found.stages[j], replay(records.logits, one, thresholds=thresholds, backbone=BACKBONE)
        for n, row in enumerate(table):
            if at.stage[n] != stage.stage:
                continue  # of no score here: it does not leave
            by_label = [LOSSES[name](int(at.prediction[n]), reference[n], label) for label in range(4)]
            assert stage.loss[n] == pytest.approx(row @ by_label, abs=1e-6)
            assert stage.square[n] == pytest.approx(row @ np.square(by_label), abs=1e-6)


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("name", RISKS)
def test_where_the_label_is_believed_expected_losses_are_the_real_ones(
    name: str, broken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = some_records(broken=broken)
    assert records.label is not None
    one = combiner()
    reference = replay(records.logits, one, thresholds=(INF,) * 3, backbone=BACKBONE).prediction
    believing(monkeypatch, np.eye(4)[reference if name == "disagreement" else records.label])
    expected, real = (Answers(records, one, RISKS[name], expected=known).exits((0, 1, 2)) for known in (True, False))
    rows = reference >= 0 if name == "disagreement" else slice(None)  # without an answer there is nothing to predict
    np.testing.assert_array_equal(expected.loss[:, rows], real.loss[:, rows])
    np.testing.assert_array_equal(expected.square[:, rows], real.square[:, rows])
    assert real.loss.any()


def test_what_is_believed_is_of_all_stages_or_of_those_before_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    records = some_records()
    asked: list[Any] = []
    real = answers.belief

    def listen(probability: Any, label: NDArray[np.int64]) -> Any:
        asked.append((probability, label))
        return real(probability, label)

    monkeypatch.setattr(answers, "belief", listen)
    for name in RISKS:
        for expected in (False, True):
            Answers(records, combiner(), RISKS[name], expected=expected)
    assert len(asked) == 4, "where losses are expected ones"
    reference = records.logits[:, -1].argmax(axis=1)
    for (probability, label), name in zip(asked, RISKS, strict=True):
        assert len(probability) == (3 if name == "disagreement" else 4)
        for stage, own in enumerate(probability):
            np.testing.assert_array_equal(own, softmax(records.logits[:, stage], TEMPERATURE[stage]))
        assert records.label is not None
        assert label.tolist() == (reference if name == "disagreement" else records.label).tolist()


@pytest.mark.parametrize("broken", [False, True])
def test_expected_losses_are_about_the_real_ones(broken: bool) -> None:
    """Of 4000 records, of which the labels give the mean loss to about 0.007."""
    records, one, means = some_records(4000, broken), combiner(), []
    for name in ("drop", "harm", "error"):
        expected, real = (Answers(records, one, RISKS[name], expected=known) for known in (True, False))
        for thresholds in ((0.5, 0.6, 0.7), (-INF, INF, INF), (INF, INF, 0.6)):
            found, known = expected.exits_under(thresholds), real.exits_under(thresholds)
            assert found[0].tolist() == known[0].tolist()
            assert found[1].mean() == pytest.approx(known[1].mean(), abs=0.02)
            means.append(known[1].mean())
    assert max(means) - min(means) > 0.3
