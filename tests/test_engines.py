"""Both engines against torch run by hand, stage by stage, row by row."""

import itertools
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dynamic.engines.loop import StageEngine
from dynamic.engines.opening import open_engine
from dynamic.errors import BudgetError, EngineError, InputError
from dynamic.offline.cascade import Cascade
from dynamic.offline.exporting import export
from dynamic.offline.stages import Stage, StagedNetwork
from dynamic.policies.replay import replay
from dynamic.policies.scores import Combiner

INF = float("inf")
CLASSES = 4


class First(nn.Module):
    """Two tensors in the carry: a feature, and a skip connection that crosses the exit."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.relu(self.conv(x)), x * 2


class Second(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 1, 3, padding=1)
        self.linear = nn.Linear(64, CLASSES)

    def forward(self, feature: Tensor, skip: Tensor) -> tuple[Tensor]:
        return (self.linear((self.conv(feature) + skip).flatten(1)),)


class TwoExits(StagedNetwork):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = First(), Second()
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, CLASSES))

    @property
    def exit_stages(self) -> tuple[Stage, ...]:
        return (Stage("early", self.first, self.head), Stage("last", self.second, nn.Identity()))

    def forward(self, x: Tensor) -> list[Tensor]:
        feature, skip = self.first(x)
        return [self.head(feature), self.second(feature, skip)[0]]


class Plain(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, CLASSES))


@dataclass(frozen=True)
class Case:
    cascade: Cascade
    folder: Path
    spec: Any
    inputs: Tensor


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    torch.manual_seed(0)
    cascade = Cascade([Plain(), TwoExits(), Plain()]).eval()
    for parameter in cascade.parameters():
        parameter.data.mul_(3)  # scores that differ
    folder = tmp_path_factory.mktemp("graphs")
    inputs = torch.randn(33, 1, 8, 8)
    return Case(cascade, folder, export(cascade, folder, inputs[:1]), inputs)


def engine(case: Case, name: str, combine: str = "mean", **options: Any) -> StageEngine:
    combiner = Combiner((1.0, 1.7, 0.8, 1.2), "max_probability", combine)
    return open_engine(name, case.folder, case.spec, combiner, case.cascade.stages, **options)


@pytest.fixture(params=["torch", "onnxruntime", "openvino"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def reference(case: Case, combine: str, thresholds: tuple[float, ...]) -> tuple[list[int], list[int], list[float]]:
    """(stage, label, score) of each row by a plain loop over torch's own logits; no code of the engines."""
    temperature, backbone = (1.0, 1.7, 0.8, 1.2), (0, 1, 1, 2)
    with torch.no_grad():
        logits = [z.double() for z in case.cascade(case.inputs)]
    stage, label, score = [], [], []
    for row in range(len(case.inputs)):
        seen: list[Tensor] = []
        for s in range(4):
            if s < 3 and thresholds[s] == INF:
                continue
            seen.append(torch.softmax(logits[s][row] / temperature[s], 0))
            answer = torch.stack(seen).mean(0) if combine == "mean" else seen[-1]
            if s == 3 or answer.max() > thresholds[s]:
                stage.append(s)
                label.append(int(answer.argmax()))
                score.append(float(answer.max()))
                break
    assert backbone == case.spec.backbone
    return stage, label, score


THRESHOLDS = [
    (0.6, 0.7, 0.65),
    (-INF, 0.5, 0.5),
    (INF, 0.6, INF),
    (INF, INF, INF),
    (0.7, INF, 0.6),
    (INF, INF, 0.55),
    (2.0, 2.0, 2.0),
]


@pytest.mark.parametrize("combine", ["mean", "last"])
@pytest.mark.parametrize("thresholds", THRESHOLDS)
def test_same_answers_as_torch_row_by_row(case: Case, name: str, combine: str, thresholds: tuple[float, ...]) -> None:
    stage, label, score = reference(case, combine, thresholds)
    opened = engine(case, name, combine)
    limits = np.array(thresholds, np.float32)
    output = opened.run({"input": case.inputs.numpy()}, limits)
    assert output.stage.tolist() == stage
    assert output.logits.argmax(1).tolist() == label
    np.testing.assert_allclose(output.score, score, rtol=1e-5)
    np.testing.assert_allclose(np.exp(output.logits).sum(1), 1, rtol=1e-5)
    for row in (0, 7, 20):  # alone as in the batch
        single = opened.run({"input": case.inputs[row : row + 1].numpy()}, limits)
        assert single.stage.tolist() == [stage[row]]
        np.testing.assert_allclose(single.logits[0], output.logits[row], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("combine", ["mean", "last"])
@pytest.mark.parametrize("thresholds", THRESHOLDS)
def test_replay_of_the_records_says_what_the_engine_does(
    case: Case, name: str, combine: str, thresholds: tuple[float, ...]
) -> None:
    opened = engine(case, name, combine)
    inputs, limits = {"input": case.inputs.numpy()}, np.array(thresholds, np.float32)
    output = opened.run(inputs, limits)
    combiner = Combiner((1.0, 1.7, 0.8, 1.2), "max_probability", combine)
    found = replay(opened.all_logits(inputs), combiner, limits, case.spec.backbone)
    assert found.stage.tolist() == output.stage.tolist()
    assert found.prediction.tolist() == output.logits.argmax(1).tolist()


def test_stages_that_are_off_or_not_reached_are_not_run(case: Case, name: str) -> None:
    opened = engine(case, name)
    steps: list[tuple[int, bool, int]] = []
    step = opened.executor.step

    def counted(stage: int, carry: Any, head: bool) -> Any:
        steps.append((stage, head, len(carry[0])))
        return step(stage, carry, head)

    opened.executor.step = counted  # type: ignore[method-assign]
    rows = {"input": case.inputs.numpy()}
    opened.run(rows, np.array([INF, INF, INF], np.float32))
    assert steps == [(3, True, 33)]
    steps.clear()
    opened.run(rows, np.array([INF, INF, 2.0], np.float32))  # the exit at 1 is off, its body is still needed
    assert [(s, h) for s, h, _ in steps] == [(1, False), (2, True), (3, True)]
    steps.clear()
    opened.run(rows, np.array([-INF, 0.5, 0.5], np.float32))
    assert steps == [(0, True, 33)]
    steps.clear()
    stage = opened.run(rows, np.array([0.8, 0.6, 0.7], np.float32)).stage
    left = [int((stage >= s).sum()) for s in range(4)]
    assert [(s, n) for s, _, n in steps] == [(s, n) for s, n in enumerate(left) if n]
    assert len(set(left)) > 2, "the case must make the batch shrink more than once"


class Broken(nn.Module):
    """Logits that are NaN for rows whose first pixel is negative."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        bad = (x[:, 0, 0, :1] < 0).float()
        return self.network(x) + torch.sqrt(-bad)  # type: ignore[no-any-return]


def test_a_stage_of_nan_stops_nobody_and_is_left_out(tmp_path: Path, name: str) -> None:
    torch.manual_seed(1)
    good, bad = Plain(), Broken(Plain())
    cascade = Cascade([good, bad, Plain()]).eval()
    x = torch.randn(12, 1, 8, 8)
    broken = (x[:, 0, 0, 0] < 0).numpy()
    assert 0 < broken.sum() < 12
    assert np.isnan(bad(x).detach().numpy()[broken]).all()
    spec = export(cascade, tmp_path, x)
    opened = open_engine(name, tmp_path, spec, Combiner((1.0,) * 3, "max_probability", "mean"), cascade.stages)
    output = opened.run({"input": x.numpy()}, np.array([2.0, -INF], np.float32))
    assert output.stage.tolist() == np.where(broken, 2, 1).tolist()
    with torch.no_grad():
        first, last = (torch.softmax(cascade.networks[i](x), 1).numpy() for i in (0, 2))
    np.testing.assert_allclose(np.exp(output.logits[broken]), ((first + last) / 2)[broken], rtol=1e-4)


def test_no_finite_answer_at_all_gives_nan(tmp_path: Path, name: str) -> None:
    cascade = Cascade([Broken(Plain())]).eval()
    x = -torch.ones(2, 1, 8, 8)
    spec = export(cascade, tmp_path, x)
    opened = open_engine(name, tmp_path, spec, Combiner((1.0,), "max_probability", "mean"), cascade.stages)
    output = opened.run({"input": x.numpy()}, np.empty(0, np.float32))
    assert np.isnan(output.logits).all()
    assert np.isnan(output.score).all()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"other": np.zeros((1, 1, 8, 8), np.float32)}, "takes"),
        ({"input": np.zeros((1, 1, 8, 9), np.float32)}, "shape"),
        ({"input": np.zeros((1, 8, 8), np.float32)}, "shape"),
        ({"input": np.zeros((1, 1, 8, 8), np.float64)}, "float64"),
        ({"input": np.zeros((0, 1, 8, 8), np.float32)}, "empty"),
    ],
)
def test_wrong_inputs_are_named(case: Case, name: str, inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        engine(case, name).run(inputs, np.zeros(3, np.float32))


@pytest.mark.parametrize("thresholds", [[0.5], [0.5, 0.5, np.nan], [0.1, 0.2, 0.3, 0.4]])
def test_wrong_thresholds_are_named(case: Case, name: str, thresholds: list[float]) -> None:
    with pytest.raises(BudgetError, match="thresholds"):
        engine(case, name).run({"input": case.inputs.numpy()}, np.array(thresholds, np.float32))


def test_unknown_engine_or_option_is_named(case: Case) -> None:
    with pytest.raises(EngineError, match="onnxruntime"):
        engine(case, "tensorrt")
    with pytest.raises(EngineError, match="cores"):
        engine(case, "onnxruntime", cores=3)
    with pytest.raises(BudgetError, match="idle"):
        engine(case, "onnxruntime", idle="nap")
    with pytest.raises(EngineError, match="modules"):
        open_engine("torch", case.folder, case.spec, Combiner((1.0,) * 4, "margin", "mean"), None)


def test_unloading_gives_back_and_running_loads_again(case: Case) -> None:
    opened = engine(case, "onnxruntime")
    assert opened.loaded() == frozenset()
    opened.load([0, 1])
    assert opened.loaded() == {0, 1}
    opened.unload([0])
    assert opened.loaded() == {1}
    before = opened.run({"input": case.inputs.numpy()}, np.array([0.6, 0.7, 0.65], np.float32))
    assert opened.loaded() == {0, 1, 2}
    opened.close()
    assert opened.loaded() == frozenset()
    again = opened.run({"input": case.inputs.numpy()}, np.array([0.6, 0.7, 0.65], np.float32))
    np.testing.assert_array_equal(before.logits, again.logits)


def test_a_broken_graph_names_the_stage(case: Case, tmp_path: Path) -> None:
    shutil.copytree(case.folder, tmp_path / "copy")
    (tmp_path / "copy" / case.spec.stages[1].graph).write_bytes(b"no graph")
    opened = open_engine("onnxruntime", tmp_path / "copy", case.spec, Combiner((1.0,) * 4, "margin", "mean"))
    with pytest.raises(EngineError, match="early"):
        opened.run({"input": case.inputs.numpy()}, np.array([2, 2, 2], np.float32))


def test_threads_share_an_engine(case: Case) -> None:
    opened = engine(case, "onnxruntime", threads=1)
    limits = [np.array(t, np.float32) for t in THRESHOLDS]
    rows = {"input": case.inputs.numpy()}
    alone = [opened.run(rows, t).logits for t in limits]
    with ThreadPoolExecutor(8) as pool:
        jobs = list(itertools.islice(itertools.cycle(range(len(limits))), 80))
        together = list(pool.map(lambda i: opened.run(rows, limits[i]).logits, jobs))
    for i, logits in zip(jobs, together, strict=True):
        np.testing.assert_allclose(logits, alone[i], rtol=1e-5, atol=1e-6)


def test_weights_are_stored_once(case: Case) -> None:
    own = {b: sum(p.numel() * 4 for p in n.parameters()) for b, n in enumerate(case.cascade.networks)}
    for backbone, size in own.items():
        file = case.folder / "backbones" / f"{backbone}.weights"
        parts = list((case.folder / "backbones").glob(f"{backbone}_*.onnx"))
        assert file.stat().st_size <= size + 4096 * 8, "each tensor starts on a page of its own"
        assert all(part.stat().st_size < 40_000 for part in parts)
