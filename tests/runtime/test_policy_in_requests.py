"""A policy may do what it likes: requests are answered; and every change of decision is told."""

import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from support.policy_cases import make_costs
from support.runtime_cases import Fake, Takes, X, faked, monitor, shared_blobs

import dynamic
from dynamic.errors import SettingError
from dynamic.policies import Decision, Frontier, Policy
from dynamic.policies.control.feasibility import check_budget
from dynamic.policies.fast_paths import fast_replace
from dynamic.policies.snapshot import Snapshot
from dynamic.runtime.decisions.decision_log import Change
from dynamic.runtime.decisions.device_reading import RequestReading


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> dynamic.Bundle:
    return shared_blobs(tmp_path_factory)


class Turns(Policy):
    """Decides by each of these functions in turn, the last for ever; the state counts."""

    def __init__(self, *turns: Callable[[Frontier], Any]) -> None:
        self.turns = turns

    def initial(self) -> int:
        return 0

    def decide(self, frontier: Frontier, budget: Any, snapshot: Any, state: int) -> Any:
        found = self.turns[min(state, len(self.turns) - 1)](frontier)
        return (found, state + 1) if isinstance(found, Decision) else found

    def observe(self, state: int, feedback: Any) -> int:
        return state


def named(name: str) -> Callable[[Frontier], Decision]:
    return lambda f: Takes(name).decide(f, None, None, None)[0]


def raises(_: Any) -> Any:
    raise ZeroDivisionError("of the policy")


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]


def off(frontier: Frontier) -> Decision:
    return Decision(replace(frontier.points[0]))  # equal, perhaps, but not of this frontier


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (raises, "ZeroDivisionError"),
        (off, "not one of the frontier"),
        (lambda _: None, "cannot unpack"),
        (lambda f: (f.points[1], 7), "is no Decision"),
        (lambda f: Decision("quick"), "not one of the frontier"),
        (lambda f: Decision([]), "unhashable"),
        (lambda f: Decision(f.points[1], slowdown=0.0), "slowdown=0.0 must be a positive number"),
        (lambda f: Decision(f.points[1], slowdown=float("nan")), "slowdown=nan"),
        (lambda f: Decision(f.points[1], slowdown="twice"), "not supported"),
        (lambda f: Decision(f.points[1], keep_loaded={0}), "must be a frozenset"),
    ],
)
def test_the_last_good_decision_stands(
    bundle: dynamic.Bundle, caplog: pytest.LogCaptureFixture, fault: Any, kind: str
) -> None:
    run = faked(bundle, policy=Turns(named("quick"), fault))
    results = [run(X) for _ in range(4)]
    assert [r.decision.point.name for r in results] == ["quick"] * 4
    assert "its last decision stands" in results[1].decision.reason
    assert run.stats().policy_failures == 3
    (message,) = warnings(caplog)  # once
    assert kind in message
    assert "policy Turns failed in decide" in message


def test_what_stands_in_is_a_decision_for_all_requests(bundle: dynamic.Bundle) -> None:
    slow, aside = (Takes(name, slowdown=3.0, one_request_only=name == "small") for name in ("quick", "small"))
    turns = [lambda f, t=t: t.decide(f, None, None, None)[0] for t in (slow, aside)]
    run = faked(bundle, policy=Turns(*turns, raises))
    decisions = [run(X).decision for _ in range(3)]
    assert [d.point.name for d in decisions] == ["quick", "small", "quick"]
    assert (decisions[2].slowdown, decisions[2].one_request_only) == (3.0, False)


def test_before_any_decision_the_reference_runs(bundle: dynamic.Bundle) -> None:
    run = faked(bundle, policy=Turns(raises))
    decision = run(X).decision
    assert decision.point is run.frontier.points[0]
    assert not decision.feasible
    assert "before its first decision" in decision.reason


def test_a_policy_recovers_and_kinds_are_told_apart(bundle: dynamic.Bundle, caplog: pytest.LogCaptureFixture) -> None:
    class Moody(Turns):
        calls = 0

        def decide(self, frontier: Frontier, budget: Any, snapshot: Any, state: int) -> Any:
            self.calls += 1
            return super().decide(frontier, budget, snapshot, self.calls - 1)

    run = faked(bundle, policy=Moody(raises, named("quick"), off, raises, named("small")))
    assert [run(X).decision.point.name for _ in range(5)] == ["reference", "quick", "quick", "quick", "small"]
    assert run.stats().policy_failures == 3
    assert len(warnings(caplog)) == 2


def test_a_policy_that_fails_elsewhere(bundle: dynamic.Bundle) -> None:
    class Forgetful(Takes):
        def initial(self) -> Any:
            raise RuntimeError("no idea")

        def observe(self, state: Any, feedback: Any) -> Any:
            raise RuntimeError("what?")

    run = faked(bundle, policy=Forgetful("small"))
    assert [run(X).decision.point.name for _ in range(2)] == ["small"] * 2
    assert run.stats().policy_failures == 3


def test_an_interrupt_is_none_of_its_faults(bundle: dynamic.Bundle) -> None:
    def interrupted(_: Any) -> Any:
        raise KeyboardInterrupt

    run = faked(bundle, policy=Turns(interrupted))
    with pytest.raises(KeyboardInterrupt):
        run(X)
    assert run.deployment.users == 0


def test_a_policy_of_ones_own_is_one_method(bundle: dynamic.Bundle) -> None:
    class Cheapest(Policy):
        def decide(self, frontier: Any, budget: Any, snapshot: Any, state: Any) -> Any:
            return Decision(frontier.cheapest), state

    run = faked(bundle, policy=Cheapest())
    assert run(X).decision.point.name == "small"
    assert run.stats().policy_failures == 0


# what may stay in memory


def test_the_decision_says_what_stays(bundle: dynamic.Bundle) -> None:
    engine = Fake()
    run = faked(bundle, engine, policy=Takes("small", keep_loaded=frozenset({1})))
    run(X)
    assert engine.prepared == [(frozenset({0}), frozenset({1}))]
    assert engine.calls[0][0], "stage by stage"
    run = faked(bundle, engine, policy=Takes("small"))
    run(X)
    assert engine.prepared[-1] == (frozenset({0}), None)
    assert not engine.calls[-1][0]


def test_networks_go_and_come_back_with_the_decision(bundle: dynamic.Bundle) -> None:
    reference = bundle.frontier.points[0]
    policy = Takes(reference.name)
    with bundle.runtime(policy=policy, monitor=monitor()) as run:
        whole = run(X)
        assert run.engine.ready(1) or run.engine.loaded() == reference.backbones  # type: ignore[attr-defined]
        for resident, loaded in ((frozenset(), reference.backbones), (frozenset({0, 1}), reference.backbones)):
            policy.changes = {"keep_loaded": resident}
            assert run(X).label.tolist() == whole.label.tolist()
            assert run.engine.loaded() == loaded  # type: ignore[attr-defined]
            assert not run.engine.ready(1)


# changes


def test_changes_are_told(bundle: dynamic.Bundle, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dynamic")
    found: list[Change] = []
    policy, watch = Takes("reference"), monitor(battery=0.5)
    run = faked(bundle, policy=policy, monitor=watch, on_change=found.append)
    run(X), run(X)
    policy.name, policy.changes = "small", {"violated_limits": ("latency_ms",), "feasible": False}
    run(X), run(X)
    first, second = found
    assert (first.before, first.after.name) == (None, "reference")
    assert second.before is first.after
    assert (second.after, second.decision.violated_limits) == (run.frontier.points[2], ("latency_ms",))
    assert second.snapshot.battery == 0.5
    assert [str(change) for change in found] == [
        "start -> reference: always reference",
        "reference -> small: always small",
    ]
    assert run.stats().decision_changes == 1
    records = [r for r in caplog.records if hasattr(r, "dynamic")]
    assert [r.getMessage() for r in records] == ["decision reference: always reference", "decision small: always small"]
    fields = records[1].dynamic
    assert fields == {
        "time_s": 0.0,
        "from": "reference",
        "to": "small",
        "reason": "always small",
        "violated_limits": ("latency_ms",),
        "snapshot": {"battery": 0.5, "rows": 1, "waited_ms": 0.0, "queue_length": 0},
    }


def test_a_listener_that_raises_is_told_once(bundle: dynamic.Bundle, caplog: pytest.LogCaptureFixture) -> None:
    names = iter(["small", "quick", "small"])
    policy = Takes("reference")

    def listen(change: Change) -> None:
        policy.name = next(names)
        raise ValueError("not today")

    run = faked(bundle, policy=policy, on_change=listen)
    assert [run(X).decision.point.name for _ in range(3)] == ["reference", "small", "quick"]
    (message,) = warnings(caplog)
    assert "on_change raised ValueError('not today')" in message


# budgets


def test_a_limit_about_which_the_costs_say_nothing(bundle: dynamic.Bundle) -> None:
    run = faked(bundle)
    before = run.budget
    with pytest.raises(SettingError, match=r"energy_mj=5 cannot be kept.*energy_source=None.*or limit cpu_ms instead"):
        run.budget = dynamic.Budget(energy_mj=5)
    assert run.budget is before
    with pytest.raises(SettingError, match="energy_mj"):
        bundle.runtime(dynamic.Budget(energy_mj=5), monitor=monitor())
    costs = make_costs([[1], [10]], memory_mb=(5.0, 50.0), energy_mj=((1.0,), (2.0,)), energy_source="RAPL")
    check_budget(dynamic.Budget(energy_mj=5), run.frontier.recost(costs))


# snapshots


def test_a_snapshot_is_made_once_while_nothing_changes() -> None:
    watch = monitor(battery=0.5, missing=("cpu",))
    read = RequestReading(watch)
    first = read.of_request(read.latest, 1, 0.0, 0, None)
    assert first is read.of_request(read.latest, 1, 0.0, 0, None)
    assert first == replace(watch.latest, rows=1, waited_ms=0.0, queue_length=0)
    assert watch.latest.rows is None
    for changed in ((2, 0.0, 0, None), (1, 3.5, 0, None), (1, 0.0, 4, None), (1, 0.0, 0, 2)):
        made = read.of_request(read.latest, *changed)
        names = ("rows", "waited_ms", "queue_length", "servers")
        assert made == replace(watch.latest, **dict(zip(names, changed, strict=True)))
    again = read.of_request(read.latest, 1, 0.0, 0, None)
    watch.set(battery=0.4)
    assert read.of_request(read.latest, 1, 0.0, 0, None).battery == 0.4
    assert again.battery == 0.5
    assert fast_replace(again, memory_process_mb=7.0) == replace(again, memory_process_mb=7.0)


def test_all_wait_for_the_monitor_that_one_starts() -> None:
    started, slow = threading.Event(), threading.Event()

    class Slow:
        latest = Snapshot(0.0)

        def start(self) -> None:
            started.set()
            assert slow.wait(120)
            self.latest = Snapshot(1.0, memory_process_mb=50.0)

        def close(self) -> None:
            pass

    read, seen = RequestReading(Slow(), starts=True), []
    threads = [
        threading.Thread(target=lambda: seen.append(read.of_request(read.latest, 1, 0.0, 0, None))) for _ in range(3)
    ]
    threads[0].start()
    assert started.wait(120)
    for thread in threads[1:]:
        thread.start()
    assert not seen
    slow.set()
    for thread in threads:
        thread.join(120)
    assert [snapshot.memory_process_mb for snapshot in seen] == [50.0] * 3
    assert read.first is not None
    assert read.first.memory_process_mb == 50.0


def test_a_monitor_that_raises_fails_no_request(bundle: dynamic.Bundle, caplog: pytest.LogCaptureFixture) -> None:
    class Flaky:
        def __init__(self, *told: Any) -> None:
            self.told = list(told)

        @property
        def latest(self) -> Any:
            found = self.told.pop(0)
            if isinstance(found, Exception):
                raise found
            return found

        def start(self) -> None: ...

        def close(self) -> None: ...

    seen: list[dynamic.Snapshot] = []

    class Noting(Takes):
        def decide(self, frontier: Any, budget: Any, snapshot: Any, state: Any) -> Any:
            seen.append(snapshot)
            return super().decide(frontier, budget, snapshot, state)

    good = [dynamic.Snapshot(time_s=t, battery=t / 10) for t in (1.0, 2.0)]
    watch = Flaky(OSError("not yet"), OSError("the bus hangs"), good[0], OSError("again"), None, good[1])
    run = faked(bundle, policy=Noting("quick"), monitor=watch)
    for _ in range(5):
        run(X)
    assert [s.battery for s in seen] == [None, 0.1, 0.1, 0.1, 0.2]
    (message,) = warnings(caplog)
    assert "monitor Flaky raised OSError('not yet')" in message
