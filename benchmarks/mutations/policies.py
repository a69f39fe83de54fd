"""How many faults in `policies/` the tests of `policies/` notice: mutants drawn by lot, each of them tested.

    python -m benchmarks.mutations.policies --count 40 --seed 0

cosmic-ray plants one fault at a time into a copy of the committed files. The test files that name the file's module run
first, the shortest before the others, and all tests of `policies/` where none of these failed. A mutant is killed where
a test fails, or where its first tests take more than `--limit-s`, since an endless loop is a fault too.

It needs cosmic-ray (`pip install cosmic-ray`). Some minutes to an hour, by the number of mutants that survive.
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

import cosmic_ray.plugins
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
    parser.add_argument("--skip-whole", action="store_true", help="do not run all tests without a mutant first")
    parser.add_argument("--limit-s", type=float, default=900, help="seconds for the tests that name a module")
    parser.add_argument("--work", type=Path, help="a folder for the copy, which is used again where it exists")
    options = parser.parse_args()
    folder = options.work or Path(tempfile.mkdtemp(prefix="mutants-"))
    copy = _copy(folder / "copy")
    every = mutants_of([p for p in sorted((copy / "policies").rglob("*.py")) if p.name != "__init__.py"])
    drawn = drawn_by_lot(every, options.count, options.seed)
    if not options.only and not options.skip_whole and _pytest(copy, ["-m", "pytest", *_QUIET, TESTS]):
        sys.exit("a test fails without any mutant: mend it first")
    rows: list[dict[str, Any]] = []
    for number, mutation in enumerate(drawn):
        if options.only and number not in options.only:
            continue
        rows.append({"number": number} | _tested(copy, mutation, options.limit_s))
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


def _own_tests(copy: Path, name: str) -> list[str]:
    """The test files that name a module, the shortest first."""
    module = "dynamic." + name.removesuffix(".py").replace("/", ".")
    files = {path: path.read_text(encoding="utf-8") for path in (copy / TESTS).rglob("test_*.py")}
    naming = [path for path, text in files.items() if f"{module} " in text or f"{module}." in text]
    return [path.relative_to(copy).as_posix() for path in sorted(naming, key=lambda path: (len(files[path]), path))]


def _tested(copy: Path, mutation: MutationSpec, limit_s: float) -> dict[str, Any]:
    """What a mutant changes, and whether a test failed."""
    path = Path(mutation.module_path)
    name = path.relative_to(copy).as_posix()
    operator = cosmic_ray.plugins.get_operator(mutation.operator_name)(**(mutation.operator_args or {}))
    own = _own_tests(copy, name)
    began = time.monotonic()
    with use_mutation(path, operator, mutation.occurrence) as (before, after):
        pairs = zip(before.splitlines(), (after or before).splitlines(), strict=False)
        changed = [(a, b) for a, b in pairs if a != b][:1]
        killed_by = None
        for by, tests, limit in (("tests that name it", own, limit_s), ("all tests", [TESTS], None)):
            code = _pytest(copy, ["-m", "pytest", *_QUIET, *tests], limit) if tests else 0
            if code in (3, 4, 5):
                sys.exit(f"pytest did not run {tests}: exit code {code}")
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
        "tests": own,
        "killed": killed_by is not None,
        "by": killed_by,
        "seconds": round(time.monotonic() - began),
    }


if __name__ == "__main__":
    main()
