"""A short form of `benchmarks/robustness`, and that an interrupted run goes on."""

import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import benchmarks.robustness.__main__ as run

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(sys.platform != "linux", reason="forks, and kills groups of processes")
@pytest.mark.parametrize("section", ["kills", "writers"])
def test_nothing_is_lost_mixed_or_left(tmp_path: Path, section: str) -> None:
    results = tmp_path / "robustness.json"
    command = [sys.executable, "-m", "benchmarks.robustness", "--short", "--only", section, "--results", str(results)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = json.loads(results.read_text())["sections"][section]["counts"]
    assert counts["errors"] == []
    if section == "kills":
        assert counts["kills"] == 4
    else:
        assert counts["saves"] > 0
        assert counts["loads"] > 0


def test_a_run_that_was_interrupted_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[str, int, float]] = []

    class Counted(run.Section):
        def run(self, seed: int, amount: float) -> dict[str, Any]:
            calls.append((self.name, seed, amount))
            if self.name == "third" and len(calls) == 3:
                raise KeyboardInterrupt
            return {"lost": int(self.name == "second" and seed == 1), "tried": amount}

    sections = tuple(Counted(name, 100, 5, ("lost",)) for name in ("first", "second", "third"))
    monkeypatch.setattr(run, "SECTIONS", sections)
    results = str(tmp_path / "results" / "robustness.json")
    monkeypatch.setattr(sys, "argv", ["run", "--results", results])
    with pytest.raises(KeyboardInterrupt):
        run.main()
    run.main()
    assert calls == [("first", 0, 100), ("second", 0, 100), ("third", 0, 100), ("third", 0, 100)]
    assert "| second | 100 | lost 0, tried 100 |" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["run", "--results", results, "--seed", "1", "--only", "second"])
    with pytest.raises(SystemExit, match="not 0: second: lost"):
        run.main()
    monkeypatch.setattr(sys, "argv", ["run", "--results", results, "--short", "--only", "first"])
    run.main()
    assert calls[4:] == [("second", 1, 100), ("first", 0, 5)]


@pytest.mark.parametrize("section", run.SECTIONS, ids=lambda section: section.name)
def test_every_section_is_a_file_with_its_function(section: run.Section) -> None:
    module = importlib.import_module(f"benchmarks.robustness.{section.name}")
    first, second, *others = inspect.signature(getattr(module, section.name)).parameters.values()
    assert first.name == "seed"
    assert second.name in ("amount", "count")
    assert all(parameter.default is not parameter.empty for parameter in others)
