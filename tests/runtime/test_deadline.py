"""Deadlines at the runtime: what is left of them when the engine begins, and what it is told to expect."""

from typing import Any

import numpy as np
import pytest
from support.policy_cases import INF, make_costs
from support.runtime_cases import Clock, Fake, Takes, X, faked, shared_blobs

import dynamic
from dynamic.policies import Feedback
from dynamic.policies.control.remaining_time import ahead_ms
from dynamic.policies.stage_plan import plan


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> dynamic.Bundle:
    return shared_blobs(tmp_path_factory)


COSTS = make_costs(
    [[1, 3], [2, 4], [4, 8], [10, 30]],
    batch=(1, 3),
    latency_p95_ms=((2.0, 4.0), (3.0, 5.0), (5.0, 9.0), (20.0, 40.0)),
    head_ms=((0.5, 1.0),) * 4,
)


@pytest.mark.parametrize(
    ("thresholds", "rows", "ahead"),
    [
        ((0.5, 0.5, 0.5), 1, (2, 3, 5, 20)),
        ((0.5, 0.5, 0.5), 2, (3, 4, 7, 30)),  # linear between 1 and 3 rows
        ((0.5, INF, 0.5), 1, (2, 2.5 + 5, 5, 20)),  # stage 1 without its head, and on to stage 2
        ((0.5, INF, INF), 1, (2, 20, 20, 20)),  # backbone 1 is not run
        ((INF, INF, INF), 3, (40, 40, 40, 40)),
    ],
)
def test_what_lies_ahead_by_hand(thresholds: tuple[float, ...], rows: int, ahead: tuple[float, ...]) -> None:
    todo = plan(np.array(thresholds, np.float32), (0, 1, 1, 2))
    assert ahead_ms(COSTS, todo, rows) == pytest.approx(ahead)


def test_the_engine_is_told_what_is_left_and_what_to_expect(bundle: dynamic.Bundle) -> None:
    engine, clock = Fake(), Clock()

    def loads(_: Any, backbones: Any, stagewise: bool) -> None:
        if backbones is not None:
            clock.now += 0.005  # loading is part of the request

    engine.fails = loads
    policy = Takes("quick", slowdown=3.0)
    run = faked(bundle, engine, dynamic.Budget(deadline_ms=50.0), policy=policy, clock=clock)
    run(X)
    run(np.repeat(X, 4, axis=0))
    (single, left, expected), (_, _, four) = engine.calls
    assert single, "stage by stage"
    assert left == pytest.approx(0.045)
    assert np.array(expected) == pytest.approx(np.array([[0.003, 0.003], [0.030, 0.030]]))  # 1 and 10 ms, three times
    assert np.array(four) == pytest.approx(
        np.array([[0.003, 0.012], [0.030, 0.120]])
    )  # costs of one batch size: by rows
    run.budget = dynamic.Budget()
    run(X)
    assert engine.calls[-1] == (False, None, None)


def test_the_wait_counts(bundle: dynamic.Bundle) -> None:
    engine, clock = Fake(), Clock()
    run = faked(bundle, engine, dynamic.Budget(deadline_ms=50.0), policy=Takes("quick"), clock=clock)
    result = run._handler(X, clock.now - 0.040)  # as a worker answers what came 40 ms ago
    assert engine.calls[-1][1] == pytest.approx(0.010)
    assert result.certified
    late = run._handler(X, clock.now - 0.060)
    assert engine.calls[-1][1] == pytest.approx(-0.010)
    assert not late.certified, "the engine says that it was cut"
    assert (result.waited_ms, late.waited_ms) == pytest.approx((40.0, 60.0))
    assert late.latency_ms == pytest.approx(60.0)
    stats = run.stats()
    assert stats.deadline_cuts == 1
    assert stats.mean_waited_ms == stats.mean_latency_ms == pytest.approx(50.0)


def test_what_comes_before_the_engine_is_not_its_work(bundle: dynamic.Bundle) -> None:
    clock, told = Clock(), list[Feedback]()

    class Slow:
        """An input that takes so long to become an array."""

        def __init__(self, ms: float) -> None:
            self.ms = ms

        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            clock.now += self.ms / 1e3
            return X

    class Watched(Takes):
        def observe(self, state: Any, feedback: Feedback) -> Any:
            told.append(feedback)
            return state

    def works(_: Any, backbones: Any, stagewise: bool) -> None:
        if backbones is None:
            clock.now += 0.006

    def listen(_: Any) -> None:
        clock.now += 0.050

    policy = Watched("quick")
    run = faked(bundle, Fake(works), policy=policy, clock=clock, on_change=listen, workers=2)
    first, quick = run(Slow(4)), run(Slow(0.5))
    queued = run._handler(Slow(4), clock.now - 0.040)
    assert [ms for f in told for ms in f.latency_ms] == pytest.approx([6] * 3)
    assert [f.snapshot.waited_ms for f in told] == pytest.approx([4, 0, 44])
    assert [f.snapshot.servers for f in told] == [None, None, 2]
    assert [r.waited_ms for r in (first, quick, queued)] == pytest.approx([0, 0, 40])
    assert [r.latency_ms for r in (first, quick, queued)] == pytest.approx([60, 6.5, 50])


def test_preprocessing_is_not_called_waiting(bundle: dynamic.Bundle) -> None:
    """The reason said that a request had waited 4 ms, while `waited_ms` of its answer is 0."""
    clock = Clock()

    class Slow:
        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            clock.now += 0.004
            return X

    run = faked(bundle, Fake(), dynamic.Budget(latency_ms=12.0), policy=dynamic.BudgetPolicy(), clock=clock)
    answer = run(Slow())
    assert answer.waited_ms == 0
    assert "12 ms, 4 of which went into queue and preprocessing" in answer.decision.reason
    assert "wait" not in answer.decision.reason


def test_a_point_with_one_exit_is_never_cut_before_it(bundle: dynamic.Bundle) -> None:
    # on the real engine, and long past the deadline
    policy = Takes(bundle.frontier.points[0].name)
    with bundle.runtime(dynamic.Budget(deadline_ms=1e-6), policy=policy, monitor=dynamic.FixedMonitor()) as run:
        result = run(X)
    assert np.isfinite(result.log_probs).all()


def test_a_request_has_a_deadline_of_its_own(bundle: dynamic.Bundle) -> None:
    engine, clock = Fake(), Clock()
    run = faked(bundle, engine, dynamic.Budget(max_drop=0.15), clock=clock)
    assert run(X).decision.point.name == "quick"
    before = run._controller.deployment.guard._state
    hurried = run(X, waited_ms=38.0, deadline_ms=40.0)  # 2 ms left: the large network takes 10
    assert hurried.decision.point.name == "small", "no deadline cuts its 1 ms"
    assert not hurried.certified, "its drop of 0.2 is over 0.15"
    stagewise, left_s, _ = engine.calls[-1]
    assert stagewise
    assert left_s == pytest.approx(0.002)
    late = run(X, waited_ms=60.0, deadline_ms=40.0)
    assert engine.calls[-1][1] == pytest.approx(-0.020)
    assert not late.certified
    assert late.decision.one_request_only
    assert run._controller.deployment.guard._state.budget is before.budget, "nothing changes for the others"
    assert run(X).decision.point.name == "quick"
    assert engine.calls[-1] == (False, None, None)


@pytest.mark.parametrize(("own_ms", "left_s"), [(1e6, 0.030), (50.0, 0.030), (45.0, 0.025)])
def test_the_nearer_of_its_own_deadline_and_the_budgets_holds(
    bundle: dynamic.Bundle, own_ms: float, left_s: float
) -> None:
    engine = Fake()
    run = faked(bundle, engine, dynamic.Budget(deadline_ms=50.0), clock=Clock())
    answer = run(X, waited_ms=20.0, deadline_ms=own_ms)
    assert engine.calls[-1][1] == pytest.approx(left_s)
    assert answer.decision.one_request_only == (own_ms < 50.0)


@pytest.mark.parametrize("deadline_ms", [-1.0, float("nan"), float("inf")])
def test_a_deadline_out_of_range(bundle: dynamic.Bundle, deadline_ms: float) -> None:
    with pytest.raises(dynamic.errors.SettingError, match=r"deadline_ms=.* must be a number of at least 0"):
        faked(bundle)(X, deadline_ms=deadline_ms)


def test_one_whose_deadline_is_over_gets_the_answer_of_the_first_exit(bundle: dynamic.Bundle) -> None:
    """On the real engine. The reference has no exit: another point runs for this request alone."""
    with bundle.runtime(dynamic.Budget(max_drop=0.0), monitor=dynamic.FixedMonitor()) as run:
        rows = np.random.default_rng(3).standard_normal((16, 12)).astype(np.float32)
        assert run(rows).stage.tolist() == [1] * 16
        late = run(rows, deadline_ms=0.0)
        assert late.stage.tolist() == [0] * 16
        assert not late.certified
        assert run(rows).stage.tolist() == [1] * 16
