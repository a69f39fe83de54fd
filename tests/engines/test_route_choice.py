"""Which way a request goes, deadlines, limited memory, and many threads on one engine."""

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.engine_cases import CLASSES, INF, WAYS, Case, Plain, TwoExits, check, four_stages

import dynamic
from dynamic.engines.route_choice import CascadeEngine
from dynamic.engines.stage_loop import StageEngine
from dynamic.errors import CorruptError, EngineError, SettingError
from dynamic.offline.cascade import Cascade
from dynamic.policies import Decision, Policy

GRAPHS = [way for way in WAYS if way.endswith("graph")]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return four_stages(tmp_path_factory)


@pytest.fixture(scope="module")
def bundle() -> dynamic.Bundle:
    torch.manual_seed(0)
    cascade = Cascade([Plain(), TwoExits(), Plain()])
    data = [(torch.randn(200, 1, 8, 8), torch.arange(200) % CLASSES)]
    return dynamic.build(cascade, data).profile(batch=(1,), seconds=0.02)


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_the_way_that_was_measured_faster(case: Case) -> None:
    opened = case.open("onnxruntime/stages")
    assert {opened.route(rows) for rows in (1, 2, 64)} == {"stages"}
    opened.follow((1,), ("graph",))
    assert opened.route(1) == "stages", "the user's word stands"
    from dynamic.engines.engine_factory import open_engine

    free = open_engine("onnxruntime", case.folder, case.spec, case.combiner)
    assert [free.route(rows) for rows in (1, 2, 64)] == ["graph", "stages", "stages"]
    free.follow((2, 8, 64), ("stages", "graph", "stages"))
    assert [free.route(rows) for rows in (1, 2, 7, 8, 63, 64, 100)] == [
        "stages", "stages", "stages", "graph", "graph", "stages", "stages"
    ]  # fmt: skip
    assert free.can("graph")
    assert free.can("stages")
    assert not opened.can("graph")


def test_a_way_that_is_not_there_is_named(case: Case, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"route='rail' is not known: use one of \('graph', 'stages'\)"):
        case.open("onnxruntime/rail")
    with pytest.raises(EngineError, match="'torch' has no single graph here: use route='stages'"):
        case.open("torch/graph")
    with pytest.raises(EngineError, match="'onnxruntime' has no single graph"):
        replace(case, folder=tmp_path).open("onnxruntime/graph")


class Clock:
    """Says these times, one a call, and the last for ever."""

    def __init__(self, *times: float) -> None:
        self.times = iter(times)
        self.last = times[-1]

    def __call__(self) -> float:
        return next(self.times, self.last)


@pytest.fixture(params=["torch/stages", "onnxruntime/stages", "openvino/stages"])
def stages(request: pytest.FixtureRequest, case: Case) -> Iterator[Any]:
    """(clock times) -> (stage loop, the stages it began)."""
    executor = case.shared(request.param).executor
    step = executor.step

    def make(*times: float) -> tuple[StageEngine, list[tuple[int, int]]]:
        began: list[tuple[int, int]] = []

        def counted(stage: int, carry: Any, head: bool) -> Any:
            began.append((stage, len(carry[0])))
            return step(stage, carry, head)

        executor.step = counted  # type: ignore[method-assign]
        return StageEngine(executor, case.spec, case.combiner, Clock(*times)), began

    yield make
    executor.step = step  # type: ignore[method-assign]


def test_no_stage_is_begun_after_the_deadline(case: Case, stages: Any) -> None:
    limits = case.quantiles(0.3)
    truth = case.truth(limits)
    left = [int((truth.stage >= s).sum()) for s in range(4)]
    for cut in (1, 2, 3):  # asked at the start, then before each stage but the first
        engine, began = stages(*([10.0] * cut), 10.5)
        output = engine.run(case.inputs, np.array(limits, np.float32), deadline_s=0.5)
        assert began == [(s, left[s]) for s in range(cut)]
        assert not output.complete
        gone = truth.stage < cut
        check(replace(output, **{k: getattr(output, k)[gone] for k in ("logits", "stage", "score")}), truth, gone)
        off = (2.0,) * (cut - 1) + (-INF,) + (0.5,) * (3 - cut)  # everybody's best answer so far: as if all left there
        rest = case.truth(off)
        assert output.stage[~gone].tolist() == rest.stage[~gone].tolist() == [cut - 1] * int((~gone).sum())
        np.testing.assert_allclose(np.exp(output.logits[~gone]), rest.probability[~gone], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(output.score[~gone], rest.score[~gone], rtol=1e-4)


@pytest.mark.parametrize(
    ("expected_s", "stages_run"),
    [
        ((9, 0.125, 0.125, 0.0625), 4),  # what the first stage takes is never asked
        ((0, 0.25, 0.125, 0.0625), 4),  # all end at the deadline at the latest
        ((0, 0.26, 0.125, 0.0625), 1),  # after 0.25 s, 0.25 are left
        ((0, 0.25, 0.13, 0.0625), 2),  # after 0.375 s, 0.125
        ((0, 0.25, 0.125, 0.07), 3),  # after 0.4375 s, 0.0625
    ],
)
def test_no_stage_is_begun_that_would_end_after_the_deadline(
    case: Case, stages: Any, expected_s: tuple[float, ...], stages_run: int
) -> None:
    engine, began = stages(0.0, 0.25, 0.375, 0.4375)
    expected = [(every / 2, every) for every in expected_s]
    output = engine.run(case.inputs, np.array([2.0, 2.0, 2.0], np.float32), 0.5, expected)
    assert [stage for stage, _ in began] == list(range(stages_run))
    assert set(output.stage.tolist()) == {stages_run - 1}
    assert output.complete == (stages_run == 4)


def test_what_is_expected_follows_the_rows_that_are_left(case: Case, stages: Any) -> None:
    limits = case.quantiles(0.5)
    stay = int((case.truth(limits).stage > 0).sum())
    assert 1 < stay < 33
    one, every = 0.1, 0.9  # for one row and for 33
    now = one + (every - one) * (stay - 1) / 32
    for left_s, goes_on in ((now + 1e-6, True), (now - 1e-6, False)):
        engine, began = stages(0.0, 1.0 - left_s, 0.0)
        engine.run(case.inputs, np.array(limits, np.float32), 1.0, [(0, 0), (one, every), (0, 0), (0, 0)])
        assert (len(began) > 1) == goes_on


@pytest.mark.parametrize("deadline_s", [0.0, -1.0])
def test_the_first_answer_is_always_given(case: Case, stages: Any, deadline_s: float) -> None:
    engine, began = stages(10.0, 99.0)
    output = engine.run(case.inputs, np.array([2.0, 2.0, 2.0], np.float32), deadline_s)
    assert began == [(0, 33)]
    assert set(output.stage.tolist()) == {0}
    assert np.isfinite(output.logits).all()
    engine, began = stages(10.0, 99.0)  # stage 1 alone gives no answer: its exit is off
    output = engine.run(case.inputs, np.array([INF, INF, 2.0], np.float32), deadline_s)
    assert began == [(1, 33), (2, 33)]
    assert (set(output.stage.tolist()), output.complete) == ({2}, False)


def test_a_deadline_that_is_kept_changes_nothing(case: Case, stages: Any) -> None:
    engine, _ = stages(10.0, 10.4)
    limits = np.array(case.quantiles(0.3), np.float32)
    output, free = (engine.run(case.inputs, limits, deadline_s) for deadline_s in (0.5, None))
    assert output.complete
    assert free.complete
    np.testing.assert_array_equal(output.logits, free.logits)
    early = stages(10.0, 99.0)[0].run(case.inputs, np.array([-INF, 2, 2], np.float32), 0.5)
    assert early.complete, "all had left before it"


@pytest.mark.parametrize("way", GRAPHS)
def test_deadlines_and_limited_memory_take_the_stages(case: Case, way: str) -> None:
    limits = np.array(case.quantiles(0.3), np.float32)
    truth = case.truth(limits.tolist())
    for options in ({"deadline_s": 1e9}, {"stagewise": True}):
        opened = case.open(way)
        assert opened.graph is not None
        check(opened.run(case.inputs, limits, **options), truth)
        assert not opened.graph.ready(33)
        assert opened.loaded() == {0, 1, 2}


@pytest.mark.parametrize("way", GRAPHS)
def test_stages_are_given_back_once_requests_have_left_them(case: Case, way: str) -> None:
    opened = case.open(way)
    both = frozenset({0, 1})
    for options in ({"stagewise": True}, {"resident": frozenset[int]()}):
        opened.prepare(both, 1, **options)
        assert opened.loaded() == both
        opened.prepare(both, 1)
        assert not any(opened.prepare(both, 1) for _ in range(99))
        assert opened.loaded() == both, "they may come back"
        assert opened.prepare(both, 1), "unloaded"
        assert opened.loaded() == frozenset()
        assert opened.ready(1)
        assert not any(opened.prepare(both, 1) for _ in range(200))
    measured = CascadeEngine(opened.stages, opened.graph)  # one row by the graph, more by stages
    measured.prepare(both, 2)
    assert not any(measured.prepare(both, 1) for _ in range(200))
    assert measured.loaded() == both, "they are wanted"


@pytest.mark.parametrize("way", GRAPHS)
def test_limited_memory_drops_the_graph_and_what_is_not_needed(case: Case, way: str) -> None:
    opened = case.open(way)
    assert opened.graph is not None
    assert opened.prepare(frozenset({0, 1, 2}), 1), "loaded"
    assert not opened.prepare(frozenset({0, 1, 2}), 1), "there already"
    assert opened.graph.ready(1)
    assert opened.prepare(frozenset({0, 2}), 1, resident=frozenset())
    assert not opened.graph.ready(1)
    assert opened.loaded() == {0, 2}
    opened.run(case.inputs, np.array([0.5, INF, INF], np.float32), stagewise=True)
    assert opened.loaded() == {0, 2}
    assert not opened.prepare(frozenset({0}), 1, resident=frozenset({2})), "the other may stay"
    assert opened.loaded() == {0, 2}
    assert opened.prepare(frozenset({0}), 1, resident=frozenset({0, 1}))
    assert opened.loaded() == {0}
    assert not opened.prepare(frozenset({0}), 1, resident=frozenset({0, 1}))


@pytest.mark.parametrize("way", GRAPHS)
def test_parts_that_a_request_in_flight_brought_back_are_given_back(case: Case, way: str) -> None:
    opened = case.open(way)
    body, head = case.spec.stages[1].body_graph, case.spec.stages[1].graph
    assert body is not None
    opened.prepare(frozenset({0}), 1, resident=frozenset({0}))
    held = getattr(opened.executor, "_sessions", None) or opened.executor._models  # type: ignore[attr-defined]
    opened.executor.step(1, opened.executor.start(case.inputs), False)  # the first half of backbone 1, without its head
    assert body in held
    assert opened.loaded() == {0}, "it is not whole"
    assert opened.prepare(frozenset({0}), 1, resident=frozenset({0}))
    assert body not in held
    assert head not in held


@pytest.mark.parametrize("way", ["onnxruntime/stages", "openvino/stages"])
def test_networks_that_are_taken_from_a_request_in_flight(case: Case, way: str) -> None:
    opened = case.open(way)
    step = opened.executor.step

    def taken(stage: int, carry: Any, head: bool) -> Any:
        found = step(stage, carry, head)
        with ThreadPoolExecutor(1) as other:
            assert other.submit(opened.executor.unload, [0, 1, 2]).result()
        return found

    opened.executor.step = taken  # type: ignore[method-assign]
    limits = case.quantiles(0.3)
    check(opened.run(case.inputs, np.array(limits, np.float32), stagewise=True), case.truth(limits))


class Deep(Policy):
    """Always takes the point named "deep"."""

    def decide(self, frontier: Any, budget: Any, snapshot: Any, state: None) -> tuple[Decision, None]:
        (point,) = (p for p in frontier.points if p.name == "deep")
        return Decision(point, True, (), "always"), None


@pytest.fixture
def deep(bundle: dynamic.Bundle) -> dynamic.Bundle:
    """A ladder that says it is certified, with a point at which every stage runs to the end."""
    point = replace(
        bundle.ladder.points[0],
        name="deep",
        thresholds=(2.0,) * 3,
        backbones=(0, 1, 2),
        risk=-0.5,
        bound=0.0,
        accuracy=(0.9, 0.95, 1.0),  # or the frontier would leave it out
        shares=(0.0, 0.0, 0.0, 1.0),
    )
    return replace(bundle, ladder=replace(bundle.ladder, points=(bundle.ladder.points[0], point), certified=True))


def test_a_deadline_through_the_runtime(deep: dynamic.Bundle) -> None:
    x = np.zeros((1, 1, 8, 8), np.float32)
    with deep.runtime(monitor=dynamic.FixedMonitor(), policy=Deep()) as run:
        found = []
        for deadline_ms in (None, 1e9, 1e-6):
            run.budget = dynamic.Budget(deadline_ms=deadline_ms)
            found.append(run(x))
        assert [(r.stage.tolist(), r.certified) for r in found] == [([3], True), ([3], True), ([0], False)]
        assert all(np.isfinite(r.log_probs).all() for r in found)
        assert run.stats().certified_share == pytest.approx(2 / 3)


def test_what_a_request_with_a_deadline_needs_is_loaded_before_it_runs(deep: dynamic.Bundle) -> None:
    policy = Deep()
    with deep.runtime(dynamic.Budget(deadline_ms=1e9), monitor=dynamic.FixedMonitor(), policy=policy) as run:
        run.engine.follow((1,), ("graph",))
        prepare, moved = run.engine.prepare, []

        def seen(*given: Any) -> bool:
            moved.append((prepare(*given), run.engine.loaded()))
            return moved[-1][0]

        run.engine.prepare = seen
        for _ in range(2):
            run(np.zeros((1, 1, 8, 8), np.float32))
        assert moved == [(True, {0, 1, 2}), (False, {0, 1, 2})]
        assert not run.engine.graph.ready(1)


@pytest.mark.parametrize("way", GRAPHS)
def test_a_request_by_stages_without_a_limit_drops_nothing(case: Case, way: str) -> None:
    opened = case.open(way)
    assert opened.graph is not None
    assert not opened.ready(1)
    assert opened.prepare(frozenset({0, 1, 2}), 1)
    assert opened.ready(1)
    assert opened.prepare(frozenset({0, 1}), 1, stagewise=True)
    assert not opened.prepare(frozenset({0}), 1, stagewise=True)
    assert opened.loaded() == {0, 1}
    assert opened.ready(1)


def test_the_whole_cascade_is_not_loaded_where_memory_is_too_short(deep: dynamic.Bundle) -> None:
    assert deep.costs is not None
    costs = replace(deep.costs, memory_mb=(100.0, 100.0, 100.0), route=("graph",))
    x, watch = np.zeros((1, 1, 8, 8), np.float32), dynamic.FixedMonitor()
    with replace(deep, costs=costs).runtime(monitor=watch) as run:
        watch.set(memory_available_mb=150.0)
        run(x)
        assert not run.engine.ready(1)
        loaded = run.engine.loaded()
        assert loaded
        assert len(loaded) < 3
        watch.set(memory_available_mb=300.0)
        run(x)
        assert run.engine.ready(1)
        assert run.engine.loaded() == loaded, "the graph took the request"
        run.engine.executor.unload(sorted(loaded))
        watch.set(memory_available_mb=150.0)
        run(x)
        assert run.engine.loaded() == set(), "a graph that is there is used"


def test_the_runtime_follows_costs_that_it_measured_itself(
    bundle: dynamic.Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bundle.costs is not None
    batch, routes = (1, 4, 8), ("stages", "graph", "stages")
    wide = {
        name: tuple(row * 3 for row in getattr(bundle.costs, name))
        for name in ("latency_ms", "latency_p95_ms", "head_ms", "cpu_ms")
    }
    costs = replace(bundle.costs, batch=batch, route=routes, call_ms=(0.0,) * 3, call_cpu_ms=(), call_mj=(), **wide)
    monkeypatch.setattr("dynamic.bundle.measurements.cost_profile.profile", lambda *given, **options: costs)
    with replace(bundle, costs=None).runtime(monitor=dynamic.FixedMonitor()) as run:
        assert [run.engine.route(rows) for rows in batch] == list(routes)


def test_threads_share_an_engine_and_results_are_their_own(case: Case, way: str) -> None:
    opened = case.shared(way)
    limits = [np.array(t, np.float32) for t in (case.quantiles(0.3), case.quantiles(0.7), (INF, INF, 0.5), (2, 2, 2))]
    parts = [slice(0, 33), slice(4, 5), slice(8, 20)]
    jobs = list(itertools.islice(itertools.cycle(itertools.product(range(4), range(3))), 120))
    alone = {job: opened.run(case.rows(parts[job[1]]), limits[job[0]]) for job in set(jobs)}
    copies = {job: (o.logits.copy(), o.stage.copy(), o.score.copy()) for job, o in alone.items()}
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda job: opened.run(case.rows(parts[job[1]]), limits[job[0]]), jobs))
    for job, output in [*zip(jobs, together, strict=True), *alone.items()]:  # none was written over later
        for found, kept in zip((output.logits, output.stage, output.score), copies[job], strict=True):
            np.testing.assert_allclose(found, kept, rtol=1e-5, atol=1e-6)
            assert found.flags.writeable


@pytest.mark.parametrize("name", ["graph.onnx", "graph_single.onnx", "backbones/1.weights"])
@pytest.mark.parametrize("damage", ["missing", "short", "altered"])
def test_a_bundle_with_a_damaged_graph_is_refused(
    bundle: dynamic.Bundle, tmp_path: Path, name: str, damage: str
) -> None:
    file = bundle.save(tmp_path / "shelf").folder / name
    content = file.read_bytes()
    middle = len(content) // 2
    if damage == "missing":
        file.unlink()
    elif damage == "short":
        file.write_bytes(content[:middle])
    else:
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    with pytest.raises(CorruptError, match=name):
        dynamic.load(tmp_path / "shelf")
