"""What a bundle, an input or a machine can do wrong, tried at random, section by section.

    python -m benchmarks.robustness                       # all of it
    python -m benchmarks.robustness --short               # seconds, as the tests do
    python -m benchmarks.robustness --only kills writers  # these alone
    python -m benchmarks.robustness --again               # sections that are done too

Figures are saved after each section, with the machine and the versions that it ran on. A run that was interrupted
continues where it was. A section of other settings, another machine or other versions is run again.
A section is one file with a function `(seed, amount) -> counts`. It stands in `SECTIONS` with what it counts by. One of
`part` takes minutes, so it is saved after each such part (its function takes `first` too).
"""

import argparse
import importlib
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness.common import RESULTS, version_of
from dynamic.profiling.machine import machine_name
from dynamic.storage.atomic_write import replace_text

Counts = dict[str, Any]


@dataclass(frozen=True)
class Section:
    """One thing that is tried: `name` of its file and function, how much of it, and which counts have to be 0."""

    name: str
    amount: float  # a number of trials, or seconds, as the section says
    short: float
    zero: tuple[str, ...]
    part: int | None = None  # trials after which it is saved

    def run(self, seed: int, amount: float, **options: Any) -> Counts:
        """What was counted. The file is imported only now: one section needs torch, another must not have it."""
        function: Callable[..., Counts] = getattr(
            importlib.import_module(f"benchmarks.robustness.{self.name}"), self.name
        )
        return function(seed, amount, **options)


SECTIONS = (
    Section("kills", amount=300, short=5, zero=("lost", "left", "left_temporary")),
    Section("writers", amount=60, short=2, zero=("failed_loads", "mixed_loads", "failed_saves", "left")),
    Section(
        "altered",
        amount=5000,
        short=30,
        zero=("raw", "silent_point", "silent_answer", "silent_loss_of_costs"),
        part=250,
    ),
    Section("inputs", 3000, 100, ("raw", "certified_without_answer", "certified_not_finite", "wrong_answers")),
    Section("buffers", amount=1000, short=20, zero=("wrong", "peaks_above_limit")),
    Section("swaps", amount=50, short=3, zero=("failed", "below_goal")),
    Section("planted", amount=8, short=1, zero=("ran", "failed")),
)


def main() -> None:
    """Run what is not done yet; exits with an error where a count that has to be 0 is not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--short", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--only", nargs="*", choices=[section.name for section in SECTIONS])
    parser.add_argument("--again", action="store_true", help="sections that are done too")
    parser.add_argument("--results", type=Path, default=RESULTS / "robustness" / "robustness.json")
    options = parser.parse_args()
    done = earlier(options.results)
    wrong = []
    for section in SECTIONS:
        if options.only and section.name not in options.only:
            continue
        amount = section.short if options.short else section.amount
        about = {"settings": {"seed": options.seed, "amount": amount}, **environment()}
        if options.again or not is_of(done.get(section.name), about):
            print(f"{section.name}: {amount:g}", file=sys.stderr, flush=True)
            run_section(section, about, done, options.results)
        wrong += [f"{section.name}: {key}" for key in section.zero if done[section.name]["counts"][key]]
    print(table(done))
    missing = [section.name for section in SECTIONS if section.name not in done]
    if missing and not options.only:
        wrong.append(f"no results of {', '.join(missing)}")
    if wrong:
        sys.exit(f"not 0: {', '.join(wrong)}")


def is_of(section: Mapping[str, Any] | None, about: Mapping[str, Any]) -> bool:
    """Whether a section that was saved is whole, and of these settings, this machine and these versions."""
    return section is not None and "next" not in section and {key: section.get(key) for key in about} == about


def run_section(section: Section, about: Mapping[str, Any], done: dict[str, Any], results: Path) -> None:
    """Run a section, in parts where it has some, from the part on that an earlier run did not reach."""
    seed, amount = about["settings"]["seed"], about["settings"]["amount"]
    if section.part is None:
        began = time.monotonic()
        counts = section.run(seed, amount)
        done[section.name] = {**about, "seconds": round(time.monotonic() - began), "counts": counts}
        save(results, done)
        return
    before = done.get(section.name, {})
    if "next" not in before or {key: before.get(key) for key in about} != about:
        before = {**about, "seconds": 0, "next": 0, "counts": {}}
    while before["next"] < amount:
        began, first = time.monotonic(), before["next"]
        count = min(section.part, int(amount) - first)
        counts = added(before["counts"], section.run(seed, count, first=first))
        before |= {"seconds": before["seconds"] + round(time.monotonic() - began), "next": first + count}
        before |= {"counts": counts}
        done[section.name] = before
        save(results, done)
        print(f"{section.name}: {first + count} of {amount:g}", file=sys.stderr, flush=True)
    del before["next"]
    save(results, done)


def added(one: Counts, other: Counts) -> Counts:
    """The counts of two parts: numbers added, the first few errors of both."""
    total = {key: one.get(key, 0) + value for key, value in other.items() if key != "errors"}
    rest = {key: value for key, value in one.items() if key not in other}
    return {**total, **rest, "errors": [*one.get("errors", []), *other.get("errors", [])][:5]}


def environment() -> dict[str, Any]:
    """The machine and the versions that counts belong to. Those of this library do not depend on a commit."""
    packages = ("dynamic-inference", "numpy", "onnxruntime", "openvino", "torch")
    found = {package: number.partition("+")[0] for package in packages if (number := version_of(package))}
    return {"machine": machine_name(), "versions": {"python": sys.version.split()[0], **found}}


def earlier(path: Path) -> dict[str, Any]:
    """The sections of a file that an earlier run saved; empty where there is none."""
    try:
        sections: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["sections"]
    except (FileNotFoundError, ValueError, KeyError):
        return {}
    return sections


def save(path: Path, sections: dict[str, Any]) -> None:
    """Write the sections with the command. Each has its machine and versions, the file those of the last run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(
        path, json.dumps({"command": "python -m benchmarks.robustness", "sections": sections}, indent=1) + "\n"
    )


def table(sections: dict[str, Any]) -> str:
    """The counts as a Markdown table."""
    lines = ["| section | amount | counts |", "| --- | --- | --- |"]
    for name, section in sections.items():
        counts = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in section["counts"].items())
        amount = section.get("next", section["settings"]["amount"])  # of one that was interrupted
        lines.append(f"| {name} | {amount:g} | {counts} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
