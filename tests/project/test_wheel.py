"""A wheel holds every room and every file that the code reads. An editable install hides what it lacks."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = {
    "dynamic": "dynamic",
    "policies": "dynamic/policies",
    "models": "dynamic/models",
}  # and where they are installed
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
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(place)], cwd=source, check=True, capture_output=True)
    (archive,) = place.glob("*.whl")
    return archive


def test_the_packages_are_the_folders() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folders = {Path(name).parent.as_posix().replace("/", ".") for name in files() if name.endswith("__init__.py")}
    assert set(settings["packages"]) == folders


def test_the_wheel_holds_every_file(wheel: Path) -> None:
    with ZipFile(wheel) as content:
        installed = set(content.namelist())
    assert files() - installed == set()
    assert {name for name in installed - files() if ".dist-info/" not in name} == set()


def test_every_module_of_the_wheel_imports(wheel: Path, tmp_path: Path) -> None:
    with ZipFile(wheel) as content:
        content.extractall(tmp_path)
    command = [sys.executable, "-I", "-c", IMPORTS, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
