"""The workflows of GitHub and the citation are valid, and cover what pyproject.toml promises."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def tool(*command: str) -> subprocess.CompletedProcess[str]:
    """What a program of this environment prints. Skips where it is not installed."""
    program = shutil.which(command[0], path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip(f"{command[0]} is not installed: pip install -e '.[dev]'")
    return subprocess.run([program, *command[1:]], capture_output=True, text=True, check=False, cwd=ROOT)


def faults(schema: str, path: Path) -> str:
    """What a file has that its schema does not allow. Empty: nothing. The schemas lie in the package."""
    done = tool("check-jsonschema", "--builtin-schema", schema, str(path))
    return "" if done.returncode == 0 else done.stdout + done.stderr


def test_workflows_are_valid(tmp_path: Path) -> None:
    assert [path.name for path in WORKFLOWS] == ["ci.yml", "release.yml"]
    for path in WORKFLOWS:
        assert faults("vendor.github-workflows", path) == ""
    broken = tmp_path / "broken.yml"
    broken.write_text(WORKFLOWS[0].read_text(encoding="utf-8").replace("runs-on:", "run-on:"), encoding="utf-8")
    assert "run-on" in faults("vendor.github-workflows", broken)


def test_jobs_need_jobs_that_exist() -> None:
    for path in WORKFLOWS:
        jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
        for job in jobs.values():
            needed = job.get("needs", [])
            assert set([needed] if isinstance(needed, str) else needed) <= set(jobs)
            matrix = job.get("strategy", {}).get("matrix", {})
            assert set(re.findall(r"matrix\.(\w+)", str(job))) == set(matrix)


def test_every_python_and_system_is_tested() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    promised = re.findall(r"Python :: (3\.\d+)", " ".join(settings["classifiers"]))
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    (pythons,) = re.findall(r"python: \[(.*)\]", text)
    assert set(promised) <= set(re.findall(r"3\.\d+", pythons))  # and 3.14, which is not promised before it passed
    assert settings["requires-python"] == f">={promised[0]}"
    assert "os: [ubuntu-latest, macos-latest, windows-latest]" in text


def test_the_citation_is_valid() -> None:
    assert faults("vendor.citation-file-format", ROOT / "CITATION.cff") == ""
