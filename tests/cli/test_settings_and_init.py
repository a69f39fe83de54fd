"""`dynamic init`, the file that it writes, and -c of every command."""

import contextlib
import io
import sys
import tomllib
from pathlib import Path

import pytest
from PIL import Image
from typer.main import get_command
from typer.testing import CliRunner

from dynamic.__main__ import main
from dynamic.cli.app import app
from dynamic.cli.project.settings_file import defaults_for, read_settings
from dynamic.cli.sources.data_arguments import named_sources
from dynamic.errors import SettingError

OPTIONS = {"build": {"network": True, "exits": False, "data": False}, "run": {"max_drop": False, "data": False}}


def shell(*arguments: str | Path) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as exited:
        main([str(argument) for argument in arguments])
    return int(exited.value.code or 0), out.getvalue(), err.getvalue()


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with photos/{train,val}/{cat,dog}."""
    for split, count in (("train", 5), ("val", 3)):
        for name in ("cat", "dog"):
            (tmp_path / "photos" / split / name).mkdir(parents=True)
            for number in range(count if name == "cat" else count - 1):
                Image.new("L", (8, 8)).save(tmp_path / "photos" / split / name / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_table_of_a_command_counts_more_than_the_file_s_own_keys() -> None:
    settings = {
        "data": "photos/",
        "build": {"exits": 3, "network": "a:b", "data": "others/"},
        "run": {"max-drop": 0.01},
    }
    assert defaults_for(settings, "build", OPTIONS, Path("x")) == {"exits": 3, "network": ["a:b"], "data": "others/"}
    assert defaults_for(settings, "run", OPTIONS, Path("x")) == {"max_drop": 0.01, "data": "photos/"}
    assert defaults_for({}, "run", OPTIONS, Path("x")) == {}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"exit": 3}, "x: 'exit' is no option of any command, did you mean 'exits'"),
        ({"bild": {}}, r"table \[bild\] is no command, did you mean 'build'"),
        ({"build": {"netwrk": "a"}}, r"'netwrk' in \[build\] is no option of build, did you mean 'network'"),
        ({"run": {"exits": 3}}, r"'exits' in \[run\] is no option of run"),
        ({"build": {"exits": [3]}}, r"exits in \[build\] is a list: give a number"),
        ({"build": {"network": [["a"]]}}, "is a list: give a list of values"),
    ],
)
def test_what_a_file_may_not_hold(settings: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        defaults_for(settings, "build", OPTIONS, Path("x"))


def test_networks_and_data_in_a_row_count_more_than_options() -> None:
    assert named_sources(["a", "b", "photos"], None, None) == (["a", "b"], "photos")
    assert named_sources(None, ["a", "b"], "photos") == (["a", "b"], "photos")
    assert named_sources(["others"], ["a"], "photos") == (["a"], "others")
    assert named_sources(["c"], None, "photos") == (["c"], "photos")
    assert named_sources(["c", "others"], ["a"], "photos") == (["c"], "others")
    with pytest.raises(SettingError, match="no data were named"):
        named_sources(None, ["a"], None)
    with pytest.raises(SettingError, match="no network was named beside the data photos"):
        named_sources(["photos"], None, None)


def test_init_looks_at_the_data_and_asks_nothing_with_yes(photos: Path) -> None:
    code, out, err = shell("init", "--yes")
    assert (code, err) == (0, "")
    assert (
        "photos/: 5 images in split 'val' of 2 classes (cat, dog), of 'dog' 2. For exits, split 'train' trains" in out
    )
    settings = tomllib.loads((photos / "dynamic.toml").read_text())
    assert settings["data"] == "photos/"
    assert settings["build"] == {
        "network": ["torchvision:mobilenet_v3_small"],
        "split": "val",
        "train_split": "train",
        "out": "shelf",
        "exits": 3,
    }
    assert settings["run"] == settings["serve"] == {"max_drop": 0.01}
    code, _, err = shell("init", "--yes")
    assert (code, err) == (1, "error: dynamic.toml exists: give --force to replace it, or another file with -o\n")
    options = ["--network", "a:b", "--network", "c:d", "--exits", "0", "--max-drop", "0.02", "--latency-ms", "30"]
    assert shell("init", "photos/", "--yes", "--force", *options)[0] == 0
    settings = tomllib.loads((photos / "dynamic.toml").read_text())
    assert settings["build"]["network"] == ["a:b", "c:d"]
    assert "exits" not in settings["build"]
    assert settings["run"] == {"max_drop": 0.02, "latency_ms": 30}


def test_init_asks_five_questions(photos: Path) -> None:
    done = CliRunner().invoke(app, ["init"], input="\nmine.py:small mine.py:large\n0\n0.02\n25\n")
    assert done.exit_code == 0, done.output
    assert done.output.count("]: ") == 5
    settings = tomllib.loads((photos / "dynamic.toml").read_text())
    assert settings["build"]["network"] == ["mine.py:small", "mine.py:large"]
    assert settings["fit"]["network"] == "mine.py:large"
    assert settings["run"] == {"max_drop": 0.02, "latency_ms": 25}


def test_every_command_takes_the_file_that_init_wrote(photos: Path) -> None:
    assert shell("init", "--yes")[0] == 0
    commands = get_command(app).commands  # type: ignore[attr-defined]
    options = {
        name: {p.name: bool(getattr(p, "multiple", False)) or p.nargs == -1 for p in command.params}
        for name, command in commands.items()
    }
    for name, command in commands.items():
        defaults = defaults_for(read_settings(Path("dynamic.toml")), name, options, Path("dynamic.toml"))
        assert ("shelf" in defaults) == any(p.name == "shelf" for p in command.params)
        assert name == "init" or any("-c" in p.opts for p in command.params), name


def test_the_command_line_counts_more_than_the_file(photos: Path) -> None:
    (photos / "dynamic.toml").write_text('[record]\nout = "fromfile.jsonl"\nseconds = 0.05\nhz = 50\n')
    code, out, err = shell("record", "-c", "dynamic.toml")
    assert (code, err) == (0, "")
    assert out.endswith("fromfile.jsonl\n")
    code, out, _ = shell("record", "given.jsonl", "-c", "dynamic.toml")
    assert code == 0
    assert out.endswith("given.jsonl\n")
    code, _, err = shell("record", "-c", "dynamic.toml", "--hz", "0")
    assert (code, err) == (2, "error: --hz 0.0 must be a positive number\n")


def test_each_help_has_an_example_that_names_its_command() -> None:
    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        assert f"dynamic {name}" in command.epilog, name


def test_init_imports_no_torch(photos: Path) -> None:
    import subprocess

    code = "import sys\nfrom dynamic.__main__ import main\ntry: main(['init', '--yes'])\nexcept SystemExit: pass\n"
    command = [sys.executable, "-c", code + "print('torch' in sys.modules)"]
    done = subprocess.run(command, cwd=photos, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
