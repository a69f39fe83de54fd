"""A wheel holds every room and every file that the code reads. An editable install hides what it lacks."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path
from zipfile import ZipFile

import pytest

import dynamic

ROOT = Path(__file__).resolve().parents[3]
ROOMS = {
    "dynamic": "dynamic",
    "policies": "dynamic/policies",
    "models": "dynamic/models",
}  # and where they are installed
EXTRA_FILES = ("README.md", "LICENSE", "NOTICE", "CITATION.cff", "CHANGELOG.md", "CONTRIBUTING.md")
USER = """
import numpy as np
import torch
from torch import nn

import dynamic
from dynamic.simulate import Poisson, device, simulate


def built(network: nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> dynamic.Bundle:
    net = dynamic.wrap(network, torch.zeros(1, 1, 8, 8), exits=2)
    print(net.exits, dynamic.fit(net, batches, mode="heads", callbacks=[dynamic.Callback()]))
    preprocess = dynamic.Preprocess.of(mean=(0.5,), std=(0.25,), resize=8, crop=8)
    return dynamic.build([net], batches, max_drops=(0.01,), preprocess=preprocess, classes=["a", "b"]).save("shelf")


bundle = dynamic.load("shelf")
profiled = bundle.profile(batch=(1, 8), seconds=0.5)
day = simulate(
    profiled.frontier,
    profiled.records,
    device=device("laptop"),
    workload=Poisson(rate_hz=5, duration_s=60),
    policy=dynamic.BudgetPolicy(),
    budget=dynamic.Budget(latency_ms=20),
)
print(day, profiled.frontier.points[0].mean_ms[0])
bundle.report("report.html")
axes = bundle.plot()
small = dynamic.slim(bundle, "slim", memory_mb=512)
if small.slim is not None:
    print(small.slim.left_out)
budget = dynamic.Budget(latency_ms=80, memory_mb=300, max_drop=0.01)
with bundle.runtime(budget) as run:
    answer = run(np.zeros((8, 8, 1), np.uint8))
    print(answer.label, answer.name, answer.latency_ms, answer.decision.reason)
    run.budget = dynamic.Budget(latency_ms=20)
    names: list[str] = run.predict(np.zeros((4, 8, 8, 1), np.uint8)).tolist()
    shares: dict[str, float] = run.stats().point_shares
for point in bundle.ladder.points:
    low, mid, high = point.accuracy
    print(point.name, point.bound, low + mid + high)
"""
IMPORTS = """
import importlib, pkgutil, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import dynamic, dynamic.models, dynamic.policies
for package in (dynamic, dynamic.policies, dynamic.models):
    assert Path(package.__file__).is_relative_to(sys.argv[1]), package.__file__
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
"""


def files() -> set[str]:
    """Every file of the rooms, by its name in the wheel."""
    names = set()
    for room, place in ROOMS.items():
        for file in (ROOT / room).rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                names.add(f"{place}/{file.relative_to(ROOT / room).as_posix()}")
    return names


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel."""
    source, place = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for room in ROOMS:
        shutil.copytree(ROOT / room, source / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source / name)
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(place)], cwd=source, check=True, capture_output=True)
    (archive,) = place.glob("*.whl")
    return archive


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The content of the wheel."""
    place = tmp_path_factory.mktemp("unpacked")
    with ZipFile(wheel) as content:
        content.extractall(place)
    return place


def tool(*command: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """What a program of this environment prints. Skips where it is not installed."""
    program = shutil.which(command[0], path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip(f"{command[0]} is not installed: pip install -e '.[dev]'")
    return subprocess.run([program, *command[1:]], capture_output=True, text=True, check=False, cwd=folder)


def test_the_version_stands_in_one_place(wheel: Path) -> None:
    assert wheel.name == f"dynamic_inference-{dynamic.__version__}-py3-none-any.whl"
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" not in settings["project"]
    assert settings["project"]["dynamic"] == ["version"]


def test_licence_and_notice_are_in_the_wheel(unpacked: Path) -> None:
    (licences,) = unpacked.glob("*.dist-info/licenses")
    for name in ("LICENSE", "NOTICE"):
        assert (licences / name).read_bytes() == (ROOT / name).read_bytes()


def test_pypi_takes_wheel_and_sdist(wheel: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    for room in ROOMS:
        shutil.copytree(ROOT / room, source / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "MANIFEST.in", *EXTRA_FILES):
        shutil.copy(ROOT / name, source / name)
    build = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=source, check=True, capture_output=True)
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as content:
        names = {name.partition("/")[2] for name in content.getnames()}
    inside = {path.relative_to(source).as_posix() for room in ROOMS for path in (source / room).rglob("*")}
    assert {*EXTRA_FILES, "pyproject.toml"} <= names
    assert {name for name in inside if (source / name).is_file()} - names == set()
    done = tool("twine", "check", "--strict", str(sdist), str(wheel))
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_user_s_script_passes_pyright_strict(unpacked: Path, tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(USER, encoding="utf-8")
    (tmp_path / "wrong.py").write_text(USER + "run.budget = 3\n", encoding="utf-8")
    settings = {"typeCheckingMode": "strict", "extraPaths": [str(unpacked)], "pythonVersion": "3.11"}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings), encoding="utf-8")
    done = tool("basedpyright", "--outputjson", "--pythonpath", sys.executable, "user.py", "wrong.py", folder=tmp_path)
    report = json.loads(done.stdout)
    errors = [(Path(e["file"]).name, e["message"]) for e in report["generalDiagnostics"]]
    assert report["summary"]["filesAnalyzed"] == 2
    assert [message for name, message in errors if name == "user.py"] == []
    assert len(errors) == 1  # of the wrong one
    assert '"Budget"' in errors[0][1]


def test_the_packages_are_the_folders() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folders = {Path(name).parent.as_posix().replace("/", ".") for name in files() if name.endswith("__init__.py")}
    assert set(settings["packages"]) == folders


def test_the_wheel_holds_every_file(wheel: Path) -> None:
    with ZipFile(wheel) as content:
        installed = set(content.namelist())
    assert files() - installed == set()
    assert {name for name in installed - files() if ".dist-info/" not in name} == set()


def test_every_module_of_the_wheel_imports(unpacked: Path) -> None:
    command = [sys.executable, "-I", "-c", IMPORTS, str(unpacked)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
