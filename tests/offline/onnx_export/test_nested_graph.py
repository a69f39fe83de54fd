"""The single graph computes nothing that it need not: ONNX Runtime's own profile of every operator it ran."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from support.engine_cases import CLASSES, INF, WAYS, Case, check, four_stages
from torch import Tensor, nn

from dynamic.engines.contract import GRAPH, SINGLE_GRAPH
from dynamic.offline.cascade import Cascade
from dynamic.offline.staged_network import Stage, StagedNetwork

LEVELS = {
    "as written": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "optimized": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
HEADS = {"ReduceMean", "GlobalAveragePool"}  # only the head of stage 1 pools


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Backbones of stages 0, 1 and 2, and 3."""
    return four_stages(tmp_path_factory)


@pytest.fixture(scope="module", params=["max_probability", "patience"])
def scored(request: pytest.FixtureRequest, case: Case) -> Case:
    """Of the one score no stage knows anything of those before, of the other each does."""
    return case if request.param == case.score else case.ruled(request.param, case.combine)


class Profile:
    """Operators that ran in one call, with the stage each belongs to (-1: none) and the rows it gave."""

    def __init__(self, case: Case, folder: Path, rows: int, thresholds: Sequence[float], level: str) -> None:
        options = onnxruntime.SessionOptions()
        options.enable_profiling, options.profile_file_prefix = True, str(folder / "profile")
        options.graph_optimization_level, options.intra_op_num_threads = LEVELS[level], 1
        file = case.folder / (SINGLE_GRAPH if rows == 1 else GRAPH)
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        feed = case.rows(slice(0, rows)) | {"thresholds": np.array(thresholds, np.float32)}
        self.stage = session.run(["stage"], feed)[0]
        events = json.loads(Path(session.end_profiling()).read_text())
        self.ran: list[tuple[int, str, int]] = []
        for event in events:
            if event.get("cat") != "Node" or not event["name"].endswith("_kernel_time"):
                continue
            found = re.search(r"(?:^|[/ ])s(\d+)/", event["name"])
            shapes: list[Any] = [next(iter(shape.values())) for shape in event["args"]["output_type_shape"]]
            first = shapes[0][0] if shapes and shapes[0] else 0
            self.ran.append((int(found[1]) if found else -1, event["args"]["op_name"], first))

    def stages(self) -> set[int]:
        """The stages of which anything ran."""
        return {stage for stage, _, _ in self.ran} - {-1}

    def rows(self, stage: int) -> set[int]:
        """First dimensions of what layers with weights gave in this stage."""
        return {rows for s, op, rows in self.ran if s == stage and re.search("Conv|Gemm|MatMul", op)}

    def head(self) -> bool:
        """Whether the head of stage 1 ran."""
        return any(stage == 1 and op in HEADS for stage, op, _ in self.ran)


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("rows", [1, 33])
@pytest.mark.parametrize(
    ("thresholds", "ran"),
    [
        ((-INF, 0.5, 0.5), {0}),
        ((2.0, -INF, 0.5), {0, 1}),
        ((2.0, 2.0, -INF), {0, 1, 2}),
        ((2.0, 2.0, 2.0), {0, 1, 2, 3}),
        ((INF, -INF, 0.5), {1}),  # the first backbone has its exit off
        ((-INF, INF, INF), {0}),
        ((2.0, INF, INF), {0, 3}),  # all exits of the second are off
        ((INF, INF, 2.0), {1, 2, 3}),  # the exit of stage 2 is on: stage 1 has to run
        ((INF, INF, INF), {3}),
        ((2.0, 2.0, INF), {0, 1, 3}),  # nothing behind the exit of stage 1 is on in its backbone
    ],
)
def test_only_what_is_reached_and_on_runs(
    scored: Case, tmp_path: Path, level: str, rows: int, thresholds: tuple[float, ...], ran: set[int]
) -> None:
    profile = Profile(scored, tmp_path, rows, thresholds, level)
    assert profile.stages() == ran
    assert set(profile.stage.tolist()) == {max(ran)}
    assert profile.head() == (1 in ran and thresholds[1] != INF)
    for stage in ran:
        assert profile.rows(stage) == {rows}


def test_rows_that_left_are_not_in_the_batch_any_more(case: Case, tmp_path: Path, level: str) -> None:
    thresholds = case.quantiles(0.4)
    profile = Profile(case, tmp_path, 33, thresholds, level)
    truth = case.truth(thresholds).stage
    np.testing.assert_array_equal(profile.stage, truth)
    left = [int((truth >= stage).sum()) for stage in range(4)]
    assert len(set(left)) == 4, "the batch must shrink at every exit"
    assert [profile.rows(stage) for stage in range(4)] == [{n} for n in left]


def test_a_single_row_does_not_gather_or_scatter(case: Case, tmp_path: Path) -> None:
    profile = Profile(case, tmp_path, 1, (2.0, 2.0, 2.0), "as written")
    assert not {op for _, op, _ in profile.ran} & {"Gather", "ScatterND", "NonZero"}


def test_what_leaving_at_the_first_network_costs(case: Case, tmp_path: Path) -> None:
    """Of the operators that are no layer, every one is counted: an exit costs what lies between it and the answer."""
    profile = Profile(case.ruled("margin", "mean"), tmp_path, 1, (-INF, 0.5, 0.5), "as written")
    cost = [op for stage, op, _ in profile.ran if stage == -1]
    score, decision = ["Softmax", "TopK", "Mul", "ReduceSum", "ReduceSum", "Div"], ["Less"]
    around = ["Split", "Less", "If", "If", "Add", "Log"]  # is the exit on, does it leave, the answer
    assert sorted(op for op in cost if op != "Identity") == sorted(score + decision + around)


# OpenVINO's profile (get_profiling_info, PERF_COUNT) lists the operators of the outer graph alone: what runs inside the
# branches of an If cannot be seen there, and a time limit would fail on a busy machine. It is left out.


def test_two_rows_do_not_go_through_the_graph_for_one(case: Case) -> None:
    session = onnxruntime.InferenceSession(str(case.folder / SINGLE_GRAPH), providers=["CPUExecutionProvider"])
    with pytest.raises(Exception, match=r"(?i)invalid dimensions.*\n?.*Got: 2 Expected: 1"):
        session.run(None, case.rows(slice(0, 2)) | {"thresholds": np.zeros(3, np.float32)})


@pytest.mark.parametrize("way", WAYS)
def test_a_score_at_the_threshold_stays(level_case: Case, way: str) -> None:
    opened = level_case.shared(way)
    for rows in (1, 3):
        for limit, stage in ((0.25, 1), (np.nextafter(np.float32(0.25), np.float32(0)), 0)):
            output = opened.run(level_case.rows(slice(0, rows)), np.array([limit], np.float32))
            assert output.stage.tolist() == [stage] * rows
            assert output.score.tolist() == [0.25] * rows


@pytest.fixture(scope="module")
def level_case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Every class is as probable as every other: scores are 1/4 and not rounded."""
    cascade = Cascade([nn.Linear(4, CLASSES), nn.Linear(4, CLASSES)])
    for parameter in cascade.parameters():
        parameter.data.zero_()
    return Case.of(cascade, tmp_path_factory.mktemp("level"), torch.randn(3, 4))


class Same(nn.Module):
    """Hands its input on as it is, twice."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        feature = torch.tanh(x)
        return feature, x, feature


class Rest(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, CLASSES)

    def forward(self, feature: Tensor, x: Tensor, again: Tensor) -> tuple[Tensor]:
        return (self.linear(torch.cat([feature, x, again * x], 1)),)


class PassesOn(StagedNetwork):
    def __init__(self) -> None:
        super().__init__()
        self.head, self.rest = nn.Linear(4, CLASSES), Rest()

    @property
    def exit_stages(self) -> tuple[Stage, ...]:
        return (Stage("early", Same(), self.head), Stage("last", self.rest, nn.Identity()))

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.head(torch.tanh(x)), self.rest(*Same()(x))[0]]


@pytest.mark.parametrize("way", ["onnxruntime/graph", "openvino/graph", "onnxruntime/stages", "openvino/stages"])
def test_a_carry_that_is_the_input_itself_or_comes_twice(passing: Case, way: str) -> None:
    limits = passing.quantiles(0.5)
    truth, opened = passing.truth(limits), passing.shared(way)
    assert set(truth.stage.tolist()) == {0, 1, 2}
    check(opened.run(passing.inputs, np.array(limits, np.float32)), truth)
    for row in range(4):
        at = slice(row, row + 1)
        check(opened.run(passing.rows(at), np.array(limits, np.float32)), truth, at)


@pytest.fixture(scope="module")
def passing(tmp_path_factory: pytest.TempPathFactory) -> Case:
    torch.manual_seed(0)
    cascade = Cascade([PassesOn(), nn.Linear(4, CLASSES)])
    for parameter in cascade.parameters():
        parameter.data.mul_(3)
    return Case.of(cascade, tmp_path_factory.mktemp("passing"), torch.randn(20, 4), (1.5, 1.0, 0.7))
