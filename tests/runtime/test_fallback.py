"""FallbackEngines that fail, and networks that are not there: somebody answers, and says how sure that is."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.runtime_cases import Clock, Fake, Takes, X, broken, faked, monitor, shared_blobs

import dynamic
from dynamic.errors import EngineError
from dynamic.policies import Feedback
from dynamic.runtime.fallback import COOL_DOWN_S


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> dynamic.Bundle:
    return shared_blobs(tmp_path_factory)


class Other(Fake):
    name = "openvino"


class Watched(Takes):
    """Notes what it is told."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.last_feedback: list[Feedback] = []

    def observe(self, state: Any, feedback: Feedback) -> Any:
        self.last_feedback.append(feedback)
        return state


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]


def graph_breaks(engine: Any, backbones: Any, stagewise: bool) -> None:
    if not stagewise:
        raise EngineError("the graph is out of order")


def running_breaks(engine: Any, backbones: Any, stagewise: bool) -> None:
    if backbones is None:
        raise EngineError("running is out of order")


def test_where_the_graph_fails_the_stages_answer(bundle: dynamic.Bundle, caplog: pytest.LogCaptureFixture) -> None:
    engine, other, clock = Fake(graph_breaks), Other(), Clock()
    run = faked(bundle, engine, policy=Takes("quick"), others=[("openvino", lambda: other)], clock=clock)
    results = [run(X) for _ in range(3)]
    assert all(r.certified for r in results), "the same engine"
    assert [c[0] for c in engine.calls] == [True] * 3
    assert not other.calls
    assert run.stats().engine_failures == 1, "it rests"
    (message,) = warnings(caplog)
    assert "engine onnxruntime failed: the graph is out of order" in message
    clock.now += COOL_DOWN_S + 1
    run(X)
    assert run.stats().engine_failures == 2, "tried again"
    engine.fails = lambda *_: None
    clock.now += COOL_DOWN_S + 1
    run(X), run(X)
    assert [c[0] for c in engine.calls[-2:]] == [False, False]
    assert len(warnings(caplog)) == 1


@pytest.mark.parametrize("same", [False, True])
def test_the_next_engine_answers(bundle: dynamic.Bundle, same: bool) -> None:
    opened: list[Fake] = []

    def opener() -> Fake:
        opened.append(Fake() if same else Other())
        return opened[-1]

    policy = Watched("reference")
    engine = Fake(running_breaks)
    run = faked(bundle, engine, policy=policy, others=[("openvino", opener)])
    results = [run(X) for _ in range(3)]
    assert [r.certified for r in results] == [same] * 3, "by the fingerprint"
    assert len(opened) == 1
    assert len(opened[0].calls) == 3
    # what another engine takes says nothing about the device, that it answered counts; the first request had failures
    assert [(*f.expected_ms, *f.rows) for f in policy.last_feedback] == [(0.0, 1)] * 2
    assert run.stats().engine_failures == 2  # by its graph, by its stages
    run.close()
    assert (engine.closed, opened[0].closed) == (1, 1)


def test_once_nothing_rests_other_engines_are_closed_and_failures_told_anew(
    bundle: dynamic.Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    began, gate = threading.Event(), threading.Event()

    def waits(engine: Any, backbones: Any, stagewise: bool) -> None:
        if backbones is None and holds:
            began.set()
            assert gate.wait(120)

    holds, clock, policy = False, Clock(), Watched("reference")
    opened: list[Fake] = []

    def opener() -> Fake:
        opened.append(Other(waits))
        return opened[-1]

    engine = Fake(running_breaks)
    run = faked(bundle, engine, policy=policy, others=[("openvino", opener)], clock=clock)
    run(X)
    assert len(warnings(caplog)) == 2  # graph, stages
    with ThreadPoolExecutor(1) as pool:
        holds = True
        late = pool.submit(run, X)
        assert began.wait(120)
        holds, engine.fails = False, lambda *_: None
        clock.now += COOL_DOWN_S + 1
        run(X)
        assert opened[0].closed == 0, "a request runs on it"
        gate.set()
        assert late.result(120).label.tolist() == [0]
    assert opened[0].closed == 1
    assert [f.expected_ms[0] > 0 for f in policy.last_feedback] == [True, False], (
        "the usual way again, and the one that was late"
    )
    engine.fails = running_breaks
    run(X)
    assert len(opened) == 2
    assert len(warnings(caplog)) == 3, "the graph had worked again"
    run.close()
    assert [e.closed for e in opened] == [1, 1]


def test_where_all_fail_it_is_said(bundle: dynamic.Bundle) -> None:
    other = Other(broken)

    def cannot() -> Fake:
        raise EngineError("not installed")

    run = faked(bundle, Fake(running_breaks), others=[("openvino", lambda: other), ("torch", cannot)])
    for _ in range(2):  # nothing is left that does not rest: all are tried again
        with pytest.raises(EngineError, match="no engine answers, of onnxruntime, openvino, torch: "):
            run(X)
    assert run.stats().requests == 0
    assert run.deployment.users == 0
    other.fails = lambda *_: None
    assert not run(X).certified
    before = run.stats().engine_failures
    run(X)
    assert run.stats().engine_failures == before, "it is asked first, now that it has answered"
    with pytest.raises(EngineError, match="no engine answers, of onnxruntime: running is out of order"):
        faked(bundle, Fake(running_breaks))(X)


def test_memory_that_is_too_short_is_a_failure_like_others(bundle: dynamic.Bundle) -> None:
    def full(*_: Any) -> None:
        raise MemoryError

    other = Other()
    run = faked(bundle, Fake(full), others=[("openvino", lambda: other)])
    assert run(X).label.tolist() == [0]


def test_a_deadline_goes_on_while_engines_fail(bundle: dynamic.Bundle) -> None:
    clock, other = Clock(), Other()

    def slow(engine: Any, backbones: Any, stagewise: bool) -> None:
        if backbones is None:
            clock.now += 0.02
            raise EngineError("after 20 ms")

    budget = dynamic.Budget(deadline_ms=50.0)
    run = faked(bundle, Fake(slow), budget, policy=Takes("quick"), others=[("openvino", lambda: other)], clock=clock)
    run(X)
    assert other.calls[0][1] == pytest.approx(0.030)


@pytest.mark.parametrize("first", ["calibrated", "other"])
def test_a_batch_whose_parts_were_answered_by_several_engines_is_certified_only_if_all_are(
    bundle: dynamic.Bundle, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first part fails on the calibrated engine, or the last does."""
    failing = {"other": 1, "calibrated": 3}[first]  # the first call that fails, of three: the graph twice, the stages
    calls = [0]

    def fails(engine: Any, backbones: Any, stagewise: bool) -> None:
        if backbones is None:
            calls[0] += 1
            if failing <= calls[0] < failing + 3:
                raise EngineError("out of order")

    other = Fake()
    other.name = "openvino"
    run = faked(bundle, Fake(fails), policy=Takes("reference"), others=[("openvino", lambda: other)], clock=Ticks())
    monkeypatch.setattr(run._handler, "_most_rows", lambda _: 2)
    result = run(np.zeros((4 if first == "other" else 6, 12), np.float32))
    assert len(other.calls) == 1
    assert not result.certified
    assert result.label.tolist() == [0] * len(result.label)


class Ticks:
    """A clock on which a minute passes at each look, so that nothing is skipped for long."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 60.0
        return self.now


def stages_break(engine: Any, backbones: Any, stagewise: bool) -> None:
    if stagewise:
        raise EngineError("a stage is damaged")


@pytest.mark.parametrize("limit", ["deadline_ms", "memory_mb"])
def test_where_no_stage_loads_the_graph_answers(bundle: dynamic.Bundle, limit: str) -> None:
    engine, other = Fake(stages_break), Other(stages_break)
    run = faked(
        bundle,
        engine,
        dynamic.Budget(**{limit: 1000.0}),
        policy=Takes("quick", keep_loaded=frozenset({0, 1}) if limit == "memory_mb" else None),
        monitor=monitor(memory_process_mb=100.0),
        others=[("openvino", lambda: other)],
    )
    for _ in range(2):
        result = run(X)
        assert result.label.tolist() == [0]
        assert result.certified == (limit == "memory_mb"), "no deadline stops the graph"
    assert [call[:2] for call in engine.calls] == [(False, None)] * 2
    assert engine.prepared == [(frozenset({0, 1}), None)] * 2, "the graph holds every backbone"
    assert not other.calls
    assert run.stats().deadline_cuts == 0


def test_the_graph_does_not_answer_in_the_place_of_stages_that_run(bundle: dynamic.Bundle) -> None:
    engine, other = Fake(stages_break), Other()
    run = faked(bundle, engine, dynamic.Budget(deadline_ms=50.0), others=[("openvino", lambda: other)])
    run(X)
    assert not engine.calls
    assert len(other.calls) == 1


def test_where_the_graph_fails_too_it_is_an_engine_error(bundle: dynamic.Bundle) -> None:
    run = faked(bundle, Fake(running_breaks), dynamic.Budget(deadline_ms=50.0))
    with pytest.raises(EngineError, match="no engine answers, of onnxruntime: running is out of order"):
        run(X)


def missing_large(engine: Any, backbones: Any, stagewise: bool) -> None:
    if not stagewise or (backbones is not None and 1 in backbones):
        raise EngineError("backbone 1 is not there")


def test_points_that_do_not_need_a_missing_network(bundle: dynamic.Bundle, caplog: pytest.LogCaptureFixture) -> None:
    engine, other, clock = Fake(missing_large), Other(), Clock()
    run = faked(bundle, engine, others=[("openvino", lambda: other)], clock=clock)
    results = [run(X) for _ in range(3)]
    assert [r.decision.point.name for r in results] == ["small"] * 3
    assert not any(r.certified for r in results)
    assert not other.calls
    assert [p.name for p in run.frontier.points] == ["small"]
    assert run.stats().engine_failures == 2  # the graph, and the stages of the reference; then no more
    assert any("sub-models [1] do not load" in w for w in warnings(caplog))
    engine.fails = lambda *_: None
    clock.now += COOL_DOWN_S + 1
    back = run(X)
    assert (back.decision.point.name, back.certified) == ("reference", True)
    assert run.frontier is run.deployment.whole


def test_where_every_point_needs_it_the_next_engine_answers(bundle: dynamic.Bundle) -> None:
    def all_missing(engine: Any, backbones: Any, stagewise: bool) -> None:
        raise EngineError("nothing is there")

    other = Other()
    run = faked(bundle, Fake(all_missing), others=[("openvino", lambda: other)])
    result = run(X)
    assert result.label.tolist() == [0]
    assert not result.certified
    assert len(other.calls) == 1


@pytest.mark.parametrize("name", ["graph_single.onnx", "backbones/1.weights"])
def test_files_that_vanish(bundle: dynamic.Bundle, tmp_path: Path, name: str) -> None:
    shelf = dynamic.load(bundle.save(tmp_path / "shelf").folder)
    reference = shelf.frontier.points[0]
    assert reference.backbones == {1}
    policy = Takes(reference.name)
    with shelf.runtime(monitor=monitor(), policy=policy, route="graph", fallback=()) as run:
        for gone in {name, "graph_single.onnx"}:
            (shelf.folder / gone).unlink()
        if name == "graph_single.onnx":
            assert run(X).decision.point.name == reference.name
            assert run.stats().engine_failures == 1
        else:
            # the policy asks for what is no longer on the frontier: the guard takes the best that is left
            result = run(X)
            assert result.decision.point is run.frontier.points[0]
            assert result.decision.point.backbones == {0}
            assert not result.certified


def test_engines_that_are_installed_stand_in(bundle: dynamic.Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with bundle.runtime(monitor=monitor(), drift_alpha=None) as run:
        monkeypatch.setattr(run.engine, "run", broken)
        result = run(X)
        assert not result.certified
        assert list(run.deployment.engines._opened) == ["openvino"], "no torch: the bundle has no modules"
    with pytest.raises(EngineError, match="'onxruntime' is not known"):
        bundle.runtime(monitor=monitor(), fallback=("onxruntime",))
