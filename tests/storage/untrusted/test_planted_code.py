"""Modules that lie in a bundle or in the working folder do not run.

The whole list of commands is in `benchmarks/robustness/planted.py`.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.robustness.altered import make_shelf
from benchmarks.robustness.planted import planted
from dynamic import safe_path
from dynamic.bundle.manifest import MANIFEST
from dynamic.cli.sources.networks.named_networks import network_named
from dynamic.errors import InputError
from dynamic.monitoring.sources.throttling import pi_command
from dynamic.storage.versioned_folder import standing


def test_commands_and_children_run_nothing_of_the_working_folder(tmp_path: Path) -> None:
    make_shelf(tmp_path / "shelf")
    found = planted(commands=("doctor", "profile"), shelf=tmp_path / "shelf")
    assert found["ran"] == {}
    assert found["failed"] == []
    assert found["tried"] == 7, "two commands, three starts, and the library in a script"
    assert not {"numpy", "psutil", "ast", "typer", "onnxruntime", "json"} & set(found["before"])


def test_the_path_of_a_child_has_no_folder_of_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("working", "bundle/inner", "library"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "working")
    monkeypatch.chdir(tmp_path / "working")
    paths = [
        "",
        ".",
        str(tmp_path / "working"),
        str(tmp_path / "link"),
        "../library",
        str(tmp_path / "bundle" / "inner"),
    ]
    monkeypatch.setattr(sys, "path", paths)
    own = str(Path(safe_path.__file__).parent.parent)
    assert safe_path.child_path((str(tmp_path / "bundle"),)) == [str(tmp_path / "library"), own]
    monkeypatch.chdir(own)
    assert own in safe_path.child_path(), "a checkout that is worked in"


@pytest.mark.parametrize(
    ("argv", "orig", "leaves"),
    [
        (["-m", "doctor"], ["python", "-m", "dynamic", "doctor"], True),
        (["-m"], ["python", "-X", "dev", "-m", "dynamic"], True),
        (["-m", "doctor"], ["python", "-mdynamic", "doctor"], True),
        (["-m"], ["python", "-Wm", "-um", "dynamic.profiling.footprint"], True),
        (["-m", "dynamic"], ["python", "-m", "pytest", "dynamic"], False),
        (["-m"], ["python", "-m", "dynamics"], False),
        (["script.py"], ["python", "script.py"], False),
        (["-c", "-m", "dynamic"], ["python", "-c", "pass", "-m", "dynamic"], False),
        ([], ["python"], False),
    ],
)
def test_the_working_folder_leaves_the_path_for_our_own_modules_alone(
    argv: list[str], orig: list[str], leaves: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", orig)
    monkeypatch.setattr(sys, "path", [os.getcwd(), "/elsewhere"])
    safe_path.leave_working_folder()
    assert sys.path == (["/elsewhere"] if leaves else [os.getcwd(), "/elsewhere"])


@pytest.mark.parametrize(
    ("variable", "leaves"),
    [
        (":/elsewhere", True),
        ("/elsewhere:", True),
        ("/elsewhere::/other", True),
        ("", False),
        ("/elsewhere", False),
        (".:/elsewhere", False),
        (":.", False),
        ("WORKING::/elsewhere", False),
    ],
)
@pytest.mark.parametrize("start", ["module", "script", "user"])
def test_an_empty_part_of_the_python_path_is_no_place_to_import_from(
    variable: str, leaves: bool, start: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    working = os.getcwd()
    argv = {"module": ["-m", "doctor"], "script": ["/usr/bin/dynamic", "doctor"], "user": ["serve.py"]}[start]
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "dynamic", "doctor"])
    monkeypatch.setenv("PYTHONPATH", variable.replace("WORKING", working))
    first = working if start == "module" else "/usr/bin"
    monkeypatch.setattr(sys, "path", [first, working, "/elsewhere"])
    safe_path.leave_working_folder()
    kept = [] if start == "module" else [first]
    assert sys.path == ([*kept, "/elsewhere"] if leaves and start != "user" else [*kept, working, "/elsewhere"])


@pytest.mark.parametrize("variable", [":", "/nowhere:"])
def test_a_command_with_an_empty_part_in_the_python_path_runs_nothing_planted(tmp_path: Path, variable: str) -> None:
    (tmp_path / "psutil.py").write_text("open('ran', 'w').close()")
    root = Path(safe_path.__file__).resolve().parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{variable}{os.pathsep}{root}"}
    command = [sys.executable, "-m", "dynamic", "doctor"]
    subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert not (tmp_path / "ran").exists()


def test_a_network_that_is_named_is_found_and_nothing_installed_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "own_nets.py").write_text("from torch import nn\ndef small(): return nn.Identity()\n")
    (tmp_path / "torch_pruning.py").write_text("raise SystemExit('planted')\n")
    code = (
        "from dynamic.cli.sources.networks.named_networks import network_named\n"
        "network_named('dynamic.models:resnet20')\n"
        "import sys, os; assert os.getcwd() not in sys.path\n"
        "network_named('own_nets:small'); import torch_pruning; assert sys.path[-1] == os.getcwd()\n"
    )
    script = tmp_path / "bin" / "script.py"
    script.parent.mkdir()
    script.write_text(code)
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with pytest.raises(InputError, match="is not found"):
        network_named("no_such_module_anywhere:small")


def test_the_command_of_a_pi_is_not_taken_from_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = tmp_path / "vcgencmd"
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    for path in ("", ".", ":", f".{os.pathsep}{os.pathsep}relative"):
        monkeypatch.setenv("PATH", path)
        assert pi_command(Path("/")) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert pi_command(Path("/")) == str(command)


def test_a_bundle_is_signed_and_verified_as_the_docs_say(tmp_path: Path) -> None:
    """docs/trust.md, with the real program."""
    if shutil.which("ssh-keygen") is None:
        pytest.skip("needs ssh-keygen")
    (tmp_path / "shelf").mkdir()
    (tmp_path / "shelf" / "bundle.json").write_text("{}")
    text = (Path(__file__).resolve().parents[3] / "docs" / "trust.md").read_text(encoding="utf-8")
    sign, verify = [block.split("```")[0] for block in text.split("```bash\n")[1:]]

    def shell(lines: str) -> int:
        return subprocess.run(["bash", "-ec", lines], cwd=tmp_path, capture_output=True, check=False).returncode

    assert shell(sign.replace("ssh-keygen -t", "ssh-keygen -q -N '' -t")) == 0
    public = (tmp_path / "maker.pub").read_text().rsplit(" ", 1)[0]
    (tmp_path / "allowed_signers").write_text(f'maker@example.org namespaces="dynamic-bundle" {public}\n')
    (tmp_path / "shelf" / ".bundle.ready").mkdir()
    (tmp_path / "shelf" / ".bundle.ready" / "bundle.json").write_text('{"of": "somebody else"}')
    (tmp_path / "shelf" / "costs").mkdir()
    assert shell(verify) == 0
    assert sorted(path.name for path in (tmp_path / "checked").iterdir()) == ["bundle.json"]
    assert standing(tmp_path / "checked", MANIFEST) == tmp_path / "checked", "what was verified is what is loaded"
    (tmp_path / "shelf" / "bundle.json").write_text("{} ")
    assert shell(verify) != 0
