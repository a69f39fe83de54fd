"""Requests that repeat a decision: when they do, that answers are the same, and what ends it."""

import threading
import time
from typing import Any

import numpy as np
import pytest
from support.runtime_cases import monitor, shared_blobs, steady

import dynamic
from dynamic.policies import BudgetPolicy, Decision, Feedback, Policy
from dynamic.policies.control.budget_policy import BudgetState
from dynamic.policies.control.repetition import MOST_OBSERVATIONS

X = np.random.default_rng(0).normal(size=(64, 12)).astype(np.float32)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> dynamic.Bundle:
    return shared_blobs(tmp_path_factory)


class Always(Policy):
    """The reference for every request, which may repeat one another."""

    decides_each_request = False

    def decide(self, frontier: Any, budget: Any, snapshot: Any, state: Any) -> tuple[Decision, Any]:
        return Decision(frontier.points[0]), state


class Counting(BudgetPolicy):
    """Counts what it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.decisions = self.observations = 0

    def decide(self, *given: Any) -> tuple[Decision, BudgetState]:
        self.decisions += 1
        return super().decide(*given)

    def observe(self, state: BudgetState, feedback: Feedback) -> BudgetState:
        self.observations += len(feedback.stages)
        return super().observe(state, feedback)


@pytest.fixture(autouse=True)
def nothing_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the machine is, no request ends a plan by what it took."""
    monkeypatch.setattr("dynamic.runtime.request_plan.slow_ms", lambda expected_ms, _: (1e9,) * len(expected_ms))


def test_answers_are_those_of_a_batch(bundle: dynamic.Bundle) -> None:
    with bundle.runtime(monitor=monitor(), policy=Always()) as run:
        truth = run(X)
        for i, x in enumerate(X):
            one = run(x)
            assert (one.label, one.stage) == (truth.label[i], truth.stage[i])
            np.testing.assert_allclose(one.log_probs, truth.log_probs[i], atol=1e-5)
            row = run(x[None])
            assert len(row) == 1
            assert row.label.tolist() == [truth.label[i]]
        assert run.stats().requests == 1 + 2 * len(X)


def test_one_decision_for_many_requests(bundle: dynamic.Bundle) -> None:
    policy = Counting()
    with bundle.runtime(monitor=monitor(), policy=policy, drift_alpha=None) as run:
        steady(run, X[0])
        policy.decisions, policy.observations = 0, run._controller.answered
        waiting = run._controller.answered + len(run._controller.observations)
        before = run.stats().requests
        for _ in range(MOST_OBSERVATIONS - waiting):
            run(X[0])
        assert policy.decisions == 0
        assert run.stats().requests == before + MOST_OBSERVATIONS - waiting, "counted at once"
        run(X[0])
        assert policy.decisions == 1
        assert policy.observations == MOST_OBSERVATIONS, "all of them"


class Blocking(Counting):
    """Decides only once it may."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.may = threading.Event(), threading.Event()
        self.may.set()

    def decide(self, *given: Any) -> tuple[Decision, BudgetState]:
        self.asked.set()
        assert self.may.wait(60)
        return super().decide(*given)


@pytest.mark.parametrize("change", ["snapshot", "slow", "full"])
def test_one_thread_decides_while_the_others_repeat(bundle: dynamic.Bundle, change: str) -> None:
    """Else each of many threads decides, in turn, whenever one of them has to."""
    policy, watch = Blocking(), monitor(battery=0.9)
    with bundle.runtime(monitor=watch, policy=policy, drift_alpha=None) as run:
        steady(run, X[0])
        plan = run._controller.plan
        if change == "snapshot":
            watch.set(battery=0.8)
        elif change == "slow":
            plan.slow_ms = (1e-9, 1e-9)
            run(X[0])
            run(X[0])
            plan.slow_ms = (1e9, 1e9)
        else:
            while run._controller.answered + len(run._controller.observations) < MOST_OBSERVATIONS:
                run(X[0])
        policy.decisions = 0
        policy.asked.clear()
        policy.may.clear()
        other = threading.Thread(target=run, args=(X[0],))
        other.start()
        assert policy.asked.wait(60)
        before = len(run._controller.observations)
        for _ in range(3):
            assert run(X[0]).decision is plan.decision
        assert len(run._controller.observations) == before + 3
        policy.may.set()
        other.join(60)
        assert policy.decisions == 1
        run(X[0])
        assert run._controller.plan is not plan


def test_observations_do_not_pile_up_while_one_decides(bundle: dynamic.Bundle) -> None:
    policy = Blocking()
    with bundle.runtime(monitor=monitor(), policy=policy, drift_alpha=None) as run:
        steady(run, X[0])
        run._controller.deciding_thread = -1  # another thread, which never ends
        policy.decisions = 0
        for _ in range(20 * MOST_OBSERVATIONS):
            run(X[0])
        assert policy.decisions > 0


@pytest.mark.parametrize("change", ["snapshot", "budget", "batch", "slow", "closed"])
def test_what_ends_a_plan(bundle: dynamic.Bundle, change: str) -> None:
    policy, watch = Counting(), monitor(battery=0.9)
    with bundle.runtime(monitor=watch, policy=policy) as run:
        steady(run, X[0])
        run(X[0])
        policy.decisions = 0
        if change == "snapshot":
            watch.set(battery=0.8)
        elif change == "budget":
            run.budget = dynamic.Budget(latency_ms=50)
        elif change == "batch":
            run(X)
            assert policy.decisions == 1
            return
        elif change == "slow":
            run._controller.plan.slow_ms = (1e-9, 1e-9)
            run(X[0])
            run._controller.plan.slow_ms = (1e9, 1e9)
            run(X[0])
            run(X[0])
            assert policy.decisions == 0, "one alone is no reason, and the one after it was not slow"
            run._controller.plan.slow_ms = (1e-9, 1e-9)
            run(X[0])
            run(X[0])
            assert policy.decisions == 0, "the next one decides"
        else:
            run.close()
            with pytest.raises(dynamic.errors.ClosedError):
                run(X[0])
            return
        run(X[0])
        assert policy.decisions == 1


def test_an_engine_that_fails_on_a_batch_is_not_asked_for_the_next_input(
    bundle: dynamic.Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    with bundle.runtime(monitor=monitor(), drift_alpha=None) as run:
        steady(run, X[0])

        def fails(*_: Any, **__: Any) -> Any:
            raise RuntimeError("out of memory")

        monkeypatch.setattr(run.engine, "run", fails)
        run(X)
        assert run._controller.plan is None
        failures = run.stats().engine_failures
        assert failures >= 1
        run(X[0])
        assert run._controller.plan is None, "another way answers for a while"


def test_another_point_ends_the_plan_at_once(bundle: dynamic.Bundle) -> None:
    class Turns(Always):
        def decide(self, frontier: Any, budget: Any, snapshot: Any, state: Any) -> tuple[Decision, Any]:
            assert len(frontier.points) > 1
            return Decision(frontier.points[0 if snapshot.battery > 0.5 else -1]), state

    watch = monitor(battery=0.9)
    with bundle.runtime(monitor=watch, policy=Turns(), drift_alpha=None) as run:
        steady(run, X[0])
        before = run._controller.plan
        assert before is not None
        watch.set(battery=0.1)
        run(X)  # a batch decides, and makes no plan of its own
        assert run._controller.plan is None
        assert run(X[0]).decision.point is not before.decision.point


def test_a_fork_inside_a_request_leaves_no_request_behind(bundle: dynamic.Bundle) -> None:
    """The child goes on with a list of its own (here: what a fork does to it)."""
    watch, forks = monitor(battery=0.9), []

    def fork(_: Any) -> None:
        forks.append(list(run._controller.inside))
        run._controller.forget()

    with bundle.runtime(dynamic.Budget(battery_floor=0.5), monitor=watch, on_change=fork, drift_alpha=None) as run:
        run(X[0])
        watch.set(battery=0.1)
        run(X[0])
        assert forks, "the decision has changed"
        assert forks[-1] == [threading.get_ident()], "inside the request"
        assert run._controller.inside == []


def test_a_label_may_come_right_after_the_answer(bundle: dynamic.Bundle) -> None:
    with bundle.runtime(monitor=monitor()) as run:
        for i in range(20):
            result = run(X[i])
            run.feedback(result.id, result.label)
        feedback = run.stats().feedback
        assert feedback is not None
        assert (feedback.count, feedback.accuracy.mid) == (20, 1.0)


def test_an_input_that_is_not_finite_is_never_certified(bundle: dynamic.Bundle) -> None:
    with bundle.runtime(monitor=monitor()) as run:
        steady(run, X[0])
        assert run(X[0]).certified
        for value in (np.nan, np.inf):
            bad = X[0].copy()
            bad[3] = value
            assert not run(bad).certified
        assert run(X[0]).certified


def test_an_engine_that_fails_once_is_asked_again(bundle: dynamic.Bundle) -> None:
    with bundle.runtime(monitor=monitor()) as run:
        steady(run, X[0])
        truth = run(X[0]).label
        steady(run, X[0])

        def fails(inputs: Any) -> Any:
            raise RuntimeError("once")

        run._controller.plan.run = fails
        assert run(X[0]).label == truth
        assert run.stats().engine_failures == 0


def test_threads_repeat_requests_at_once(bundle: dynamic.Bundle) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with bundle.runtime(monitor=monitor(), policy=Always()) as run:
        truth = run(X).label.tolist()

        def work(seed: int) -> int:
            order = np.random.default_rng(seed).permutation(len(X))
            return sum(run(X[i]).label == truth[i] for i in order)

        with ThreadPoolExecutor(4) as pool:
            right = list(pool.map(work, range(8)))
        assert right == [len(X)] * 8
        assert run.stats().requests == 1 + 8 * len(X)
        ids = {run(X[0]).id for _ in range(40)}
        assert len(ids) == 40


def test_a_plan_is_not_made_for_policies_that_decide_each_request(bundle: dynamic.Bundle) -> None:
    class Each(Counting):
        decides_each_request = True

    policy = Each()
    with bundle.runtime(monitor=monitor(), policy=policy) as run:
        for _ in range(20):
            run(X[0])
    assert policy.decisions == 20


def test_time_is_counted_on_the_runtime_s_clock(bundle: dynamic.Bundle) -> None:
    with bundle.runtime(monitor=monitor()) as run:
        began = time.perf_counter()
        results = [run(X[0]) for _ in range(30)]
        took_ms = (time.perf_counter() - began) * 1e3
    assert all(result.latency_ms > 0 for result in results)
    assert sum(result.latency_ms for result in results) <= took_ms


class Turns(Always):
    """The most accurate point above half of the charge, and the cheapest below."""

    def decide(self, frontier: Any, budget: Any, snapshot: Any, state: Any) -> tuple[Decision, Any]:
        return Decision(frontier.points[0 if snapshot.battery > 0.5 else -1]), state


def test_a_plan_that_another_has_replaced_is_not_renewed(bundle: dynamic.Bundle) -> None:
    """Else a request would run one point under the decision for another, and all after it."""
    watch = monitor(battery=0.9)
    with bundle.runtime(monitor=watch, policy=Turns(), drift_alpha=None) as run:
        steady(run, X[0])
        controller = run._controller
        old = controller.plan
        watch.set(battery=0.1)
        steady(run, X[0])
        current = controller.plan
        assert old is not None
        assert current is not None
        assert current.decision.point is not old.decision.point
        renewal = controller.renew(old)  # by a thread that had read the old plan
        assert renewal is not None
        assert renewal.plan is None
        assert controller.plan is current
        assert run(X[0]).decision.point is current.decision.point


def test_what_ends_a_plan_while_it_is_renewed_ends_it(bundle: dynamic.Bundle) -> None:
    class Ends(Always):
        run: Any = None

        def decide(self, frontier: Any, budget: Any, snapshot: Any, state: Any) -> tuple[Decision, Any]:
            if self.run is not None:
                self.run._controller.plan = None  # as drift does, or a network that does not load
            return super().decide(frontier, budget, snapshot, state)

    policy = Ends()
    with bundle.runtime(monitor=monitor(), policy=policy, drift_alpha=None) as run:
        steady(run, X[0])
        plan, policy.run = run._controller.plan, run
        assert plan is not None
        renewal = run._controller.renew(plan)
        assert renewal is not None
        assert renewal.plan is None
        assert run._controller.plan is None


def test_another_budget_is_not_decided_on_by_the_old_one(bundle: dynamic.Bundle) -> None:
    policy = Counting()
    with bundle.runtime(monitor=monitor(), policy=policy, drift_alpha=None) as run:
        steady(run, X[0])
        plan = run._controller.plan
        run.budget = dynamic.Budget(latency_ms=50)
        policy.decisions = 0
        assert plan is not None
        assert run._controller.renew(plan) is None
        assert policy.decisions == 0


def test_requests_count_although_a_label_is_given_after_each(bundle: dynamic.Bundle) -> None:
    policy = Counting()
    with bundle.runtime(monitor=monitor(), policy=policy, drift_alpha=None) as run:
        steady(run, X[0])
        policy.decisions = 0
        for _ in range(MOST_OBSERVATIONS + 1):
            run.feedback(run(X[0]).id, 0)
        assert policy.decisions == 1
