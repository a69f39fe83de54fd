"""Slim bundles: what remains answers bit by bit as before, what is left out is said, and a limit refuses by name."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

import dynamic
from dynamic.bundle.manifest import MANIFEST
from dynamic.engines.options import Route
from dynamic.errors import CalibrationError, InputError, SettingError
from dynamic.policies import FixedPolicy

WIDTHS = (2, 12, 400)
ROUTES: tuple[Route, ...] = ("graph", "stages")
MONITOR = dynamic.FixedMonitor(dynamic.Snapshot(0.0))


def network(width: int, x: torch.Tensor, y: torch.Tensor) -> nn.Module:
    torch.manual_seed(width)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
    optimizer = torch.optim.Adam(layers.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(layers(x), y).backward()
        optimizer.step()
    return layers.eval()


@pytest.fixture(scope="module")
def images() -> NDArray[np.float32]:
    from sklearn.datasets import load_digits

    return (load_digits().images[:, None] / 16).astype(np.float32)


@pytest.fixture(scope="module")
def whole(images: NDArray[np.float32], tmp_path_factory: pytest.TempPathFactory) -> dynamic.Bundle:
    """Three networks of digits: 0.6 kB, 4 kB and 120 kB of weights."""
    from sklearn.datasets import load_digits

    x, y = torch.from_numpy(images), torch.from_numpy(load_digits().target)
    networks = [network(width, x[:900], y[:900]) for width in WIDTHS]
    cascade = dynamic.Cascade(networks, names=("tiny", "middle", "large"))
    bundle = dynamic.build(cascade, [(x[900:], y[900:])], max_drops=(0.05, 0.3), progress=False)
    return bundle.save(tmp_path_factory.mktemp("shelves") / "whole")


@pytest.fixture(scope="module")
def limit_mb(whole: dynamic.Bundle, tmp_path_factory: pytest.TempPathFactory) -> float:
    """Too little for the large network, whose weights alone are 120 kB, and enough for the others."""
    return size_mb(dynamic.slim(whole, tmp_path_factory.mktemp("slim") / "all").folder) - 0.1


def size_mb(folder: Path) -> float:
    machines = ("checks", "costs", "choices")
    files = [path for path in folder.rglob("*") if path.is_file() and path.relative_to(folder).parts[0] not in machines]
    return sum(path.stat().st_size for path in files) / 1e6


def answers(
    bundle: dynamic.Bundle, thresholds: tuple[float, ...], inputs: NDArray[np.float32], route: Route
) -> list[NDArray[np.float32]]:
    """Logits and scores of a batch, and of one input alone, at a point."""
    engine = bundle.open(threads=1, route=route)
    limits = np.array(thresholds, np.float32)
    try:
        outputs = [engine.run({"input": rows}, limits) for rows in (inputs, inputs[:1])]
        return [value for output in outputs for value in (output.logits, output.score)]
    finally:
        engine.close()


def check_equal(small: dynamic.Bundle, whole: dynamic.Bundle, images: NDArray[np.float32]) -> None:
    for point in small.ladder.points:
        before = next(p for p in whole.ladder.points if p.name == point.name)
        for route in ROUTES:
            pairs = zip(
                answers(small, point.thresholds, images[:200], route),
                answers(whole, before.thresholds, images[:200], route),
                strict=True,
            )
            assert all(own.tobytes() == other.tobytes() for own, other in pairs), (point.name, route)


def test_without_limits_weights_and_golden_vectors_are_left_out(
    whole: dynamic.Bundle, images: NDArray[np.float32], tmp_path: Path
) -> None:
    small = dynamic.slim(whole, tmp_path / "slim")
    assert small.ladder == whole.ladder
    assert small.spec == whole.spec
    assert set(whole.hashes) - set(small.hashes) == {
        "golden.json",
        *(f"weights/{name}.safetensors" for name in ("tiny", "middle", "large")),
    }
    assert small.slim is not None
    assert small.slim.has_reference
    assert [line.split(" are")[0].split(" is")[0] for line in small.slim.left_out] == [
        "weights to train on",
        "golden.json",
    ]
    again = dynamic.load(tmp_path / "slim")  # every file of its manifest is there and whole
    assert again.slim == small.slim
    check_equal(again, whole, images)
    assert "slim: made for this engine" in str(again)
    assert "weights to train on are left out" in str(again)


def test_a_limit_on_disk_leaves_out_networks(
    whole: dynamic.Bundle, limit_mb: float, images: NDArray[np.float32], tmp_path: Path
) -> None:
    small = dynamic.slim(whole, tmp_path / "slim", disk_mb=limit_mb)
    assert size_mb(small.folder) <= limit_mb
    tight_mb = size_mb(small.folder) + 0.001  # the card names the limit, in more or fewer digits
    again = dynamic.slim(whole, tmp_path / "tight", disk_mb=tight_mb)
    assert [p.name for p in again.ladder.points] == [p.name for p in small.ladder.points]
    assert size_mb(again.folder) <= tight_mb
    assert [stage.name for stage in small.spec.stages] == ["tiny", "middle"]
    assert small.spec.backbone == (0, 1)
    expected = [p.name for p in whole.ladder.points if 2 not in p.backbones]
    assert [p.name for p in small.ladder.points] == expected
    assert expected
    assert small.slim is not None
    assert not small.slim.has_reference
    text = "\n".join(small.slim.left_out)
    assert "point 'reference' is left out: networks of" in text
    assert "network 'large' is left out: no point needs it" in text
    before = {p.name: (p.bound, p.accuracy, p.risk) for p in whole.ladder.points}
    assert all(before[p.name] == (p.bound, p.accuracy, p.risk) for p in small.ladder.points)
    again = dynamic.load(small.folder)
    check_equal(again, whole, images)
    report = again.check()
    assert report is not None
    assert report.agrees  # the canaries of the stages that remain
    assert again.records.logits.tobytes() == np.ascontiguousarray(whole.records.logits[:, :2]).tobytes()


def test_answers_are_certified_as_before(
    whole: dynamic.Bundle, limit_mb: float, images: NDArray[np.float32], tmp_path: Path
) -> None:
    small = dynamic.slim(whole, tmp_path / "slim", disk_mb=limit_mb)
    budget = dynamic.Budget(max_drop=0.3)
    point = small.ladder.points[0].name
    results = []
    for bundle in (small, whole):
        with bundle.runtime(budget, policy=FixedPolicy(point), monitor=MONITOR) as run:
            results.append(run(images[0]).certified)
    assert results == [True, True]


def test_a_limit_on_memory_leaves_out_points(
    whole: dynamic.Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dynamic.offline.slimming import slim_bundle
    from dynamic.profiling.resident_memory import BackboneMemory

    memory = BackboneMemory((1.0, 5.0, 50.0), (0.0, 0.0, 0.5), process_mb=80.0)
    monkeypatch.setattr(slim_bundle, "backbone_memory", lambda engine, folder: memory)
    small = dynamic.slim(whole, tmp_path / "slim", memory_mb=87)
    assert [p.name for p in small.ladder.points] == [p.name for p in whole.ladder.points if 2 not in p.backbones]
    assert small.slim is not None
    assert "point 'reference' is left out: it takes 130.5 MB of memory, memory_mb is 87" in small.slim.left_out
    assert len(dynamic.slim(whole, tmp_path / "slim", memory_mb=137).ladder.points) == len(whole.ladder.points)
    with pytest.raises(SettingError, match=r"memory_mb=80 is too little: .* Give memory_mb=8[16] or more"):
        dynamic.slim(whole, tmp_path / "none", memory_mb=80)
    assert not (tmp_path / "none").exists()


def test_measured_memory_is_that_of_a_process(whole: dynamic.Bundle, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"memory_mb=5 is too little: a process with the engine takes") as error:
        dynamic.slim(whole, tmp_path / "slim", memory_mb=5)
    least = int(str(error.value).split("memory_mb=")[2].split()[0])
    assert 20 < least < 1000  # Python, numpy and ONNX Runtime


def test_a_disk_that_is_too_small_is_named(whole: dynamic.Bundle, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"disk_mb=0.01 is too little: point .* needs least, takes") as error:
        dynamic.slim(whole, tmp_path / "slim", disk_mb=0.01)
    least = float(str(error.value).split("disk_mb=")[2].split()[0])
    assert size_mb(dynamic.slim(whole, tmp_path / "slim", disk_mb=least).folder) <= least


@pytest.mark.parametrize(("name", "value"), [("memory_mb", 0), ("disk_mb", -1.0), ("disk_mb", float("nan"))])
def test_a_limit_is_a_positive_number(whole: dynamic.Bundle, tmp_path: Path, name: str, value: float) -> None:
    with pytest.raises(SettingError, match=name):
        dynamic.slim(whole, tmp_path / "slim", **{name: value})


def test_a_device_brings_its_memory(whole: dynamic.Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dynamic.offline.slimming import slim_bundle
    from dynamic.profiling.resident_memory import BackboneMemory

    memory = BackboneMemory((1.0, 5.0, 50.0), process_mb=80.0)
    monkeypatch.setattr(slim_bundle, "backbone_memory", lambda engine, folder: memory)
    small = dynamic.slim(whole, tmp_path / "slim", device="laptop")
    assert small.slim is not None
    assert (small.slim.device, small.slim.memory_mb) == ("laptop", dynamic.simulate.device("laptop").memory_mb)
    with pytest.raises(SettingError, match="no device 'toaster'"):
        dynamic.slim(whole, tmp_path / "slim", device="toaster")
    with pytest.raises(InputError, match="It was given str"):
        dynamic.slim("shelf", tmp_path / "slim")  # type: ignore[arg-type]


def test_without_the_reference_nothing_is_measured_against_it(
    whole: dynamic.Bundle, limit_mb: float, tmp_path: Path
) -> None:
    small = dynamic.slim(whole, tmp_path / "slim", disk_mb=limit_mb)
    assert small.slim is not None
    assert not small.slim.has_reference
    with pytest.raises(CalibrationError, match="made by slim without the reference"):
        dynamic.recertify(small, (0.1,))
    with pytest.raises(dynamic.errors.BundleError, match="made by slim without the reference"):
        small.report()
    kept = dynamic.slim(whole, tmp_path / "whole")
    assert dynamic.recertify(kept, (0.1,)).save(tmp_path / "again").slim == kept.slim
    assert dynamic.load(tmp_path / "again").slim == kept.slim


def test_slim_again(whole: dynamic.Bundle, limit_mb: float, images: NDArray[np.float32], tmp_path: Path) -> None:
    once = dynamic.slim(whole, tmp_path / "once", disk_mb=limit_mb)
    twice = dynamic.slim(dynamic.load(tmp_path / "once"), tmp_path / "twice")
    assert twice.ladder == once.ladder
    check_equal(twice, whole, images)


def test_costs_remain_where_every_stage_does(whole: dynamic.Bundle, limit_mb: float, tmp_path: Path) -> None:
    from dynamic.policies import Costs

    tables = dict.fromkeys(("latency_ms", "latency_p95_ms", "head_ms", "cpu_ms"), ((1.0,),) * 3)
    costs = Costs(
        machine="this", engine="onnxruntime", precision="f32", threads=2, batch=(1,), call_ms=(0.1,), energy_mj=None,
        energy_source=None, memory_mb=(1.0, 1.0, 1.0), idle_mw=None, not_measured=(), **tables,
    )  # fmt: skip
    profiled = whole.with_costs(costs, None)
    assert dynamic.load(dynamic.slim(profiled, tmp_path / "all").folder).costs == profiled.costs
    small = dynamic.slim(profiled, tmp_path / "some", disk_mb=limit_mb)
    assert small.costs is None


def test_a_slim_manifest_is_checked(whole: dynamic.Bundle, tmp_path: Path) -> None:
    from dynamic.bundle.manifest import manifest_hash

    folder = dynamic.slim(whole, tmp_path / "slim").folder
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest["sha256"]
    manifest["slim"]["left_out"] = [3]
    (folder / MANIFEST).write_text(json.dumps(manifest | {"sha256": manifest_hash(manifest)}))
    with pytest.raises(dynamic.errors.CorruptError, match="left_out"):
        dynamic.load(folder)


def test_the_command(whole: dynamic.Bundle, limit_mb: float, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dynamic", "slim", str(whole.folder), str(tmp_path / "slim")]
    done = subprocess.run([*command, "--disk-mb", f"{limit_mb}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "network 'large' is left out" in done.stdout
    assert [stage.name for stage in dynamic.load(tmp_path / "slim").spec.stages] == ["tiny", "middle"]
    done = subprocess.run([*command, "--memory-mb", "1"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --memory-mb 1 is too little")
    assert done.stderr.count("\n") == 1
