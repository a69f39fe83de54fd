"""Inputs and engines that give no answer: another engine is asked, it is counted, and nothing is certified."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.runtime_cases import Clock, Fake, Takes, X, faked, monitor, shared_blobs

import dynamic
from dynamic.bundle.canaries.canary_set import Canaries
from dynamic.engines.contract import CascadeSpec, Executor, InputSpec, Output, StageSpec
from dynamic.engines.outputs import finite_rows, is_finite
from dynamic.engines.stage_loop import StageEngine
from dynamic.errors import EngineError, InputError
from dynamic.policies.scores import Combiner
from dynamic.runtime.fallback import COOL_DOWN_S
from dynamic.runtime.runtime import Runtime

NAN, INF = float("nan"), float("inf")
BAD = np.full((1, 12), NAN, np.float32)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> dynamic.Bundle:
    return shared_blobs(tmp_path_factory)


class Spoiled(Fake):
    """A fake whose outputs `spoil(output, stagewise)` replaces; it may raise."""

    def __init__(self, spoil: Callable[[Output, bool], Any]) -> None:
        super().__init__()
        self.spoil = spoil

    def run(self, inputs: Any, thresholds: Any, deadline_s: Any = None, stagewise: bool = False, *_: Any) -> Any:
        return self.spoil(super().run(inputs, thresholds, deadline_s, stagewise), stagewise)


class Spare(Fake):
    name = "openvino"


def with_logits(output: Output, value: float) -> Output:
    """The last class of the last row has this logit."""
    logits = output.logits.copy()
    logits[-1, -1] = value
    return replace(output, logits=logits)


def raises(error: Exception) -> Callable[..., Any]:
    def spoil(*_: Any) -> Any:
        raise error

    return spoil


NO_OUTPUT: dict[str, Callable[[Output, bool], Any]] = {
    "nothing": lambda o, _: None,
    "a tuple": lambda o, _: (o.logits, o.stage, o.score),
    "no logits": lambda o, _: replace(o, logits=None),
    "lists": lambda o, _: replace(o, logits=o.logits.tolist()),
    "other classes": lambda o, _: replace(o, logits=o.logits[:, :3]),
    "no batch": lambda o, _: replace(o, logits=o.logits[0]),
    "no rows": lambda o, _: Output(o.logits[:0], o.stage[:0], o.score[:0]),
    "fewer rows": lambda o, _: replace(o, logits=np.concatenate([o.logits, o.logits])),
    "stages of other rows": lambda o, _: replace(o, stage=np.zeros(9, np.int64)),
    "no scores": lambda o, _: replace(o, score=np.float32(0.5)),
    "words": lambda o, _: replace(o, logits=o.logits.astype(str)),
    "a stage too many": lambda o, _: replace(o, stage=o.stage + 7),
    "a stage before the first": lambda o, _: replace(o, stage=o.stage - 9),
    "stages that are no numbers": lambda o, _: replace(o, stage=np.full(o.stage.shape, NAN)),
    "NaN": lambda o, _: with_logits(o, NAN),
    "inf": lambda o, _: with_logits(o, INF),
    "-inf": lambda o, _: with_logits(o, -INF),
    "scores of NaN": lambda o, _: replace(o, score=np.full(o.score.shape, NAN, np.float32)),
    "IndexError": raises(IndexError("list index out of range")),
    "TypeError": raises(TypeError("no")),
    "RuntimeError": raises(RuntimeError("out of order")),
    "MemoryError": raises(MemoryError()),
}


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("what", NO_OUTPUT)
def test_the_next_engine_answers_where_one_gives_no_answer(bundle: dynamic.Bundle, what: str, rows: int) -> None:
    others: list[Spare] = []

    def opener() -> Spare:
        others.append(Spare())
        return others[-1]

    clock, engine = Clock(), Spoiled(NO_OUTPUT[what])
    run = faked(bundle, engine, policy=Takes("reference"), others=[("openvino", opener)], clock=clock)
    for request in range(3):
        result = run(np.zeros((rows, 12), np.float32))
        assert (result.label.tolist(), result.certified) == ([0] * rows, False), "answered by an uncalibrated engine"
        assert len(others[0].calls) == request + 1
    assert run.stats().engine_failures == 2, "the graph, the stages; then both rest"
    assert len(engine.calls) == 2
    engine.spoil = lambda output, _: output
    clock.now += COOL_DOWN_S + 1
    assert run(X).certified
    assert others[0].closed == 1


@pytest.mark.parametrize("what", NO_OUTPUT)
def test_the_stages_answer_where_the_graph_gives_none(bundle: dynamic.Bundle, what: str) -> None:
    engine = Spoiled(lambda output, stagewise: output if stagewise else NO_OUTPUT[what](output, stagewise))
    run = faked(bundle, engine, policy=Takes("reference"))
    results = [run(X) for _ in range(3)]
    assert [(r.label.tolist(), r.certified) for r in results] == [([0], True)] * 3
    assert run.stats().engine_failures == 1


@pytest.mark.parametrize("what", [what for what in NO_OUTPUT if what not in ("NaN", "inf", "-inf", "scores of NaN")])
def test_where_nobody_answers_it_is_an_engine_error(bundle: dynamic.Bundle, what: str) -> None:
    run = faked(bundle, Spoiled(NO_OUTPUT[what]), others=[("openvino", lambda: Spoiled(NO_OUTPUT[what]))])
    with pytest.raises(EngineError, match="no engine answers, of onnxruntime, openvino: "):
        run(X)
    with pytest.raises(EngineError, match="no engine answers"):
        run.submit(X).result(120)
    assert run.stats().requests == 0
    run.close()


def test_an_engine_that_does_not_open_is_an_engine_error(
    bundle: dynamic.Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    def opener() -> Any:
        raise OSError("no such library")

    run = faked(bundle, Spoiled(NO_OUTPUT["nothing"]), others=[("openvino", opener)])
    with pytest.raises(EngineError, match="no engine answers"):
        run(X)
    assert "engine 'openvino' does not open: no such library" in caplog.text


@pytest.mark.parametrize("what", ["NaN", "inf", "-inf", "scores of NaN"])
def test_finite_inputs_to_which_nobody_has_a_finite_answer(
    bundle: dynamic.Bundle, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    others: list[Spoiled] = []

    def opener() -> Spoiled:
        others.append(Spoiled(NO_OUTPUT[what]))
        return others[-1]

    clock, engine = Clock(), Spoiled(NO_OUTPUT[what])
    run = faked(bundle, engine, policy=Takes("reference"), others=[("openvino", opener)], clock=clock)
    for _ in range(4):
        result = run(np.zeros((2, 12), np.float32))
        assert not result.certified
        assert result.label.tolist() == ([0, 0] if what == "scores of NaN" else [0, -1])
    # two ways on each engine, then one a request: the networks have no answer, and to ask around costs
    assert (len(engine.calls), [len(other.calls) for other in others]) == (2 + 3, [2])
    assert run.stats().engine_failures == 4 + 3
    assert len([r for r in caplog.records if "no engine gives a finite answer" in r.message]) == 1
    engine.spoil = lambda output, _: output
    assert run(X).certified, "nothing rests"
    engine.spoil = NO_OUTPUT[what]
    clock.now += COOL_DOWN_S + 1
    run(X)
    assert [len(other.calls) for other in others] == [2, 2], "asked again"


class Rows(Fake):
    """An engine that has no answer for rows whose first value is among these. It keeps what it was asked."""

    def __init__(self, silent: set[float], name: str = "onnxruntime", label: int = 0) -> None:
        super().__init__()
        self.silent, self.name, self.label = silent, name, label
        self.asked: list[list[float]] = []

    def run(self, inputs: Any, thresholds: Any, *rest: Any) -> Output:
        output = super().run(inputs, thresholds, *rest)
        (x,) = inputs.values()
        self.asked.append(x[:, 0].tolist())
        logits = np.roll(output.logits, self.label, axis=1)
        logits[[value in self.silent for value in x[:, 0].tolist()]] = NAN
        return replace(output, logits=logits)


def numbered(count: int) -> NDArray[np.float32]:
    x = np.zeros((count, 12), np.float32)
    x[:, 0] = np.arange(count)
    return x


def test_only_the_rows_without_an_answer_go_to_the_next_engine(bundle: dynamic.Bundle) -> None:
    engine, other = Rows({1.0, 3.0}), Rows(set(), "openvino", label=2)
    run = faked(bundle, engine, policy=Takes("reference"), others=[("openvino", lambda: other)])
    result = run(numbered(5))
    assert engine.asked == [[0, 1, 2, 3, 4], [1, 3]], "by the graph, by the stages"
    assert other.asked == [[1, 3]]
    assert result.label.tolist() == [0, 2, 0, 2, 0]
    assert np.isfinite(result.probability).all()
    assert not result.certified, "some rows are of an engine that was not calibrated"


def test_rows_of_two_engines_that_are_calibrated_are_certified(bundle: dynamic.Bundle) -> None:
    other = Rows(set(), label=2)
    run = faked(bundle, Rows({1.0}), policy=Takes("reference"), others=[("openvino", lambda: other)])
    assert run(numbered(3)).certified


def test_one_row_that_no_engine_answers_does_not_hide_those_that_one_does(bundle: dynamic.Bundle) -> None:
    """Row 1 has no answer anywhere. Row 2 has one on the next engine, in every request."""
    clock, engine, others = Clock(), Rows({1.0, 2.0}), list[Rows]()

    def opener() -> Rows:
        others.append(Rows({1.0}, "openvino", label=2))
        return others[-1]

    run = faked(bundle, engine, policy=Takes("reference"), others=[("openvino", opener)], clock=clock)
    for _ in range(3):
        result = run(numbered(4))
        assert result.label.tolist() in ([0, -1, 2, 0], [2, -1, 2, 2])
        assert not result.certified
        clock.now += COOL_DOWN_S / 10


def test_engines_that_have_no_answer_for_the_same_rows_are_asked_once_a_while(bundle: dynamic.Bundle) -> None:
    engine, other = Rows({1.0}), Rows({1.0}, "openvino")
    run = faked(bundle, engine, policy=Takes("reference"), others=[("openvino", lambda: other)])
    for _ in range(3):
        assert run(numbered(3)).label.tolist() == [0, -1, 0]
    assert other.asked == [[1], [1]], "the graph, the stages"
    assert engine.asked == [[0, 1, 2], [1], [0, 1, 2], [0, 1, 2]]


def test_rows_that_a_deadline_left_without_an_answer_are_no_failure(bundle: dynamic.Bundle) -> None:
    engine = Spoiled(lambda output, _: replace(with_logits(output, NAN), complete=False))
    result = faked(bundle, engine, policy=Takes("reference"))(X)
    assert (result.label.tolist(), result.certified) == ([-1], False)
    assert len(engine.calls) == 1


class Follows(Fake):
    """Its logits are not finite for rows whose inputs are not, unless it swallows them."""

    def __init__(self, swallows: bool) -> None:
        super().__init__()
        self.swallows = swallows

    def run(self, inputs: Mapping[str, NDArray[Any]], thresholds: Any, *rest: Any) -> Output:
        output = super().run(inputs, thresholds, *rest)
        (x,) = inputs.values()
        if not self.swallows:
            output.logits[~np.isfinite(x).all(axis=1)] = NAN
        return output


@pytest.mark.parametrize("swallows", [False, True])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("rows", [[1], [0, 1, 0], [1, 1]])
def test_inputs_that_are_not_finite(bundle: dynamic.Bundle, value: float, rows: list[int], swallows: bool) -> None:
    engine, other = Follows(swallows), Spare()
    run = faked(bundle, engine, policy=Takes("reference"), others=[("openvino", lambda: other)])
    x = np.zeros((len(rows), 12), np.float32)
    x[np.array(rows) > 0, 3] = value
    (name,) = (spec.name for spec in run.bundle.spec.inputs)
    results = [run(x), run({name: x}), next(run.map([x])), run.submit(x).result(120)]
    for result in results:
        assert result.label.tolist() == [0 if swallows else -bad for bad in rows], "the other rows are answered"
        assert not result.certified
    assert run.stats().engine_failures == 0, "the caller's"
    assert not other.calls
    assert run(X).certified
    run.close()


@pytest.mark.parametrize("gaps", [False, True])
def test_inputs_that_are_not_finite_are_certified_where_the_calibration_had_such(
    bundle: dynamic.Bundle, gaps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.zeros((8, 12), np.float32)
    values[3, 2] = NAN if gaps else 1.0
    canaries = Canaries({"input": values}, np.zeros((8, 2, 4), np.float32), "calibration")
    monkeypatch.setattr(dynamic.Bundle, "canaries", canaries)
    assert faked(bundle, Follows(True))(BAD).certified == gaps
    assert not faked(bundle, Follows(False))(BAD).certified


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("route", ["graph", "stages"])
def test_no_real_engine_certifies_inputs_that_are_not_finite(bundle: dynamic.Bundle, engine: str, route: str) -> None:
    pytest.importorskip(engine)
    options: Any = {"engine": engine, "threads": 1, "route": route}
    fast = bundle.profile(batch=(1,), seconds=0.02, **options)
    with Runtime(fast, dynamic.Budget(), monitor=monitor(), drift_alpha=None, fallback=(), **options) as run:
        for value in (NAN, INF, -INF):
            x = np.zeros((3, 12), np.float32)
            x[1, 5] = value
            for given in (x, x[1:2]):
                result = run(given)
                assert not result.certified
                assert (result.label >= 0).tolist() == np.isfinite(result.probability).tolist()
        assert run.stats().engine_failures == 0


class Steps(Executor):
    """An executor of two stages of one backbone, of four classes, whose logits `spoil` replaces."""

    name, precision, threads = "steps", "f32", 1

    def __init__(self, spoil: Callable[[NDArray[np.float32]], Any]) -> None:
        self.spoil = spoil

    def start(self, inputs: Mapping[str, Any]) -> Any:
        return inputs["x"]

    def step(self, stage: int, carry: Any, head: bool) -> Any:
        return self.spoil(np.zeros((len(carry), 4), np.float32)), carry


@pytest.mark.parametrize("rows", [2, 3])
@pytest.mark.parametrize(
    "spoil",
    [lambda a: a[:1], lambda a: a[0], lambda a: None, lambda a: a[:, :3], lambda a: a[:, :1], lambda a: a[..., None]],
)
def test_a_stage_of_another_shape_answers_nobody(rows: int, spoil: Callable[..., Any]) -> None:
    stages = tuple(StageSpec(name, 0, 1, "", None, 1.0, 1.0) for name in "ab")
    spec = CascadeSpec((InputSpec("x", (2,), "float32"),), stages, 4)
    engine = StageEngine(Steps(spoil), spec, Combiner((1.0, 1.0), "max_probability", combine="last"))
    x = {"x": np.zeros((rows, 2), np.float32)}
    with pytest.raises(EngineError, match=r"stage 'a' gave .*, expected \[\d, 4\]"):
        engine.run(x, np.zeros(1, np.float32))
    with pytest.raises(EngineError, match=r"stage 'a' gave .*, expected \[\d, 4\]"):
        engine.all_logits(x)


def test_errors_of_the_caller_are_no_failure_of_an_engine(bundle: dynamic.Bundle) -> None:
    other = Spare()
    run = faked(bundle, Spoiled(raises(InputError("not so"))), others=[("openvino", lambda: other)])
    with pytest.raises(InputError, match="not so"):
        run(X)
    assert run.stats().engine_failures == 0
    assert not other.prepared


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "uint8", "bool", "complex64"])
@pytest.mark.parametrize("size", [1, 12, 10_000])
def test_whether_arrays_are_finite(dtype: str, size: int) -> None:
    array = np.ones((2, size), dtype)
    assert is_finite(array)
    assert is_finite(array.T)
    assert finite_rows(array).tolist() == [True, True]
    if array.dtype.kind in "fc":
        for value in (NAN, INF, -INF):
            array[1, -1] = value
            assert not is_finite(array)
            assert not is_finite(array[:, ::-1])
            assert finite_rows(array).tolist() == [True, False]
        array[:] = np.finfo(dtype).max
        assert is_finite(array), "although its square is not"
