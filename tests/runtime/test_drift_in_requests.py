"""Drift, certificates and labels at run time, on an engine whose inputs say what it answers."""

import re
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import binomtest
from support.policy_cases import INF, make_costs, make_point
from support.runtime_cases import Takes, monitor, shared_blobs

import dynamic
from dynamic.engines.contract import Output
from dynamic.engines.route_choice import CascadeEngine
from dynamic.errors import EngineError, InputError, SettingError
from dynamic.policies import BudgetPolicy, Feedback
from dynamic.policies.certification.drift import ScoreBins
from dynamic.policies.control.budget_policy import BudgetState
from dynamic.policies.fast_paths import fast_replace
from dynamic.runtime.drift import feedback_log
from dynamic.runtime.drift.drift_watch import TESTED
from dynamic.runtime.runtime import Runtime


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> dynamic.Bundle:
    return shared_blobs(tmp_path_factory)


class Scripted:
    """Two stages: inputs `[B, 12]` hold the score at the first, the score at the last, and the label to answer.

    `cuts`: a deadline passes during the first stage that is evaluated; `moves`: every request has something to load.
    """

    name, precision, threads = "onnxruntime", "f32", 1
    agrees = True

    def __init__(self) -> None:
        self.cuts = self.moves = False

    def ready(self, rows: int) -> bool:
        return True

    def prepare(self, *_: Any) -> bool:
        return self.moves

    def run(self, inputs: Mapping[str, NDArray[Any]], thresholds: NDArray[np.float32], *_: Any) -> Output:
        (x,) = inputs.values()
        leaves = thresholds[0] < x[:, 0]
        first = leaves | (self.cuts and thresholds[0] < INF)
        logits = np.log(np.full((len(x), 4), 0.1, np.float32))
        logits[np.arange(len(x)), x[:, 2].astype(int)] = np.log(0.7)
        logits[x[:, 2] < 0] = np.nan
        score = np.where(first, x[:, 0], x[:, 1]).astype(np.float32)
        return Output(logits, np.where(first, 0, 1), score, bool(leaves.all()) or not self.cuts)

    def close(self) -> None:
        return None


TENTHS = tuple(np.linspace(0, 1, 11)[1:-1].tolist())
# scores as even as `inputs` makes them: all at the last stage, or the better half at the first
LAST = (ScoreBins((), (0,)), ScoreBins(TENTHS, (200,) * 10))
HALF = (ScoreBins(TENTHS, (*[0] * 5, *[200] * 5)), ScoreBins(TENTHS, (100,) * 10))
REFERENCE = replace(
    make_point("reference", (INF,), (0.0, 1.0), accuracy=0.9, bound=0.0, drop=0.0, backbones=(1,)), exits=LAST
)
QUICK = replace(
    make_point("quick", (0.5,), (0.5, 0.5), accuracy=0.8, bound=0.1, drop=0.1, backbones=(0, 1)), exits=HALF
)
UNKNOWN = tuple(replace(point, exits=()) for point in (REFERENCE, QUICK))
SAVE = dynamic.Budget(max_drop=0.1)


def scripted(bundle: dynamic.Bundle, budget: dynamic.Budget = SAVE, **changes: Any) -> Runtime:
    """A runtime on such an engine, of a certified ladder of two points; `changes`: of the ladder."""
    options = {name: changes.pop(name) for name in ("drift_alpha", "policy", "engine", "others") if name in changes}
    known: dict[str, Any] = {"points": (REFERENCE, QUICK), "certified": True}
    ladder = replace(bundle.ladder, **(known | changes))
    made = replace(bundle, ladder=ladder, costs=make_costs([[1], [10]], memory_mb=(5.0, 50.0)))
    policy, engine = options.pop("policy", BudgetPolicy()), options.pop("engine", Scripted())
    return Runtime.on_engine(made, made.frontier, engine, budget, monitor(), policy, **options)


def inputs(count: int, low: float = 0.0, high: float = 1.0, seed: int = 0) -> NDArray[np.float32]:
    """Inputs whose scores are even between `low` and `high`, all answered 0."""
    made = np.random.default_rng(seed).uniform(low, high, (count, 12)).astype(np.float32)
    made[:, 2] = 0
    return made


def names(results: list[dynamic.BatchResult]) -> list[str]:
    return [result.decision.point.name for result in results]


def test_drift_is_noticed_told_and_acted_on(bundle: dynamic.Bundle, caplog: pytest.LogCaptureFixture) -> None:
    run = scripted(bundle)
    usual = [run(x) for x in inputs(500)]
    assert (set(names(usual)), run.stats().drift, all(r.certified for r in usual)) == ({"quick"}, False, True)
    changed = [run(x) for x in inputs(300, 0.0, 0.4)]  # all go on to the last stage
    stats, first = run.stats(), [r.certified for r in changed].index(False)
    assert stats.drift is True
    assert 5 < first < 150
    # the request that was the last straw is not certified, and the next one runs more safely
    assert [r.certified for r in changed] == [True] * first + [False] * (300 - first)
    assert names(changed) == ["quick"] * (first + 1) + ["reference"] * (299 - first)
    assert "Inputs have drifted from those of the calibration" in changed[-1].decision.reason
    assert stats.certified_share == pytest.approx((500 + first) / 800)
    (record,) = [r for r in caplog.records if r.levelname == "WARNING"]
    message = record.getMessage()
    assert f"noticed after {500 + first + 1}, " in message
    assert "with probability at most 0.01" in message
    assert "the safest point that the budget allows runs" in message
    assert "\n" not in message


def test_drift_may_be_reported_only(bundle: dynamic.Bundle, caplog: pytest.LogCaptureFixture) -> None:
    run = scripted(bundle, replace(SAVE, on_drift="report"))
    results = [run(x) for x in inputs(300, 0.0, 0.4)]
    assert (run.stats().drift, results[-1].certified, set(names(results))) == (True, False, {"quick"})
    assert "decisions stay as they are (on_drift='report')" in caplog.text
    run.budget = SAVE
    assert names([run(x) for x in inputs(2)]) == ["reference"] * 2


def test_drift_is_watched_anew_after_a_restart(bundle: dynamic.Bundle, caplog: pytest.LogCaptureFixture) -> None:
    run = scripted(bundle)
    run.restart_drift()  # before anything was seen
    assert names([run(x) for x in inputs(300, 0.0, 0.4)])[-1] == "reference"
    run.restart_drift()
    assert run.stats().drift is False
    after = [run(x) for x in inputs(40, seed=1)]
    assert names(after)[-20:] == ["quick"] * 20  # the policy waits before it changes back
    assert all(r.certified for r in after)
    for x in inputs(3000, 0.6, 1.0):
        run(x)
    assert run.stats().drift is True
    assert len([r for r in caplog.records if r.levelname == "WARNING"]) == 2


def test_a_restart_says_nothing_about_how_slow_the_device_is(bundle: dynamic.Bundle) -> None:
    seen: list[BudgetState] = []

    class Watched(BudgetPolicy):
        def observe(self, state: BudgetState, feedback: Feedback) -> BudgetState:
            seen.append(super().observe(state, feedback))
            return seen[-1]

    run = scripted(bundle, policy=Watched())
    for x in inputs(300, 0.0, 0.4):
        run(x)
    run.restart_drift()
    before, after = seen[-2].device, seen[-1].device
    assert (before.drift, after.drift) == (True, False)
    assert after == fast_replace(before, drift=False)
    run.restart_drift()  # nothing new to tell
    assert len(seen) == 301


def test_an_alarm_during_a_request_that_loads_is_told(bundle: dynamic.Bundle) -> None:
    seen: list[tuple[bool, float]] = []

    class Watched(BudgetPolicy):
        def observe(self, state: BudgetState, feedback: Feedback) -> BudgetState:
            seen.append((feedback.drift, *feedback.expected_ms))
            return super().observe(state, feedback)

    run = scripted(bundle, policy=Watched())
    run.engine.moves = True  # type: ignore[attr-defined]
    results = [run(x) for x in inputs(300, 0.0, 0.4)]
    assert run.stats().drift
    assert names(results)[-1] == "reference"
    assert seen == [(True, 0.0)]  # and nothing of what loading took


@pytest.mark.parametrize(
    "changes",
    [{"drift_alpha": None}, {"points": UNKNOWN}, {"fingerprint": "of another engine"}],
    ids=lambda c: next(iter(c)),
)
def test_inputs_that_cannot_be_watched_are_not(bundle: dynamic.Bundle, changes: dict[str, Any]) -> None:
    run = scripted(bundle, **changes)
    results = [run(x) for x in inputs(300, 0.0, 0.4)]
    assert run.stats().drift is None
    assert set(names(results)) == {"quick"}
    run.restart_drift()  # harmless
    assert run.stats().drift is None


@pytest.mark.parametrize("alpha", [0, 1, -0.1, float("nan"), "often", True])
def test_a_rate_of_alarms_is_a_fraction(bundle: dynamic.Bundle, alpha: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before, closed = threading.active_count(), []
    monkeypatch.setattr(CascadeEngine, "close", lambda engine: closed.append(engine))
    with pytest.raises(SettingError, match="alpha"):
        bundle.runtime(drift_alpha=alpha)
    assert threading.active_count() == before  # nothing stays open
    assert len(closed) == 1


def test_a_rarer_alarm_takes_longer(bundle: dynamic.Bundle, caplog: pytest.LogCaptureFixture) -> None:
    for alpha in (0.1, 1e-9):
        run = scripted(bundle, drift_alpha=alpha)
        for x in inputs(600, 0.0, 0.4):
            run(x)
    soon, late = (int(n) for n in re.findall(r"noticed after (\d+)", caplog.text))
    assert soon < late
    assert "with probability at most 1e-09" in caplog.text


def test_of_a_batch_the_first_rows_are_tested(bundle: dynamic.Bundle) -> None:
    run = scripted(bundle)
    strange, usual = inputs(300 * 20, 0.0, 0.1).reshape(300, 20, 12), inputs(300 * 20).reshape(300, 20, 12)
    mixed = strange.copy()
    mixed[:, :TESTED] = usual[:, :TESTED]
    for batch in mixed:
        run(batch)
    assert run.stats().drift is False
    for batch in strange[:20]:
        run(batch)
    assert run.stats().drift is True


@pytest.mark.parametrize(("low", "high", "drift"), [(0.0, 0.4, True), (0.3, 0.7, True), (0.0, 1.0, False)])
def test_rows_that_a_deadline_cut_count_as_rows_that_continue(
    bundle: dynamic.Bundle, low: float, high: float, drift: bool
) -> None:
    for cuts in (False, True):
        run = scripted(bundle)
        run.engine.cuts = cuts  # type: ignore[attr-defined]
        for x in inputs(1000, low, high):
            run(x)
        assert run.stats().drift is drift


def test_scores_are_watched_where_inputs_exit(bundle: dynamic.Bundle) -> None:
    # at the reference the first exit is off: the last stage's scores count, whoever left where
    run = scripted(bundle, dynamic.Budget())
    strange_at_the_first = inputs(600)
    strange_at_the_first[:, 0] *= 0.1
    for x in strange_at_the_first:
        run(x)
    assert run.stats().drift is False
    strange_at_the_last = inputs(200)
    strange_at_the_last[:, 1] *= 0.4
    results = [run(x) for x in strange_at_the_last]
    assert run.stats().drift is True
    assert set(names(results)) == {"reference"}


@pytest.mark.parametrize(("name", "drift"), [("onnxruntime", True), ("openvino", False)])
def test_scores_of_another_engine_say_nothing_of_inputs(bundle: dynamic.Bundle, name: str, drift: bool) -> None:
    class Other(Scripted):
        def prepare(self, *_: Any) -> bool:
            raise EngineError("out of order")

    other = Scripted()
    other.name = name  # type: ignore[misc]
    run = scripted(bundle, engine=Other(), others=[(name + " again", lambda: other)])
    for x in inputs(300, 0.0, 0.4):
        run(x)
    assert run.stats().drift is drift


def test_what_is_certified(bundle: dynamic.Bundle) -> None:
    x = inputs(1)

    def certified(budget: dynamic.Budget = SAVE, cuts: bool = False, **changes: Any) -> bool:
        run = scripted(bundle, budget, **changes)
        run.engine.cuts = cuts  # type: ignore[attr-defined]
        result = run(np.zeros((1, 12), np.float32) if cuts else x)
        assert run.stats().certified_share == float(result.certified)
        return result.certified

    no_bound = (REFERENCE, replace(QUICK, bound=None, target=0.1))
    assert certified()
    assert certified(drift_alpha=None)
    assert not certified(cuts=True)
    assert not certified(certified=False)
    assert not certified(fingerprint="of another engine")
    assert not certified(points=no_bound)
    assert certified(dynamic.Budget(), points=no_bound)  # the reference


def test_certified_is_about_the_drop_that_was_asked_for(bundle: dynamic.Bundle) -> None:
    """QUICK promises 0.1: certified for whoever allows that, and for nobody who asks for less."""
    forced = dynamic.Budget(latency_ms=9.0, percentile=None, max_drop=0.01)  # the reference takes 10 ms, QUICK 6

    def certified(*budgets: dynamic.Budget, **changes: Any) -> list[bool]:
        run = scripted(bundle, drift_alpha=None, **changes)
        results = []
        for budget in budgets:
            run.budget = budget
            results.append(run(inputs(1)))
        assert run.stats().certified_share == pytest.approx(sum(r.certified for r in results) / len(results))
        return [r.certified for r in results]

    run = scripted(bundle, forced)
    result = run(inputs(1))
    assert (names([result]), result.certified, run.stats().certified_share) == (["quick"], False, 0.0)
    assert result.decision.point.bound == 0.1, "what is certified for another drop is said by the point"
    assert "max_drop" in result.decision.violated_limits
    assert certified(forced, SAVE, replace(forced, max_drop=0.1), replace(forced, max_drop=None)) == [
        False,
        True,
        True,
        True,
    ]
    assert certified(dynamic.Budget(max_drop=0)) == [True]  # the reference, whose drop is 0
    assert certified(replace(forced, max_drop=0.0999)) == [False]
    # a bound on errors says nothing of the drop
    errors = (REFERENCE, replace(QUICK, kind="error"))
    assert certified(replace(forced, max_drop=0.5), points=errors) == [False]
    # a policy that keeps to no budget does not make an answer certified
    assert certified(dynamic.Budget(max_drop=0.01), policy=Takes("quick")) == [False]


# labels


def answered(run: Runtime, *label: int) -> dynamic.BatchResult:
    """The result of a batch that is answered so."""
    batch = inputs(len(label))
    batch[:, 2] = label
    result = run(batch)
    assert result.label.tolist() == list(label)
    return result


def test_accuracy_of_what_was_labelled(bundle: dynamic.Bundle) -> None:
    run = scripted(bundle)
    assert run.stats().feedback is None
    single, batch, none = answered(run, 2), answered(run, 0, 1, 3, 3), answered(run, -1)
    run.feedback(single.id, 2)
    run.feedback(batch.id, [0, 2, 3, 0])
    run.feedback(none.id, "d")  # no answer is a wrong one, to the last class too
    run.budget = dynamic.Budget()
    answered(run, 1)  # whose label never comes
    run.feedback(answered(run, 1).id, ["b"])
    found = run.stats().feedback
    assert found is not None
    assert found.count == 7
    expected = binomtest(4, 7).proportion_ci(method="wilson")
    assert found.accuracy == pytest.approx((expected.low, 4 / 7, expected.high), abs=1e-6)
    assert found.expected == pytest.approx((6 * 0.8 + 0.9) / 7)


@pytest.mark.parametrize(
    "label",
    [
        3,
        "d",
        [3],
        ["d"],
        ("d",),
        np.int64(3),
        np.array(3),
        np.array([3]),
        np.array(["d"]),
        torch.tensor([3]),
        iter("d"),
    ],
    ids=lambda label: "iterator" if hasattr(label, "__next__") else repr(label),  # no address: workers compare names
)
def test_a_label_is_a_number_or_a_name(bundle: dynamic.Bundle, label: Any) -> None:
    run = scripted(bundle)
    for right, answer in ((1, 3), (1, 2)):
        result = answered(run, answer)
        run.feedback(np.int64(result.id), iter("d") if hasattr(label, "__next__") else label)
        found = run.stats().feedback
        assert found is not None
        assert found.accuracy[1] * found.count == pytest.approx(right)


def test_without_labels_in_the_calibration_nothing_is_expected(bundle: dynamic.Bundle) -> None:
    points = tuple(replace(p, kind="disagreement", drop=None) for p in (REFERENCE, QUICK))  # accuracy is agreement
    run = scripted(bundle, points=points)
    run.feedback(answered(run, 1).id, 1)
    found = run.stats().feedback
    assert found is not None
    assert (found.count, found.accuracy[1], found.expected) == (1, 1.0, None)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ([0], "1 labels for result 1, which has 2 rows: give one for each"),
        (0, "1 labels for result 1"),
        ([0, 1, 2], "3 labels for result 1"),
        ([0, 4], "label 4 is out of range: the 4 classes are 0 to 3"),
        ([-1, 0], "label -1 is out of range"),
        (["a", "e"], "label 'e' is none of the bundle's classes: see bundle.classes"),
        ([0, 1.0], "label 1.0 is neither a class's number nor its name"),
        ([0, None], "label None is neither"),
        ([True, 0], "label True is neither"),
        (None, "1 labels for result 1"),
    ],
)
def test_a_label_that_is_none_counts_nothing(bundle: dynamic.Bundle, label: Any, message: str) -> None:
    run = scripted(bundle)
    answered(run, 1)
    result = answered(run, 0, 1)
    with pytest.raises(InputError, match=re.escape(message)):
        run.feedback(result.id, label)
    assert run.stats().feedback is None
    run.feedback(result.id, [0, 1])  # it can still be given
    assert run.stats().feedback.count == 2  # type: ignore[union-attr]


def test_names_need_names(bundle: dynamic.Bundle) -> None:
    run = scripted(replace(bundle, classes=None))
    result = answered(run, 1)
    with pytest.raises(InputError, match="label 'b': this bundle has no class names, so give the class's number"):
        run.feedback(result.id, "b")
    run.feedback(result.id, 1)
    # two classes of one name: an answer of either is right
    run = scripted(replace(bundle, classes=("cat", "dog", "cat", "cow")))
    run.feedback(answered(run, 0, 2, 1).id, ["cat"] * 3)
    assert run.stats().feedback.accuracy[1] == pytest.approx(2 / 3)  # type: ignore[union-attr]


def test_a_label_counts_once_and_for_a_result_that_is_known(
    bundle: dynamic.Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert feedback_log.KEPT == 10_000
    monkeypatch.setattr(feedback_log, "KEPT", 5)
    run = scripted(bundle)
    ids = [answered(run, 0).id for _ in range(7)]
    assert ids == list(range(7))
    for number in (-1, 7, 1000):
        with pytest.raises(InputError, match=f"no result has the id {number}: give result.id"):
            run.feedback(number, 0)
    for number in (0, 1):
        with pytest.raises(InputError, match=f"result {number} is too old: .* latest 5 .* sooner"):
            run.feedback(number, 0)
    for number in (2, 6):
        run.feedback(number, 0)
        with pytest.raises(InputError, match=f"result {number} has its label already"):
            run.feedback(number, 1)
    with pytest.raises(InputError, match=r"a BatchResult is no result's id: give result\.id"):
        run.feedback(answered(run, 0), 0)  # type: ignore[arg-type]
    found = run.stats().feedback
    assert found is not None
    assert (found.count, found.accuracy[1]) == (2, 1.0)


class Busy(tuple[str, ...]):
    """Class names that notice when two threads look at them at once."""

    inside, met = 0, False

    def __contains__(self, name: object) -> bool:
        Busy.inside += 1
        time.sleep(1e-3)
        Busy.met |= Busy.inside > 1
        Busy.inside -= 1
        return super().__contains__(name)


def test_labels_are_taken_in_one_by_one(bundle: dynamic.Bundle) -> None:
    run = scripted(replace(bundle, classes=Busy("abcd")))
    ids = [answered(run, 0).id for _ in range(40)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: run.feedback(number, "a"), ids))
    assert not Busy.met
    assert run.stats().feedback.count == 40  # type: ignore[union-attr]


def test_labels_and_restarts_from_other_threads(bundle: dynamic.Bundle) -> None:
    run, before = scripted(bundle), sys.getswitchinterval()
    batch = inputs(3, 0.0, 0.4)  # an alarm every now and then
    batch[:, 2] = (0, 1, 2)

    def request(number: int) -> int:
        result = run(batch)
        run.feedback(result.id, [0, 1, 3])
        if number % 7 == 0:
            run.restart_drift()
        if number % 5 == 0:
            assert run.stats().requests > 0
        return result.id

    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            ids = list(pool.map(request, range(1200)))
    finally:
        sys.setswitchinterval(before)
    stats = run.stats()
    assert sorted(ids) == list(range(1200))
    assert stats.requests == 1200
    assert stats.feedback is not None
    assert stats.feedback.count == 3600
    assert stats.feedback.accuracy[1] == pytest.approx(2 / 3)
