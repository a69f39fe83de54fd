"""A cascade whose stages run in two engines, before a cut and from it on: the same answers, to the bit."""

import pickle
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support.engine_cases import CLASSES, INF, Case, four_stages
from torch import Tensor, nn

from dynamic.engines.contract import Output
from dynamic.engines.parts.part_engines import PartEngine
from dynamic.engines.parts.rest import part_of, renumbered, unpacked
from dynamic.offline.cascade import Cascade
from dynamic.offline.staged_network import Stage, StagedNetwork
from dynamic.policies.scores import COMBINE
from dynamic.runtime.fallback import Answer, FallbackEngines

STAGES = ("torch/stages", "onnxruntime/stages", "openvino/stages")
THRESHOLDS = [(0.6, 0.7, 0.65), (INF, 0.6, INF), (INF, INF, INF), (0.7, INF, 0.6), (0.6, INF, INF), (2.0, 2.0, 2.0)]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return four_stages(tmp_path_factory)


def split(case: Case, way: str, cut: int, limits: Any, inputs: Any, **late: Any) -> tuple[Output, Output]:
    """(what the head gives, the same with the answers of the tail in it)."""
    head = PartEngine(case.shared(way), cut, True, "v")
    tail = PartEngine(case.shared(way), cut, False, "v")
    output = head.run(inputs, limits)
    logits, stage, score, complete = output.logits.copy(), output.stage.copy(), output.score.copy(), output.complete
    for rest in pickle.loads(pickle.dumps(output.rests)):  # as it comes to another process
        assert (rest.stage, rest.version) == (cut, "v")
        rows, after = rest.rows, tail.run(rest.arrays, limits, **late)
        logits[rows], stage[rows], score[rows] = after.logits, after.stage, after.score
        complete &= after.complete
    return output, Output(logits, stage, score, complete)


def same(one: Output, other: Output) -> None:
    np.testing.assert_array_equal(one.stage, other.stage)
    np.testing.assert_array_equal(one.score, other.score)
    np.testing.assert_array_equal(one.logits, other.logits)
    assert one.complete == other.complete


@pytest.mark.parametrize("way", STAGES)
@pytest.mark.parametrize("cut", [1, 2, 3])
def test_both_parts_answer_as_one_engine(case: Case, way: str, cut: int) -> None:
    for thresholds, rows in product(THRESHOLDS, (slice(None), slice(4, 5))):
        limits, inputs = np.array(thresholds, np.float32), case.rows(rows)
        whole = case.shared(way).stages.run(inputs, limits)
        begun, ended = split(case, way, cut, limits, inputs)
        same(ended, whole)
        continued = np.concatenate([np.zeros(0, np.intp), *(rest.rows for rest in begun.rests)])
        np.testing.assert_array_equal(np.sort(continued), np.flatnonzero(whole.stage >= cut))


@pytest.mark.parametrize("score", ["margin", "negative_entropy", "patience"])
@pytest.mark.parametrize("combine", COMBINE)
def test_votes_and_scores_travel(case: Case, score: str, combine: str) -> None:
    ruled = case.ruled(score, combine)
    thresholds = np.array((0.5,) * 3 if score == "patience" else ruled.quantiles(0.3), np.float32)
    for cut in (1, 2, 3):
        whole = ruled.shared("onnxruntime/stages").stages.run(ruled.inputs, thresholds)
        _, ended = split(ruled, "onnxruntime/stages", cut, thresholds, ruled.inputs)
        same(ended, whole)


def test_a_row_without_finite_logits_continues_with_what_was_there(case: Case) -> None:
    limits, inputs = np.array((0.6, 0.7, 0.65), np.float32), {n: array.copy() for n, array in case.inputs.items()}
    inputs["input"][3] = np.nan
    whole = case.shared("onnxruntime/stages").stages.run(inputs, limits)
    for cut in (1, 2, 3):
        _, ended = split(case, "onnxruntime/stages", cut, limits, inputs)
        same(ended, whole)


def names(output: Output) -> list[str]:
    (rest,) = output.rests
    progress, inputs, carry = unpacked(rest.arrays)
    assert progress.answered == (-1 if progress.answer is None else max(progress.answered, 0))
    return [*inputs, *(["carry"] if carry else [])]


def test_the_smaller_of_carry_and_inputs_travels(case: Case) -> None:
    """The carry behind stage 1 is 7 times the input (6 + 1 channels), so the input travels.

    Where a later network starts from the input, it travels with the carry or without it.
    """
    limits = np.array((2.0, 2.0, 2.0), np.float32)
    cuts = {cut: split(case, "onnxruntime/stages", cut, limits, case.inputs)[0] for cut in (1, 2, 3)}
    assert names(cuts[1]) == names(cuts[2]) == names(cuts[3]) == ["input"]
    all_exit = np.array((2.0, -INF, 2.0), np.float32)  # at stage 1, so nothing travels
    begun, _ = split(case, "onnxruntime/stages", 2, all_exit, case.inputs)
    assert begun.rests == ()
    assert set(begun.stage.tolist()) == {1}


class Narrow(StagedNetwork):
    """Its carry has 8 numbers, its input 64."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Sequential(nn.Flatten(), nn.Linear(64, 8)), nn.Sequential(nn.Linear(8, CLASSES))
        self.head = nn.Linear(8, CLASSES)

    @property
    def exit_stages(self) -> tuple[Stage, ...]:
        return (Stage("early", _Tuple(self.first), self.head), Stage("last", _Tuple(self.second), nn.Identity()))

    def forward(self, x: Tensor) -> list[Tensor]:
        feature = self.first(x)
        return [self.head(feature), self.second(feature)]


class _Tuple(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.body(x),)


class Overflowing:
    """An engine whose first row overflows: in its exit, and in the carry of a rest."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.name = engine, engine.name
        self.prepare, self.close = engine.prepare, engine.close

    def run(self, *arguments: Any) -> Output:
        output: Output = self.engine.run(*arguments)
        logits, score, rests = output.logits.copy(), output.score.copy(), []
        logits[0], score[0] = np.nan, np.nan
        for rest in output.rests:
            arrays = {name: array.copy() for name, array in rest.arrays.items()}
            for name, array in arrays.items():
                if name.startswith("carry."):
                    array[rest.rows == 0] = np.nan
            rests.append(replace(rest, arrays=arrays))
        return Output(logits, output.stage, score, output.complete, tuple(rests))


def answered_by(case: Case, first: Any, other: Any, arrays: Any, limits: Any) -> tuple[Answer, int]:
    """The answer of two engines, and how many failures were counted."""
    failures = list[int]()
    engines = FallbackEngines(case.spec, first, [("other", lambda: other)], lambda: 0.0, lambda: failures.append(1))
    point: Any = SimpleNamespace(backbones=frozenset(case.spec.backbone), thresholds=limits)
    rows = len(next(iter(arrays.values())))
    return engines.run(arrays, rows, point, None, stagewise=True, whole=True), len(failures)


def test_in_the_tail_another_engine_answers_a_row_whose_exit_overflowed(case: Case) -> None:
    limits, way = np.array((2.0, 2.0, 2.0), np.float32), "onnxruntime/stages"
    (rest,) = PartEngine(case.shared(way), 1, True, "v").run(case.inputs, limits).rests
    arrays = {name: array.copy() for name, array in rest.arrays.items()}
    arrays["answer"][0], arrays["score"][0] = np.nan, np.nan
    tail = PartEngine(case.shared(way), 1, False, "v")
    answer, failures = answered_by(case, Overflowing(tail), tail, arrays, limits)
    np.testing.assert_array_equal(answer.output.logits, tail.run(arrays, limits).logits)
    assert (failures, answer.is_answered) == (1, True)
    arrays["input.input"][0] = np.nan  # the fault of the input
    answer, failures = answered_by(case, Overflowing(tail), tail, arrays, limits)
    assert (failures, answer.is_answered) == (0, False)


def test_in_the_head_another_engine_gives_the_carry_that_overflowed(tmp_path: Path) -> None:
    torch.manual_seed(1)
    case = Case.of(Cascade([Narrow()]).eval(), tmp_path / "narrow", torch.randn(9, 1, 8, 8))
    limits = np.array((2.0,), np.float32)
    head = PartEngine(case.shared("onnxruntime/stages"), 1, True, "v")
    (expected,) = head.run(case.inputs, limits).rests
    answer, failures = answered_by(case, Overflowing(head), head, case.inputs, limits)
    assert (failures, answer.is_answered) == (1, True)
    rests = answer.output.rests
    assert sorted(np.concatenate([rest.rows for rest in rests]).tolist()) == list(range(9)), "each row once"
    for rest in rests:
        for name, array in rest.arrays.items():
            np.testing.assert_allclose(array, expected.arrays[name][rest.rows], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("way", STAGES)
def test_a_small_carry_travels(tmp_path: Path, way: str) -> None:
    torch.manual_seed(1)
    case = Case.of(Cascade([Narrow()]).eval(), tmp_path / "narrow", torch.randn(9, 1, 8, 8))
    limits = np.array(case.quantiles(0.5), np.float32)
    begun, ended = split(case, way, 1, limits, case.inputs)
    assert names(begun) == ["carry"]
    same(ended, case.shared(way).stages.run(case.inputs, limits))


def test_late_rows_keep_the_answer_of_the_exit(case: Case) -> None:
    limits = np.array((0.6, 0.7, 0.65), np.float32)
    begun, ended = split(case, "onnxruntime/stages", 2, limits, case.inputs, deadline_s=0.0)
    assert begun.rests
    same(ended, Output(begun.logits, begun.stage, begun.score, complete=False))
    assert np.isfinite(ended.logits).all()
    assert ended.stage.max() == 1


def test_rows_of_a_request_are_found_again(case: Case) -> None:
    limits = np.array((0.6, 0.7, 0.65), np.float32)
    whole, _ = split(case, "onnxruntime/stages", 1, limits, case.inputs)
    (rest,) = whole.rests
    parts = [(start, part_of(whole.rests, start, start + 11)) for start in (0, 11, 22)]
    again = [one for start, part in parts for one in renumbered(part, np.arange(start, start + 11))]
    np.testing.assert_array_equal(np.concatenate([one.rows for one in again]), rest.rows)
    for name, array in rest.arrays.items():
        np.testing.assert_array_equal(np.concatenate([one.arrays[name] for one in again]), array)
    assert part_of(whole.rests, 5, 5) == ()
