"""Build, save, load, profile and run on real digits; and every way a bundle can be broken."""

import json
import shutil
import subprocess
import sys
import threading
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dynamic
from dynamic.bundle.manifest import MANIFEST, SCHEMA
from dynamic.engines.openvino import computes_bf16
from dynamic.errors import (
    BundleError,
    CalibrationError,
    CorruptError,
    EngineError,
    InputError,
    SchemaError,
    SettingError,
)
from dynamic.policies import Decision

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    data = load_digits()
    return torch.tensor(data.images[:, None] / 16, dtype=torch.float32), torch.tensor(data.target)


def trained(width: int, inputs: Tensor, labels: Tensor) -> nn.Module:
    torch.manual_seed(width)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(inputs), labels).backward()
        optimizer.step()
    return network


@pytest.fixture(scope="module")
def networks() -> list[nn.Module]:
    inputs, labels = digits()
    return [trained(width, inputs[:900], labels[:900]) for width in (6, 48)]


@pytest.fixture(scope="module")
def loader() -> list[tuple[Tensor, Tensor]]:
    inputs, labels = digits()
    return [(inputs[900:1400], labels[900:1400])]


@pytest.fixture(scope="module")
def bundle(networks: list[nn.Module], loader: Any) -> dynamic.Bundle:
    return dynamic.build(networks, loader, classes=CLASSES)


@pytest.fixture(scope="module")
def shelf(bundle: dynamic.Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shelf") / "digits"
    bundle.save(path).profile(batch=(1, 8), seconds=0.1)
    return path


@pytest.fixture
def copy(shelf: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shelf, tmp_path / "copy"))


def test_answers_are_torch_s_answers(networks: list[nn.Module], shelf: Path) -> None:
    inputs, _ = digits()
    bundle = dynamic.load(shelf)
    with bundle.runtime(monitor=still(), policy=Always(first)) as run:  # the reference
        result = run(inputs[1400:].numpy())
    with torch.no_grad():
        own = networks[-1](inputs[1400:])
    assert result.label.tolist() == own.argmax(1).tolist()
    assert result.name == tuple(CLASSES[i] for i in own.argmax(1))
    assert set(result.stage.tolist()) == {1}


def test_the_same_on_torch_and_onnxruntime(networks: list[nn.Module], shelf: Path) -> None:
    inputs, _ = digits()
    bundle = dynamic.load(shelf, modules=dynamic.Cascade(networks))
    middle = np.float32(np.median(bundle.open("torch").run({"input": inputs.numpy()}, np.array([-np.inf])).score))
    outputs = [bundle.open(e).run({"input": inputs.numpy()}, np.array([middle])) for e in ("torch", "onnxruntime")]
    # a row at the threshold may leave on one engine and not on the other
    near = np.min([np.abs(o.score - middle) for o in outputs], axis=0) < 1e-4
    assert near.sum() < 10
    assert 700 < (outputs[0].stage == 0).sum() < 1100
    assert (near | (outputs[0].stage == outputs[1].stage)).all()
    assert (near | (outputs[0].logits.argmax(1) == outputs[1].logits.argmax(1))).all()


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_a_bundle_calibrated_on_openvino(networks: list[nn.Module], loader: Any, precision: str) -> None:
    pytest.importorskip("openvino")
    if precision == "bf16" and not computes_bf16():
        pytest.skip("this processor does not compute in bf16")
    built = dynamic.build(networks, loader, engine="openvino", precision=precision).profile((1,), seconds=0.05)
    inputs, labels = loader[0]
    with torch.no_grad():
        own = torch.stack([n(inputs) for n in networks], 1).numpy()
    off = np.abs(built.records.logits - own).max() / np.abs(own).max()
    assert off < 1e-5 if precision == "f32" else 1e-5 < off < 0.05
    assert built.ladder.points[0].accuracy[1] > 0.9
    assert built.costs is not None
    assert (built.costs.engine, built.costs.precision) == ("openvino", precision)
    assert all(mb > 0 for mb in built.costs.memory_mb)
    with built.runtime(monitor=still(), policy=Always(first)) as run:
        assert run.engine.precision == precision
        assert (run(inputs.numpy()).label == labels.numpy()).mean() > 0.9
    assert built.fingerprint("openvino", "f32") != built.fingerprint("openvino", "bf16")


def test_a_bundle_prints_its_ladder(bundle: dynamic.Bundle) -> None:
    text, here = str(bundle).split("\n\n")
    assert all(p.name in text and f"{p.accuracy.mid:.4f}"[:5] in text for p in bundle.ladder.points)
    assert ("cheapest" in text.splitlines()[-1]) == (max(bundle.ladder.points[-1].shares) == 1)
    assert here == "no costs for this machine yet: bundle.profile() measures them"


def test_a_profiled_bundle_prints_what_its_points_cost_here(shelf: Path) -> None:
    bundle = dynamic.load(shelf)
    assert bundle.costs is not None
    here = str(bundle).split("\n\n")[1]
    lines, count = here.splitlines(), len(bundle.frontier.points)
    words, (head, *rows) = " ".join(" ".join(lines[: -count - 1]).split()), lines[-count - 1 :]
    assert max(map(len, lines)) <= 80
    assert words.startswith(f"{bundle.costs.machine}, engine {bundle.costs.engine}")
    assert all(f"DOUBTFUL: {doubt}" in words for doubt in bundle.costs.doubts)
    assert head.split() == ["point", "drop", "<=", "accuracy", "mean", "ms", "p95", "ms", "CPU-ms", "MB"]
    for row, point in zip(rows, bundle.frontier.points, strict=True):
        assert row.startswith(point.name)
        assert row.split()[-4] == f"{point.mean_ms[0]:.3f}"


def test_accuracy_on_the_ladder_is_accuracy_measured(bundle: dynamic.Bundle) -> None:
    records = bundle.records
    held_out = records.part == 1
    assert records.label is not None
    own = (records.logits[held_out, -1].argmax(1) == records.label[held_out]).mean()
    reference = bundle.ladder.points[0]
    assert reference.name == "reference"
    assert reference.accuracy[1] == pytest.approx(own)
    assert reference.risk == 0
    assert bundle.ladder.certificate is not None
    assert bundle.ladder.certificate.images == held_out.sum() == 375, "three quarters of 500 certify"


def test_an_altered_network_changes_the_fingerprint(networks: list[nn.Module], loader: Any) -> None:
    one = dynamic.calibrate(networks, loader, engine="torch")
    again = dynamic.calibrate(networks, loader, engine="torch")
    other = dynamic.calibrate(networks, loader, engine="onnxruntime")
    with torch.no_grad():
        networks[0][1].weight[0, 0] += 1e-3  # type: ignore[index]
        moved = dynamic.calibrate(networks, loader, engine="torch")
        networks[0][1].weight[0, 0] -= 1e-3  # type: ignore[index]
    assert one.fingerprint == again.fingerprint
    assert len({one.fingerprint, other.fingerprint, moved.fingerprint}) == 3
    np.testing.assert_allclose(one.logits, other.logits, rtol=1e-4, atol=1e-4)


def test_modes_and_weights_of_the_user_s_networks_stay(networks: list[nn.Module], loader: Any) -> None:
    networks[0].train()
    networks[1].eval()
    before = {k: v.clone() for n in networks for k, v in n.state_dict().items()}
    dynamic.build(networks, loader)
    assert networks[0].training
    assert not networks[1].training
    after = {k: v for n in networks for k, v in n.state_dict().items()}
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_costs_are_kept_for_this_machine(shelf: Path) -> None:
    costs = dynamic.load(shelf).costs
    assert costs is not None
    assert costs.batch == (1, 8)
    assert all(value > 0 for row in costs.latency_ms for value in row)
    assert "energy" in costs.not_measured
    assert dynamic.load(shelf).frontier.points[0].name == "reference"


@pytest.mark.parametrize(
    ("powers", "message"),
    [
        ({"idle_mw": 900.0}, r"idle_mw=900\.0 says nothing of an inference without active_mw: give both"),
        ({"active_mw": -1.0}, r"active_mw=-1\.0 must be a positive number of milliwatts"),
        ({"active_mw": 900.0, "idle_mw": float("nan")}, "idle_mw=nan must be"),
    ],
)
def test_powers_are_checked_before_anything_is_measured(
    bundle: dynamic.Bundle, monkeypatch: pytest.MonkeyPatch, powers: dict[str, float], message: str
) -> None:
    monkeypatch.setattr("dynamic.bundle.measurements.cost_profile.profile", lambda *_, **__: pytest.fail("measured"))
    with pytest.raises(SettingError, match=message):
        bundle.profile(**powers)  # type: ignore[arg-type]


def test_costs_of_another_engine_are_found_again(
    bundle: dynamic.Bundle, networks: list[nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = bundle.save(tmp_path / "shelf").folder
    cascade = dynamic.Cascade(networks)
    dynamic.load(path, modules=cascade).profile(batch=(1,), seconds=0.05, engine="torch")
    monkeypatch.setattr("dynamic.bundle.measurements.cost_profile.profile", None)  # measuring again would call it
    with dynamic.load(path, modules=cascade).runtime(engine="torch", monitor=dynamic.FixedMonitor()) as run:
        assert run.frontier.costs.engine == "torch"


def test_a_bundle_lives_as_long_as_a_block_that_uses_its_files(bundle: dynamic.Bundle) -> None:
    other = replace(bundle)
    reference = weakref.ref(other)
    with other.files("ladder.json"):
        del other
        assert reference() is not None, "a temporary folder would be removed with it"
    assert reference() is None


def test_saving_replaces_a_bundle_but_nothing_else(bundle: dynamic.Bundle, tmp_path: Path) -> None:
    bundle.save(tmp_path / "shelf")
    bundle.save(tmp_path / "shelf")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["shelf"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo").write_text("keep")
    with pytest.raises(BundleError, match="not a bundle"):
        bundle.save(tmp_path / "mine")
    assert (tmp_path / "mine" / "photo").read_text() == "keep"


def test_loading_and_answering_imports_no_torch(shelf: Path) -> None:
    code = (
        "import sys, numpy, dynamic\n"
        f"bundle = dynamic.load({str(shelf)!r})\n"
        "with bundle.runtime(dynamic.Budget(max_drop=0.01)) as run:\n"
        "    result = run(numpy.zeros((1, 8, 8), numpy.float32))\n"
        "print(type(result).__name__, sorted(m for m in sys.modules if m.split('.')[0] in ('torch', 'onnx', 'PIL')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "Prediction []"


def test_nothing_in_a_bundle_is_pickle(shelf: Path) -> None:
    kinds = {p.suffix for p in shelf.rglob("*") if p.is_file()}
    assert kinds <= {".json", ".npz", ".onnx", ".weights", ".safetensors", ".md"}
    with np.load(shelf / "records.npz", allow_pickle=False) as file:
        assert all(file[name].dtype != object for name in file)


@pytest.mark.parametrize("name", ["ladder.json", "records.npz", "backbones/1_1.onnx", "backbones/0.weights", MANIFEST])
@pytest.mark.parametrize("damage", ["missing", "short", "altered"])
def test_a_damaged_bundle_is_refused(copy: Path, name: str, damage: str) -> None:
    file = copy / name
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    elif damage == "short":
        file.write_bytes(content[: len(content) // 2])
    else:
        middle = len(content) // 2
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    with pytest.raises(BundleError) as raised:
        dynamic.load(copy)
    assert Path(name).name in str(raised.value)


def test_a_manifest_edited_by_hand_is_refused(copy: Path) -> None:
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["classes"] = list(reversed(manifest["classes"]))
    (copy / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CorruptError, match="altered"):
        dynamic.load(copy)


def test_a_newer_schema_is_refused(copy: Path) -> None:
    manifest = json.loads((copy / MANIFEST).read_text()) | {"schema": SCHEMA + 1}
    (copy / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(SchemaError, match="update"):
        dynamic.load(copy)


def test_no_bundle_at_all(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle"):
        dynamic.load(tmp_path)


def test_damaged_costs_are_measured_again(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    for file in (copy / "costs").iterdir():
        file.write_text("{")
    assert dynamic.load(copy).costs is None
    assert "profile() again" in caplog.text


def test_costs_of_an_earlier_version_are_told(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    (file,) = (copy / "costs").iterdir()
    data = json.loads(file.read_text())
    del data["route"]
    file.write_text(json.dumps(data))
    assert dynamic.load(copy).costs is None
    assert caplog.messages == [f"the costs in {file} were measured by an earlier version: call profile() again"]


@pytest.mark.parametrize("route", ["graph", "stages"])
def test_costs_of_a_route_that_was_given_are_for_that_route(copy: Path, tmp_path: Path, route: str) -> None:
    (file,) = (copy / "costs").iterdir()
    data = json.loads(file.read_text()) | {"route": ["stages", "graph"]}  # as if measured so
    del data["sha256"]  # as earlier versions wrote it
    file.write_text(json.dumps(data))
    before, free = file.read_text(), dynamic.load(copy).costs
    assert free is not None
    forced = dynamic.load(copy).profile(batch=(1, 8), seconds=0.02, route=route)
    assert forced.costs is not None
    assert set(forced.costs.route) == {route}
    assert [p.read_text() for p in (copy / "costs").iterdir()] == [before]
    how = (free.engine, free.precision, free.threads)
    assert forced.costs_on(*how, route) is forced.costs
    assert forced.costs_on(*how) == free
    other = {"graph": "stages", "stages": "graph"}[route]
    assert forced.costs_on(*how, other) is None
    saved = forced.save(tmp_path / "again")
    assert dynamic.load(saved.folder).costs == free
    shutil.rmtree(copy / "costs")
    assert forced.costs_on(*how) is None
    forced.save(tmp_path / "again")
    assert dynamic.load(tmp_path / "again").costs is None


def test_a_runtime_of_a_route_has_the_costs_of_that_route(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (file,) = (copy / "costs").iterdir()
    data = json.loads(file.read_text())
    del data["sha256"]  # as earlier versions wrote it
    file.write_text(json.dumps(data | {"route": ["graph", "graph"]}))
    with dynamic.load(copy).runtime(monitor=still(), route="stages") as run:  # measures
        assert set(run.frontier.costs.route) == {"stages"}
    assert json.loads(file.read_text())["route"] == ["graph", "graph"]
    monkeypatch.setattr("dynamic.bundle.measurements.cost_profile.profile", None)  # measuring again would call it
    with dynamic.load(copy).runtime(monitor=still(), route="graph") as run:
        assert run.frontier.costs.route == ("graph", "graph")


def test_torch_engine_needs_the_modules(shelf: Path) -> None:
    before = threading.active_count()
    with pytest.raises(EngineError, match="modules"):
        dynamic.load(shelf).runtime(engine="torch")
    assert threading.active_count() == before, "the monitor must not go on without a runtime"


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        ([], CalibrationError, "empty"),
        ([(torch.zeros(5, 1, 8, 8), torch.zeros(5, dtype=torch.long))], CalibrationError, "class 0"),
        ([(torch.zeros(5, 1, 8, 8), torch.full((5,), 10))], InputError, "0 to 9"),
        ([(torch.zeros(5, 1, 8, 8), torch.zeros(5))], InputError, "integers"),
        ([(torch.zeros(5, 1, 8, 8), torch.zeros(4, dtype=torch.long))], InputError, "4 labels"),
        ([torch.zeros(5, 1, 8, 8)], CalibrationError, "labels"),
        (torch.zeros(5, 1, 8, 8), InputError, "no loader"),
        ([("image", torch.zeros(5, dtype=torch.long))], InputError, "str"),
    ],
)
def test_bad_calibration_data(networks: list[nn.Module], batches: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        dynamic.build(networks, batches, engine="torch")


def test_inputs_that_a_network_does_not_take_are_named() -> None:
    first = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU())
    network = nn.Sequential(first, nn.Flatten(), nn.Linear(4 * 64, 10))
    # it fails in the last stage, behind the exit
    for given in (network, dynamic.wrap(network, torch.zeros(2, 1, 8, 8), exits=["0"])):
        with pytest.raises(InputError, match=r"Sequential does not run on .* float32 \[\d, 1, 6, 6\]: .* Give batches"):
            dynamic.build(given, [(torch.zeros(4, 1, 6, 6), torch.arange(4))], progress=False)


def test_class_counts_must_agree(networks: list[nn.Module], loader: Any) -> None:
    with pytest.raises(InputError, match="11 classes"):
        dynamic.build([networks[0], nn.Sequential(nn.Flatten(), nn.Linear(64, 11))], loader)
    with pytest.raises(InputError, match="2 class names"):
        dynamic.build(networks, loader, classes=("a", "b"))


def still() -> dynamic.FixedMonitor:
    return dynamic.FixedMonitor(dynamic.Snapshot(time_s=0.0))


def first(points: Any) -> Any:
    return points[0]


class Always:
    """A policy of the user's own: always the same point of the frontier."""

    def __init__(self, choose: Any) -> None:
        self.choose = choose

    def initial(self) -> None:
        return None

    def decide(self, frontier: Any, budget: Any, snapshot: Any, state: Any) -> Any:
        return Decision(self.choose(frontier.points), True, (), "always"), state

    def observe(self, state: Any, feedback: Any) -> Any:
        return state
