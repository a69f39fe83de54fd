"""Imports run one way only. The table is DESIGN's; every module is read, imports inside functions too."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STDLIB = set(sys.stdlib_module_names)

# room -> the third-party packages and the rooms of ours that its modules may import
ALLOWED: dict[str, tuple[set[str], set[str]]] = {
    "policies": ({"numpy"}, {"policies"}),
    "engines": ({"numpy"}, {"policies", "engines"}),
    "engines/onnxruntime.py": ({"numpy", "onnxruntime"}, {"policies", "engines"}),
    "engines/openvino.py": ({"numpy", "openvino"}, {"policies", "engines"}),
    "engines/pytorch.py": ({"numpy", "torch"}, {"policies", "engines"}),
    "sensors": ({"numpy", "psutil"}, {"policies", "sensors"}),
    "run": ({"numpy", "psutil", "PIL", "tqdm"}, {"policies", "engines", "sensors", "run"}),
    "run/footprint.py": ({"numpy", "psutil", "onnxruntime", "openvino"}, {"policies", "engines", "run"}),
    "run/doctor.py": ({"onnxruntime", "openvino"}, {"policies", "engines", "sensors", "run"}),
    "run/commands_device.py": ({"typer"}, {"policies", "run"}),
    "run/commands_simulate.py": ({"typer"}, {"policies", "run", "simulate"}),
    "run/options.py": ({"typer"}, {"policies"}),
    "run/__main__.py": (
        {"numpy", "typer", "tqdm"},
        {"policies", "engines", "run", "offline", "simulate", "models"},
    ),
    "simulate": ({"numpy"}, {"policies", "simulate"}),
    "offline": (
        {"numpy", "torch", "torchvision", "onnx", "onnxscript", "safetensors", "tqdm", "PIL", "sklearn"},
        {"policies", "engines", "run", "offline"},
    ),
    "models": (
        {"numpy", "torch", "torchvision", "safetensors", "bitarray", "torch_pruning"},
        {"policies", "engines", "run", "offline", "models"},
    ),
    "models/charting.py": ({"matplotlib"}, {"policies", "run", "models"}),
}
FOLDERS = {
    "policies": ROOT / "policies",
    "models": ROOT / "models",
    "engines": ROOT / "dynamic" / "engines",
    "offline": ROOT / "dynamic" / "offline",
    "sensors": ROOT / "dynamic" / "sensors",
    "simulate": ROOT / "dynamic" / "simulate",
    "run": ROOT / "dynamic",
}


def modules() -> Iterator[tuple[str, Path]]:
    for room, folder in FOLDERS.items():
        pattern = "*.py" if room == "run" else "**/*.py"
        yield from ((room, path) for path in sorted(folder.glob(pattern)))


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports name the package, never a relative path"
            yield node.module or ""


def room_of(name: str) -> str:
    second = name.split(".")[1] if "." in name else ""
    return second if second in FOLDERS else "run"


def wrong(room: str, path: Path) -> list[str]:
    outside, rooms = ALLOWED.get(f"{room}/{path.name}", ALLOWED[room])
    bad = []
    for name in imported(path):
        top = name.partition(".")[0]
        allowed = room_of(name) in rooms if top == "dynamic" else top in STDLIB | outside
        if not allowed:
            bad.append(f"{path.relative_to(ROOT)} imports {name}")
    return bad


@pytest.mark.parametrize("room", FOLDERS)
def test_no_import_runs_the_wrong_way(room: str) -> None:
    found = [path for r, path in modules() if r == room]
    assert found
    assert [line for path in found for line in wrong(room, path)] == []


def test_the_check_can_fail(tmp_path: Path) -> None:
    bad = ROOT / "policies" / "errors.py"
    text = "import torch\nfrom dynamic.offline.cascade import Cascade\n"
    (tmp_path / bad.name).write_text(text)
    outside, rooms = ALLOWED["policies"]
    names = list(imported(tmp_path / bad.name))
    assert names == ["torch", "dynamic.offline.cascade"]
    assert "torch" not in outside
    assert room_of(names[1]) not in rooms
