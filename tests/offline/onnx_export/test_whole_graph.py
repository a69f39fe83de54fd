"""`dynamic.export`: one file that any ONNX engine runs without this library, and that says what its numbers mean."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from support.engine_cases import CLASSES, INF, Case, Plain, TwoExits, check, four_stages
from torch import Tensor, nn

import dynamic
from dynamic.data import CenterCrop, Normalize, Preprocess, Scale
from dynamic.engines.contract import CascadeSpec, Output
from dynamic.errors import EngineError, InputError
from dynamic.offline.cascade import Cascade
from dynamic.offline.onnx_export import whole_graph
from dynamic.offline.onnx_export.nested_graph import Nest
from dynamic.offline.onnx_export.stage_graphs import export_stages

NAMES = ("cat", "dog", "ship", "frog")
PREPROCESS = Preprocess.of(mean=(0.4,), std=(0.3,))
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (9, 8, 8, 1), np.uint8)


def cascade() -> Cascade:
    torch.manual_seed(0)
    made = Cascade([Plain(), TwoExits()], names=("small", "large")).eval()
    for parameter in made.parameters():
        parameter.data.mul_(3)
    return made


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return four_stages(tmp_path_factory)


@pytest.fixture(scope="module")
def bundle() -> dynamic.Bundle:
    inputs = torch.from_numpy(PREPROCESS(RNG.integers(0, 256, (200, 8, 8, 1), np.uint8)))
    labels = torch.arange(200) % CLASSES
    return dynamic.build(cascade(), [(inputs, labels)], classes=NAMES, preprocess=PREPROCESS)


def session(path: Path) -> Any:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def metadata(path: Path) -> dict[str, Any]:
    """As an app reads it, with ONNX Runtime alone."""
    found = session(path).get_modelmeta().custom_metadata_map
    return {key.removeprefix("dynamic."): json.loads(value) for key, value in found.items()}


@pytest.mark.parametrize("batch", ["single", "dynamic"])
def test_a_bundle_as_one_file(bundle: dynamic.Bundle, tmp_path: Path, batch: str) -> None:
    path = dynamic.export(bundle, tmp_path / "new" / "folder" / "cascade.onnx", batch=batch)
    assert path == tmp_path / "new" / "folder" / "cascade.onnx"
    assert [p.name for p in path.parent.iterdir()] == ["cascade.onnx"], "weights and all, and nothing half written"
    model = onnx.load(path, load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert not any(t.external_data for t in model.graph.initializer)
    assert (model.ir_version, model.producer_name) == (10, "dynamic-inference")
    assert [(o.domain, o.version >= 18) for o in model.opset_import] == [("", True)]
    opened = session(path)
    rows = 1 if batch == "single" else "batch"
    assert [(i.name, i.type, i.shape) for i in opened.get_inputs()] == [
        ("input", "tensor(uint8)", [rows, 8, 8, 1]),
        ("thresholds", "tensor(float)", [2]),
    ]
    assert [(o.name, o.type, o.shape) for o in opened.get_outputs()] == [
        ("logits", "tensor(float)", [rows, CLASSES]),
        ("stage", "tensor(int64)", [rows]),
        ("score", "tensor(float)", [rows]),
    ]
    engine = bundle.open(route="stages")
    for limits in ([0.5, 0.6], [INF, INF], [-INF, INF], [0.6, INF]):
        thresholds = np.array(limits, np.float32)
        wanted = engine.run({"input": PREPROCESS(IMAGES)}, thresholds)
        parts = [IMAGES] if batch == "dynamic" else [IMAGES[i : i + 1] for i in range(len(IMAGES))]
        found = [opened.run(None, {"input": part, "thresholds": thresholds}) for part in parts]
        logits, stage, score = (np.concatenate(column) for column in zip(*found, strict=True))
        np.testing.assert_array_equal(stage, wanted.stage)
        np.testing.assert_allclose(np.exp(logits), np.exp(wanted.logits), atol=2e-6)
        np.testing.assert_allclose(score, wanted.score, atol=2e-6)
    engine.close()


def test_the_file_says_what_its_numbers_mean(bundle: dynamic.Bundle, tmp_path: Path) -> None:
    said = metadata(dynamic.export(bundle, tmp_path / "cascade.onnx"))
    assert said["schema"] == 1
    assert said["classes"] == list(NAMES)
    assert said["stages"] == ["small", "large@early", "large"]
    assert said["backbones"] == [0, 1, 1]
    assert said["temperature"] == pytest.approx(bundle.ladder.temperature)
    assert (said["score"], said["combine"]) == (bundle.ladder.score, bundle.ladder.combine)
    assert Preprocess.from_json(said["preprocess"]) == PREPROCESS
    assert said["fingerprint"] == bundle.ladder.fingerprint
    assert said["certified"] is bundle.ladder.certified
    assert bundle.ladder.certificate is not None
    assert said["certificate"]["images"] == bundle.ladder.certificate.images
    points = {p.name: p.thresholds for p in bundle.ladder.points}
    assert {name: tuple(map(float, limits)) for name, limits in said["points"].items()} == points
    assert INF in points["reference"], "infinite thresholds must survive JSON"


@pytest.mark.parametrize(("batch", "rule"), [("single", ("margin", "last")), ("dynamic", ("negative_entropy", "mean"))])
def test_a_cascade_with_a_ladder_as_one_file(case: Case, tmp_path: Path, batch: str, rule: tuple[str, str]) -> None:
    wanted = replace(case, score=rule[0], combine=rule[1])
    limits = wanted.quantiles(0.4)
    truth = wanted.truth(limits)
    example = torch.from_numpy(case.inputs["input"][:1])
    path = dynamic.export(case.cascade, tmp_path / "c.onnx", batch=batch, example_inputs=example, ladder=wanted.ladder)
    opened, thresholds = session(path), np.array(limits, np.float32)
    for at in [slice(0, 33)] if batch == "dynamic" else [slice(i, i + 1) for i in range(12)]:
        found = opened.run(None, {"input": case.inputs["input"][at], "thresholds": thresholds})
        check(Output(*found), truth, at)
    said = metadata(path)
    assert (said["score"], said["combine"], said["classes"], said["preprocess"]) == (*rule, None, None)
    assert said["temperature"] == list(case.temperature)


@pytest.mark.parametrize("rule", [("margin", "last"), ("negative_entropy", "mean"), ("patience", "mean")])
@pytest.mark.parametrize(
    ("on", "kept", "runs"),
    [
        ("t t t", {0, 1, 2, 3}, {0, 1, 2, 3}),
        ("t + t", {0, 2, 3}, {0, 1, 2, 3}),  # an exit is off: its stage runs, without head
        ("+ t +", {1, 3}, {1, 3}),  # the first network is off, and the second ends at its exit
        ("t + +", {0, 3}, {0, 3}),
        ("t t -", {0, 1, 2}, {0, 1, 2}),  # everybody leaves before the last network
        ("+ - t", {1}, {1}),
        ("+ + +", {3}, {3}),
    ],
)
def test_the_graph_of_one_point(
    case: Case, tmp_path: Path, rule: tuple[str, str], on: str, kept: set[int], runs: set[int]
) -> None:
    """The answers are the whole cascade's, and what the point does not use is not in the graph."""
    wanted = replace(case, score=rule[0], combine=rule[1])
    signs = zip(on.split(), wanted.quantiles(0.4), strict=True)
    limits = tuple({"t": t, "+": INF, "-": -INF}[sign] for sign, t in signs)
    folder = tmp_path / "point"
    shutil.copytree(case.folder, folder)
    thresholds, truth = np.array(limits, np.float32), wanted.truth(limits)
    assert set(truth.stage) <= kept
    for batch, parts in (("dynamic", [slice(0, 33)]), ("single", [slice(i, i + 1) for i in range(12)])):
        file = f"{batch}.onnx"
        onnx.save(Nest(folder, case.spec, case.temperature, *rule, batch, only=limits).model(), folder / file)
        onnx.checker.check_model(str(folder / file), full_check=True)
        opened = session(folder / file)
        for at in parts:
            found = opened.run(None, {"input": case.inputs["input"][at], "thresholds": thresholds})
            check(Output(*found), truth, at)
        graph = onnx.load(folder / file, load_external_data=False).graph
        assert stages_of(graph) == runs
        pools = any(node.op_type in ("ReduceMean", "GlobalAveragePool") for node in everything(graph))
        assert pools == (1 in kept), "only the head of stage 1 pools"


def everything(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Its nodes, those of branches too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from everything(attribute.g)


def stages_of(graph: onnx.GraphProto) -> set[int]:
    """The stages whose operators are anywhere in the graph."""
    return {int(m[1]) for node in everything(graph) if (m := re.search(r"(?:^|/)s(\d+)/", node.name))}


def test_a_file_of_one_point_is_smaller_and_says_so(bundle: dynamic.Bundle, tmp_path: Path) -> None:
    whole = dynamic.export(bundle, tmp_path / "whole.onnx", batch="single")
    alone = dynamic.export(bundle, tmp_path / "alone.onnx", batch="single", point="reference")
    assert alone.stat().st_size < whole.stat().st_size
    limits = np.array(bundle.ladder.points[0].thresholds, np.float32)
    one, other = (session(p).run(None, {"input": IMAGES[:1], "thresholds": limits}) for p in (whole, alone))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert list(metadata(alone)["points"]) == ["reference"]
    with pytest.raises(InputError, match=r"point='mine' is not on this ladder. It has \['reference'"):
        dynamic.export(bundle, tmp_path / "none.onnx", point="mine")
    assert not (tmp_path / "none.onnx").exists()


@pytest.mark.parametrize("batch", ["single", "dynamic"])
def test_one_network_alone(tmp_path: Path, batch: str) -> None:
    network, x = Plain().eval(), torch.randn(1, 1, 8, 8)
    path = dynamic.export(network, tmp_path / "one.onnx", batch=batch, example_inputs=x)
    onnx.checker.check_model(str(path), full_check=True)
    opened = session(path)
    assert [i.name for i in opened.get_inputs()] == ["input"], "no thresholds where nobody can leave"
    logits, stage, score = opened.run(None, {"input": x.numpy()})
    wanted = torch.softmax(network(x), 1).detach().numpy()
    np.testing.assert_allclose(np.exp(logits), wanted, rtol=1e-5)
    np.testing.assert_allclose(score, wanted.max(1), rtol=1e-5)
    assert stage.tolist() == [0]
    assert metadata(path)["points"] == {}


class Flat(nn.Module):
    """Gives as logits a sum over all numbers, three times."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).sum(1, keepdim=True).expand(-1, 3) * torch.ones(3)


STEPS = [
    (Scale(), Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))),
    (Scale(255.0, reciprocal=True), Normalize((0.5,), (0.25,))),
    (CenterCrop((6, 5)), Scale(127.5), Normalize((1.0,), (1.0,))),
    (Scale(1.0),),
    (Normalize((120.0, 110.0, 100.0), (60.0,)),),
    (),
]


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CascadeSpec]:
    folder = tmp_path_factory.mktemp("flat")
    return folder, export_stages(Cascade(Flat()), folder, torch.zeros(1, 3, 6, 5))


@pytest.mark.parametrize("steps", STEPS)
def test_numbers_inside_are_those_of_the_preprocessing_bit_for_bit(flat: tuple[Path, CascadeSpec], steps: Any) -> None:
    preprocess = Preprocess(steps)
    model = Nest(*flat, (1.0,), "max_probability", "mean", "dynamic", preprocess).model()
    arithmetic = [n for n in model.graph.node if n.op_type in ("Transpose", "Cast", "Mul", "Div", "Sub")]
    last = next(
        a.output[0] for a in arithmetic if not any(a.output[0] in b.input for b in arithmetic) and "s0/" not in a.name
    )
    model.graph.output.append(onnx.helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    images = RNG.integers(0, 256, (2, 6, 5, 3), np.uint8)
    opened = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(opened.run([last], {"input": images})[0], preprocess(images))


ALONE = """
import json, sys
import numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
meta = session.get_modelmeta().custom_metadata_map
thresholds = [float(t) for t in json.loads(meta["dynamic.points"])[sys.argv[2]]]
images = numpy.load(sys.argv[3])
logits, stage, _ = session.run(None, {"input": images, "thresholds": numpy.array(thresholds, numpy.float32)})
names = [json.loads(meta["dynamic.classes"])[i] for i in logits.argmax(1)]
strangers = sorted({name.split(".")[0] for name in sys.modules} & {"dynamic", "torch", "onnx", "openvino"})
print(json.dumps([names, stage.tolist(), strangers]))
"""


def test_the_file_needs_neither_this_library_nor_torch(bundle: dynamic.Bundle, tmp_path: Path) -> None:
    path, images = dynamic.export(bundle, tmp_path / "cascade.onnx"), tmp_path / "images.npy"
    np.save(images, IMAGES)
    point = bundle.ladder.points[-1]
    command = [sys.executable, "-I", "-c", ALONE, str(path), point.name, str(images)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    names, stage, strangers = json.loads(done.stdout)
    wanted = bundle.open().run({"input": PREPROCESS(IMAGES)}, np.array(point.thresholds, np.float32))
    assert strangers == []
    assert names == [NAMES[i] for i in wanted.logits.argmax(1)]
    assert stage == wanted.stage.tolist()


X = torch.zeros(1, 1, 8, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": "triple", "example_inputs": X}, r"batch='triple' is not known. Use one of dynamic, single"),
        ({}, "example_inputs=..., a batch as its networks take it"),
        ({"example_inputs": X, "classes": ("a", "b")}, "2 class names for 4 classes: give one for each"),
        ({"example_inputs": "x"}, "inputs are a str. Give a tensor"),
        ({"example_inputs": X, "preprocess": "resize"}, "resize"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        dynamic.export(Plain(), tmp_path / "c.onnx", **options)
    assert list(tmp_path.iterdir()) == []


class Bessel(nn.Linear):
    """ONNX has no such function."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.special.bessel_j0(x))


class FixedBatch(nn.Linear):
    """`len` of a tensor is a number: torch.export takes it for a constant and the batch for one of two rows."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).view(len(x), CLASSES)


def test_a_stage_that_cannot_be_exported_is_named(tmp_path: Path) -> None:
    networks = [nn.Linear(4, CLASSES), Bessel(4, CLASSES)]
    with pytest.raises(EngineError, match=r"export stage 'Bessel' to ONNX.*engine='torch'.*or replace the operator"):
        dynamic.export(networks, tmp_path / "c.onnx", example_inputs=torch.zeros(1, 4))
    assert list(tmp_path.iterdir()) == []


def test_the_operator_is_named_too(tmp_path: Path) -> None:
    with pytest.raises(EngineError) as raised:
        dynamic.export(Bessel(4, CLASSES), tmp_path / "c.onnx", example_inputs=torch.zeros(1, 4))
    assert "bessel_j0" in str(raised.value)


def test_a_stage_that_fixes_its_batch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="FixedBatch"):
        dynamic.export(FixedBatch(4, CLASSES), tmp_path / "c.onnx", example_inputs=torch.zeros(1, 4))


def test_a_ladder_of_another_cascade_and_preprocessing_of_no_image(case: Case, tmp_path: Path) -> None:
    x = torch.zeros(1, 64)
    network = nn.Linear(64, CLASSES)
    with pytest.raises(InputError, match="ladder is of 4 stages, the cascade has 1"):
        dynamic.export(network, tmp_path / "c.onnx", example_inputs=x, ladder=case.ladder)
    with pytest.raises(InputError, match=r"one image \[C, H, W\]\. Export with preprocess=None"):
        dynamic.export(network, tmp_path / "c.onnx", example_inputs=x, preprocess=PREPROCESS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["example_inputs", "ladder", "preprocess", "classes"])
def test_a_bundle_has_its_own(bundle: dynamic.Bundle, tmp_path: Path, what: str) -> None:
    given = {"example_inputs": X, "ladder": bundle.ladder, "preprocess": PREPROCESS, "classes": NAMES}[what]
    with pytest.raises(InputError, match="a bundle has its own"):
        dynamic.export(bundle, tmp_path / "c.onnx", **{what: given})


def test_a_path_that_cannot_be_written_is_named(bundle: dynamic.Bundle, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "c.onnx", tmp_path / "file" / "deeper" / "c.onnx", tmp_path / "folder"):
        with pytest.raises(EngineError, match=f"could not be written to {path}"):
            dynamic.export(bundle, path)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_leaves_the_file_that_was_there(
    bundle: dynamic.Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = dynamic.export(bundle, tmp_path / "c.onnx")
    before = path.read_bytes()

    def full(model: Any, file: Any, *_: Any, **__: Any) -> None:
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(onnx, "save", full)
    with pytest.raises(EngineError, match="No space left"):
        dynamic.export(bundle, path)
    assert [p.name for p in tmp_path.iterdir()] == ["c.onnx"]
    assert path.read_bytes() == before


def test_weights_too_large_for_one_file_lie_beside_it(
    bundle: dynamic.Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = session(dynamic.export(bundle, tmp_path / "one.onnx"))
    monkeypatch.setattr(whole_graph, "_MOST_BYTES", 1000)
    sizes = []
    for _ in range(2):
        two = dynamic.export(bundle, tmp_path / "two" / "c.onnx")
        sizes.append({p.name: p.stat().st_size for p in two.parent.iterdir()})
    assert set(sizes[0]) == {"c.onnx", "c.onnx.data"}
    assert sizes[0] == sizes[1], "written again, not appended"
    feed = {"input": IMAGES, "thresholds": np.array([0.5, 0.6], np.float32)}
    for a, b in zip(one.run(None, feed), session(two).run(None, feed), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_file_says_what_it_was_calibrated_on(bundle: dynamic.Bundle, tmp_path: Path) -> None:
    for path in (dynamic.export(bundle, tmp_path / "c.onnx"), bundle.folder / "graph.onnx"):
        said = metadata(path)
        assert (said["engine"], said["precision"]) == ("onnxruntime", "f32")
    said = metadata(dynamic.export(Plain(), tmp_path / "plain.onnx", example_inputs=X))
    assert (said["engine"], said["precision"]) == (None, None)


class Named(nn.Module):
    """Its argument has a name of the exported graphs."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = Plain()


class Stages(Named):
    def forward(self, stage: Tensor) -> Tensor:
        return self.plain(stage)  # type: ignore[no-any-return]


class Scores(Named):
    def forward(self, score: Tensor) -> Tensor:
        return self.plain(score)  # type: ignore[no-any-return]


class Logits(Named):
    def forward(self, logits: Tensor) -> Tensor:
        return self.plain(logits)  # type: ignore[no-any-return]


class Thresholds(Named):
    def forward(self, thresholds: Tensor) -> Tensor:
        return self.plain(thresholds)  # type: ignore[no-any-return]


class Nexts(Named):
    def forward(self, next_0: Tensor) -> Tensor:
        return self.plain(next_0)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("kind", "name"),
    [(Stages, "stage"), (Scores, "score"), (Logits, "logits"), (Thresholds, "thresholds"), (Nexts, "next_0")],
)
def test_an_input_with_a_name_of_the_graphs_is_refused(
    bundle: dynamic.Bundle, tmp_path: Path, kind: type[nn.Module], name: str
) -> None:
    inputs = {name: torch.zeros(4, 1, 8, 8)}
    for write in (
        lambda: dynamic.export(kind(), tmp_path / "c.onnx", example_inputs=inputs),
        lambda: dynamic.build([kind(), kind()], [(inputs, torch.arange(4))]),
        lambda: whole_graph.write_graphs(
            tmp_path, replace(bundle.spec, inputs=(replace(bundle.spec.inputs[0], name=name),)), bundle.ladder
        ),
    ):
        with pytest.raises(InputError, match=f"input '{name}' has a name.*rename the argument of forward"):
            write()
    assert list(tmp_path.iterdir()) == []


def test_preprocessing_for_other_channels_is_refused(tmp_path: Path) -> None:
    three = Preprocess.of(mean=(0.4, 0.5, 0.6), std=(0.3,))
    with pytest.raises(InputError, match="the images have 1 channels, Normalize has 3 means"):
        dynamic.export(Plain(), tmp_path / "c.onnx", example_inputs=X, preprocess=three)
    assert list(tmp_path.iterdir()) == []
