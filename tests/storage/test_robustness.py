"""A short form of `benchmarks/robustness`, and that an interrupted run goes on."""

import collections
import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch

import benchmarks.robustness.__main__ as run
from benchmarks.robustness import inputs

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
        assert counts["kills"] == 5
    else:
        assert counts["saves"] > 0
        assert counts["loads"] > 0


def test_a_run_that_was_interrupted_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[str, int, float]] = []

    class Counted(run.Section):
        def run(self, seed: int, amount: float, **options: Any) -> dict[str, Any]:
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


def test_a_section_of_parts_goes_on_with_the_next_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[float, int]] = []

    class Counted(run.Section):
        def run(self, seed: int, amount: float, **options: Any) -> dict[str, Any]:
            calls.append((amount, options["first"]))
            if len(calls) == 3:
                raise KeyboardInterrupt
            return {"tried": int(amount), "raw": 0, "errors": [f"of {options['first']}"]}

    monkeypatch.setattr(run, "SECTIONS", (Counted("altered", 50, 5, ("raw",), part=20),))
    results = tmp_path / "robustness.json"
    monkeypatch.setattr(sys, "argv", ["run", "--again", "--results", str(results)])
    with pytest.raises(KeyboardInterrupt):
        run.main()
    run.main()
    assert calls == [(20, 0), (20, 20), (10, 40), (10, 40)]
    saved = json.loads(results.read_text())["sections"]["altered"]
    assert saved["counts"] == {"tried": 50, "raw": 0, "errors": ["of 0", "of 20", "of 40"]}
    assert "next" not in saved


@pytest.mark.parametrize("change", ["machine", "versions", "settings"])
def test_a_section_of_another_machine_or_version_is_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    calls: list[str] = []

    class Counted(run.Section):
        def run(self, seed: int, amount: float, **options: Any) -> dict[str, Any]:
            calls.append(self.name)
            return {"lost": 0}

    monkeypatch.setattr(run, "SECTIONS", tuple(Counted(name, 100, 5, ("lost",)) for name in ("first", "second")))
    results = tmp_path / "robustness.json"
    monkeypatch.setattr(sys, "argv", ["run", "--results", str(results)])
    run.main()
    run.main()
    assert calls == ["first", "second"]
    saved = json.loads(results.read_text())
    saved["sections"]["second"][change] = {"another": "one"}
    results.write_text(json.dumps(saved))
    run.main()
    assert calls == ["first", "second", "second"]


def test_the_results_have_every_section() -> None:
    """As `docs/storage.md` quotes them: in full, on one machine, with nothing that must not be."""
    path = ROOT / "benchmarks" / "results" / "robustness" / "robustness.json"
    saved = json.loads(path.read_text(encoding="utf-8"))["sections"]
    for section in run.SECTIONS:
        assert section.name in saved, section.name
        assert "next" not in saved[section.name], f"{section.name} was interrupted"
        assert saved[section.name]["settings"] == {"seed": 0, "amount": section.amount}
        counts = saved[section.name]["counts"]
        assert {key: counts[key] for key in section.zero if counts[key]} == {}  # numbers, or lists of what went wrong


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.zeros(3), False),
        (np.array([0.0, np.nan]), True),
        ([0.0, [float("inf")]], True),
        ([np.zeros(2), np.array([np.nan, 1])], True),
        (memoryview(np.array([np.nan, 1.0])), True),
        (memoryview(np.array([2.0, 1.0])), False),
        ({"input": (np.array([np.inf]),)}, True),
        (inputs.Dlpack(np.array([np.nan])), True),
        (inputs.Dlpack(np.array([1.0])), False),
        (torch.tensor([float("nan")], dtype=torch.bfloat16), True),
        (torch.tensor([1.0], dtype=torch.bfloat16), False),
        (collections.deque([[float("nan")]]), True),
        (np.array([1, np.nan], object), True),
        (inputs.cyclic(Random(0), None), False),
        ("word", False),
        (None, False),
        (inputs.Raises(), False),
    ],
)
def test_the_benchmark_sees_what_is_not_finite(value: Any, expected: bool) -> None:
    assert inputs.is_not_finite(value) == expected


@pytest.mark.parametrize("section", run.SECTIONS, ids=lambda section: section.name)
def test_every_section_is_a_file_with_its_function(section: run.Section) -> None:
    module = importlib.import_module(f"benchmarks.robustness.{section.name}")
    first, second, *others = inspect.signature(getattr(module, section.name)).parameters.values()
    assert first.name == "seed"
    assert second.name in ("amount", "count")
    assert all(parameter.default is not parameter.empty for parameter in others)
