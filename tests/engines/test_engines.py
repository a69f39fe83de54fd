"""Every way that a cascade runs against torch run by hand, stage by stage, row by row."""

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support.engine_cases import CLASSES, INF, WAYS, Case, Plain, check, four_stages
from torch import Tensor, nn

from dynamic.engines.engine_factory import installed, open_engine
from dynamic.engines.openvino import Models, OpenVinoGraph
from dynamic.errors import EngineError, InputError, SettingError
from dynamic.offline.cascade import Cascade
from dynamic.offline.onnx_export.whole_graph import write_graphs
from dynamic.offline.staged_network import Stage, StagedNetwork
from dynamic.policies.certification.replay import replay
from dynamic.policies.scores import COMBINE

GRAPHS = [way for way in WAYS if way.endswith("graph")]
Ruled = Callable[[str, str], Case]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return four_stages(tmp_path_factory)


@pytest.fixture(scope="module")
def ruled(case: Case) -> Callable[[str, str], Case]:
    """The case under a score and a combination."""
    return case.ruled


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


THRESHOLDS = [
    (0.6, 0.7, 0.65),
    (-INF, 0.5, 0.5),
    (INF, 0.6, INF),
    (INF, INF, INF),
    (0.7, INF, 0.6),
    (0.7, 0.6, INF),
    (INF, INF, 0.55),
    (0.6, INF, INF),
    (INF, -INF, INF),
    (2.0, 2.0, 2.0),
]


def agrees(case: Case, way: str, thresholds: Any) -> set[int]:
    """Batch and single rows as torch; the stages that rows left at."""
    limits, truth, opened = np.array(thresholds, np.float32), case.truth(thresholds), case.shared(way)
    assert truth.near.sum() <= 3
    check(opened.run(case.inputs, limits), truth)
    _, one_of_each = np.unique(truth.stage, return_index=True)
    for row in {0, *one_of_each.tolist()}:
        at = slice(row, row + 1)
        check(opened.run(case.rows(at), limits), truth, at)
    return set(truth.stage.tolist())


@pytest.mark.parametrize("rows", [1, 3])
def test_openvino_compiles_every_stage_before_the_first_request(
    case: Case, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenVINO compiles a branch when an inference enters it, in the middle of a request otherwise."""
    found: list[Any] = []
    run = Models.run

    def counted(models: Models, *arguments: Any) -> Any:
        outputs = run(models, *arguments)
        found.append(outputs[1].copy())
        return outputs

    monkeypatch.setattr(Models, "run", counted)
    graph = OpenVinoGraph(case.folder, case.spec, threads=1)
    graph.load(rows)
    graph.load(rows)
    assert [stage.tolist() for stage in found] == [[len(case.spec.stages) - 1] * min(rows, 2)]
    assert graph.close()


@pytest.mark.parametrize("score", ["max_probability", "patience"])
@pytest.mark.parametrize("combine", COMBINE)
@pytest.mark.parametrize("thresholds", THRESHOLDS)
def test_same_answers_as_torch_row_by_row(
    ruled: Ruled, way: str, score: str, combine: str, thresholds: tuple[float, ...]
) -> None:
    agrees(ruled(score, combine), way, thresholds)


@pytest.mark.parametrize("combine", COMBINE)
@pytest.mark.parametrize("score", ["max_probability", "margin", "negative_entropy"])
def test_every_score(ruled: Ruled, way: str, score: str, combine: str) -> None:
    case = ruled(score, combine)
    assert len(agrees(case, way, case.quantiles(0.4))) == 4
    first, _, third = case.quantiles(0.3)
    assert agrees(case, way, (first, INF, third)) == {0, 2, 3}


@pytest.mark.parametrize("combine", COMBINE)
@pytest.mark.parametrize(
    ("thresholds", "left"),
    [
        ((0.5, 0.5, 0.5), {1, 2, 3}),
        ((0.5, 1.5, 1.5), {2, 3}),
        ((0.5, INF, 0.5), {2, 3}),
        ((0.5, 0.5, INF), {1, 3}),
        ((INF, 0.5, 0.5), {2, 3}),
        ((0.5, INF, INF), {3}),
        ((-1.0, 0.5, 0.5), {0}),
    ],
)
def test_patience(ruled: Ruled, way: str, combine: str, thresholds: tuple[float, ...], left: set[int]) -> None:
    """Whoever gave the same answer before leaves; the first exit that is on has nothing to compare with."""
    found = agrees(ruled("patience", combine), way, thresholds)
    assert found <= left
    assert found == left or combine != "mean", "where networks vote, answers are the same often enough to tell"


@pytest.mark.parametrize("way", GRAPHS)
def test_one_row_takes_the_graph_for_one_and_more_the_other(case: Case, way: str) -> None:
    opened, limits = case.open(way), np.zeros(3, np.float32)
    assert opened.graph is not None
    opened.run(case.rows(slice(0, 1)), limits)
    assert (opened.graph.ready(1), opened.graph.ready(2)) == (True, False)
    opened.graph.close()
    opened.run(case.rows(slice(0, 2)), limits)
    assert (opened.graph.ready(1), opened.graph.ready(2)) == (False, True)
    assert opened.loaded() == frozenset(), "no stage of its own"


@pytest.mark.parametrize("score", ["max_probability", "patience"])
@pytest.mark.parametrize("thresholds", THRESHOLDS)
def test_replay_of_the_records_says_what_the_engine_does(
    ruled: Ruled, way: str, score: str, thresholds: tuple[float, ...]
) -> None:
    case = ruled(score, "mean")
    opened, limits = case.shared(way), np.array(thresholds, np.float32)
    output = opened.run(case.inputs, limits)
    found = replay(opened.all_logits(case.inputs), case.combiner, thresholds=limits, backbone=case.spec.backbone)
    assert found.stage.tolist() == output.stage.tolist()
    assert found.prediction.tolist() == output.logits.argmax(1).tolist()


@pytest.mark.parametrize("way", [way for way in WAYS if way.endswith("stages")])
def test_stages_that_are_off_or_not_reached_are_not_run(case: Case, way: str) -> None:
    """Of the graphs the same is asked in test_nesting."""
    opened = case.open(way)
    steps: list[tuple[int, bool, int]] = []
    step = opened.executor.step

    def counted(stage: int, carry: Any, head: bool) -> Any:
        steps.append((stage, head, len(carry[0])))
        return step(stage, carry, head)

    opened.executor.step = counted  # type: ignore[method-assign]
    opened.run(case.inputs, np.array([INF, INF, INF], np.float32))
    assert steps == [(3, True, 33)]
    steps.clear()
    opened.run(case.inputs, np.array([INF, INF, 2.0], np.float32))  # the exit at 1 is off, its body is still needed
    assert [(s, h) for s, h, _ in steps] == [(1, False), (2, True), (3, True)]
    steps.clear()
    opened.run(case.inputs, np.array([-INF, 0.5, 0.5], np.float32))
    assert steps == [(0, True, 33)]
    steps.clear()
    stage = opened.run(case.inputs, np.array([0.8, 0.6, 0.7], np.float32)).stage
    left = [int((stage >= s).sum()) for s in range(4)]
    assert [(s, n) for s, _, n in steps] == [(s, n) for s, n in enumerate(left) if n]
    assert len(set(left)) > 2, "the case must make the batch shrink more than once"


class Broken(nn.Module):
    """Logits that are not all finite for rows whose first pixel is -1 to -4."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Plain()
        nan, zeros = float("nan"), [0.0] * (CLASSES - 1)
        self.register_buffer(
            "harm", torch.tensor([[*zeros, INF], [0.0, nan, *zeros[1:]], [nan] * CLASSES, [-INF] * CLASSES])
        )

    def forward(self, x: Tensor) -> Tensor:
        logits, kind = self.network(x), x[:, 0, 0, :1]
        for number in range(4):
            logits = torch.where(kind == -1 - number, logits + self.harm[number], logits)
        return logits


@pytest.fixture(scope="module")
def broken_mean(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """First and last network are broken for rows 0 to 7, the second is not."""
    torch.manual_seed(1)
    x = torch.randn(12, 1, 8, 8)
    x[:8, 0, 0, 0] = -1.0 - torch.arange(8) % 4
    x[8:, 0, 0, 0] = 1
    made = Case.of(Cascade([Broken(), Plain(), Broken()]), tmp_path_factory.mktemp("broken"), x)
    for stage, bad in ((0, 8), (1, 0), (2, 8)):
        assert (~np.isfinite(made.logits[:, stage]).all(axis=1)).tolist() == [True] * bad + [False] * (12 - bad)
    return made


@pytest.fixture(
    scope="module",
    params=[
        ("max_probability", "mean"),
        ("max_probability", "last"),
        ("patience", "mean"),
        ("margin", "mean"),
        ("margin", "last"),
        ("margin", "backbones"),
        ("negative_entropy", "mean"),
    ],
    ids="-".join,
)
def broken(request: pytest.FixtureRequest, broken_mean: Case) -> Case:
    return broken_mean.ruled(*request.param)


@pytest.mark.parametrize(
    ("thresholds", "left"),
    [((-INF, -INF), 1), ((2.0, -INF), 1), ((INF, 2.0), 2), ((2.0, 2.0), 2), ((INF, INF), 2), ((-INF, INF), 2)],
)
def test_a_stage_of_nothing_finite_stops_nobody_and_is_left_out(
    broken: Case, way: str, thresholds: tuple[float, float], left: int
) -> None:
    truth, opened, limits = broken.truth(thresholds), broken.shared(way), np.array(thresholds, np.float32)
    assert set(truth.stage[:8].tolist()) == {left}
    nothing = thresholds[1] == INF  # only broken networks run: rows without any finite answer
    assert np.isnan(truth.probability[:8]).all() == nothing
    assert np.isnan(truth.score[:8]).all() == (left == 2)
    check(opened.run(broken.inputs, limits), truth)
    for row in (0, 1, 2, 3, 8):
        at = slice(row, row + 1)
        output = opened.run(broken.rows(at), limits)
        check(output, truth, at)
        assert np.isnan(output.logits).all() == (nothing and row < 8)


class Untouched(nn.Module):
    """Hands the input on."""

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (x + 0,)


class Flattened(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.linear(x.flatten(1)),)


class BrokenFlattened(Flattened):
    def __init__(self) -> None:
        super().__init__()
        self.network = Broken()

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.network(x),)


class BrokenExit(StagedNetwork):
    """Its exit is broken, its end is not; or the other way round."""

    def __init__(self, end: bool = False) -> None:
        super().__init__()
        self.first, self.head, self.rest = Untouched(), Broken(), Flattened()
        if end:
            self.head, self.rest = Plain(), BrokenFlattened()

    @property
    def exit_stages(self) -> tuple[Stage, ...]:
        return (Stage("early", self.first, self.head), Stage("last", self.rest, nn.Identity()))

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.head(x), self.rest(x)[0]]


@pytest.fixture(scope="module")
def broken_between(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Of five stages the second, an exit, and the fourth, a network, are broken for 16 rows of 24."""
    torch.manual_seed(2)
    x = torch.randn(24, 1, 8, 8)
    x[:16, 0, 0, 0] = -1.0 - torch.arange(16) % 4
    made = Case.of(
        Cascade([Plain(), BrokenExit(), Broken(), Plain()]), tmp_path_factory.mktemp("between") / "graphs", x
    )
    assert [int((~np.isfinite(made.logits[:, s]).all(axis=1)).sum()) for s in range(5)] == [0, 16, 0, 16, 0]
    return made


@pytest.mark.parametrize("combine", COMBINE)
@pytest.mark.parametrize(
    "thresholds",
    [(0.5,) * 4, (0.5, 0.5, 1.5, 1.5), (INF, 0.5, 0.5, 0.5), (INF, 0.5, INF, 0.5), (0.5, 0.5, INF, 2.5), (4.0,) * 4],
)
def test_patience_does_not_count_a_stage_of_nothing_finite(
    broken_between: Case, way: str, combine: str, thresholds: tuple[float, ...]
) -> None:
    case = broken_between.ruled("patience", combine)
    agrees(case, way, thresholds)
    left = case.truth((0.5,) * 4).stage[:16]
    assert 2 in left, "compared with the first stage, past the broken second"
    assert not {1, 3} & set(left.tolist())


@pytest.mark.parametrize("combine", COMBINE)
@pytest.mark.parametrize("score", ["max_probability", "margin", "negative_entropy"])
@pytest.mark.parametrize(
    "thresholds",
    [
        (2.0,) * 4,
        (-INF,) * 4,
        (2.0, -INF, 2.0, 2.0),
        (2.0, 2.0, -INF, 2.0),
        (2.0, 2.0, 2.0, -INF),
        (INF, -INF, INF, -INF),
        (2.0, 2.0, INF, 2.0),
    ],
)
def test_no_score_lets_a_stage_of_nothing_finite_in(
    broken_between: Case, way: str, score: str, combine: str, thresholds: tuple[float, ...]
) -> None:
    agrees(broken_between.ruled(score, combine), way, thresholds)


@pytest.fixture(scope="module")
def broken_end(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Of three stages the second, behind an exit of the same network, is broken for 8 rows of 12."""
    torch.manual_seed(3)
    x = torch.randn(12, 1, 8, 8)
    x[:8, 0, 0, 0] = -1.0 - torch.arange(8) % 4
    made = Case.of(Cascade([BrokenExit(end=True), Plain()]), tmp_path_factory.mktemp("end") / "graphs", x)
    assert [int((~np.isfinite(made.logits[:, s]).all(axis=1)).sum()) for s in range(3)] == [0, 8, 0]
    return made


@pytest.mark.parametrize("combine", COMBINE)
@pytest.mark.parametrize("score", ["max_probability", "margin", "negative_entropy", "patience"])
@pytest.mark.parametrize("thresholds", [(9.0, 9.0), (9.0, -INF), (INF, 9.0)])
def test_the_exit_s_answer_stands_where_the_end_of_its_network_gives_nothing_finite(
    broken_end: Case, way: str, score: str, combine: str, thresholds: tuple[float, ...]
) -> None:
    agrees(broken_end.ruled(score, combine), way, thresholds)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A cascade of one stage, which gives nothing finite for two rows of three."""
    x = torch.cat([-torch.ones(2, 1, 8, 8), torch.ones(1, 1, 8, 8)])
    return Case.of(Cascade([Broken()]), tmp_path_factory.mktemp("alone"), x, (1.3,))


@pytest.mark.parametrize("combine", COMBINE)
def test_one_stage_alone(alone: Case, tmp_path: Path, way: str, combine: str) -> None:
    case = replace(alone, folder=Path(shutil.copytree(alone.folder, tmp_path / "copy")), combine=combine)
    write_graphs(case.folder, case.spec, case.ladder)
    truth, opened, none = case.truth(()), case.open(way), np.empty(0, np.float32)
    for at in (slice(0, 3), slice(0, 1), slice(2, 3)):
        check(opened.run(case.rows(at), none), truth, at)
    assert np.isnan(opened.run(case.inputs, none).logits).all(axis=1).tolist() == [True, True, False]


BAD = [
    ({"other": np.zeros((1, 1, 8, 8), np.float32)}, r"\['other'\].*takes \['input'\]"),
    ({"input": np.zeros((1, 1, 8, 9), np.float32)}, r"\[1, 1, 8, 9\], expected \[B, 1, 8, 8\]"),
    ({"input": np.zeros((1, 8, 8), np.float32)}, r"\[1, 8, 8\], expected \[B, 1, 8, 8\]"),
    ({"input": np.zeros((1, 1, 8, 8), np.float64)}, "float64, expected float32: convert"),
    ({"input": np.zeros((0, 1, 8, 8), np.float32)}, "empty batch: give at least one"),
]


@pytest.mark.parametrize(("inputs", "message"), BAD)
def test_wrong_inputs_are_named(case: Case, way: str, inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        case.shared(way).run(inputs, np.zeros(3, np.float32))


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("thresholds", [[0.5], [0.5, 0.5, np.nan], [0.1, 0.2, 0.3, 0.4], [[0.1, 0.2, 0.3]]])
def test_wrong_thresholds_are_named(case: Case, way: str, thresholds: Any, rows: int) -> None:
    with pytest.raises(SettingError, match=r"thresholds.*(4 stages need \(3,\)|use \+inf)"):
        case.shared(way).run(case.rows(slice(0, rows)), np.array(thresholds, np.float32))


def test_thresholds_of_other_kinds_and_arrays_in_pieces(case: Case, way: str) -> None:
    """float64, strided, read-only: none of the user's business."""
    opened = case.shared(way)
    wanted = opened.run(case.rows(slice(0, 8)), np.array([0.6, 0.7, 0.65], np.float32))
    apart = np.repeat(case.inputs["input"][:8], 2, axis=3)[..., ::2]
    apart.setflags(write=False)
    assert not apart.flags.c_contiguous
    for limits in (np.array([0.6, 0.7, 0.65]), np.array([0.6, 0, 0.7, 0, 0.65], np.float32)[::2]):
        output = opened.run({"input": apart}, limits)
        np.testing.assert_array_equal(output.logits, wanted.logits)
        single = opened.run({"input": apart[3:4]}, limits)
        np.testing.assert_allclose(single.logits[0], wanted.logits[3], rtol=1e-4, atol=1e-5)


def test_unknown_engine_or_option_is_named(case: Case) -> None:
    with pytest.raises(EngineError, match=r"'tensorrt' is not known: use one of .*onnxruntime"):
        case.open("tensorrt/stages")
    with pytest.raises(SettingError, match=r"'cores': its options are \['idle', 'route', 'threads'\]"):
        case.open("onnxruntime/stages", cores=3)
    with pytest.raises(SettingError, match="idle='nap' is not known"):
        case.open("onnxruntime/stages", idle="nap")
    with pytest.raises(SettingError, match="threads=0 must be at least 1"):
        case.open("openvino/graph", threads=0)
    with pytest.raises(EngineError, match=r"precision 'bf16' is not available.*f32"):
        case.open("onnxruntime/stages", precision="bf16")
    with pytest.raises(EngineError, match=r"modules=cascade.*engine='onnxruntime'"):
        open_engine("torch", case.folder, case.spec, case.combiner, None)


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("onnxruntime", "'dynamic-inference'"),
        ("openvino", "dynamic-inference.openvino."),
        ("torch", "dynamic-inference.build."),
    ],
)
def test_an_engine_that_is_not_installed_says_what_to_install(
    case: Case, monkeypatch: pytest.MonkeyPatch, name: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "dynamic.engines.pytorch", raising=False)  # made before, it has torch already
    with pytest.raises(EngineError, match=f"{name!r} is not installed: pip install .*{extra}"):
        case.open(f"{name}/stages")
    assert name not in installed()


@pytest.mark.parametrize("way", WAYS[1:])
def test_a_broken_graph_names_stage_and_file(case: Case, tmp_path: Path, way: str) -> None:
    folder = shutil.copytree(case.folder, tmp_path / "copy")
    for file in ("graph.onnx", "graph_single.onnx", case.spec.stages[1].graph):
        whole = (folder / file).read_bytes()
        (folder / file).write_bytes(whole[: len(whole) // 2])
    engine, route = way.split("/")
    opened = open_engine(engine, folder, case.spec, case.combiner, route=route)
    for rows, file in ((1, "graph_single.onnx"), (2, "graph.onnx")):
        message = file if route == "graph" else r"early.*backbones/1_1.onnx"
        with pytest.raises(EngineError, match=message):
            opened.run(case.rows(slice(0, rows)), np.array([2, 2, 2], np.float32))


@pytest.mark.parametrize("way", WAYS[1:])
def test_closing_gives_back_and_running_makes_it_anew(case: Case, way: str) -> None:
    opened, limits = case.open(way), np.array([0.6, 0.7, 0.65], np.float32)
    before = opened.run(case.inputs, limits)
    opened.close()
    assert opened.loaded() == frozenset()
    assert opened.graph is not None
    assert not opened.graph.ready(33)
    np.testing.assert_array_equal(before.logits, opened.run(case.inputs, limits).logits)
    opened.close()


def test_weights_are_stored_once(case: Case) -> None:
    own = {b: sum(p.numel() * 4 for p in n.parameters()) for b, n in enumerate(case.cascade.networks)}
    for backbone, size in own.items():
        file = case.folder / "backbones" / f"{backbone}.weights"
        parts = list((case.folder / "backbones").glob(f"{backbone}_*.onnx"))
        assert file.stat().st_size <= size + 4096 * 8, "each tensor starts on a page of its own"
        assert all(part.stat().st_size < 40_000 for part in parts)


def test_thresholds_of_another_shape_are_no_known_plan(case: Case, way: str) -> None:
    opened = case.shared(way)
    for rows in (1, 5):
        opened.run(case.rows(slice(0, rows)), np.array([0.1, 0.2, 0.3], np.float32))
        for shape in ((1, 3), (3, 1)):
            with pytest.raises(SettingError, match=r"thresholds have shape \(\d, \d\), 4 stages need \(3,\)"):
                opened.run(case.rows(slice(0, rows)), np.array([0.1, 0.2, 0.3], np.float32).reshape(shape))


class Wide(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 1024), nn.ReLU(), nn.Linear(1024, CLASSES))


def test_weights_are_stored_once_with_the_single_graphs_too(tmp_path: Path) -> None:
    made = Case.of(Cascade([Wide(), Wide()]), tmp_path, torch.randn(2, 1, 8, 8))
    weights = sum(p.numel() * 4 for p in made.cascade.parameters())
    sizes = {p.name: p.stat().st_size for p in tmp_path.rglob("*") if p.is_file()}
    assert {"graph.onnx", "graph_single.onnx", "0.weights", "1.weights"} <= sizes.keys()
    assert all(size < 40_000 for name, size in sizes.items() if name.endswith(".onnx")), sizes
    assert sum(sizes.values()) < 1.4 * weights


class Tied(nn.Module):
    """Body of a stage; its head multiplies by the same matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 64, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (torch.relu(self.layer(x.flatten(1))),)


class TiedHead(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, feature: Tensor) -> Tensor:
        return self.layer(feature)[:, :CLASSES]


class Sharing(StagedNetwork):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.rest = Tied(), nn.Linear(64, CLASSES)
        self.head = TiedHead(self.body.layer)

    @property
    def exit_stages(self) -> tuple[Stage, ...]:
        return (Stage("early", self.body, self.head), Stage("last", Only(self.rest), nn.Identity()))

    def forward(self, x: Tensor) -> list[Tensor]:
        (feature,) = self.body(x)
        return [self.head(feature), self.rest(feature)]


class Only(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.layer(x),)


@pytest.fixture(scope="module")
def sharing(tmp_path_factory: pytest.TempPathFactory) -> Case:
    torch.manual_seed(0)
    return Case.of(Cascade([Sharing(), Plain()]), tmp_path_factory.mktemp("sharing"), torch.randn(9, 1, 8, 8) * 3)


def test_a_head_that_shares_a_constant_with_its_body(sharing: Case, way: str) -> None:
    assert sharing.folder.joinpath("backbones", "0.weights").stat().st_size < 64 * 64 * 4 + 3 * 4096
    for limits in (sharing.quantiles(0.4), (INF, INF), (-INF, INF)):
        truth, opened = sharing.truth(limits), sharing.shared(way)
        check(opened.run(sharing.inputs, np.array(limits, np.float32)), truth)
        check(opened.run(sharing.rows(slice(0, 1)), np.array(limits, np.float32)), truth, slice(0, 1))


def test_a_drop_while_requests_are_looked_through_is_seen_next_time(tmp_path: Path) -> None:
    from dynamic.engines.openvino import Models

    models = Models(tmp_path, 1, "f32")

    class Dropping(dict[str, Any]):
        """Another thread drops the model right after it was looked up."""

        def get(self, file: str, default: Any = None) -> Any:
            found = super().get(file, default)
            models._compiled, models._drops = {}, models._drops + 1
            return found

    own = SimpleNamespace(model=object())
    models._compiled, models._local.requests = Dropping(a=own.model), {("a", 0): own}
    assert models._own_requests() == {("a", 0): own}
    assert models._local.drops != models._drops
    assert models._own_requests() == {}


def test_an_interrupt_while_an_input_is_set_leaves_no_old_answer() -> None:
    """Shapes change, and the tensor of the second is interrupted. The same input once more is read, not the first."""
    from dynamic.engines.openvino import InferenceRequest

    class Request:
        tensor: Any = None

        def set_input_tensor(self, i: int, tensor: Any) -> None:
            self.tensor = tensor

    broken = False

    def tensor(array: Any, shared_memory: bool) -> Any:
        if broken:
            raise KeyboardInterrupt
        return array

    request = Request()
    own = InferenceRequest(SimpleNamespace(create_infer_request=lambda: request), tensor)
    first, second = np.zeros((1, 4), np.float32), np.ones((2, 4), np.float32)
    own.set_input(0, first)
    broken = True
    with pytest.raises(KeyboardInterrupt):
        own.set_input(0, second)
    broken = False
    own.set_input(0, second)
    np.testing.assert_array_equal(request.tensor, second)
    own.set_input(0, 2 * second)
    np.testing.assert_array_equal(request.tensor, 2 * second)  # copied into the same buffer
