"""The folder of benchmarks: its index is up to date, each file says how to start it, weights that are made stay out."""

import subprocess
from pathlib import Path

import pytest

from benchmarks.harness import index

ROOT = Path(__file__).resolve().parents[3]
THEMES = sorted(path.parent for path in (ROOT / "benchmarks").glob("*/__init__.py"))


def test_the_index_is_up_to_date() -> None:
    assert index.INDEX.read_text(encoding="utf-8") == index.page(), "run python -m benchmarks.harness.index"


def test_every_result_has_its_benchmark() -> None:
    listed = {(theme, name) for theme, name, *_ in index.commands()}
    assert {(theme, name) for theme, name in (key.split("/") for key in index.FIGURES)} <= listed
    assert len(listed) > 30


@pytest.mark.parametrize("theme", THEMES, ids=lambda folder: folder.name)
def test_a_theme_holds_a_dozen_files_at_most(theme: Path) -> None:
    assert len(list(theme.glob("*.py"))) <= 12


@pytest.mark.parametrize("theme", THEMES, ids=lambda folder: folder.name)
def test_commands_name_the_file_they_stand_in(theme: Path) -> None:
    """A file that can be started shows its own module, not the one it was copied from."""
    for path in theme.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        if "argparse.ArgumentParser" in text and path.name not in ("common.py", "__main__.py"):
            assert f"python -m benchmarks.{theme.name}.{path.stem}" in text, path


def test_large_weights_are_not_in_git() -> None:
    done = subprocess.run(
        ["git", "ls-files", "-z", "benchmarks"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode or not done.stdout:
        pytest.skip("not a clone: git lists no files here")
    suffixes = (".safetensors", ".packed", ".pt", ".onnx")
    files = [ROOT / name for name in done.stdout.split("\0") if name.endswith(suffixes)]
    assert {f.name for f in files if f.is_file() and f.stat().st_size > 200_000} == {"cifar_exits_heads.safetensors"}
