"""Installations with exactly the base or one extra: what is missing is named in one line. Modules are hidden."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import dynamic
from dynamic.cli import bare_shell
from dynamic.extras import EXTRAS, remedy

# refuses to import what a meta-path finder is told to hide, as if it were not installed
HIDE = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hidden())
"""
ALL = frozenset(EXTRAS)
ROOT = Path(__file__).resolve().parents[2]
BROUGHT = {
    "cli": {"typer", "tqdm", "rich"},
    "images": {"PIL"},
    "onnx": {"onnx"},
    "openvino": {"openvino"},
    "plot": {"matplotlib", "jinja2", "vl_convert"},
    "text": {"tokenizers"},
}


def python(code: str, hidden: frozenset[str] = ALL, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run code where these packages are not installed."""
    code = f"HIDDEN = {sorted(hidden)!r}\n{HIDE}\n{code}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=folder)


def shell(command: str, hidden: frozenset[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """`python -m dynamic COMMAND` where these packages are not installed."""
    run = "import runpy; runpy.run_module('dynamic', run_name='__main__', alter_sys=True)"
    return python(f"sys.argv = ['dynamic', *{command.split()!r}]\n{run}", hidden, folder)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`shelf`, whose preprocessing resizes, `plain`, whose does not, and pictures of two sizes."""
    folder = tmp_path_factory.mktemp("desk")
    torch.manual_seed(0)
    networks = [nn.Sequential(nn.Flatten(), nn.Linear(48, w), nn.ReLU(), nn.Linear(w, 4)) for w in (2, 16)]
    held_out = [(torch.randn(300, 3, 4, 4), torch.arange(300) % 4)]
    for name, options in {"shelf": {"resize": 4, "crop": 4}, "plain": {}}.items():
        preprocess = dynamic.Preprocess.of(**options)
        bundle = dynamic.build(networks, held_out, preprocess=preprocess).save(folder / name)
        bundle.profile(batch=(1,), seconds=0.02)
    for name, side in (("small", 4), ("large", 9)):
        Image.fromarray(np.full((side, side, 3), 90, np.uint8)).save(folder / f"{name}.png")
    return folder


def test_a_missing_package_and_its_extra_are_named() -> None:
    assert remedy("PIL.Image", "reading") == (
        'reading needs Pillow, which is not installed: pip install "dynamic-inference[images]"'
    )
    assert remedy("somebody_s", "this") is None
    extras = {extra for _, extra in EXTRAS.values()}
    text = (ROOT / "pyproject.toml").read_text()
    assert all(f"\n{extra} = [" in text for extra in extras)


def test_the_base_installation_runs_what_the_readme_shows(desk: Path) -> None:
    code = """
import dynamic, numpy, json
bundle = dynamic.load("plain")
with bundle.runtime(dynamic.Budget(latency_ms=80, max_drop=0.01)) as run:
    print(run(numpy.zeros((4, 4, 3), numpy.uint8)).stage)
dynamic.simulate.device_models.device("laptop"), dynamic.simulate.world.processes.Steps, dynamic.policies.Policy
dynamic.errors.ShedError, dynamic.runtime.decisions.decision_log.Change, dynamic.data.labelled_images.load_images
from dynamic.simulate import simulate
"""
    done = python(code, folder=desk)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout in ("0\n", "1\n")


def blocks(page: str) -> list[str]:
    """Python of a page of the documentation, block by block."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_the_page_on_simulation_runs_in_the_base_installation(desk: Path) -> None:
    page = "\n".join(blocks("docs/guides/simulate.md"))
    done = python(f"import dynamic\nbundle = dynamic.load('plain')\n{page}", folder=desk)
    assert (done.returncode, done.stderr) == (0, "")
    assert "simulated on mid-range phone" in done.stdout


def test_the_exported_graph_runs_with_onnxruntime_alone(desk: Path) -> None:
    dynamic.export(dynamic.load(desk / "plain"), desk / "model.onnx", batch="single")
    (block,) = (block for block in blocks("docs/guides/without-the-library.md") if "InferenceSession" in block)
    point = dynamic.load(desk / "plain").ladder.points[-1].name
    block = block.replace("drop 0.05", point).replace("(1, 8, 8, 1)", "(1, 4, 4, 3)")
    done = python(block, ALL | {"dynamic", "psutil"}, desk)
    assert (done.returncode, done.stderr) == (0, "")
    assert "exit at stage" in done.stdout


@pytest.mark.parametrize(
    ("example", "hidden"),
    [
        ("quickstart", ALL),
        ("wrap_a_model", ALL),
        ("make_a_family", frozenset({"torch"})),
        ("kiosk_day", frozenset({"sklearn"})),
    ],
)
def test_an_example_names_its_extra(tmp_path: Path, example: str, hidden: frozenset[str]) -> None:
    folder = str(ROOT / "examples")
    code = f"import runpy; sys.path.insert(0, {folder!r}); sys.argv = ['example']; "
    done = python(f"{code}runpy.run_path({folder + f'/{example}.py'!r}, run_name='__main__')", hidden, tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r'this example needs .*: pip install "dynamic-inference\[examples\]"\n', done.stderr)


def test_the_port_of_the_policy_says_how_it_is_called() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "policy_port.py"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "python examples/policy_port.py shelf/" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such pipes")
def test_the_base_install_s_doctor_ends_where_nobody_reads_on(tmp_path: Path) -> None:
    """`doctor | head -1` ended with a traceback."""
    reading, writing = os.pipe()
    os.close(reading)  # as `head` does, before anything is written
    code = "import sys; from dynamic.cli import bare_shell; sys.exit(bare_shell.main(['doctor']))"
    with os.fdopen(writing, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=closed, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (0, "")


def test_rooms_are_attributes_after_import() -> None:
    code = """
import dynamic
from dynamic.cli import bare_shell
print(dynamic.models.compress.quantize.__name__, dynamic.models.resnet20.__name__)
print(dynamic.simulate.simulator.simulate.__name__, dynamic.offline.exit_selection.select_exits.__name__)
for name in ("docs", "tests", "nothing", "_names_"):
    assert not hasattr(dynamic, name), name
assert not hasattr(dynamic.models, "nothing") and not hasattr(dynamic.offline, "nothing")
"""
    done = python(code, frozenset())
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["quantize", "resnet20", "simulate", "select_exits"]


@pytest.mark.parametrize(
    ("code", "hidden", "words"),
    [
        (
            "import dynamic.models",
            ALL,
            'dynamic.models needs torch, which is not installed: pip install "dyn.*[build]"',
        ),
        ("import dynamic; dynamic.models", ALL, 'dynamic.models needs torch, .*"dynamic-inference[build]"'),
        ("from dynamic.models import compress", ALL, 'dynamic.models needs torch, .*"dynamic-inference[build]"'),
        ("from dynamic.models import compress", {"bitarray"}, 'dynamic.models.compress needs bitarray, .*[build]"'),
        ("from dynamic.offline import exit_selection", ALL, 'dynamic.offline.exit_selection needs torch, .*[build]"'),
        ("import dynamic; dynamic.wrap", ALL, 'dynamic.wrap needs torch, .*"dynamic-inference[build]"'),
        ("import dynamic; dynamic.family", {"safetensors"}, 'dynamic.models needs safetensors, .*[build]"'),
        ("import dynamic; dynamic.build", ALL, 'dynamic.build needs onnx, .*[onnx]"'),
        ("import dynamic; dynamic.build([print], [])", ALL - {"onnx"}, 'ONNX files needs torch, .*[build]"'),
        ("import dynamic; dynamic.recertify", ALL, 'dynamic.recertify needs onnx, .*"dynamic-inference[onnx]"'),
        ("import dynamic; dynamic.slim", ALL, 'dynamic.slim needs onnx, .*"dynamic-inference[onnx]"'),
        ("import dynamic; dynamic.load('hf://a/b')", ALL, 'needs huggingface_hub, .*"dynamic-inference[hub]"'),
        ("import dynamic; dynamic.export", ALL, 'dynamic.export needs onnx, .*"dynamic-inference[onnx]"'),
        ("from dynamic.data.labelled_images import digits; digits()", ALL, 'digits need scikit-learn: .*[examples]"'),
        ("import dynamic; dynamic.load('shelf')", ALL, 'resizes, and Pillow is not installed: .*[images]"'),
    ],
)
def test_what_is_missing_is_named_in_one_line(desk: Path, code: str, hidden: set[str], words: str) -> None:
    done = python(code, frozenset(hidden), desk)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    first, rest = words.split(".*")
    assert first in last
    assert last.endswith(rest)


COMMANDS = {
    "build -o new --network a:b --data data": "build",
    "certify plain other --max-drop 0.05": "onnx",
    "export plain model.onnx": "onnx",
    "slim plain thin": "onnx",
    "report plain": "plot",
    "run plain small.png": "images",
    "run shelf small.png": "images",
}


@pytest.mark.parametrize(
    "command", [*COMMANDS, "profile plain", "simulate plain --device laptop", "record x", "--help"]
)
def test_without_a_shell_every_command_says_so(desk: Path, command: str) -> None:
    done = shell(command, ALL, desk)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"error: python -m dynamic {command.split()[0]} needs typer, which is not installed: "
        'pip install "dynamic-inference[cli]" (doctor alone runs without it)\n'
    )


def test_the_console_script_without_a_shell(desk: Path) -> None:
    done = python("sys.argv = ['dynamic', 'profile', 'plain']\nfrom dynamic.__main__ import main\nmain()", ALL, desk)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "[cli]" in done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_with_the_shell_alone_commands_name_what_they_lack(desk: Path, command: str) -> None:
    done = shell(command, ALL - BROUGHT["cli"], desk)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert f'pip install "dynamic-inference[{COMMANDS[command]}]"' in done.stderr


@pytest.mark.parametrize(
    ("command", "extras"),
    [
        ("profile plain --seconds 0.02 --batch 1", ["cli"]),
        ("simulate plain --device laptop --duration-s 5", ["cli"]),
        ("run plain small.png --quiet", ["cli", "images"]),
        ("run shelf small.png large.png --quiet", ["cli", "images"]),
        ("certify plain other --max-drop 0.5", ["cli", "onnx"]),
        ("export plain model.onnx --batch single", ["cli", "onnx"]),
        ("slim plain thin --disk-mb 5", ["cli", "onnx"]),
        ("report plain -o page.html", ["cli", "plot"]),
        ("doctor shelf", ["cli", "images"]),
    ],
)
def test_commands_run_with_exactly_their_extras(desk: Path, command: str, extras: list[str]) -> None:
    brought = frozenset().union(*(BROUGHT[extra] for extra in extras))
    done = shell(command, ALL - brought, desk)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_doctor_runs_in_the_base_installation(desk: Path) -> None:
    done = shell("doctor", ALL, desk)
    assert (done.returncode, done.stderr) == (0, "")
    for extra in ("cli", "images", "openvino", "build"):
        assert f"dynamic-inference[{extra}]" in done.stdout
    done = shell("doctor shelf --json", ALL, desk)
    assert done.returncode == 1
    state = json.loads(done.stdout)["shelf"]
    assert state["folder"] == "shelf"
    (problem,) = state["problems"]
    assert problem.endswith('Pillow is not installed: pip install "dynamic-inference[images]"')
    done = shell("doctor plain", ALL, desk)
    assert done.returncode == 0
    assert "bundle plain: it answers every input here" in done.stdout


def test_doctor_of_a_shelf_that_is_damaged_or_of_another_engine(desk: Path, tmp_path: Path) -> None:
    from dynamic.bundle.manifest import MANIFEST, manifest_hash
    from dynamic.cli.doctor import check_shelf

    assert "holds no bundle.json" in check_shelf(tmp_path).problems[0]
    shelf = dynamic.load(desk / "plain").save(tmp_path / "shelf").folder
    assert check_shelf(shelf).problems == ()
    assert check_shelf(shelf).hints == ()
    manifest = json.loads((shelf / MANIFEST).read_text())
    del manifest["sha256"]
    manifest["engine"] = "openvino"
    (shelf / MANIFEST).write_text(json.dumps(manifest | {"sha256": manifest_hash(manifest)}))
    done = shell("doctor shelf", ALL, tmp_path)
    assert done.returncode == 1
    assert "engine 'openvino' is not installed: pip install 'dynamic-inference[openvino]'" in done.stdout
    assert "no costs were measured on this machine" in done.stdout
    done = python("import dynamic; dynamic.load('shelf')", ALL, tmp_path)
    assert done.returncode == 0
    assert "Answers of other engines are not certified" in done.stderr
    (shelf / "graph.onnx").write_bytes(b"short")
    assert "graph.onnx has 5 bytes" in check_shelf(shelf).problems[0]


def test_recertify_and_export_need_no_torch(desk: Path) -> None:
    code = """
import dynamic
from dynamic.cli import bare_shell
bundle = dynamic.recertify(dynamic.load("plain"), (0.5,)).save("again")
dynamic.export(bundle, "again.onnx")
print(sorted(name for name in sys.modules if name.partition(".")[0] in ("torch", "torchvision", "safetensors")))
"""
    done = python(code, ALL - {"onnx"}, desk)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
    own = dynamic.recertify(dynamic.load(desk / "plain"), (0.5,))
    assert dynamic.load(desk / "again").ladder.points == own.ladder.points
    assert (desk / "again.onnx").stat().st_size > 1000


def test_the_base_install_s_doctor_takes_a_root(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "proc").mkdir()
    assert bare_shell.main(["doctor", "--root", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["missing"]
