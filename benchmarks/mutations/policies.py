"""How many faults in `policies/` the tests of `policies/` notice: mutants drawn by lot, each of them tested.

    python -m benchmarks.mutations.policies --count 40 --seed 0

The tests run once under coverage, which notes the tests of every line. Then cosmic-ray plants one fault at a time into
a copy of the committed files. The tests of its line run first, the fastest before the others, and all tests of
`policies/` where none of these failed. A mutant is killed where a test fails, or where tests take ten times as long as
before.

It needs cosmic-ray and coverage (`pip install cosmic-ray coverage`), and no clock: load makes it slower, and changes no
outcome but that of endless loops.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import cosmic_ray.plugins
import coverage
from cosmic_ray.mutating import use_mutation
from cosmic_ray.work_item import MutationSpec

from benchmarks.harness.common import ROOT, progress, save
from benchmarks.mutations.mutants import drawn_by_lot, mutants_of

TESTS = "tests/policies"
_QUIET = ("-q", "-x", "-p", "no:randomly", "-p", "no:cacheprovider", "-n", "0")


def main() -> None:
    """Draw the mutants, run the tests against each, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=40, help="mutants that are drawn")
    parser.add_argument("--seed", type=int, default=0, help="of the lot")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of the draw, to test some of them again")
    parser.add_argument("--work", type=Path, help="a folder for the copy, which is used again where it exists")
    options = parser.parse_args()
    folder = options.work or Path(tempfile.mkdtemp(prefix="mutants-"))
    copy = _copy(folder / "copy")
    every = mutants_of([p for p in sorted((copy / "policies").rglob("*.py")) if p.name != "__init__.py"])
    drawn = drawn_by_lot(every, options.count, options.seed)
    tests_of, took_s = _covering_tests(copy, folder)
    rows: list[dict[str, Any]] = []
    for number, mutation in enumerate(drawn):
        if options.only and number not in options.only:
            continue
        rows.append({"number": number} | _tested(copy, mutation, tests_of, took_s))
        progress(json.dumps(rows[-1]))
        if not options.only:
            _save(rows, len(every), options.seed)
    print(f"{sum(row['killed'] for row in rows)} of {len(rows)} killed")


def _save(rows: list[dict[str, Any]], mutants: int, seed: int) -> None:
    killed = sum(row["killed"] for row in rows)
    figures = {"mutants": mutants, "seed": seed, "drawn": len(rows), "killed": killed, "share": killed / len(rows)}
    save("mutations/policies", figures | {"rows": rows})


def _copy(copy: Path) -> Path:
    """The committed files, importable as the package by links."""
    if not copy.exists():
        copy.mkdir(parents=True)
        files = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x", "-C", str(copy)], input=files, check=True)
        for name in ("policies", "models"):
            (copy / "dynamic" / name).symlink_to(copy / name)
    return copy


def _pytest(copy: Path, arguments: list[str], limit_s: float | None = None) -> int | None:
    """The exit code of pytest in the copy. None: it took longer."""
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, *arguments]
    process = subprocess.Popen(
        command, cwd=copy, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        return process.wait(limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.wait()
        return None


def _covering_tests(copy: Path, folder: Path) -> tuple[dict[tuple[str, int], set[str]], dict[str, float]]:
    """The tests that ran each line of each file, and how long each test took."""
    data, times, settings = folder / "lines.coverage", folder / "times.xml", folder / "coveragerc"
    settings.write_text(f"[run]\ndata_file = {data}\nsource = {copy / 'policies'}\n", encoding="utf-8")
    if not times.exists():
        progress("the tests under coverage")
        plugin = ["-p", "benchmarks.mutations.line_contexts", f"--junitxml={times}", "-o", "junit_family=xunit1"]
        run = ["-m", "coverage", "run", f"--rcfile={settings}", "-m", "pytest", *_QUIET, *plugin, TESTS]
        if _pytest(copy, run):
            sys.exit("a test fails without any mutant: mend it first")
    read = coverage.CoverageData(str(data))
    read.read()
    tests_of = {}
    for file in read.measured_files():
        name = Path(file).resolve().relative_to(copy.resolve()).as_posix()
        for line, tests in read.contexts_by_lineno(file).items():
            tests_of[name, line] = {test for test in tests if test}
    cases = ElementTree.parse(times).iter("testcase")
    took_s = {f"{c.get('file')}::{c.get('name')}": float(c.get("time") or 0) for c in cases}
    return tests_of, took_s


def _tested(
    copy: Path, mutation: MutationSpec, tests_of: dict[tuple[str, int], set[str]], took_s: dict[str, float]
) -> dict[str, Any]:
    """What a mutant changes, and whether a test failed."""
    path = Path(mutation.module_path)
    name = path.relative_to(copy).as_posix()
    operator = cosmic_ray.plugins.get_operator(mutation.operator_name)(**(mutation.operator_args or {}))
    lines = range(mutation.start_pos[0], mutation.end_pos[0] + 1)
    covering = {test for line in lines for test in tests_of.get((name, line), ())}
    ordered = sorted(covering, key=lambda test: (took_s.get(test, 0.0), test))
    began = time.monotonic()
    with use_mutation(path, operator, mutation.occurrence) as (before, after):
        changed = [(a, b) for a, b in zip(before.splitlines(), after.splitlines(), strict=False) if a != b][:1]
        killed_by = None
        for by, tests in (("tests of its line", ordered), ("all tests", [TESTS])):
            limit_s = 120 + 10 * sum(took_s.get(test, 0.0) for test in ordered) if tests is ordered else None
            code = _pytest(copy, ["-m", "pytest", *_QUIET, *tests], limit_s) if tests else 0
            if code is None:
                killed_by = "time"
            elif code:
                killed_by = by
            if killed_by:
                break
    return {
        "file": f"{name}:{mutation.start_pos[0]}",
        "operator": mutation.operator_name.removeprefix("core/"),
        "before": changed[0][0].strip() if changed else "",
        "after": changed[0][1].strip() if changed else "",
        "tests": len(ordered),
        "killed": killed_by is not None,
        "by": killed_by,
        "seconds": round(time.monotonic() - began),
    }


if __name__ == "__main__":
    main()
