"""Labels on demand: who is asked, when asking ends, and that the promise holds whatever was asked."""

import itertools
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom
from support.policy_cases import INF, learned, make_records

from dynamic.policies.certification.bounds import batch_p, binomial_p
from dynamic.policies.certification.certificates import certify
from dynamic.policies.certification.few_labels.asking import Asking, Demand, DemandSettings, ask, with_oracle_stage
from dynamic.policies.errors import CalibrationError, CorruptError, InputError, SettingError
from dynamic.policies.ladder import Ladder
from dynamic.policies.records import Records


class Memory:
    """Answers in memory, and how many came at a time."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.labels: dict[int, int] = {}
        self.sizes: list[int] = []
        self.draw: Mapping[str, Any] | None = None

    def add(self, answers: Mapping[int, int]) -> None:
        self.labels |= answers
        self.sizes.append(len(answers))

    def keep_draw(self, draw: Mapping[str, Any]) -> None:
        self.draw = json.loads(json.dumps(draw))


def proxy(score: Any, classes: int = 4) -> Records:
    """A proxy that answers class 1 with a confidence that rises with `score`, and an oracle behind it."""
    score = np.asarray(score, float)
    logits = np.zeros((len(score), 1, classes))
    logits[:, 0, 1] = score
    return with_oracle_stage(make_records(logits, None))


def asked(
    records: Records,
    oracle: Callable[[NDArray[np.int64]], Any],
    target: float = 0.1,
    finite: bool = False,
    **options: Any,
) -> tuple[Demand, Memory]:
    settings = DemandSettings.of((target,), risk=options.pop("risk", "disagreement"), **options)
    store = Memory()
    return ask(Asking(records, settings, finite=finite), oracle, store), store


def ladder_of(demand: Demand, target: float, risk: Any = "disagreement", **options: Any) -> Ladder:
    return certify(demand.records, (target,), risk=risk, combine="last", floor=0, **options)


def answers(wrong: NDArray[np.bool_]) -> Callable[[NDArray[np.int64]], NDArray[np.int64]]:
    return lambda rows: np.where(wrong[rows], 2, 1)


def test_only_inputs_that_exit_are_asked_about_the_most_confident_first() -> None:
    random = np.random.default_rng(0)
    score, wrong = random.uniform(0, 4, 1000), np.zeros(1000, bool)
    wrong[np.argsort(-score)[400:]] = True  # beyond the first 400 all are wrong
    demand, store = asked(proxy(score), answers(wrong), batch_size=5, budget=300)
    rows = list(store.labels)
    assert np.all(np.diff(score[rows]) < 0), "one after the other, as they exit"
    drawn = demand.plan.draws
    allowed = max(lost for lost in range(drawn) if binomial_p(lost, drawn, 0.1) <= 0.1)
    assert sum(wrong[rows]) in range(allowed + 1, allowed + 6), "at most one batch more than decides"
    assert demand.question_count == len(rows) < drawn
    assert "more labels cannot help" in demand.reason
    (point,) = ladder_of(demand, 0.1).points[1:]
    assert point.bound == 0.1
    assert 0.35 < np.mean(score > score[rows[-1]]) < 0.6


def test_the_budget_ends_it_and_what_was_not_asked_counts_as_lost() -> None:
    random = np.random.default_rng(0)
    demand, store = asked(
        proxy(random.uniform(0, 4, 2000)), answers(np.zeros(2000, bool)), 0.05, budget=30, batch_size=7
    )
    assert store.sizes == [7, 7, 7, 7, 2]
    assert demand.reason == "the budget of 30 labels is spent"
    drawn = demand.plan.draws
    allowed = max(lost for lost in range(drawn) if binomial_p(lost, drawn, 0.05) <= 0.1)
    (point,) = ladder_of(demand, 0.05).points[1:]
    assert point.shares[0] * drawn == pytest.approx(30 + allowed)


def test_a_budget_that_certifies_nothing_says_how_many_labels_can_help(caplog: pytest.LogCaptureFixture) -> None:
    """All scores are equal, so all inputs that were drawn exit together."""
    demand, _ = asked(proxy(np.full(400, 2.0)), answers(np.zeros(400, bool)), budget=10)
    drawn = demand.plan.draws
    assert demand.reason == (
        f"the budget of 10 labels is spent, and nothing is certified for disagreement 0.1. Up to {drawn - 10} more "
        "labels can help: call again with a larger budget and the same checkpoint"
    )
    (line,) = (r for r in caplog.records if r.levelname == "WARNING")
    assert line.getMessage() == f"10 labels were asked for: {demand.reason}"


def test_answers_that_are_there_are_not_asked_for_again() -> None:
    random = np.random.default_rng(0)
    score, wrong = random.uniform(0, 4, 600), random.random(600) < 0.05
    records, settings = proxy(score), DemandSettings.of((0.1,), risk="disagreement", budget=120, batch_size=10)
    whole = Memory()
    first = ask(Asking(records, settings), answers(wrong), whole)
    calls: list[int] = []

    def failing(rows: NDArray[np.int64]) -> NDArray[np.int64]:
        if len(calls) == 2:
            raise TimeoutError("the service is down")
        calls.extend(rows.tolist()[:1])
        return answers(wrong)(rows)

    part = Memory(Path("labels.csv"))
    with pytest.raises(
        CalibrationError,
        match=r"oracle raised TimeoutError on rows .*: mend it and call again with the same checkpoint"
        r"\. 20 earlier answers are in the checkpoint$",
    ):
        ask(Asking(records, settings), failing, part)
    second = ask(Asking(records, settings), answers(wrong), part)
    assert part.labels == whole.labels
    assert ladder_of(first, 0.1).points == ladder_of(second, 0.1).points


def test_equal_answers_need_no_label_for_a_drop() -> None:
    random, label = np.random.default_rng(0), np.arange(1500) % 2
    score, logits = random.uniform(0, 4, 1500), np.zeros((1500, 2, 4))
    logits[np.arange(1500), 0, np.where(random.random(1500) < 0.4 * np.exp(-score), 2, label)] = score
    logits[np.arange(1500), 1, label] = 4
    records = make_records(logits, None, (0, 1), body=(1.0, 3.0))
    demand, store = asked(records, lambda rows: label[rows], 0.1, risk="drop", budget=200)
    differ = logits[:, 0].argmax(1) != logits[:, 1].argmax(1)
    assert store.labels
    assert differ[list(store.labels)].all()
    assert demand.plan.draws > 4 * demand.plan.labels
    ladder = ladder_of(demand, 0.1, "drop")
    assert ladder.certified
    # with every label the certificate is the same
    whole = replace(demand.records, label=np.where(demand.records.part == 1, label, -1))
    other = certify(whole, (0.1,), risk="drop", combine="last", floor=0)
    assert [(p.thresholds, p.bound) for p in ladder.points] == [(p.thresholds, p.bound) for p in other.points]


def test_a_useless_exit_costs_nothing() -> None:
    """The second exit answers as the first does, at three times its cost. It changes neither questions nor thresholds.

    Beyond the first 800 of 2,000 inputs all are wrong. So of the inputs drawn, those before and as many wrong ones as
    the test allows exit.
    """
    random = np.random.default_rng(0)
    score, target = random.uniform(0, 4, 2000), 0.1
    wrong = np.zeros(2000, bool)
    wrong[np.argsort(-score)[800:]] = True
    logits = np.zeros((2000, 3, 4))
    logits[:, :2, 1] = score[:, None]
    three = make_records(logits, None, (0, 1, 2), body=(1.0, 3.0, 6.0))
    two = make_records(logits[:, 1:], None, (0, 1), body=(1.0, 6.0))
    (own, own_store), (other, other_store) = (asked(one, answers(wrong), target, budget=600) for one in (three, two))
    assert list(own_store.labels) == list(other_store.labels)
    (_, point), (_, rival) = (ladder_of(demand, target).points for demand in (own, other))
    assert point.thresholds == (*rival.thresholds, INF)
    drawn = own.records.part == 1
    allowed = max(lost for lost in range(600) if binomial_p(lost, int(drawn.sum()), target) <= 0.1)
    exits = int((~wrong[drawn]).sum()) + allowed
    assert point.shares == pytest.approx((exits / drawn.sum(), 0.0, 1 - exits / drawn.sum()))


@pytest.mark.parametrize("risk", ["drop", "harm", "error"])
@pytest.mark.parametrize("stages", [2, 3])
def test_several_exits_and_risks(risk: Any, stages: int) -> None:
    logits, label = learned(2000, stages, reach=(2.0, 4.0))
    target = 0.05 + (risk == "error") * float((logits[:, -1].argmax(1) != label).mean())
    records = make_records(logits, None, tuple(range(stages)), body=tuple(range(1, stages + 1)))
    demand, store = asked(records, lambda rows: label[rows], target, risk=risk, budget=600)
    assert 0 < len(store.labels) <= 600
    ladder = ladder_of(demand, target, risk)
    assert ladder.certified
    assert all(p.bound == target for p in ladder.points[1:])
    assert (demand.records.part[list(store.labels)] == 1).all()


def test_the_ladder_of_several_targets() -> None:
    random = np.random.default_rng(0)
    score = random.uniform(0, 4, 3000)
    wrong = random.random(3000) < 0.3 * np.exp(-score)
    settings, store = DemandSettings.of((0.02, 0.05, 0.1), risk="disagreement", budget=600), Memory()
    demand = ask(Asking(proxy(score), settings), answers(wrong), store)
    ladder = certify(demand.records, (0.02, 0.05, 0.1), risk="disagreement", combine="last", floor=0)
    shares = [p.shares[0] for p in ladder.points]
    assert shares == sorted(shares)
    assert len(ladder.points) == 4


def test_exits_of_at_most_the_allowed_share_need_no_label_in_a_batch() -> None:
    score = np.linspace(0, 4, 100)
    demand, store = asked(proxy(score), answers(np.ones(100, bool)), 0.1, finite=True, budget=60, batch_size=1)
    ladder = ladder_of(demand, 0.1)
    assert ladder.points[1].shares[0] == pytest.approx(np.mean(score[demand.records.part == 1] > score[89] + 1e-9))
    assert ladder.certificate is not None
    assert ladder.certificate.batch == 100
    assert "hypergeometric" in ladder.certificate.test
    assert Ladder.from_json(ladder.to_json()) == ladder
    assert len(store.labels) < 20


@pytest.mark.parametrize(("allowed", "drawn"), [(0, 3), (1, 4), (2, 4)])
def test_every_batch_and_every_draw(allowed: int, drawn: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven inputs, every kind of them and every sample: the exact chance that a promise for the batch is broken."""
    total, delta = 7, 0.45
    target = (allowed + 0.01) / total
    settings = DemandSettings.of((target,), risk="disagreement", delta=delta, batch_size=1)
    base = Asking(proxy(np.arange(total)[::-1]), settings, finite=True)
    draws = list(itertools.combinations(range(total), drawn))
    worst = 0.0
    for wrong in itertools.product((False, True), repeat=total):
        broken = 0
        for some in draws:
            one = base.other_draw(0)
            one.take(np.array(some))
            store = Memory()
            ask(one, answers(np.array(wrong)), store)
            thresholds = one.thresholds(store.labels)[target]
            limit = INF if thresholds is None else thresholds[0]
            score = np.exp(np.arange(total)[::-1]) / (np.exp(np.arange(total)[::-1]) + 3)
            lost = [i for i in range(total) if wrong[i] and score[i] > limit + 1e-6 and i not in store.labels]
            broken += len(lost) > allowed
        worst = max(worst, broken / len(draws))
    events = [c for c in range(drawn) if batch_p(c, drawn, total, allowed) <= delta]
    assert worst <= delta + 1e-12
    if events:
        assert worst == pytest.approx(batch_p(max(events), drawn, total, allowed)), "and the level is used"


@pytest.mark.parametrize("budget", [None, 2])
@pytest.mark.parametrize(("count", "target", "delta"), [(4, 0.34, 0.3), (5, 0.4, 0.1), (6, 0.25, 0.2), (4, 0.7, 0.45)])
def test_every_draw_of_future_inputs(count: int, target: float, delta: float, budget: int | None) -> None:
    """Three inputs of equal probability, every kind of them, every draw: the exact chance of a wrong certificate."""
    settings = DemandSettings.of((target,), risk="disagreement", delta=delta, batch_size=1, budget=budget)
    kinds = np.array([3.0, 2.0, 1.0])
    confidence = np.exp(kinds) / (np.exp(kinds) + 3)
    chances = dict.fromkeys(itertools.product((False, True), repeat=3), 0.0)
    for drawn in itertools.combinations_with_replacement(range(3), count):
        times = np.bincount(drawn, minlength=3)
        chance = math.factorial(count) / math.prod(map(math.factorial, times.tolist())) / 3**count
        base = Asking(proxy(kinds[list(drawn)]), settings)
        base.take(np.arange(count))
        for wrong in chances:
            store = Memory()
            ask(base, answers(np.array(wrong)[list(drawn)]), store)
            thresholds = base.thresholds(store.labels)[target]
            exits = confidence > (INF if thresholds is None else thresholds[0])
            chances[wrong] += chance * float((exits & np.array(wrong)).mean() > target)
    worst = max(chances.values())
    assert worst <= delta + 1e-12
    if budget is None:  # a third of the inputs, two thirds or all are wrong, whatever is more than the target
        share = next(k / 3 for k in range(1, 4) if k / 3 > target)
        allowed = max((c for c in range(count) if binom.cdf(c, count, target) <= delta), default=-1)
        assert worst == pytest.approx(binom.cdf(allowed, count, share)), "and the level is used"


@pytest.mark.parametrize("finite", [False, True])
def test_where_every_certificate_is_wrong_by_a_hair(finite: bool) -> None:
    """All that is lost is lost by the most confident inputs: whoever passes them has broken the promise."""
    size, target, draws = 1000, 0.05, 1000
    score = np.linspace(4, 0, size)
    settings = DemandSettings.of((target,), risk="disagreement", budget=100)
    base, broken = Asking(proxy(score), settings, finite=True), 0
    lost = int(target * size) + 1
    if finite:  # inputs that were asked about have right answers, so there may be as many more
        lost += max(c for c in range(20) if batch_p(c, base.plan.draws, size, int(target * size)) <= 0.1)
    wrong = np.arange(size) < lost
    random = np.random.default_rng(0)
    for seed in range(draws):
        rows = np.arange(size) if finite else random.integers(size, size=400)
        one = base.other_draw(seed) if finite else Asking(proxy(score[rows]), settings)
        store = Memory()
        ask(one, answers(wrong[rows]), store)
        thresholds = one.thresholds(store.labels)[target]
        exits = np.exp(score) / (np.exp(score) + 3) > (INF if thresholds is None else thresholds[0])
        if finite:
            exits[list(store.labels)] = False
        broken += (exits & wrong).mean() > target
    assert 0.02 * draws <= broken <= binom.ppf(0.999, draws, 0.1)


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (
            lambda rows: None,
            CalibrationError,
            "no answer yet on rows .*: when it has, call again$",
        ),
        (lambda rows: np.full(len(rows), 4), InputError, "answered class 4, and the cascade has 4 classes, 0 to 3"),
        (lambda rows: np.full(len(rows), -1), InputError, "answered class -1"),
        (lambda rows: np.zeros(3, int), InputError, r"answered int64 \[3\] for 10 rows: give a class index"),
        (lambda rows: [[1]] * 9 + [[1, 2]], InputError, "lists of different lengths for 10 rows: give a class index"),
        (lambda rows: np.zeros((len(rows), 4)), InputError, r"answered float64 \[10, 4\] for 10 rows"),
        (lambda rows: ["cat"] * len(rows), InputError, "give a class index"),
    ],
)
def test_oracles_that_answer_something_else(answer: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        asked(proxy(np.linspace(0, 4, 300)), answer)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 0}, "budget=0 must be a whole number of 1 or more"),
        ({"budget": 301}, "budget=301 is above the 300 inputs: give at most 300"),
        ({"budget": 2.5}, "budget=2.5 must be"),
        ({"batch_size": 0}, "batch_size=0 must be"),
        ({"score": "auto"}, "name one score"),
        ({"combine": "backbones"}, "use combine='last'"),
        ({"delta": 2}, "delta=2"),
    ],
)
def test_settings_that_are_refused(options: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        asked(proxy(np.linspace(0, 4, 300)), answers(np.zeros(300, bool)), **options)


def test_a_target_of_0_is_refused() -> None:
    with pytest.raises(SettingError, match="max_drops holds 0"):
        DemandSettings.of((0.0, 0.01), risk="drop")
    assert DemandSettings.of(None, risk="drop").targets[0] > 0


def test_fewer_inputs_than_any_certificate_needs() -> None:
    fewest = next(n for n in range(1, 500) if 0.98**n <= 0.1)
    with pytest.raises(
        CalibrationError, match=rf"100 inputs are fewer .* needs: {fewest} for disagreement 0.02. Give more"
    ):
        asked(proxy(np.linspace(0, 4, 100)), answers(np.zeros(100, bool)), 0.02)


def test_several_exits_need_inputs_that_choose() -> None:
    fewest = next(n for n in range(1, 500) if 0.98**n <= 0.1)
    enough = math.ceil(4 * fewest / 3)
    logits, label = learned(enough, 3, reach=(2.0, 4.0))
    records = make_records(logits, None, (0, 1, 2))
    with pytest.raises(
        CalibrationError,
        match=rf"^{enough - 1} inputs are too few for 3 stages, because a quarter chooses the exits and {fewest} must "
        rf"certify: give {enough} inputs, or two stages, where {fewest} do$",
    ):
        asked(records.select(slice(enough - 1)), lambda rows: label[rows], 0.02, risk="drop")
    demand, _ = asked(records, lambda rows: label[rows], 0.02, risk="drop")
    assert demand.plan.draws <= int(0.75 * enough)


def test_groups_are_refused() -> None:
    records = replace(proxy(np.linspace(0, 4, 300)), group=np.arange(300) // 3)
    with pytest.raises(CalibrationError, match="these have groups"):
        asked(records, answers(np.zeros(300, bool)))


def test_scores_that_are_all_equal_are_one_step() -> None:
    demand, store = asked(proxy(np.full(400, 2.0)), answers(np.zeros(400, bool)), budget=100)
    assert ladder_of(demand, 0.1).points[1].shares[0] == 1.0
    wrong, _ = asked(proxy(np.full(400, 2.0)), answers(np.arange(400) % 2 == 0), budget=100)
    assert not ladder_of(wrong, 0.1).certified
    assert store.labels


def test_records_with_missing_labels_are_saved(tmp_path: Any) -> None:
    demand, _ = asked(proxy(np.linspace(0, 4, 300)), answers(np.zeros(300, bool)), finite=True)
    demand.records.save(tmp_path / "records.npz")
    again = Records.load(tmp_path / "records.npz")
    assert (again.on_demand, again.finite) == (True, True)
    np.testing.assert_array_equal(np.asarray(again.label), np.asarray(demand.records.label))
    assert ladder_of(demand, 0.1) == certify(again, (0.1,), risk="disagreement", combine="last", floor=0)
    with pytest.raises(SettingError, match="name one score"):
        ladder_of(demand, 0.1, score="auto")


def test_a_larger_budget_asks_more_about_the_same_draw() -> None:
    random = np.random.default_rng(0)
    score, wrong = random.uniform(0, 4, 2000), random.random(2000) < 0.03
    records, store = proxy(score), Memory()
    draws = []
    for budget in (20, 60, 200):
        settings = DemandSettings.of((0.05,), risk="disagreement", budget=budget)
        assert budget == 20 or Asking(records, settings).plan.draws != draws[0], "alone it would draw others"
        demand = ask(Asking(records, settings), answers(wrong), store)
        draws.append(demand.plan.draws)
        assert int((demand.records.part == 1).sum()) == draws[0]
        assert demand.question_count <= budget
    assert len(set(draws)) == 1


def test_looking_again_with_larger_budgets_is_one_look() -> None:
    """The risk is a hair above the target. Any of six certificates in a row is wrong no more often than one."""
    size, draws, broken = 400, 200, 0
    records, random = proxy(np.full(size, 2.0)), np.random.default_rng(0)
    for seed in range(draws):
        wrong = random.random(size) < 0.0501
        store, any_broken = Memory(), False
        for budget in (50, 80, 110, 140, 170, 210):
            settings = DemandSettings.of((0.05,), risk="disagreement", budget=budget, batch_size=size, seed=seed)
            one = Asking(records, settings).resumed(store)
            ask(one, answers(wrong), store)
            any_broken |= one.thresholds(store.labels)[0.05] is not None
        broken += any_broken
    assert broken <= binom.ppf(0.999, draws, 0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 1}, "seed=1, and the answers of this checkpoint were asked for with 0. A second look"),
        ({"max_drops": (0.1,)}, r"targets=\(0.1,\), and .* with \(0.05,\)"),
        ({"delta": 0.2}, "delta=0.2"),
        ({"risk": "harm"}, "risk='harm'"),
        ({"score": "margin"}, "score='margin'"),
    ],
)
def test_another_draw_of_the_same_inputs_is_refused(options: Any, message: str) -> None:
    logits, label = learned(2000, 2, reach=(2.0, 4.0))
    records, store = make_records(logits, None, (0, 1)), Memory()
    usual: dict[str, Any] = {"max_drops": (0.05,), "risk": "drop", "budget": 40}
    ask(Asking(records, DemandSettings.of(**usual)), lambda rows: label[rows], store)
    kept = dict(store.labels)
    with pytest.raises(SettingError, match=message):
        ask(Asking(records, DemandSettings.of(**(usual | options))), lambda rows: label[rows], store)
    with pytest.raises(SettingError, match="is_batch=True"):
        ask(Asking(records, DemandSettings.of(**usual), finite=True), lambda rows: label[rows], store)
    assert store.labels == kept


def test_answers_about_other_inputs_are_refused() -> None:
    random = np.random.default_rng(0)
    score = random.uniform(0, 4, 600)
    settings, store = DemandSettings.of((0.1,), risk="disagreement", budget=30), Memory()
    ask(Asking(proxy(score), settings), answers(np.zeros(600, bool)), store)
    near = score * (1 + 1e-5)  # as another machine rounds
    ask(Asking(proxy(near), settings), answers(np.zeros(600, bool)), store)
    with pytest.raises(InputError, match="the same inputs in the same order"):
        ask(Asking(proxy(random.permutation(score)), settings), answers(np.zeros(600, bool)), store)
    with pytest.raises(SettingError, match="inputs=599"):
        ask(Asking(proxy(score[1:]), settings), answers(np.zeros(599, bool)), store)


@pytest.mark.parametrize("stages", [2, 3])
def test_how_many_future_inputs_are_drawn_does_not_depend_on_them(stages: int) -> None:
    """Inputs that may be drawn get other scores, and as many are drawn as before."""
    logits, _ = learned(2000, stages, reach=(2.0, 4.0))
    settings = DemandSettings.of((0.05,), risk="harm", budget=100)
    order = np.random.default_rng(settings.seed).permutation(2000)
    other = logits.copy()
    other[order[:1500]] = np.random.default_rng(1).normal(size=logits[:1500].shape)
    counts = []
    for each in (logits, other):
        one = Asking(make_records(each, None, tuple(range(stages))), settings)
        counts.append(one.plan.draws)
        assert set(np.flatnonzero(one.records.part == 1)) <= set(order[:1500])
    assert counts[0] == counts[1]


def test_all_are_drawn_where_a_part_would_be_too_few() -> None:
    fewest = next(n for n in range(1, 500) if 0.98**n <= 0.1)
    demand, _ = asked(proxy(np.linspace(0, 4, fewest + 5)), answers(np.zeros(fewest + 5, bool)), 0.02)
    assert demand.plan.draws == fewest + 5


def test_a_part_of_a_batch_is_no_batch() -> None:
    demand, _ = asked(proxy(np.linspace(0, 4, 300)), answers(np.zeros(300, bool)), finite=True)
    part = demand.records.select(np.arange(300) < 200)
    with pytest.raises(CalibrationError, match="the 200 records are a part of a batch of 300 inputs"):
        certify(part, (0.1,), risk="disagreement", combine="last", floor=0)


def test_every_threshold_is_tested_where_labels_were_asked_for() -> None:
    """Beyond 2,000 draws too: quantiles of scores that certify would depend on them."""
    logits, label = learned(4000, 2, reach=(2.0, 4.0))
    target = 0.1 + float((logits[:, -1].argmax(1) != label).mean())
    records = make_records(logits, None, (0, 1), body=(1.0, 3.0))
    demand, _ = asked(records, lambda rows: label[rows], target, risk="error", budget=4000)
    assert demand.plan.draws > 2000
    (limit,) = (p.thresholds[0] for p in ladder_of(demand, target, "error").points[1:])
    parts_score = np.exp(logits[:, 0]).max(1) / np.exp(logits[:, 0]).sum(1)
    drawn = np.sort(parts_score[demand.records.part == 1])
    below, above = drawn[drawn <= limit], drawn[drawn > limit]
    assert limit == -INF or (limit - below[-1]) / (above[0] - below[-1]) == pytest.approx(1 / 16, abs=0.02)


@pytest.mark.parametrize("change", [{"draws": -1}, {"targets": "0.1"}, {"logits": [float("nan")]}, {"delta": None}])
def test_a_draw_that_does_not_read_is_refused(change: Any) -> None:
    records, settings, store = proxy(np.linspace(0, 4, 300)), DemandSettings.of((0.1,), risk="disagreement"), Memory()
    store.draw = Asking(records, settings).draw_record.to_json() | change
    with pytest.raises(CorruptError, match=r"draw of this checkpoint does not read .*: restore it"):
        Asking(records, settings).resumed(store)
    store.draw = {"inputs": 300}
    with pytest.raises(CorruptError, match="does not read"):
        Asking(records, settings).resumed(store)


def test_a_certificate_counts_the_labels_that_were_asked_for() -> None:
    demand, _ = asked(proxy(np.linspace(0, 4, 400)), answers(np.ones(400, bool)), 0.05, budget=30)
    certificate = ladder_of(demand, 0.05).certificate
    assert certificate is not None
    assert certificate.labels == demand.question_count
    assert certificate.labels < certificate.images
