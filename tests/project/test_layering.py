"""Imports run one way only. The table is DESIGN's. Every module is read, imports inside functions too."""

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STDLIB = set(sys.stdlib_module_names)
PACKAGES = {"dynamic.policies": ROOT / "policies", "dynamic.models": ROOT / "models", "dynamic": ROOT / "dynamic"}
MOST_FILES = 12  # of a folder

CORE = {"policies"}  # and `policies.validation`: rooms hold their own rooms where the table does not name these
RUN = CORE | {"policies.certification", "policies.control", "storage", "data", "engines", "profiling", "monitoring"}
RUN |= {"bundle", "runtime", "report"}
TORCH = {"numpy", "torch", "torchvision", "onnx", "onnxscript", "safetensors"}

# room or file -> the third-party packages and the rooms of ours that it may import, itself aside.
# "root": the files that lie in dynamic/ itself
ALLOWED: dict[str, tuple[set[str], set[str]]] = {
    "root": ({"tqdm", "typer"}, CORE | {"cli", "models"}),
    "policies": ({"numpy"}, set()),
    "policies.__init__": ({"numpy"}, {"policies.control", "policies.certification"}),
    "policies.control": (set(), CORE),
    "policies.certification": ({"numpy"}, CORE),
    "storage": (set(), CORE),
    "data": ({"numpy", "PIL", "sklearn", "tokenizers"}, CORE | {"storage"}),
    "engines": ({"numpy"}, CORE | {"storage"}),
    "engines.onnxruntime": ({"numpy", "onnxruntime"}, CORE),
    "engines.openvino": ({"numpy", "openvino"}, CORE),
    "engines.pytorch": ({"numpy", "torch"}, CORE),
    "monitoring": ({"psutil"}, CORE | {"storage"}),
    "profiling": ({"numpy"}, CORE | {"storage", "engines", "monitoring"}),
    "profiling.footprint": (
        {"numpy", "psutil", "onnxruntime", "openvino"},
        CORE | {"engines", "bundle", "runtime"},  # what a process of the runtime holds
    ),
    "bundle": (
        {"numpy"},
        CORE | {"policies.certification", "policies.control", "storage", "data", "engines", "profiling", "monitoring"},
    ),
    "bundle.sharing.hub": ({"huggingface_hub"}, CORE | {"storage"}),
    # `bundle.runtime(...)` is the user's way in. The runtime knows the contract of bundles alone
    "bundle.bundle": ({"numpy"}, RUN),
    "runtime": ({"numpy"}, RUN),
    "serve": ({"numpy"}, RUN),
    "serve.http.application": ({"starlette"}, RUN),
    "serve.http.bodies": ({"starlette"}, RUN),
    "serve.grpc_v2.messages": ({"google"}, RUN),
    "serve.grpc_v2.grpc_messages": ({"google", "numpy"}, RUN),
    "serve.grpc_v2.servicer": ({"grpc"}, RUN),
    "serve.metrics": ({"prometheus_client", "psutil"}, RUN),
    "serve.spans": ({"opentelemetry"}, RUN),
    "serve.ray.application": ({"ray"}, RUN),
    "serve.ray.batches": ({"numpy", "ray"}, RUN),
    "serve.ray.builder": ({"ray"}, RUN),
    "serve.ray.dataset": ({"numpy", "ray"}, RUN),
    "serve.ray.split.hop_time": ({"numpy", "ray"}, RUN),
    "serve.ray.split.hops": ({"ray"}, RUN),
    "serve.protocol.file_decoding": ({"numpy", "PIL"}, RUN),
    "serve.http.listening": ({"uvicorn"}, RUN),
    "serve.server": ({"uvicorn"}, RUN),
    "report": (
        {"numpy", "matplotlib", "jinja2", "vl_convert", "rich", "PIL"},
        RUN | {"simulate", "policies.certification", "policies.control"},
    ),
    "simulate": ({"numpy"}, CORE | {"policies.control", "policies.certification"}),
    "offline": (TORCH, RUN),
    "offline.loggers.mlflow_logger": ({"mlflow"}, RUN),
    "offline.loggers.wandb_logger": ({"wandb"}, RUN),
    "offline.slimming.slim_bundle": (TORCH, RUN | {"simulate"}),  # the memory of a device by its name
    "offline.onnx_files.sklearn_models": ({"skl2onnx"}, RUN),
    "offline.onnx_files.stages.own_run": ({"numpy", "onnxruntime"}, RUN),
    "models": (TORCH | {"bitarray", "torch_pruning"}, RUN | {"offline"}),
    "cli": (
        {"numpy", "torch", "typer", "onnxruntime", "openvino"},
        RUN | {"offline", "simulate", "models", "serve"},
    ),
    "cli.sources.networks.zoo_networks": ({"torch", "torchvision", "timm"}, RUN | {"offline"}),
    "cli.sources.networks.hugging_face": ({"torch", "transformers"}, RUN | {"offline"}),
    "cli.sources.networks.network_files": ({"torch", "onnx"}, RUN | {"offline"}),
    "cli.sources.data_sets.named_data": ({"numpy", "torch", "torchvision"}, RUN),
    "cli.training.compress_command": ({"torch", "onnx", "typer"}, RUN | {"offline", "models"}),
}


def modules() -> dict[str, Path]:
    """Every module of the library by its name."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            name = ".".join((package, *path.relative_to(folder).with_suffix("").parts))
            found[name] = path
    return found


MODULES = modules()


def imported(path: Path) -> Iterator[str]:
    """The modules that a file imports: `from package import module` names the module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports name the package, never a relative path"
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                yield module if module in MODULES or f"{module}.__init__" in MODULES else str(node.module)


def place_in_table(module: str) -> str:
    """The narrowest line of the table that a module falls under."""
    parts = module.split(".")[1:]
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        if name in ALLOWED:
            return name
    return "root"


def room_of(module: str) -> str:
    """The room that a module lies in, whatever line its own file has."""
    place = place_in_table(module)
    return place_in_table(f"dynamic.{place}".rpartition(".")[0]) if f"dynamic.{place}" in MODULES else place


def wrong(module: str, path: Path) -> list[str]:
    outside, rooms = ALLOWED[place_in_table(module)]
    bad = []
    for name in imported(path):
        top = name.partition(".")[0]
        allowed = room_of(name) in rooms | {room_of(module), "root"} if top == "dynamic" else top in STDLIB | outside
        if not allowed:
            bad.append(f"{path.relative_to(ROOT)} imports {name}")
    return bad


@pytest.mark.parametrize("room", sorted({room_of(module) for module in MODULES}))
def test_no_import_runs_the_wrong_way(room: str) -> None:
    own = {module: path for module, path in MODULES.items() if room_of(module) == room}
    assert own
    assert [line for module, path in own.items() for line in wrong(module, path)] == []


def test_no_files_import_each_other_in_a_circle() -> None:
    left = {
        module.removesuffix(".__init__"): {name for name in imported(path) if name in MODULES}
        for module, path in MODULES.items()
    }
    while True:  # files that import none of those left, or that none of those left imports, are in no circle
        used = {name for names in left.values() for name in names}
        free = {module for module, names in left.items() if not names & left.keys() or module not in used}
        if not free:
            break
        left = {module: names for module, names in left.items() if module not in free}
    assert sorted(left) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_folders_hold_a_dozen_files_at_most(package: str) -> None:
    folders = {path.parent for path in MODULES.values() if path.is_relative_to(PACKAGES[package])}
    assert folders
    assert {str(f.relative_to(ROOT)): n for f in folders if (n := len(list(f.glob("*.py")))) > MOST_FILES} == {}


def test_folders_of_tests_hold_a_dozen_files_at_most() -> None:
    counts = Counter(str(path.parent.relative_to(ROOT)) for path in (ROOT / "tests").rglob("*.py"))
    assert counts
    assert {folder: count for folder, count in counts.items() if count > MOST_FILES} == {}


def test_the_run_side_loads_no_server_and_the_server_no_torch() -> None:
    """Also in an installation that has both."""
    code = (
        "import dynamic, sys; dynamic.load, dynamic.Runtime, dynamic.Monitor; {}; print(sorted({} & set(sys.modules)))"
    )
    serving = {"dynamic.serve", "uvicorn", "starlette", "prometheus_client", "grpc"}
    for more, names in (("pass", serving), ("dynamic.serve.Server", {"torch", "grpc", "typer", "ray"})):
        command = [sys.executable, "-c", code.format(more, names)]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_check_can_fail(tmp_path: Path) -> None:
    text = "import torch\nfrom dynamic.offline.cascade import Cascade\nfrom dynamic.offline import building\n"
    (tmp_path / "errors.py").write_text(text)
    outside, rooms = ALLOWED[place_in_table("dynamic.policies.errors")]
    names = list(imported(tmp_path / "errors.py"))
    assert names == ["torch", "dynamic.offline.cascade", "dynamic.offline.building"]
    assert "torch" not in outside
    assert room_of(names[1]) not in rooms
